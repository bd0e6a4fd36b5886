"""What people said about findings: read from the page's CSV file and honoured by the next run."""

import csv
import dataclasses
from collections.abc import Mapping
from pathlib import Path

from common.errors import UserError, unknown_name
from find.findings import REVIEWS, Finding, Findings, Threshold
from find.listing import conclude
from find.text import plain_cell, visible


def read(file: Path) -> dict[str, str]:
    """The reviews in a CSV file with the columns `path` and `review`, by path; the page's export, or `findings.csv`.

    Lines without a review are passed over. Raises UserError where it cannot be read, or a review is none of `REVIEWS`.
    """
    reviews = {}
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            table = csv.DictReader(lines, strict=True)
            if not {"path", "review"} <= set(table.fieldnames or ()):
                raise UserError(f'{file} has no columns "path" and "review": give a file that the page exported')
            for line in table:
                path, review = line["path"], (line["review"] or "").strip().lower()
                if review and review not in REVIEWS:
                    raise unknown_name(f"review in {file}, line {table.line_num}:", review, REVIEWS)
                if path and review:
                    reviews[plain_cell(path)] = review
    except OSError as error:
        raise UserError(f"cannot read the reviews {file} ({error.strerror}): check the path") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not a CSV file in UTF-8 ({error}): export it from the page again") from error
    return reviews


def apply(findings: Findings, reviews: Mapping[str, str]) -> Findings:
    """The findings as people corrected them.

    "keep": not flagged, probability 0. "wrong": flagged, probability 1. "unsure": as it was. Each bears its review.
    The list is sorted anew, and its counts, threshold and conclusion are those of the new list.
    """
    reviewed = [_reviewed(finding, reviews.get(visible(finding.path), finding.review)) for finding in findings.findings]
    reviewed.sort(key=lambda finding: -finding.probability)  # stable: equal ones stay in their order
    flagged = [finding.probability for finding in reviewed if finding.flagged]
    threshold = Threshold(
        findings.threshold.asked,
        flagged[-1] if flagged else 1.0,
        len(flagged),
        sum(flagged) / len(flagged) if flagged else None,
    )
    n = findings.counts["images"]
    # Who keeps an image has looked at what was suspected
    suspected = findings.suspected and not any(finding.review == "keep" for finding in reviewed)
    return dataclasses.replace(
        findings,
        findings=tuple(reviewed),
        threshold=threshold,
        counts={**findings.counts, "flagged": len(flagged)},
        conclusion=conclude(findings.mode, n, len(flagged), threshold.expected_true, findings.groups, suspected),
    )


def _reviewed(finding: Finding, review: str | None) -> Finding:
    if review == "keep":
        return dataclasses.replace(finding, review=review, flagged=False, probability=0.0)
    if review == "wrong":
        return dataclasses.replace(finding, review=review, flagged=True, probability=1.0)
    return dataclasses.replace(finding, review=review)
