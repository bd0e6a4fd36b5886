"""The benchmark of find: labels are changed as it says, folders are what it says, and its report becomes tables."""

import json

import numpy as np
from click.testing import CliRunner

from bench.audits import changed, judged
from bench.find import main, tables
from bench.folders import folders, nearest_others


def test_labels_are_changed_within_their_group():
    labels, group = np.repeat(np.arange(6), 100), np.array([0, 0, 0, 1, 1, 1])
    given, bad = changed(labels, group, 0)
    assert (given != labels).tolist() == bad.tolist()
    assert 10 < bad.sum() < 60
    assert (group[given] == group[labels]).all()


def test_what_is_flagged_is_judged_by_the_truth():
    bad = np.array([True, True, False, False])
    found = judged(np.array([0.9, 0.2, 0.8, 0.1]), np.array([True, False, True, False]), bad)
    assert (found["precision"], found["recall"], found["precision_at_k"]) == (0.5, 0.5, 0.5)


def test_a_folder_has_all_images_of_a_class_and_some_of_others():
    labels = np.repeat(np.arange(4), 10)
    for label, (rows, odd) in enumerate(folders(labels, np.arange(4), 5, 0)):
        assert (labels[rows] == label).tolist() == (~odd).tolist()
        assert (len(rows), odd.sum()) == (15, 5)


def test_the_farthest_image_has_the_farthest_neighbours():
    x = np.ones((9, 4)) + 0.01 * np.random.default_rng(0).normal(size=(9, 4))
    x[5] = [-1, 1, -1, 1]
    assert nearest_others(x).argmax() == 5


def test_the_tables_are_written_between_their_marks_and_checked(tmp_path):
    row = {"kind": "any class", "way": "ours", "average_precision": 0.5, "precision_at_k": 0.25, "seconds": 3}
    audit = {"n": 10, "seeds": 2, "rows": [row, {**row, "average_precision": 0.7}], "left_out": {"theirs": "no theirs"}}
    here = {
        "hardware": {"cpu": "a CPU", "threads": 2},
        "versions": dict.fromkeys(["cleanlab", "scikit-learn", "torch", "numpy"], "1"),
    }
    (tmp_path / "find.json").write_text(json.dumps({"audit": {**audit, **here}}))
    assert "Left out: theirs (no theirs)" in tables({"audit": {**audit, **here}})
    text = tmp_path / "find.md"
    text.write_text("<!-- measured: find -->\n<!-- end -->\n")
    command = ["--out", str(tmp_path), "--readme", str(text)]
    assert CliRunner().invoke(main, [*command, "--check"]).exit_code == 1
    assert CliRunner().invoke(main, command).exit_code == 0
    assert "0.600 ± 0.141" in text.read_text()
    assert CliRunner().invoke(main, [*command, "--check"]).exit_code == 0
