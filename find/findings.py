"""What `find` says of a set of images, typed, and the two files that hold all of it: `findings.json`, `findings.csv`.

Three questions are asked apart, and each finding answers one of them:

- "foreign": this image does not belong here (into none of the classes; in mode "odd": into the folder).
- "label": this image belongs to the class `suggested`. Mode "audit" alone.
- "duplicate": this image is there more than once. Never flagged: nothing is wrong with its class.

"foreign" and "label" each keep the asked false-discovery rate for themselves: an image is flagged where its `q` is at
most the rate. So a page can move the rate without a new run: `flagged == (q <= rate)`. An image has one finding. If it
is both foreign and in a wrong class, it is foreign. A group of copies has one finding as well: "duplicate" where all
copies are in one class; "label" where they are not, for the copy in the less likely class, with the others in `copies`.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import msgspec

from common.errors import UserError
from common.files import claim_folder, readable_json, write_text
from find.text import csv_table, visible

FORMAT = 2
QUESTIONS = ("foreign", "label", "duplicate")
REVIEWS = ("keep", "wrong", "unsure")
LIST_MARK = " | "  # between the items of a list in one cell of the CSV file
TYPICAL = 4  # images that stand for a class
ANSWERS = {  # of one image, of several
    "foreign": ("does not belong here", "do not belong here"),
    "label": ("belongs to another class", "belong to another class"),
}


@dataclass(frozen=True)
class Image:
    """A picture to show beside findings: its row and its path, as in `Finding`."""

    row: int
    path: str


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One suspicious image, or one group of copies.

    row: of the store.
    path: of the image, below `Findings.root` where that is known; "<split>/<image_index>" where the store has no names.
    split: "train" or "test".
    question: one of `QUESTIONS`.
    own: the class it is in; None in a folder without classes.
    suggested: the class it rather belongs to; None unless the question is "label".
    probability: in [0, 1], that the answer to the question is yes for this image (1 - local false-discovery rate).
    q: in [0, 1], the lowest false-discovery rate at which this image is flagged; 1 for "duplicate".
    flagged: q <= the asked rate. A review may change it.
    why: short texts, such as "nearer to girl".
    neighbours: of a foreign image the most similar images of the set, the nearest first, no copies of it.
    copies: the other copies of this picture, exact and near.
    scores: by name, what the probability was made of.
    review: one of `REVIEWS`, or None.
    """

    row: int
    path: str
    split: str
    question: str
    own: str | None = None
    suggested: str | None = None
    probability: float
    q: float = 1.0
    flagged: bool = False
    why: tuple[str, ...] = ()
    neighbours: tuple[Image, ...] = ()
    copies: tuple[Image, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    review: str | None = None


@dataclass(frozen=True)
class Threshold:
    """What one question flags at the asked false-discovery rate.

    asked: the false-discovery rate.
    flagged: how many findings are flagged.
    expected_true: the expected share of true finds among them, 1 - the largest q; None where nothing is flagged.
    caveat: why the rate cannot be promised here, one sentence for people; None where it can.
    """

    asked: float
    flagged: int = 0
    expected_true: float | None = None
    caveat: str | None = None


@dataclass(frozen=True)
class Group:
    """Images of a folder that belong together, where there are several such groups.

    name: "group 1", …, the largest first. size: how many images. rows: all of them. typical: the most central ones.
    """

    name: str
    size: int
    rows: tuple[int, ...]
    typical: tuple[Image, ...]


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that one run of `find` has to say.

    mode: "odd" or "audit".
    findings: "foreign" and "label" by falling probability, then "duplicate" by falling number of copies; not all
    images, see `counts`.
    conclusion: one sentence for people, such as "nothing odd here"; as are counts and thresholds, by `summarise`.
    class_names: empty in mode "odd".
    typical: of each class (in mode "odd": of "the folder"), its four most typical images.
    counts: "images", "findings", "flagged", and the number of findings of each question.
    thresholds: of "foreign", and in mode "audit" with two or more classes of "label".
    too_small: classes whose images were not judged, since there are too few, and how many images each has (0: empty).
    groups: empty unless there are several.
    root: the folder that paths start from; None where unknown.
    settings: provenance: the store's path and identity, the run, versions, what was asked.
    """

    mode: str
    findings: tuple[Finding, ...]
    conclusion: str = ""
    class_names: tuple[str, ...]
    typical: Mapping[str, tuple[Image, ...]]
    counts: Mapping[str, int]
    thresholds: Mapping[str, Threshold]
    too_small: Mapping[str, int] = field(default_factory=dict)
    groups: tuple[Group, ...] = ()
    root: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def flagged(self) -> tuple[Finding, ...]:
        """The findings that keep the asked false-discovery rate."""
        return tuple(finding for finding in self.findings if finding.flagged)

    def write(self, folder: Path | str) -> None:
        """Write `findings.json` and `findings.csv` into `folder`, each atomically. Raises UserError where it cannot be.

        The folder must be new, empty, or one of `find`. The CSV file has a line for each finding, in order, with the
        columns of `Finding`; lists are joined by " | ".
        """
        folder = Path(folder)
        claim_folder(folder)
        content = readable_json({"format": FORMAT, **msgspec.to_builtins(self, enc_hook=str)})
        write_text(folder / "findings.json", visible(content))  # JSON reads its escapes back
        names = [column.name for column in fields(Finding)]
        rows = ([_cell(getattr(finding, name)) for name in names] for finding in self.findings)
        write_text(folder / "findings.csv", csv_table([names, *rows]))

    @classmethod
    def read(cls, folder: Path | str) -> "Findings":
        """The findings in `folder`. Raises UserError where there are none, or of another format."""
        path = Path(folder) / "findings.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            number = content.get("format") if isinstance(content, dict) else None
            if number != FORMAT:
                raise UserError(f"{path} is of format {number}, this code reads {FORMAT}: run find again")
            return msgspec.convert(content, cls)
        except (OSError, ValueError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"cannot read {path} ({reason}): give the folder that find wrote") from error


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return LIST_MARK.join(f"{name}={number:.6g}" for name, number in value.items())
    if isinstance(value, tuple):
        return LIST_MARK.join(item.path if isinstance(item, Image) else str(item) for item in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def summarise(findings: Findings) -> Findings:
    """The same in the order of the list, with the counts, thresholds and conclusion that its findings make."""
    ranked = tuple(sorted(findings.findings, key=_rank))
    counts = {"images": findings.counts["images"], "findings": len(ranked)}
    counts["flagged"] = sum(finding.flagged for finding in ranked)
    counts |= dict(sorted(Counter(finding.question for finding in ranked).items()))
    thresholds = {}
    for question, threshold in findings.thresholds.items():
        q = [finding.q for finding in ranked if finding.flagged and finding.question == question]
        thresholds[question] = replace(threshold, flagged=len(q), expected_true=1 - max(q) if q else None)
    result = replace(findings, findings=ranked, counts=counts, thresholds=thresholds)
    return replace(result, conclusion=_conclude(result))


def _rank(finding: Finding) -> tuple[bool, float]:
    """The place in the list: single images by falling probability, then copies, the most first; else as they came."""
    copies = finding.question == "duplicate" and not finding.flagged
    return copies, -len(finding.copies) if copies else -finding.probability


def _conclude(findings: Findings) -> str:
    """The whole result in one sentence."""
    images = f"{findings.counts['images']:,} images"
    flagged = Counter(finding.question for finding in findings.flagged)
    answers = [f"{n:,} {ANSWERS[question][n > 1]}" for question in ANSWERS if (n := flagged[question])]
    nothing = f"nothing {'odd' if findings.mode == 'odd' else 'wrong'} here ({images})"
    parts = [f"{len(findings.groups)} groups of images that do not belong together"] if findings.groups else []
    parts.append(f"of {images} {' and '.join(answers)}" if answers else nothing)
    if copies := findings.counts.get("duplicate"):
        parts.append(f"{copies:,} {'pictures are' if copies > 1 else 'picture is'} there more than once")
    return "; ".join(parts)
