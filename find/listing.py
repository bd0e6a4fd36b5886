"""From probabilities to the list that people read: what is in it, what is flagged, what it says in a sentence."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from common.errors import UserError
from find.calibration import choose_threshold
from find.findings import Bin, Finding, Findings, Group, Image

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


def make_findings(
    mode: str,
    candidates: Sequence[Finding],
    n: int,
    rate: float,
    typical: Mapping[str, tuple[Image, ...]],
    *,
    clean: bool = False,
    class_names: Sequence[str] = (),
    calibration: tuple[Bin, ...] = (),
    groups: tuple[Group, ...] = (),
    settings: Mapping[str, Any] | None = None,
) -> Findings:
    """The result of a run on n images, of a candidate for each image that may be in the list.

    clean: nothing is flagged, whatever the probabilities are. Otherwise something is odd in mode "odd", even where no
    image is flagged.
    """
    ranked = sorted(candidates, key=lambda each: (-each.probability, each.row))
    shown = [number < AT_LEAST or each.probability >= LISTED for number, each in enumerate(ranked)]
    listed = [each for each, is_shown in zip(ranked, shown, strict=True) if is_shown or each.duplicate_of]
    threshold = choose_threshold(np.array([each.probability for each in listed]), rate)
    if clean:
        threshold = choose_threshold(np.zeros(0), rate)
    listed = [replace(each, flagged=number < threshold.flagged) for number, each in enumerate(listed)]
    counts = {"images": n, "findings": len(listed), "flagged": threshold.flagged}
    counts |= dict(sorted(Counter(each.kind for each in listed).items()))
    return Findings(
        mode,
        tuple(listed),
        conclude(mode, n, threshold.flagged, threshold.expected_true, groups, mode == "odd" and not clean),
        tuple(class_names),
        typical,
        counts,
        threshold,
        calibration,
        groups,
        None,
        settings or {},
    )


def require_features(features: np.ndarray) -> None:
    """Raise UserError unless features are (n, D), finite, and not all the same."""
    if features.ndim != 2:
        raise UserError(f"features must be (n, D), got {features.shape}: give a vector for each image")
    if not np.isfinite(features).all():
        raise UserError("features have values that are not finite: extract them again")
    if len(features) and (features == features[0]).all():
        raise UserError(f"all {len(features)} images have the same features: there is nothing to tell them apart by")


def conclude(
    mode: str, n: int, flagged: int, true: float | None, groups: tuple[Group, ...], suspected: bool = False
) -> str:
    """What was found in n images, in one sentence.

    true: the expected share of true finds among the flagged ones. suspected: something is odd, flagged or not.
    """
    images, what = f"{n:,} images", "odd" if mode == "odd" else "wrong"
    first = f"{len(groups)} groups of images that do not belong together; " if groups else ""
    if suspected and not flagged:
        return f"{first}something is probably odd here ({images}), but no image for certain: look at the first ones"
    if not flagged:
        return f"{first}nothing {what} here ({images})"
    return f"{first}{flagged:,} of {images} flagged as {what}, about {100 * (true or 0):.0f} % of them rightly"
