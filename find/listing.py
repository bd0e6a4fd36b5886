"""From probabilities to the list that people read: what is in it, what is flagged, what it says in a sentence."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from common.errors import UserError
from find.findings import Finding, Findings, Image, Threshold

LISTED = 0.02  # findings of a lower probability are left out, but for the first of all
AT_LEAST = 100
TYPICAL = 4  # images that stand for a class


@dataclass(frozen=True)
class Images:
    """What images are called: row (n,) of the store, path, split."""

    rows: np.ndarray
    paths: Sequence[str]
    splits: Sequence[str]

    @classmethod
    def numbered(
        cls, n: int, paths: Sequence[str] | None, splits: Sequence[str] | None, rows: np.ndarray | None = None
    ) -> "Images":
        """With what is known of n images."""
        rows = np.arange(n) if rows is None else rows
        splits = splits or ["train"] * n
        return cls(rows, paths or [f"{split}/{row}" for split, row in zip(splits, rows, strict=True)], splits)

    def image(self, i: int) -> Image:
        """The i-th as something to show."""
        return Image(int(self.rows[i]), self.paths[i])

    def shown(self, chosen: np.ndarray) -> tuple[Image, ...]:
        """Some of them."""
        return tuple(self.image(int(i)) for i in chosen)


def flag_and_list(candidates: Findings, rate: float) -> Findings:
    """The result of a run: the candidates that are listed, each flagged where its `q` is at most `rate`."""
    flagged = (replace(each, flagged=each.question != "duplicate" and each.q <= rate) for each in candidates.findings)
    ranked = enumerate(sorted(flagged, key=_rank))
    listed = (each for i, each in ranked if i < AT_LEAST or each.probability >= LISTED or each.flagged or each.copies)
    return summarise(replace(candidates, findings=tuple(listed)))


def unflagged(rate: float, caveats: Mapping[str, str | None]) -> dict[str, Threshold]:
    """Thresholds before anything is flagged. caveats: of each question, why its rate cannot be promised, or None."""
    return {question: Threshold(rate, 0, None, caveat) for question, caveat in caveats.items()}


def summarise(findings: Findings) -> Findings:
    """The same in the order of the list, with the counts, thresholds and conclusion that its findings make."""
    ranked = tuple(sorted(findings.findings, key=_rank))
    counts = {"images": findings.counts["images"], "findings": len(ranked)}
    counts["flagged"] = sum(each.flagged for each in ranked)
    counts |= dict(sorted(Counter(each.question for each in ranked).items()))
    thresholds = {}
    for question, threshold in findings.thresholds.items():
        q = [each.q for each in ranked if each.flagged and each.question == question]
        thresholds[question] = replace(threshold, flagged=len(q), expected_true=1 - max(q) if q else None)
    result = replace(findings, findings=ranked, counts=counts, thresholds=thresholds)
    return replace(result, conclusion=conclude(result))


def _rank(finding: Finding) -> tuple[bool, float]:
    """The place in the list: single images by falling probability, then copies, the most first; else as they came."""
    copies = finding.question == "duplicate" and not finding.flagged
    return copies, -len(finding.copies) if copies else -finding.probability


def require_features(features: np.ndarray) -> None:
    """Raise UserError where features (n, D) are all the same."""
    if len(features) > 1 and (features == features[0]).all():
        raise UserError(f"all {len(features)} images have the same features: there is nothing to tell them apart by")


def conclude(findings: Findings) -> str:
    """What was found, in one sentence."""
    images, what = f"{findings.counts['images']:,} images", "odd" if findings.mode == "odd" else "wrong"
    flagged = Counter(each.question for each in findings.flagged)
    said = [f"{len(findings.groups)} groups of images that do not belong together"] if findings.groups else []
    parts = [
        f"{flagged[question]:,} {'does' if flagged[question] == 1 else 'do'} not belong here"
        if question == "foreign"
        else f"{flagged[question]:,} {'belongs' if flagged[question] == 1 else 'belong'} to another class"
        for question in ("foreign", "label")
        if flagged[question]
    ]
    said.append(f"of {images} {' and '.join(parts)}" if parts else f"nothing {what} here ({images})")
    if copies := findings.counts.get("duplicate"):
        said.append(f"{copies:,} {'pictures are' if copies > 1 else 'picture is'} there more than once")
    return "; ".join(said)
