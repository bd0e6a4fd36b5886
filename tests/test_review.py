import csv
import dataclasses
import os
from pathlib import Path

import pytest
from fabricate import make_findings, refuses

from find import review
from find.findings import Findings, Image
from find.text import plain_cell, safe_cell, visible

NAMES = [
    "=1+1.png",
    "+a",
    "-a",
    "@a",
    "\ta",
    "\ra",
    "'=a",
    "'a",
    "''",
    "a'b",
    'q"uote',
    "comma, newline\n.png",
    "日本.png",
]


def test_a_cell_comes_back_and_is_no_formula():
    for name in NAMES:
        cell = safe_cell(name)
        assert plain_cell(cell) == name
        assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))


def test_the_csv_file_of_the_result_is_a_review_that_can_be_edited(tmp_path):
    names = [*NAMES, os.fsdecode(b"\xff.png")]
    findings = make_findings(names)
    findings.write(tmp_path)
    assert Findings.read(tmp_path) == findings
    with (tmp_path / "findings.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    for line in lines:
        line["review"] = "Wrong "
    with (tmp_path / "edited.csv").open("w", encoding="utf-8-sig", newline="") as file:
        table = csv.DictWriter(file, lines[0])
        table.writeheader()
        table.writerows(lines)
    assert review.read(tmp_path / "edited.csv") == dict.fromkeys(map(visible, names), "wrong")


def images(*paths):
    return paths, ["train"] * len(paths)


def test_reviews_are_honoured():
    findings = make_findings(["a", "b", "c", "d"], probabilities=[0.9, 0.8, 0.4, 0.2], flagged=2)
    reviews = {"a": "keep", "b": "unsure", "d": "wrong", "not there": "keep"}
    reviewed, unknown = review.apply(findings, reviews, *images("a", "b", "c", "d"))
    assert [(each.path, each.probability, each.flagged, each.review) for each in reviewed.findings] == [
        ("d", 1.0, True, "wrong"),
        ("b", 0.8, True, "unsure"),
        ("c", 0.4, False, None),
        ("a", 0.0, False, "keep"),
    ]
    threshold = reviewed.thresholds["label"]
    assert (threshold.asked, threshold.flagged, threshold.expected_true) == (0.2, 2, pytest.approx(0.8))
    assert reviewed.counts["flagged"] == 2
    assert "of 4 images 2 belong to another class" in reviewed.conclusion
    assert unknown == ["not there"]


def test_an_image_that_is_marked_as_wrong_is_flagged_though_it_was_not_listed():
    marks = {"z": "wrong", "y": "keep"}
    reviewed, unknown = review.apply(make_findings(["a"]), marks, *images("a", "y", "z"), list("ppq"))
    first = reviewed.findings[0]
    assert (first.path, first.row, first.own, first.flagged, first.q) == ("z", 2, "q", True, 0)
    assert len(reviewed.findings) == 2
    assert not unknown


def test_a_copy_that_is_marked_as_wrong_is_flagged():
    findings = make_findings(["a", "b"])
    copy = dataclasses.replace(findings.findings[0], question="duplicate", copies=(Image(1, "b"),))
    findings = dataclasses.replace(findings, findings=(copy,))
    assert not review.apply(findings, {"a": "unsure"}, *images("a", "b"))[0].flagged
    assert review.apply(findings, {"a": "wrong"}, *images("a", "b"))[0].flagged[0].question == "foreign"


def test_nothing_is_left_when_all_is_kept():
    findings = make_findings(["a", "b"], flagged=2)
    reviewed, _ = review.apply(findings, {"a": "keep", "b": "keep"}, *images("a", "b"))
    assert reviewed.flagged == ()
    assert reviewed.thresholds["label"].expected_true is None
    assert "nothing" in reviewed.conclusion


@pytest.mark.parametrize(
    "content",
    [
        b"path,review\na b,keep\n",
        b"path;own;review\r\na b;x,y;keep\r\n",
        b"sep=;\r\npath;review\r\na b;keep\r\n",
        b"\xef\xbb\xbfsep=\t\npath\treview\na b\tkeep\n",
        "path\treview\r\na b\tKeep\r\n".encode("utf-16"),
        b"\xfe\xff" + "Path\tReview\r\na b\tkeep\r\n".encode("utf-16-be"),
        b"path;review\na b;keep;\nshort\n\n",
    ],
)
def test_marks_that_a_spreadsheet_saved_are_read(tmp_path, content):
    (tmp_path / "x.csv").write_bytes(content)
    assert review.read(tmp_path / "x.csv") == {"a b": "keep"}


@pytest.mark.parametrize(
    "content, rule",
    [
        (b"path,mark\na,keep\n", '"review"'),
        (b"", '"review"'),
        (b"sep=", '"review"'),
        (b"sep=;", '"review"'),
        (b"path,review\na,keeep\n", 'line 2.*did you mean "keep"'),
        (b"sep=,\npath,review\na,keeep\n", 'line 3.*did you mean "keep"'),
        (b"path,review\n\xff,keep\n", "UTF-8"),
        (b"\xff\xfep", "not a CSV"),
        (b'path,review\n"a,keep\n', "not a CSV"),
    ],
)
def test_files_that_are_no_reviews(tmp_path, content, rule):
    (tmp_path / "x.csv").write_bytes(content)
    refuses(rule, review.read, tmp_path / "x.csv")


def test_only_regular_files_that_are_there_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        refuses("no regular file", review.read, path)
    refuses("check the path", review.read, tmp_path / "x.csv")
