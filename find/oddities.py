"""Which images of a folder do not belong, if any."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score
from threadpoolctl import threadpool_limits

from common.errors import UserError
from find.candidates import Judged, make_candidates, take_one_of_each
from find.duplicates import find_copies
from find.findings import TYPICAL, Findings, Group, Threshold, summarise
from find.foreign import log_distance, unit
from find.inputs import take_features, take_inputs, take_labels
from find.rates import conformal_p_values, find_caveat, p_values
from find.scorers import Scorer, from_head, from_reference
from train.gaussian import compress
from train.methods.base import Method

FEWEST = 3
FOLDERS = 100  # that are made of held-out images, at most
FEWEST_OF_GROUP, SMALLEST_SHARE = 10, 0.1  # a smaller group is a few odd images
MOST_GROUPS = 6
DIRECTIONS = 8
LOOKED_AT = 2000
# Mean silhouette of k-means in the directions of most variance. A single class of CIFAR-100's test split with strays
# stays below it, two or three classes come above
SEPARATE = 0.24

Reference = tuple[Any, Any]  # features and labels of images
Judge = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # features (n, D) → scores (n,), p-values (n,)


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
) -> Findings:
    """Judge every image of features (n, D) by the others. None need be odd, any number may.

    head: a trained one, for features of D.
    reference: features and labels of other images. Their classes say how images of one class differ; the folder's need
    not be among them. It does what a head would, and is not used beside one that has held_out.
    held_out: the same of images that neither head nor reference has seen; folders made of them say what a score means.
    Without, half of the reference is kept for that, or with a head all of it.
    paths, splits, digests, rate: as in `find.auditing.audit`.

    Where the folder holds several groups, each image is judged in its own. Raises UserError for fewer than 3 different
    images, a head or reference of another D, and for what `find.inputs.take_inputs` refuses.
    """
    inputs = take_inputs(features, paths=paths, splits=splits, digests=digests, rate=rate, seed=seed)
    n = len(inputs.features)
    _require_enough(n, "")
    copies = find_copies(inputs.features, inputs.digests)
    rows = take_one_of_each(inputs, copies, np.zeros(n, np.int64))
    _require_enough(len(rows), "different ")
    x = inputs.features[rows]
    reference, held_out = _take_images(reference, "reference"), _take_images(held_out, "held-out images")
    name, judge = make_judge(head, reference, held_out, x, inputs.seed)
    group = find_groups(x)
    parts = [group == number for number in range(group.max() + 1)]
    alone = head is None and reference is None  # then near images are in the same group anyhow
    scores, p = np.empty(len(x)), np.empty(len(x))
    for part in [np.ones(len(x), bool)] if alone else parts:
        scores[part], p[part] = judge(x[part])
    central = np.argsort(scores, kind="stable")
    groups = []
    for number, part in enumerate(parts, 1):
        members, typical = np.sort(rows[part]), rows[central[part[central]][:TYPICAL]]
        groups.append(Group(f"group {number}", len(members), tuple(members.tolist()), inputs.images(typical)))
    no_label = np.zeros(len(x), np.int64)
    judged = Judged(rows, no_label, p, np.zeros(len(x)), no_label, scores, None)
    result = Findings(
        mode="odd",
        findings=make_candidates(inputs, copies, judged),
        class_names=(),
        typical={"the folder": inputs.images(rows[central[:TYPICAL]])},
        counts={"images": n},
        thresholds={"foreign": Threshold(inputs.rate, caveat=find_caveat(p, inputs.rate))},
        groups=tuple(groups) if len(groups) > 1 else (),
        settings={"scores": name, "seed": inputs.seed},
    )
    return summarise(result)


def _require_enough(n: int, what: str) -> None:
    if n < FEWEST:
        raise UserError(f"there are {n} {what}images: at least {FEWEST} are needed to tell which one is odd")


def make_judge(
    head: Method | None, reference: Reference | None, held_out: Reference | None, folder: np.ndarray, seed: int
) -> tuple[str, Judge]:
    """What scores come from, and what gives the images (n, D) of one group scores (n,) and p-values (n,).

    folder (m, D): the images to be judged.
    """
    if head is not None:
        scorer, held_out = from_head(head), held_out or reference
    elif reference is not None:
        if held_out is None:
            reference, held_out = halves(*reference, seed)
        scorer = from_reference(*reference)
    else:
        return "the folder alone", judge_alone
    for whose, x in (("folder's", folder), ("held-out images'", folder if held_out is None else held_out[0])):
        if scorer.dim != x.shape[1]:
            raise UserError(
                f"the {whose} features have {x.shape[1]} dimensions, {scorer.name} is made for {scorer.dim}: "
                "extract them with the same backbone, layers and image size"
            )
    known = None if held_out is None else clean_scores(scorer, *held_out, len(folder), seed)

    def judge(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores = scorer.score(scorer.embed(x))
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


def _take_images(images: Reference | None, name: str) -> tuple[np.ndarray, np.ndarray] | None:
    if images is None:
        return None
    features = take_features(images[0], f"the images of the {name}")
    return features, take_labels(images[1], len(features))[0]


def find_groups(features: np.ndarray) -> np.ndarray:
    """The group (n,) of each image, 0 the largest, of features (n, D): such as three subjects thrown together.

    Some of the images decide, at most `LOOKED_AT`; the cost grows with n alone.
    """
    n = len(features)
    x = unit(compress(features)).astype(np.float64)
    some = np.random.default_rng(0).permutation(n)[:LOOKED_AT]
    mean = x[some].mean(0)
    _, _, directions = np.linalg.svd(x[some] - mean, full_matrices=False)
    x = (x - mean) @ directions[:DIRECTIONS].T
    best, groups = SEPARATE, None
    least = max(FEWEST_OF_GROUP * len(some) / n, SMALLEST_SHARE * len(some))
    for k in range(2, min(MOST_GROUPS, n // FEWEST_OF_GROUP) + 1):
        model = KMeans(k, n_init=4, random_state=0).fit(x[some])
        large = np.bincount(model.labels_, minlength=k).min() >= least
        if large and (score := silhouette_score(x[some], model.labels_)) > best:
            best, groups = score, model
    if groups is None:
        return np.zeros(n, np.int64)
    group = groups.predict(x)
    order = np.argsort(-np.bincount(group), kind="stable")
    return np.argsort(order)[group]
