"""Which images of a folder do not belong, if any."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from common.errors import UserError
from find.candidates import Judged, make_candidates, take_one_of_each
from find.duplicates import find_copies
from find.findings import Findings, Group
from find.foreign import log_distance
from find.groups import find_groups
from find.inputs import Inputs, take_features, take_inputs, take_labels
from find.listing import TYPICAL, flag_and_list, require_features, unflagged
from find.rates import conformal_p_values, find_caveat, p_values
from find.scorers import Scorer, from_head, from_reference
from train.gaussian import ClassSpace
from train.methods.base import Method

FEWEST = 3
FOLDER = "the folder"
FOLDERS = 100  # that are made of held-out images, at most
Reference = tuple[Any, Any]
Judge = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@threadpool_limits.wrap(limits=1, user_api="blas")  # as in `find.auditing.audit`
def odd(
    features: Any,
    *,
    head: Method | None = None,
    reference: Reference | None = None,
    held_out: Reference | None = None,
    paths: Sequence[Any] | None = None,
    splits: Sequence[str] | None = None,
    digests: Any = None,
    rate: float = 0.1,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> Findings:
    """Judge every image of features (n, D) by the others. None need be odd, any number may.

    head: a trained one, for features of D. reference: features and labels of other images, whose classes say how images
    of one class differ: for want of a head they do what it would. held_out: the same of images that neither head nor
    reference has seen; folders made of them say what a score means. Without, half of the reference is kept for that.
    paths, splits, digests, rate, settings: as in `find.auditing.audit`.

    Where the folder holds several groups, each image is judged in its own. Raises UserError for fewer than 3 different
    images, a head or reference of another D, and for what `find.inputs.take_inputs` refuses.
    """
    inputs = take_inputs(features, paths=paths, splits=splits, digests=digests, rate=rate, seed=seed)
    _require_enough(len(inputs.features), "")
    require_features(inputs.features)
    copies = find_copies(inputs.features, inputs.digests)
    counted = take_one_of_each(inputs, copies, np.zeros(len(inputs.features), np.int64))
    _require_enough(len(counted), "different ")
    x = inputs.features[counted]
    name, judge = make_judge(head, _taken(reference, "reference"), _taken(held_out, "held-out images"), x, inputs.seed)
    member = find_groups(x)
    parts = [np.arange(len(x))] if member is None else [np.flatnonzero(member == k) for k in range(member.max() + 1)]
    if head is None and reference is None:  # near images are in the same group anyhow
        scores, p = judge(x)
    else:
        scores, p = np.empty(len(x)), np.empty(len(x))
        for part in parts:
            scores[part], p[part] = judge(x[part])
    no_label = np.zeros(len(x), np.int64)
    central = np.argsort(scores, kind="stable")
    groups = [(counted[part], counted[central[np.isin(central, part)][:TYPICAL]]) for part in parts]
    judged = Judged(counted, no_label, p, np.zeros(len(x)), no_label, scores, None)
    candidates = Findings(
        mode="odd",
        findings=tuple(make_candidates(inputs, copies, judged)),
        conclusion="",
        class_names=(),
        typical={FOLDER: inputs.images.shown(counted[central[:TYPICAL]])},
        counts={"images": len(inputs.features)},
        thresholds=unflagged(inputs.rate, {"foreign": find_caveat(p, inputs.rate)}),
        groups=() if member is None else tuple(_group(inputs, k, *group) for k, group in enumerate(groups)),
        settings=dict(settings or {}) | {"scores": name, "seed": inputs.seed},
    )
    return flag_and_list(candidates, inputs.rate)


def _require_enough(n: int, what: str) -> None:
    if n < FEWEST:
        raise UserError(f"there are {n} {what}images: at least {FEWEST} are needed to tell which one is odd")


def make_judge(
    head: Method | None, reference: Reference | None, held_out: Reference | None, folder: np.ndarray, seed: int
) -> tuple[str, Judge]:
    """What scores come from, and what gives the images (n, D) of one group scores (n,) and p-values (n,).

    folder (m, D): the images to be judged.
    """
    if head is None and reference is None:
        return "the folder alone", judge_alone
    if head:
        scorer, held_out = from_head(head), held_out or reference
    else:
        assert reference is not None
        if held_out is None:
            reference, held_out = halves(*reference, seed)
        _, labels = np.unique(reference[1], return_inverse=True)
        scorer = from_reference(ClassSpace.fit(reference[0], labels))
    for whose, x in (("folder's", folder), ("held-out images'", folder if held_out is None else held_out[0])):
        if scorer.dim not in (None, x.shape[1]):
            raise UserError(
                f"the {whose} features have {x.shape[1]} dimensions, {scorer.name} is made for {scorer.dim}: "
                "extract them with the same backbone, layers and image size"
            )
    known = None if held_out is None else clean_scores(scorer, *held_out, len(folder), seed)

    def judge(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores = scorer(x)
        return scores, p_values(scores) if known is None else conformal_p_values(scores, known)

    return scorer.name, judge


def judge_alone(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores (n,) and p-values (n,) of images (n, D) by nothing but each other."""
    scores = log_distance(x)
    return scores, p_values(scores)


def clean_scores(scorer: Scorer, features: np.ndarray, labels: np.ndarray, size: int, seed: int) -> np.ndarray:
    """The scores of images in folders of `size` images of one class, of features (n, D) with labels (n,)."""
    generator = np.random.default_rng(seed)
    embedded, scores = scorer.embed(features), []
    classes = [rows for label in np.unique(labels) if len(rows := np.flatnonzero(labels == label)) >= FEWEST]
    if not classes:
        raise UserError(f"no class of the held-out images has {FEWEST} images: give more, or leave them out")
    for number in generator.permutation(len(classes))[:FOLDERS]:
        rows = classes[number]
        scores.append(scorer.score(embedded[generator.permutation(rows)[: max(FEWEST, size)]]))
    return np.concatenate(scores)


def halves(features: np.ndarray, labels: np.ndarray, seed: int) -> tuple[Reference, Reference]:
    """Two halves of each class, drawn at random."""
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    return (features[order[::2]], labels[order[::2]]), (features[order[1::2]], labels[order[1::2]])


def _taken(images: Reference | None, name: str) -> tuple[np.ndarray, np.ndarray] | None:
    if images is None:
        return None
    features = take_features(images[0], f"the images of the {name}")
    return features, take_labels(images[1], len(features))[0]


def _group(inputs: Inputs, number: int, rows: np.ndarray, typical: np.ndarray) -> Group:
    return Group(f"group {number + 1}", len(rows), tuple(np.sort(rows).tolist()), inputs.images.shown(typical))
