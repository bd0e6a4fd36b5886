"""Audit and odd on features whose truth is known, from arrays and from the command line."""

import csv

import numpy as np
import pytest
import torch
from fabricate import call, refuses

import find
from common.synthetic import make_store
from find.classes import train_network, weigh
from find.cli import main
from find.scorers import from_head
from train.checkpoint import load_head
from train.config import Config
from train.fit import fit
from train.methods.base import build_method


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
    assert {each.row for each in found.findings[:12]} == set(changed.tolist())
    assert len(found.flagged) >= 10  # two are hard to tell; what fits another class is not called foreign for it
    assert {each.question for each in found.flagged} == {"label"}
    first = [each for each in found.findings if each.question == "label"][:10]
    assert {each.row for each in first} <= set(changed.tolist())
    assert [each.suggested for each in first] == ["abcde"[labels[each.row]] for each in first]
    assert all(each.own == "abcde"[given[each.row]] for each in first)
    assert all(each.flagged for each in first)
    assert found.settings["noise_rate"] == pytest.approx(0.04, abs=0.01)
    assert find.audit(features, given, class_names=list("abcde")) == found


def test_one_picture_in_two_classes_is_one_finding_and_the_less_likely_class_is_blamed():
    features, labels = clusters(3, 30)
    features[70] = features[4]  # a picture of class 0, also in class 2
    found = find.audit(features, labels, class_names="abc")
    (conflict,) = [each for each in found.findings if each.copies]
    assert (conflict.row, conflict.own, conflict.suggested) == (70, "c", "a")
    assert (conflict.question, conflict.flagged, conflict.q) == ("label", True, 0)
    assert conflict.probability > 0.9
    assert [image.row for image in conflict.copies] == [4]
    assert [each.row for each in found.flagged] == [70]


def test_of_many_copies_the_one_in_another_class_is_blamed_in_any_order():
    features, labels = clusters(3, 30)
    middle = features[:60].mean(0)  # of which nobody can say to what it belongs
    features[[*range(20), 40]] = middle
    names = np.array([f"{i:02d}.png" for i in range(90)])
    for order in (np.arange(90), np.arange(90)[::-1], np.random.default_rng(0).permutation(90)):
        found = find.audit(features[order], labels[order], paths=names[order])
        assert [(each.path, each.suggested, len(each.copies)) for each in found.flagged] == [("40.png", "0", 20)]


def test_what_is_found_does_not_depend_on_the_order_of_the_images():
    features, labels = clusters(4, 40)
    features[9] *= -3
    labels[50] = 3
    order = np.random.default_rng(1).permutation(160)
    names = np.array([f"{i}.png" for i in range(160)])
    first = find.audit(features, labels, paths=names)
    second = find.audit(features[order], labels[order], paths=names[order])
    for one, other in zip(first.flagged, second.flagged, strict=True):
        assert (one.path, one.question, one.suggested) == (other.path, other.question, other.suggested)
        assert one.probability == pytest.approx(other.probability, abs=1e-3)


def test_copies_in_one_class_count_once_and_accuse_nobody():
    features, labels = clusters(3, 40)
    alone = find.audit(features, labels)
    copied = np.concatenate([features, np.repeat(features[:1], 400, 0)])
    found = find.audit(copied, np.concatenate([labels, np.zeros(400, int)]))
    assert not found.flagged
    (group,) = [each for each in found.findings if each.question == "duplicate"]
    assert (group.row, len(group.copies), group.why) == (0, 400, ("400 more of exactly this picture",))
    assert not alone.flagged


def test_foreign_images_are_told_from_wrong_labels_and_from_hard_images():
    features, labels = clusters(10, 40, dim=128)
    strange = [7, 107, 207]
    features[strange] = np.random.default_rng(2).choice([-6.0, 6.0], (3, 128))
    given = labels.copy()
    given[300] = 2
    found = find.audit(features, given)
    asked = {each.row: each for each in found.flagged}
    assert {*strange, 300} <= set(asked)
    assert len(asked) <= 5
    assert {(asked[row].question, asked[row].suggested) for row in strange} == {("foreign", None)}
    assert (asked[300].question, asked[300].suggested, asked[300].neighbours) == ("label", "7", ())
    assert [found.thresholds[name].flagged for name in ("foreign", "label")] == [len(asked) - 1, 1]
    assert all(each.q <= 0.1 for each in found.flagged)


def test_a_foreign_image_comes_with_the_images_that_are_most_like_it():
    features, labels = clusters(4, 40, dim=64)
    features[10] = -4 * features[90]
    features[11] = features[10] + 0.01
    found = {each.row: each for each in find.audit(features, labels).flagged}
    (finding,) = found.values()  # of two copies one stands for both
    cosine = features @ features[10] / np.linalg.norm(features, axis=1)
    nearest = [row for row in np.argsort(-cosine) if row not in (10, 11)][:5]
    assert [image.row for image in finding.neighbours] == nearest
    assert {finding.row, *(image.row for image in finding.copies)} == {10, 11}


def test_one_class_is_asked_for_foreign_and_twice_alone():
    features, _ = clusters(1, 60, dim=64)
    features[3], features[20] = -features[3], features[21]
    found = find.audit(features, ["ant"] * 60)
    assert [(each.row, each.question) for each in found.flagged] == [(3, "foreign")]
    assert {each.question for each in found.findings} == {"foreign", "duplicate"}
    assert set(found.thresholds) == {"foreign"}


def test_classes_that_are_too_small_are_said_and_the_others_are_judged():
    features, labels = clusters(4, 40)
    kept = np.concatenate([np.arange(80), [80, 120, 121]])
    given = labels[kept].copy()
    given[5] = 1
    found = find.audit(features[kept], given, class_names=["a", "b", "one", "two", "none"])
    assert found.too_small == {"one": 1, "two": 2, "none": 0}
    assert [(each.row, each.suggested) for each in found.flagged] == [(5, "a")]
    assert set(found.typical) == {"a", "b"}
    refuses("no class has 3 different images", find.audit, *clusters(4, 2))


@pytest.mark.parametrize("images", [6, 60, 300])
def test_labels_that_nothing_predicts_are_not_called_wrong(images):
    features = np.random.default_rng(0).normal(size=(images, 16)).astype(np.float32)
    for classes in (2, 4):
        labels = np.random.default_rng(classes).permutation(np.arange(images) % min(classes, images // 3))
        assert not [each for each in find.audit(features, labels).flagged if each.question == "label"]


def test_classes_references_and_heads_that_do_not_suit_are_named():
    features, labels = clusters(3, 20)
    features[20:40] = features[:20]
    refuses('classes "a" and "b" hold the same pictures', find.audit, features, labels, class_names="abc")
    features, labels = clusters(4, 20)
    spoilt = np.where(np.arange(len(features))[:, None] == 3, np.nan, features)
    refuses(
        "the images of the reference have values that are not finite", find.odd, features, reference=(spoilt, labels)
    )
    refuses("deep_plda", from_head, build_method(Config("mlp"), 32, 6))


def test_a_stranger_is_odd_and_a_clean_folder_has_nothing_odd():
    features, _ = clusters(1, 60)
    assert not any(each.flagged for each in find.odd(features).findings)
    features[17] += 12 * np.random.default_rng(5).normal(size=features.shape[1]).astype(np.float32)
    found = find.odd(features)
    assert [each.row for each in found.flagged] == [17]
    assert len(found.flagged[0].neighbours) == 5


@pytest.mark.parametrize("images", [20, 30, 80, 300])
def test_a_folder_alone_is_rarely_said_to_have_what_it_has_not(images):
    flagged = []
    for seed in range(20):
        features, _ = clusters(2, images, seed, dim=512)
        clean, features[0] = features[:images].copy(), features[images]
        flagged.append([len(find.odd(folder).flagged) > 0 for folder in (clean, features[:images])])
    alarms, finds = np.sum(flagged, 0)
    assert alarms <= 2
    assert finds >= 18


@pytest.mark.parametrize("scale", [1e-10, 1e10])
def test_the_scale_of_features_does_not_matter(scale):
    features, _ = clusters(1, 60)
    features[17] *= -1
    assert [each.row for each in find.odd(features * np.float32(scale)).flagged] == [17]


@pytest.mark.parametrize("command", ["audit", "odd"])
def test_a_command_writes_the_page_and_its_tables(tmp_path, command):
    store = make_store(tmp_path / "s.h5", classes=4, train=30, test=10)
    call(main, command, store.path, "--out", tmp_path / "out")
    assert (tmp_path / "out/index.html").is_file()
    rows = list(csv.DictReader((tmp_path / "out/findings.csv").open(encoding="utf-8")))
    assert all(0 <= float(row["probability"]) <= 1 for row in rows)


def test_a_stranger_is_found_by_a_reference(monkeypatch):
    features, labels = clusters(6, 180)
    new = np.arange(len(labels)) % 180 < 60
    reference = features[~new], labels[~new]
    folder = np.concatenate([features[new & (labels == 0)], features[new & (labels == 1)][:1]])
    found = find.odd(folder, reference=reference)
    assert (found.flagged[0].row, found.flagged[0].q) == (60, 0)
    assert found.settings["scores"] == "reference statistics"
    assert not [each for each in find.odd(folder[:-1], reference=reference).flagged if each.q < 0.01]
    monkeypatch.setattr("find.scorers.ROWS_AT_A_TIME", 7)
    again = find.odd(folder, reference=reference)
    assert [each.row for each in again.findings[:9]] == [each.row for each in found.findings[:9]]
    assert again.findings[0].scores["distance"] == pytest.approx(found.findings[0].scores["distance"])


def test_a_reference_of_two_other_classes_does_not_hide_a_stranger():
    features, labels = clusters(4, 100, dim=256)
    reference = features[labels < 2], labels[labels < 2]
    folder = np.concatenate([features[labels == 2], features[labels == 3][:1]])
    apart = features[labels == 0].mean(0) - features[labels == 1].mean(0)
    folder += 20 * np.random.default_rng(0).normal(size=(101, 1)) * apart / np.linalg.norm(apart)
    found = find.odd(folder, reference=reference)
    assert (found.findings[0].row, found.findings[0].flagged) == (100, True)


@pytest.mark.parametrize("method", ["posterior", "posterior_transformer", "deep_plda"])
def test_a_stranger_is_found_by_a_head(method):
    features, labels = clusters(6, 80)
    head = build_method(Config(method), features.shape[1], 6)
    x, y = torch.from_numpy(features), torch.from_numpy(labels)
    train_network(Logits(head), x, y, torch.arange(len(y)), 0, False)
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


class Logits(torch.nn.Module):
    """A head as the loss on classes wants it: what it says of classes is all that it gives for an image."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def encode(self, features):
        return self.head.class_logits(self.head.encode(features))

    def seed_dropout(self, generator):
        self.head.seed_dropout(generator)


def test_what_cannot_be_judged_is_said():
    features, labels = clusters(2, 20)
    for n in range(3):
        refuses(f"there are {n} images: at least 3 are needed", find.odd, features[:n])
    refuses("all 9 images have the same features", find.odd, np.ones((9, 8), np.float32))
    refuses("there are 0 labels for 40 images", find.audit, features, None)
    held_out = features[:, :5], labels
    refuses("held-out images' features have 5", find.odd, features, reference=(features, labels), held_out=held_out)


def test_three_subjects_in_one_folder_are_said_to_be_so():
    features, labels = clusters(3, 40, dim=64)
    found = find.odd(features)
    assert [group.size for group in found.groups] == [40, 40, 40]
    expected = [np.flatnonzero(labels == label).tolist() for label in range(3)]
    assert sorted(sorted(group.rows) for group in found.groups) == expected
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


def test_a_head_and_a_reference_of_another_backbone_are_refused_and_a_head_of_the_same_is_taken(tmp_path):
    store = make_store(tmp_path / "s.h5", classes=4, train=40, test=20)
    small = ["head.width=16", "head.hidden=16", "training.epochs=1"]
    fit(Config.load(None, ["method=deep_plda", *small]), store, tmp_path / "run", lambda _: None)
    call(main, "odd", store.path, "--run", tmp_path / "run", "--out", tmp_path / "out")
    other = make_store(tmp_path / "t.h5", feature_dim=8).path
    assert "backbone" in call(main, "odd", other, "--run", tmp_path / "run", code=2).output
    assert "backbone" in call(main, "odd", store.path, "--reference", other, code=2).output
