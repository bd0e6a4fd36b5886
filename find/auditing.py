"""Which images of a labelled data set belong to none of its classes, belong to another one, or are there twice."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from common.errors import UserError
from find.candidates import Judged, make_candidates, take_one_of_each
from find.classes import posterior
from find.duplicates import find_copies
from find.findings import TYPICAL, Findings, Threshold, summarise
from find.foreign import class_distances
from find.inputs import Inputs, take_inputs
from find.rates import find_caveat, p_values

SMALLEST = 3  # different images of a class that can be judged
SIMILAR_CLASSES = (
    "wrong labels seem to go to similar classes here, where images that are hard to tell look just like them"
)


@threadpool_limits.wrap(limits=1, user_api="blas")  # what is large is shared out by torch, or by threads of its own
def audit(
    features: Any,
    labels: Any,
    *,
    class_names: Sequence[str] | None = None,
    paths: Sequence[Any] | None = None,
    splits: Sequence[str] | None = None,
    digests: Any = None,
    rate: float = 0.1,
    seed: int = 0,
) -> Findings:
    """Judge every image of features (n, D) with labels (n,); `find.findings` says which questions are answered.

    class_names: of the labels 0 … C - 1. paths, splits: of the images. digests: (n, 32) uint8, equal for equal
    pictures. rate: the false-discovery rate of the flagged ones, of each question.

    "label" is asked where there are two classes or more. Classes of fewer than three different images are not judged.
    Raises UserError where no class can be judged, and for what `find.inputs.take_inputs` refuses.
    """
    labels = () if labels is None else labels  # then there are too few
    inputs = take_inputs(
        features, labels, class_names=class_names, paths=paths, splits=splits, digests=digests, rate=rate, seed=seed
    )
    copies = find_copies(inputs.features, inputs.digests)
    units, too_small = _large_enough(inputs, take_one_of_each(inputs, copies, inputs.labels))
    _require_differing(inputs, copies.group[units], inputs.labels[units])
    judged = judge(inputs.features, inputs.labels[units], copies.group[units], inputs.seed, units)
    typical = {}
    for label, number in enumerate(np.unique(inputs.labels[units])):
        of_class = np.flatnonzero(judged.labels == label)
        central = of_class[np.lexsort((judged.distance[of_class], judged.wrong[of_class] > 0.5))[:TYPICAL]]
        typical[inputs.class_names[number]] = inputs.images(judged.rows[central])
    thresholds = {"foreign": Threshold(inputs.rate, caveat=find_caveat(judged.foreign, inputs.rate))}
    settings: dict[str, Any] = {"seed": inputs.seed}
    if of_classes := judged.posterior:
        thresholds["label"] = Threshold(inputs.rate, caveat=SIMILAR_CLASSES if of_classes.near > 0.5 else None)
        settings["noise_rate"] = round(of_classes.noise, 5)
        settings["wrong_labels_to_similar_classes"] = round(of_classes.near, 3)
    result = Findings(
        mode="audit",
        findings=make_candidates(inputs, copies, judged),
        class_names=inputs.class_names,
        typical=typical,
        counts={"images": len(inputs.features)},
        thresholds=thresholds,
        too_small=too_small,
        settings=settings,
    )
    return summarise(result)


def judge(
    features: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int, rows: np.ndarray | None = None
) -> Judged:
    """Judge the rows (m,) of features (n, D), no two of which are the same picture in the same class; or all.

    labels (m,). groups (m,): equal for copies in different classes.
    An image is foreign if it is far from the others of its class, and also from those of the likeliest other class.
    """
    rows = np.arange(len(labels)) if rows is None else rows
    _, labels = np.unique(labels, return_inverse=True)
    wrong, likely, of_classes = np.zeros(len(labels)), labels, None
    if labels.max() > 0:
        of_classes = posterior(features[rows], labels, groups, seed)
        wrong = of_classes.wrong(labels)
        others = of_classes.log.copy()
        others[np.arange(len(labels)), labels] = -np.inf
        likely = others.argmax(1)
    distance = class_distances(features, rows, labels, likely)
    return Judged(rows, labels, p_values(distance), wrong, likely, distance, of_classes)


def _large_enough(inputs: Inputs, units: np.ndarray) -> tuple[np.ndarray, dict[str, int]]:
    """Those of the rows (m,) whose classes can be judged; and the classes that cannot, with the number of images."""
    classes = len(inputs.class_names)
    counts, images = np.bincount(inputs.labels[units], minlength=classes), np.bincount(inputs.labels, minlength=classes)
    small = counts < SMALLEST
    if small.all():
        raise UserError(
            f"no class has {SMALLEST} different images or more: too few to know a class by; add images, or use find odd"
        )
    judged = units[~small[inputs.labels[units]]]
    return judged, {inputs.class_names[label]: int(images[label]) for label in np.flatnonzero(small)}


def _require_differing(inputs: Inputs, groups: np.ndarray, labels: np.ndarray) -> None:
    """Raise UserError where two classes hold the same pictures; groups (m,): of copies."""
    seen: dict[bytes, int] = {}
    for label in np.unique(labels):
        pictures = np.sort(groups[labels == label]).tobytes()
        if (other := seen.setdefault(pictures, int(label))) != label:
            names = f'"{inputs.class_names[other]}" and "{inputs.class_names[label]}"'
            raise UserError(
                f"the classes {names} hold the same pictures: nothing tells them apart; leave one of them out"
            )
