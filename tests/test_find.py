"""Audit and odd on features whose truth is known, from arrays and from the command line."""

import csv

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy.special import expit, logit

import find
from common.errors import UserError
from common.synthetic import make_store
from find.calibration import reliability, share_at_most, tempered
from find.classes import train_network, weigh
from find.cli import main
from find.listing import conclude
from find.scorers import from_head
from train.checkpoint import load_head
from train.config import Config
from train.fit import fit
from train.methods import build_method


def clusters(classes, each, seed=0, dim=32):
    """Features (n, dim) around one centre a class, and labels (n,)."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each)
    features = 2 * generator.normal(size=(classes, dim))[labels] + generator.normal(size=(len(labels), dim))
    return features.astype(np.float32), labels


def test_changed_labels_come_first_with_the_class_that_they_had():
    features, labels = clusters(5, 60)
    changed = np.random.default_rng(1).choice(len(labels), 12, replace=False)
    given = labels.copy()
    given[changed] = (given[changed] + 1) % 5
    found = find.audit(features, given, class_names=list("abcde"))
    first = found.findings[:12]
    assert {each.row for each in first} == set(changed.tolist())
    assert [each.suggested for each in first] == ["abcde"[labels[each.row]] for each in first]
    assert all(each.own == "abcde"[given[each.row]] for each in first)
    assert 12 <= sum(each.flagged for each in found.findings) <= 14
    assert find.audit(features, given, class_names=list("abcde")) == found


def test_equal_pictures_with_different_labels_are_a_conflict_for_certain():
    features, labels = clusters(3, 30)
    digests = np.random.default_rng(0).integers(256, size=(len(labels), 32), dtype=np.uint8)
    features[70], digests[70] = features[4], digests[4]
    found = {each.row: each for each in find.audit(features, labels, digests=digests).findings}
    assert found[4].probability == found[70].probability == 1
    assert (found[4].kind, found[4].duplicate_of) == ("duplicate", (70,))


def test_images_of_no_class_are_told_from_wrong_labels_and_from_hard_images():
    features, labels = clusters(10, 40, dim=128)
    strange = [7, 107, 207]
    features[strange] = np.random.default_rng(2).choice([-6.0, 6.0], (3, 128))
    first, second, third, fourth = find.audit(features, labels).findings[:4]
    assert {first.row, second.row, third.row} == set(strange)
    assert {(each.kind, each.suggested) for each in (first, second, third)} == {("no class", None)}
    assert first.flagged and second.flagged and third.flagged and not fourth.flagged


def test_what_is_odd_in_a_class_of_two_does_not_accuse_the_other_one():
    features, labels = clusters(30, 3, dim=128)
    two = np.sort(np.random.default_rng(0).permutation(90)[:80])
    features[two[0]] = np.random.default_rng(2).choice([-6.0, 6.0], 128)
    found = find.audit(features, labels)
    assert not [each for each in found.findings if each.kind == "no class" and each.row not in two[:1]]
    with pytest.raises(UserError, match="no class has more than 2 images"):
        find.audit(*clusters(4, 2))


def test_hard_images_are_not_taken_for_images_of_no_class():
    features, labels = clusters(10, 60)
    hard = np.random.default_rng(3).choice(len(labels), 120, replace=False)
    features[hard] += np.random.default_rng(4).normal(size=(120, 32)).astype(np.float32)
    assert not any(each.flagged for each in find.audit(features, labels).findings)


def test_probabilities_that_promise_too_much_are_tempered_and_others_are_left():
    generator, share = np.random.default_rng(0), 0.1
    wrong = generator.random(20_000) < share
    x = generator.normal(size=20_000) + np.where(wrong, 1, -1)  # whose log-odds are 2 x and the prior's
    known = generator.normal(size=5_000) + 1
    true, boasted, timid = (lambda x, k=k: expit(k * 2 * x + logit(share)) for k in (1, 2, 0.5))
    assert max(abs(bar.mean - bar.observed) for bar in reliability(boasted(x), wrong)) > 0.15
    tamed = tempered(boasted(x), boasted(known), share)(boasted(x))
    assert max(abs(bar.mean - bar.observed) for bar in reliability(tamed, wrong) if bar.n > 100) < 0.05
    for given in (true, timid):
        np.testing.assert_allclose(tempered(given(x), given(known), share)(given(x)), given(x), atol=0.04)
    backwards = tempered(boasted(-x), boasted(known), share)(np.linspace(0, 1, 9))
    assert (np.diff(backwards) >= 0).all()
    assert share_at_most(boasted(x), boasted(known)) == pytest.approx(share, rel=0.15)


def test_a_stranger_is_odd_and_a_clean_folder_has_nothing_odd():
    features, _ = clusters(1, 60)
    assert not any(each.flagged for each in find.odd(features).findings)
    features[17] += 12 * np.random.default_rng(5).normal(size=features.shape[1]).astype(np.float32)
    found = find.odd(features, rate=0.3)
    assert found.findings[0].row == 17
    assert found.findings[0].flagged


@pytest.mark.parametrize("images", [6, 10, 12, 19, 20, 30, 80, 300])
def test_a_folder_alone_is_rarely_said_to_have_what_it_has_not(images):
    said = []
    for seed in range(20):
        features, _ = clusters(2, images, seed, dim=512)
        clean, features[0] = features[:images].copy(), features[images]
        said.append([find.odd(folder).conclusion.startswith("nothing odd") for folder in (clean, features[:images])])
    right, missed = np.sum(said, 0)
    assert right >= 18
    assert missed <= 2


@pytest.mark.parametrize(
    ("features", "part"),
    [
        (np.zeros((0, 8), np.float32), "3"),
        (np.eye(2, 8, dtype=np.float32), "3"),
        (np.ones((9, 8), np.float32), "the same features"),
        (np.full((9, 8), np.nan, np.float32), "not finite"),
        (np.ones(9, np.float32), r"\(n, D\)"),
    ],
)
def test_what_cannot_be_judged_is_refused_in_one_sentence(features, part):
    with pytest.raises(UserError, match=part):
        find.odd(features)


@pytest.mark.parametrize("command", ["audit", "odd"])
def test_a_command_writes_the_page_and_its_tables(tmp_path, command):
    store = make_store(tmp_path / "s.h5", classes=4, train=30, test=10)
    result = CliRunner().invoke(main, [command, str(store.path), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out/index.html").is_file()
    rows = list(csv.DictReader((tmp_path / "out/findings.csv").open(encoding="utf-8")))
    assert all(0 <= float(row["probability"]) <= 1 for row in rows)


def test_a_reference_of_another_backbone_is_refused(tmp_path):
    store, other = make_store(tmp_path / "s.h5"), make_store(tmp_path / "t.h5", feature_dim=8)
    result = CliRunner().invoke(main, ["odd", str(store.path), "--reference", str(other.path)])
    assert result.exit_code == 2
    assert "backbone" in result.output


def test_a_reference_that_is_not_finite_is_refused():
    features, labels = clusters(4, 20)
    spoilt = np.where(np.arange(len(features))[:, None] == 3, np.nan, features)
    with pytest.raises(UserError, match="the images of the reference have values that are not finite"):
        find.odd(features, reference=(spoilt, labels))


def test_a_stranger_is_found_by_a_reference():
    features, labels = clusters(6, 180)
    new = np.arange(len(labels)) % 180 < 60
    reference = features[~new], labels[~new]
    folder = np.concatenate([features[new & (labels == 0)], features[new & (labels == 1)][:1]])
    found = find.odd(folder, reference=reference)
    assert [each.row for each in found.flagged] == [60]
    assert found.calibration
    assert found.settings["scores"] == "reference statistics"
    assert not find.odd(folder[:-1], reference=reference).flagged


@pytest.mark.parametrize("method", ["posterior", "posterior_transformer", "deep_plda"])
def test_a_stranger_is_found_by_a_head(method):
    features, labels = clusters(6, 80)
    head = build_method(Config(method), features.shape[1], 6)
    train_network(Logits(head), torch.from_numpy(features), torch.from_numpy(labels), 0, False)
    folder = features[labels == 0]
    folder[-1] = features[labels == 3][0]
    found = find.odd(folder, head=head, held_out=(features, labels))
    assert found.findings[0].row == 79
    assert found.findings[0].flagged
    assert found.settings["scores"] == type(head).__name__


def test_a_stranger_is_found_by_a_head_that_has_a_closed_form(tmp_path):
    store = make_store(tmp_path / "s.h5", classes=6, train=40, test=20, feature_dim=24)
    fit(Config.load(None, ["method=normalised_plda"]), store, tmp_path / "run", lambda _: None)
    features, labels = store.features[0].astype(np.float32), np.array(store.labels)
    folder = features[store.rows_of("test")][labels[store.rows_of("test")] == 0]
    folder[-1] = features[labels == 3][0]
    found = find.odd(folder, head=load_head(tmp_path / "run" / "checkpoint.pt"), held_out=(features, labels))
    assert (found.findings[0].row, found.settings["scores"]) == (len(folder) - 1, "NormalisedPLDA")


def test_what_is_odd_but_for_no_image_for_certain_is_said_to_be_so():
    assert conclude("odd", 9, 0, None, (), suspected=True) == (
        "something is probably odd here (9 images), but no image for certain: look at the first ones"
    )
    assert conclude("odd", 9, 0, None, ()) == "nothing odd here (9 images)"
    assert conclude("odd", 9, 2, 0.9, (), suspected=True).startswith("2 of 9 images flagged as odd")


class Logits(torch.nn.Module):
    """A head as the loss on classes wants it: what it says of classes is all that it gives for an image."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def encode(self, features):
        return self.head.class_logits(self.head.encode(features))

    def seed_dropout(self, generator):
        self.head.seed_dropout(generator)


def test_a_head_for_sets_of_one_size_is_refused():
    with pytest.raises(UserError, match="deep_plda"):
        from_head(build_method(Config("mlp"), 32, 6))


def test_three_subjects_in_one_folder_are_said_to_be_so():
    features, labels = clusters(3, 40, dim=64)
    found = find.odd(features)
    assert [group.size for group in found.groups] == [40, 40, 40]
    assert {frozenset(group.rows) for group in found.groups} == {
        frozenset(np.flatnonzero(labels == label).tolist()) for label in range(3)
    }
    assert "3 groups" in found.conclusion


@pytest.mark.parametrize(("to_similar", "low", "high"), [(True, 0.7, 1.0), (False, 0.0, 0.3)])
def test_it_is_seen_where_wrong_labels_go(to_similar, low, high):
    generator = np.random.default_rng(0)
    true = np.repeat(np.arange(20), 100)
    scores = generator.normal(size=(len(true), 20)).astype(np.float32)
    rows = np.arange(len(true))
    scores[rows, true] += 9
    scores[rows, true ^ 1] += 4  # the class that is like it
    given = true.copy()
    bad = generator.random(len(true)) < 0.08
    given[bad] = true[bad] ^ 1 if to_similar else (true[bad] + generator.integers(1, 20, bad.sum())) % 20
    found = weigh([scores], given)
    assert low <= found.near <= high
    assert found.noise == pytest.approx(0.08, abs=0.02)
    assert ((found.wrong(given) > 0.5) == bad).mean() > 0.99


def test_a_head_of_another_backbone_is_refused_and_one_of_the_same_is_taken(tmp_path):
    store = make_store(tmp_path / "s.h5", classes=4, train=40, test=20)
    small = ["head.width=16", "head.hidden=16", "training.epochs=1"]
    fit(Config.load(None, ["method=deep_plda", *small]), store, tmp_path / "run", lambda _: None)
    command = ["odd", str(store.path), "--run", str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    other = make_store(tmp_path / "t.h5", feature_dim=8)
    result = CliRunner().invoke(main, ["odd", str(other.path), "--run", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert "backbone" in result.output
