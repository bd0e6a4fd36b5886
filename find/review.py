"""What people said about findings: read from the page's CSV file and honoured by the next run."""

import codecs
import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.errors import UserError, unknown_name
from find.findings import REVIEWS, Finding, Findings, summarise
from find.text import plain_cell, visible

DELIMITERS = ",;\t"  # Excel's depends on the country; its "Unicode text" has tabs


def read(file: Path) -> dict[str, str]:
    """The reviews in a CSV file with the columns `path` and `review`, by path: the page's export, or `findings.csv`.

    As the page wrote it, or as a spreadsheet saved it: with commas, semicolons or tabs, in UTF-8 or UTF-16. Lines
    without a review are passed over. Raises UserError where it cannot be read, or a review is none of `REVIEWS`.
    """
    try:
        lines = _read_lines(file)
    except (csv.Error, UnicodeError) as error:
        raise UserError(f"{file} is not a CSV file in UTF-8 ({error}): export it from the page again") from error
    for number, _, review in lines:
        if review and review not in REVIEWS:
            raise unknown_name(f"review in {file}, line {number}:", review, REVIEWS)
    return {plain_cell(path): review for _, path, review in lines if path and review}


def _read_lines(file: Path) -> list[tuple[int, str, str]]:
    """The number of each line, its path and its review."""
    if file.exists() and not file.is_file():  # reading a pipe or a device might never end
        raise UserError(f"{file} is no regular file: give a CSV file that the page exported")
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the reviews {file} ({error.strerror}): check the path") from error
    text = data.decode("utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig")
    declared = text.startswith("sep=") and len(text) > 4  # a line by which Excel knows the delimiter
    delimiter = text[4] if declared else max(DELIMITERS, key=text.partition("\n")[0].count)
    text = text.partition("\n")[2] if declared else text
    table = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, restval="")
    table.fieldnames = [name.strip().lower() for name in table.fieldnames or ()]
    if not {"path", "review"} <= set(table.fieldnames):
        raise UserError(f'{file} has no columns "path" and "review": give a file that the page exported')
    return [(table.line_num + declared, line["path"], line["review"].strip().lower()) for line in table]


def apply(
    findings: Findings, reviews: Mapping[str, str], paths: Sequence[str], splits: Sequence[str], own: Sequence[str] = ()
) -> tuple[Findings, list[str]]:
    """The findings as people corrected them, and the paths of reviews that match no image.

    paths, splits: of all images. own: the class of each; empty where there are none.
    "keep": not flagged, probability 0. "wrong": flagged, probability 1, also where the image was not in the list.
    "unsure": as it was. Each bears its review. The list is sorted anew; its counts and conclusion are of the new list.
    """
    row_of = {visible(path): row for row, path in enumerate(paths)}
    listed = {visible(finding.path) for finding in findings.findings}
    answer: dict[str, Any] = {"question": "foreign", "probability": 0.0, "why": ("marked by you",)}
    added = [
        Finding(row=row, path=paths[row], split=splits[row], own=own[row] if own else None, **answer)
        for path, review in reviews.items()
        if review == "wrong" and path not in listed and (row := row_of.get(path)) is not None
    ]
    reviewed = [_review(each, reviews.get(visible(each.path), each.review)) for each in (*findings.findings, *added)]
    result = summarise(replace(findings, findings=tuple(reviewed)))
    return result, [path for path in reviews if path not in row_of]


def _review(finding: Finding, review: str | None) -> Finding:
    if review == "keep":
        return replace(finding, review=review, flagged=False, probability=0.0, q=1.0)
    if review == "wrong":
        question = "foreign" if finding.question == "duplicate" else finding.question
        return replace(finding, review=review, flagged=True, probability=1.0, q=0.0, question=question)
    return replace(finding, review=review)
