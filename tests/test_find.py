"""Audit and odd on features whose truth is known, from arrays and from the command line."""

import csv

import numpy as np
import pytest
from click.testing import CliRunner

import find
from common.errors import UserError
from common.synthetic import make_store
from find.cli import main


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


def test_a_stranger_is_odd_and_a_clean_folder_has_nothing_odd():
    features, _ = clusters(1, 60)
    assert not any(each.flagged for each in find.odd(features).findings)
    features[17] += 12 * np.random.default_rng(5).normal(size=features.shape[1]).astype(np.float32)
    found = find.odd(features, rate=0.3)
    assert found.findings[0].row == 17
    assert found.findings[0].flagged


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
