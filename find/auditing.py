"""Which images of a labelled data set belong to none of its classes, belong to another one, or are there twice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.errors import UserError
from find.candidates import find_duplicates, find_neighbours, other_copies, take_one_of_each
from find.classes import Posterior, posterior
from find.duplicates import Copies, find_copies
from find.findings import Finding, Findings
from find.foreign import class_distances
from find.inputs import Inputs, take_inputs
from find.listing import AT_LEAST, LISTED, TYPICAL, make_findings, require_features
from find.rates import bayes_q_values, find_caveat, local_rates, p_values, q_values

SMALLEST = 3  # different images of a class that can be judged
FAR = 2.0  # deviations
SIMILAR_CLASSES = (
    "wrong labels seem to go to similar classes here, where images that are hard to tell look just like them"
)


@dataclass(frozen=True)
class Judged:
    """The images of a data set that were judged, a picture once in each class that it is in, and what was found.

    rows (m,): of the data set. labels (m,): numbers of the classes that were judged. foreign (m,): p-values.
    wrong (m,): the probability that the label is wrong; likely (m,): the most likely other class. distance (m,): from
    the others of the class, N(0, 1) where all belong. posterior: of the classes; None if there is one alone.
    """

    rows: np.ndarray
    labels: np.ndarray
    foreign: np.ndarray
    wrong: np.ndarray
    likely: np.ndarray
    distance: np.ndarray
    posterior: Posterior | None


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
    settings: Mapping[str, Any] | None = None,
) -> Findings:
    """Judge every image of features (n, D) with labels (n,); `find.findings` says which questions are answered.

    class_names: of the labels 0 … C - 1. paths, splits: of the images. digests: (n, 32) uint8, equal for equal
    pictures. rate: the false-discovery rate of the flagged ones, of each question. settings: provenance, taken over.

    "label" is asked where there are two classes or more. Classes of fewer than three different images are not judged.
    Raises UserError where no class can be judged, and for what `find.inputs.take_inputs` refuses.
    """
    inputs = take_inputs(
        features, labels, class_names=class_names, paths=paths, splits=splits, digests=digests, rate=rate, seed=seed
    )
    require_features(inputs.features)
    copies = find_copies(inputs.features, inputs.digests)
    units, too_small = _large_enough(inputs, take_one_of_each(inputs, copies, inputs.labels))
    _require_differing(inputs, copies.group[units], inputs.labels[units])
    judged = judge(inputs.features[units], inputs.labels[units], copies.group[units], inputs.seed, units)
    names = [inputs.class_names[label] for label in np.unique(inputs.labels[units])]
    typical = {}
    for label, name in enumerate(names):
        of_class = np.flatnonzero(judged.labels == label)
        central = of_class[np.argsort(judged.distance[of_class], kind="stable")[:TYPICAL]]
        typical[name] = inputs.images.shown(judged.rows[central])
    said: dict[str, Any] = {"seed": inputs.seed}
    if judged.posterior:
        said["noise_rate"] = round(judged.posterior.noise, 5)
        said["wrong_labels_to_similar_classes"] = round(judged.posterior.near, 3)
    return make_findings(
        "audit",
        _make_candidates(inputs, copies, judged),
        len(inputs.features),
        inputs.rate,
        typical,
        caveats=_caveats(judged, inputs.rate),
        class_names=inputs.class_names,
        too_small=too_small,
        settings=dict(settings or {}) | said,
    )


def judge(
    features: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int, rows: np.ndarray | None = None
) -> Judged:
    """Judge images of features (m, D) with labels (m,), no two of which are the same picture in the same class.

    groups (m,): equal for copies in different classes. rows (m,): what the images are called in the result.
    An image is foreign if it is far from the others of its class, and also from those of the class that it rather
    belongs to, if its label is more likely wrong than right.
    """
    rows = np.arange(len(labels)) if rows is None else rows
    _, labels = np.unique(labels, return_inverse=True)
    wrong, likely, of_classes = np.zeros(len(labels)), labels, None
    if labels.max() > 0:
        of_classes = posterior(features, labels, groups, seed)
        wrong = of_classes.wrong(labels)
        others = of_classes.log.copy()
        others[np.arange(len(labels)), labels] = -np.inf
        likely = others.argmax(1)
    distance = class_distances(features, labels, np.where(wrong > 0.5, likely, labels))
    return Judged(rows, labels, p_values(distance), wrong, likely, distance, of_classes)


def _caveats(judged: Judged, rate: float) -> dict[str, str | None]:
    """Of each question that was asked, why its rate cannot be promised; None where it can."""
    caveats = {"foreign": find_caveat(judged.foreign, rate)}
    if judged.posterior:
        caveats["label"] = SIMILAR_CLASSES if judged.posterior.near > 0.5 else None
    return caveats


def _large_enough(inputs: Inputs, units: np.ndarray) -> tuple[np.ndarray, dict[str, int]]:
    """Those of the rows (m,) whose classes can be judged; and the classes that cannot, with the number of images."""
    counts, images = (
        np.bincount(inputs.labels[rows], minlength=len(inputs.class_names)) for rows in (units, slice(None))
    )
    small = counts < SMALLEST
    if small.all():
        raise UserError(
            f"no class has {SMALLEST} different images or more: too few to know a class by; add images, or use find odd"
        )
    kept = units[~small[inputs.labels[units]]]
    return kept, {inputs.class_names[label]: int(images[label]) for label in np.flatnonzero(small)}


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


def _blame(judged: Judged, groups: np.ndarray, copies: np.ndarray) -> dict[int, tuple[int, float]]:
    """Of each picture in several classes: the image in the least likely one, with the likeliest class, and p(wrong).

    groups (m,): of the judged images. copies (m,): how many there are of each in its class. Every copy is a vote that
    is wrong as often as labels are.
    """
    if judged.posterior is None:
        return {}
    noise, log = judged.posterior.noise, judged.posterior.log
    support = copies * np.log((1 - noise) / noise) + log[np.arange(len(log)), judged.labels]
    order = np.argsort(groups, kind="stable")
    found = {}
    for part in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
        if len(part) > 1:
            share = np.exp(support[part] - support[part].max())
            least = int(share.argmin())
            wrong = 1 - share[least] / share.sum()
            found[int(part[least])] = int(judged.labels[part[share.argmax()]]), float(wrong)
    return found


def _make_candidates(inputs: Inputs, copies: Copies, judged: Judged) -> list[Finding]:
    """A finding for every image that may be in the list."""
    groups = copies.group[judged.rows]
    parts = {int(copies.group[part[0]]): part for part in copies.groups()}
    in_class = _count(np.stack([copies.group, inputs.labels]), np.stack([groups, inputs.labels[judged.rows]]))
    blamed = _blame(judged, groups, in_class)
    conflicting = {int(groups[i]) for i in blamed}
    wrong, foreign = judged.wrong.copy(), judged.foreign.copy()
    of_conflict = np.isin(groups, list(conflicting))
    wrong[of_conflict], foreign[of_conflict] = 0.0, 1.0  # one finding for all images of such a group
    certain = wrong.copy()
    for i, (_, probability) in blamed.items():
        wrong[i] = probability
        part = parts[groups[i]]  # equal pictures in two classes: that one of them is wrong is certain
        certain[i] = 1.0 if _disagree(inputs.labels[part], copies.equal[part]) else probability
    strange, q_foreign, q_label = 1 - local_rates(foreign), q_values(foreign), bayes_q_values(certain)
    is_foreign = (q_foreign <= inputs.rate) | ((q_label > inputs.rate) & (strange > wrong))
    probability = np.where(is_foreign, strange, wrong)
    q = np.where(is_foreign, q_foreign, q_label)
    listed = np.zeros(len(q), bool)
    listed[np.argsort(-probability, kind="stable")[:AT_LEAST]] = True
    listed |= (probability >= LISTED) | (q <= inputs.rate)
    copied = np.isin(groups, list(parts))
    listed &= ~copied | (q <= inputs.rate) | (probability >= 0.5)  # else they are listed as copies
    listed[list(blamed)] = True
    chosen = np.flatnonzero(listed & ((probability > 0) | is_foreign))
    strangers = chosen[is_foreign[chosen]]
    near = find_neighbours(inputs, copies, judged.rows, judged.rows[strangers])
    neighbours = dict(zip(strangers.tolist(), near, strict=True))
    names = [inputs.class_names[number] for number in np.unique(inputs.labels[judged.rows])]
    findings = []
    # local rates are steps: on a step what looks worse comes first
    for i in sorted(chosen.tolist(), key=lambda i: (-probability[i], foreign[i] if is_foreign[i] else 0.0)):
        row = int(judged.rows[i])
        to, own = blamed[i][0] if i in blamed else int(judged.likely[i]), names[judged.labels[i]]
        why = _reasons(judged, i, own, names[to], bool(is_foreign[i]))
        scores = {"distance": judged.distance[i], "foreign": strange[i], "wrong label": wrong[i]}
        findings.append(
            Finding(
                row=row,
                path=inputs.images.paths[row],
                split=inputs.images.splits[row],
                question="foreign" if is_foreign[i] else "label",
                own=own,
                suggested=None if is_foreign[i] else names[to],
                probability=round(float(probability[i]), 6),
                q=round(float(q[i]), 6),
                why=(f"the same picture is in {names[to]}",) if i in blamed else why,
                neighbours=neighbours.get(i, ()),
                copies=other_copies(inputs, parts[groups[i]], row) if copied[i] else (),
                scores={name: round(float(value), 6) for name, value in scores.items()},
            )
        )
    return findings + find_duplicates(inputs, copies, judged.rows, set(groups[chosen].tolist()))


def _disagree(labels: np.ndarray, equal: np.ndarray) -> bool:
    """Whether images of labels (k,) that are exactly equal, of one number (k,), are in different classes."""
    return len(np.unique(np.stack([labels, equal]), axis=1).T) > len(np.unique(equal))


def _count(pairs: np.ndarray, of: np.ndarray) -> np.ndarray:
    """How often each pair of numbers (2, m) is among others (2, n)."""
    unique, number = np.unique(pairs, axis=1, return_counts=True)
    counts = dict(zip(map(tuple, unique.T.tolist()), number.tolist(), strict=True))
    return np.array([counts[pair] for pair in map(tuple, of.T.tolist())])


def _reasons(judged: Judged, i: int, own: str, other: str, is_foreign: bool) -> tuple[str, ...]:
    """Why an image is in the list, in short texts."""
    if is_foreign:
        return (f"far from the other images of {own}",)
    assert judged.posterior is not None
    log = judged.posterior.log[i]
    why = [f"nearer to {other}"] if log[judged.likely[i]] > log[judged.labels[i]] else []
    return (*why, *([f"far from the other images of {own}"] if judged.distance[i] > FAR else []))
