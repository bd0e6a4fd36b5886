"""Which images of a folder do not belong, if any."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from common.errors import UserError
from find.calibration import folder_posterior
from find.duplicates import find_pairs
from find.evidence import Evidence
from find.findings import Finding, Findings, Group
from find.groups import find_groups
from find.listing import TYPICAL, Images, make_findings, require_features
from find.scorers import Scorer, folder_alone, from_head, from_reference
from train.gaussian import ClassSpace
from train.methods.base import Method

FEWEST = 3
FOLDER = "the folder"
Reference = tuple[np.ndarray, np.ndarray]


def odd(
    features: np.ndarray,
    *,
    head: Method | None = None,
    reference: Reference | None = None,
    held_out: Reference | None = None,
    paths: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
    digests: np.ndarray | None = None,
    rate: float = 0.1,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> Findings:
    """Judge every image of features (n, D) by the others. None need be odd, any number may.

    head: a trained one, for features of D. reference: features and labels of other images, whose classes say how images
    of one class differ: for want of a head they do what it would. held_out: the same of images that neither head nor
    reference has seen; folders made of them say what a score means. Without, half of the reference is kept for that.
    paths, splits, digests, rate, settings: as in `find.auditing.audit`.

    Where the folder holds several groups, each image is judged in its own. Raises UserError for fewer than 3 images,
    images that are all the same, and a head or reference of another D.
    """
    features = np.asarray(features, np.float32)
    if len(features) < FEWEST:
        raise UserError(f"there are {len(features)} images: at least {FEWEST} are needed to tell which one is odd")
    require_features(features)
    for name, given in (("images of the reference", reference), ("held-out images", held_out)):
        if given and not np.isfinite(given[0]).all():
            raise UserError(f"the {name} have values that are not finite: extract them again")
    scorer, evidence_of = judge(head, reference, held_out, len(features), features.shape[1], seed)
    member = find_groups(features)
    parts = (
        [np.arange(len(features))] if member is None else [np.flatnonzero(member == k) for k in range(member.max() + 1)]
    )
    scores = np.empty(len(features))
    log_ratios = np.empty(len(features))
    embedded = scorer.embed(features)
    for part in parts:
        scores[part] = scorer.score(embedded[part])
        log_ratios[part] = evidence_of(len(part))(scores[part])
    probability, anything = folder_posterior(log_ratios)
    limit = max(evidence_of(len(part)).limit for part in parts)
    images = Images.numbered(len(features), paths, splits)
    groups = () if member is None else tuple(_group(k, part, scores, images) for k, part in enumerate(parts))
    candidates = _candidates(features, digests, probability, scores, member, images)
    said = {"scores": scorer.name, "anything_odd": round(anything, 6), "limit": round(limit, 6), "seed": seed}
    return make_findings(
        "odd",
        candidates,
        len(features),
        rate,
        {FOLDER: images.shown(np.argsort(scores, kind="stable")[:TYPICAL])},
        clean=anything <= limit,
        calibration=evidence_of(len(features)).calibration,
        groups=groups,
        settings=dict(settings or {}) | said,
    )


def judge(
    head: Method | None, reference: Reference | None, held_out: Reference | None, size: int, dim: int, seed: int
) -> tuple[Scorer, Callable[[int], Evidence]]:
    """What scores the images of a folder of `size` images, and for each number of images what a score says."""
    if reference and not held_out and not head:
        reference, held_out = halves(*reference, seed)
    if head:
        scorer, held_out = from_head(head), held_out or reference
    elif reference:
        _, labels = np.unique(reference[1], return_inverse=True)
        scorer = from_reference(ClassSpace.fit(np.asarray(reference[0], np.float32), labels))
    else:
        scorer = folder_alone()
    if scorer.dim not in (None, dim):
        raise UserError(
            f"the folder's features have {dim} dimensions, {scorer.name} is made for {scorer.dim}: "
            "extract the folder with the same backbone, layers and image size"
        )
    if held_out:
        learnt = Evidence.learn(scorer, *held_out, size, seed)
        return scorer, lambda _: learnt
    return scorer, lambda images: Evidence() if head else Evidence.alone(images, dim)


def halves(features: np.ndarray, labels: np.ndarray, seed: int) -> tuple[Reference, Reference]:
    """Two halves of each class, drawn at random."""
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    return (features[order[::2]], labels[order[::2]]), (features[order[1::2]], labels[order[1::2]])


def _group(number: int, part: np.ndarray, scores: np.ndarray, images: Images) -> Group:
    typical = part[np.argsort(scores[part], kind="stable")[:TYPICAL]]
    rows = tuple(int(row) for row in images.rows[part])
    return Group(f"group {number + 1}", len(part), rows, images.shown(typical))


def _candidates(
    features: np.ndarray,
    digests: np.ndarray | None,
    probability: np.ndarray,
    scores: np.ndarray,
    member: np.ndarray | None,
    images: Images,
) -> list[Finding]:
    pairs = find_pairs(features, digests)
    twins: dict[int, list[int]] = {}
    exact: set[int] = set()
    for first, second, same in zip(pairs.first.tolist(), pairs.second.tolist(), pairs.exact.tolist(), strict=True):
        twins.setdefault(second, []).append(first)  # the first of them is no surplus
        exact |= {second} if same else set()
    middle = np.median(scores)
    spread = np.median(np.abs(scores - middle)) + 1e-9
    found = []
    for i in np.flatnonzero((probability > 0.01) | np.isin(np.arange(len(scores)), list(twins))).tolist():
        others = twins.get(i, [])
        is_odd = probability[i] >= 0.5 or not others
        kind = "odd" if is_odd else "duplicate" if i in exact else "near duplicate"
        place = "the folder" if member is None else f"group {member[i] + 1}"
        why = [f"far from the other images of {place}"] if is_odd else []
        word = "duplicate" if i in exact else "near duplicate"
        why += [f"{word} of {images.paths[other]}" for other in others]
        found.append(
            Finding(
                int(images.rows[i]),
                images.paths[i],
                images.splits[i],
                None,
                None,
                round(float(probability[i]), 6),
                False,
                kind,
                tuple(why),
                tuple(int(images.rows[other]) for other in others),
                tuple(images.paths[other] for other in others),
                {"score": round(float(scores[i]), 6), "deviations": round(float((scores[i] - middle) / spread), 3)},
            )
        )
    return found
