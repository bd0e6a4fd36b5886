import csv
import dataclasses
import os

import pytest
from fabricate import make_findings

from common.errors import UserError
from find import review
from find.findings import Findings
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


def test_reviews_are_honoured():
    findings = make_findings(["a", "b", "c", "d"], probabilities=[0.9, 0.8, 0.4, 0.2], flagged=2)
    reviewed = review.apply(findings, {"a": "keep", "b": "unsure", "d": "wrong", "not there": "keep"})
    assert [(each.path, each.probability, each.flagged, each.review) for each in reviewed.findings] == [
        ("d", 1.0, True, "wrong"),
        ("b", 0.8, True, "unsure"),
        ("c", 0.4, False, None),
        ("a", 0.0, False, "keep"),
    ]
    threshold = reviewed.threshold
    assert (threshold.asked, threshold.probability, threshold.flagged) == (findings.threshold.asked, 0.8, 2)
    assert threshold.expected_true == pytest.approx(0.9)
    assert reviewed.counts["flagged"] == 2
    assert "2 of 4" in reviewed.conclusion


def test_nothing_is_left_when_all_is_kept():
    findings = make_findings(["a", "b"], flagged=2)
    reviewed = review.apply(findings, {"a": "keep", "b": "keep"})
    assert reviewed.flagged == ()
    assert (reviewed.threshold.probability, reviewed.threshold.expected_true) == (1.0, None)
    assert "nothing" in reviewed.conclusion


@pytest.mark.parametrize(
    "content, rule",
    [
        (b"path,mark\na,keep\n", '"review"'),
        (b"", '"review"'),
        (b"path;review\na;keep\n", '"review"'),
        (b"path,review\na,keeep\n", 'line 2.*did you mean "keep"'),
        (b"path,review\n\xff,keep\n", "UTF-8"),
        (b'path,review\n"a,keep\n', "not a CSV"),
    ],
)
def test_files_that_are_no_reviews(tmp_path, content, rule):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(UserError, match=rule):
        review.read(tmp_path / "x.csv")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="check the path"):
        review.read(tmp_path / "x.csv")


def test_what_is_probably_odd_stays_so_until_an_image_is_kept():
    findings = make_findings(["a.png", "b.png"])
    unsure = [dataclasses.replace(each, flagged=False) for each in findings.findings]
    findings = dataclasses.replace(
        findings, mode="odd", findings=tuple(unsure), settings={"anything_odd": 0.9, "limit": 0.7}
    )
    assert "something is probably odd" in review.apply(findings, {"a.png": "unsure"}).conclusion
    assert review.apply(findings, {"a.png": "keep"}).conclusion.startswith("nothing odd")
