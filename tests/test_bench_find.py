"""The benchmark of find: pictures and labels are changed as it says, and its report becomes tables."""

import json

import numpy as np
import pytest
from fabricate import call

from bench.audits import change, compare, distances, folders, foreign_pictures, measure_folders, ten_lines
from bench.find import main, strangers_of, tables
from common.synthetic import make_store
from find.oddities import judge_alone


def test_labels_are_changed_within_their_group():
    labels, group = np.repeat(np.arange(6), 100), np.array([0, 0, 0, 1, 1, 1])
    given, bad = change(labels, group, 0)
    assert (given != labels).tolist() == bad.tolist()
    assert 10 < bad.sum() < 60
    assert (group[given] == group[labels]).all()


def test_what_is_flagged_is_judged_by_the_truth():
    bad = np.array([True, True, False, False])
    way = "ours", np.array([0.9, 0.2, 0.8, 0.1]), np.array([True, False, True, False])
    (found,) = compare(iter([way]), bad)
    assert (found["precision"], found["recall"], found["average_precision"]) == (0.5, 0.5, pytest.approx(5 / 6))


def test_foreign_pictures_are_put_in_and_every_way_sees_them():
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], 60)
    x = (generator.normal(size=(2, 16))[labels] * 4 + generator.normal(size=(120, 16))).astype(np.float32)
    rows = list(foreign_pictures(x, labels, generator.normal(size=(9, 16)).astype(np.float32), 1))
    assert {row["share"]: row["bad"] for row in rows} == {0.005: 1, 0.02: 2, 0.05: 6}
    ours = [row for row in rows if row["way"] == "find.audit"]
    assert len(ours) == 3
    assert all(row["average_precision"] > 0.5 for row in ours)


def test_a_folder_has_images_of_one_class_and_some_foreign_ones():
    labels = np.repeat(np.arange(4), 10)
    x = labels[:, None] + np.zeros((40, 3))
    made = list(folders((x, labels), None, 8, 5, 2))
    assert len(made) == 8
    for features, odd in made:
        assert ((features[:, 0] != features[0, 0]) == odd).all()
        assert (len(features), odd.sum()) == (13, 5)
    assert not list(folders((x, labels), None, 11, 1, 1))


def test_what_is_said_of_folders_is_counted():
    generator = np.random.default_rng(0)
    x = (np.repeat(np.eye(2, 64) * 30, 40, 0) + generator.normal(size=(80, 64))).astype(np.float32)
    rows = measure_folders((x, np.repeat([0, 1], 40)), None, 30, {"alone": judge_alone}, 1)
    ours = {row["way"]: row for row in rows}["alone"]
    assert (ours["average_precision_1"], ours["noticed_1"]) == (1, 1)
    assert ours["alarms"] in (0, 0.5)
    assert "alarms" not in {row["way"]: row for row in rows}["isolation forest"]


def test_the_farthest_image_has_the_farthest_neighbours():
    x = np.ones((90, 4)) + 0.01 * np.random.default_rng(0).normal(size=(90, 4))
    x[5] = [-1, 1, -1, 1]
    assert distances(x)[0].argmax() == 5
    scores, flagged = ten_lines(x, np.zeros(90, int), 0.1)
    assert scores.argmax() == 5
    assert flagged[5]


def test_pictures_that_fit_a_set_are_left_out(tmp_path, monkeypatch):
    store = make_store(tmp_path / "s.h5", classes=2, train=2, test=1)
    names = ["a/ant.jpg", "a/car.jpg", "a/daisy.jpg", "a/piano.jpg", "b/ant.jpg", "b/x.jpg"]
    monkeypatch.setattr(type(store), "names", lambda self, rows: names)
    assert len(strangers_of(store)) == 3


def test_the_tables_are_written_between_their_marks(tmp_path):
    row = {"set": "s", "backbone": "b", "to": "any class", "way": "ours", "average_precision": 0.5, "seconds": 3}
    flagged = {"bad": 4, "flagged": 2, "recall": 0.5, "precision": 1.0}
    labels = {"draws": 2, "rows": [row | flagged, {**row, "average_precision": 0.7} | flagged]}
    versions = dict.fromkeys(["cleanlab", "scikit-learn", "torch", "numpy"], "1")
    here = {"hardware": {"cpu": "a CPU", "threads": 2}, "versions": versions}
    report = {"labels": labels | here, "growth": {"draws": 1, "rows": [{"n": 10, "seconds": 2, "gigabytes": 1}]} | here}
    (tmp_path / "find.json").write_text(json.dumps(report))
    for line in ("| way | changed to | s, b |", "| ours | any class | 0.60 |", "| ours | any class | 1.00 · 0.50 |"):
        assert line in tables(report)
    text = tmp_path / "find.md"
    text.write_text("<!-- measured: find -->\n<!-- end -->\n")
    command = ["--out", tmp_path / "find.json", "--readme", text]
    assert call(main, *command).stderr == f"rewritten: {text}\n"
    assert "0.60" in text.read_text()
    assert call(main, *command).stderr == ""
