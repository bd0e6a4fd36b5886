"""From what was learnt about images to findings, for `find.auditing` and `find.oddities`."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from find.classes import Posterior
from find.duplicates import Copies, repeated
from find.findings import Finding, Image
from find.foreign import nearest
from find.inputs import Inputs
from find.rates import bayes_q_values, local_rates, q_values

LISTED = 0.02  # findings of a lower probability are left out, but for the first of all
AT_LEAST = 100
NEIGHBOURS = 5
SURE_OF_COPY = 0.5  # probability from which a picture that is there twice is listed for another reason


@dataclass(frozen=True)
class Judged:
    """The images that were judged, a picture once in each class that it is in, and what was learnt about them.

    rows (m,): of the data set. labels (m,): numbers of the classes that were judged; 0 without. foreign (m,): p-values.
    wrong (m,): the probability that the label is wrong; likely (m,): the most likely other class. distance (m,): from
    the others of the class, larger for farther ones. posterior: of the classes; None unless there are several.
    """

    rows: np.ndarray
    labels: np.ndarray
    foreign: np.ndarray
    wrong: np.ndarray
    likely: np.ndarray
    distance: np.ndarray
    posterior: Posterior | None


def take_one_of_each(inputs: Inputs, copies: Copies, labels: np.ndarray) -> np.ndarray:
    """The rows (m,) that count: of the copies of a picture in one class (labels (n,)) the first.

    What is first, and the order of the rows, depend on features and paths, not on the order of the images. So no
    result, and nothing that is drawn by a seed, depends on it either.
    """
    x = inputs.features
    key = np.einsum("ij,j->i", x, np.random.default_rng(0).random(x.shape[1]))
    order = np.lexsort((np.array(inputs.paths, str), labels, key))
    _, first = np.unique(np.stack([copies.group, labels])[:, order], axis=1, return_index=True)
    return order[np.sort(first)]


def make_candidates(inputs: Inputs, copies: Copies, judged: Judged) -> tuple[Finding, ...]:
    """A finding for every image that may be in the list, and for every group of copies that none of them shows."""
    groups = copies.group[judged.rows]
    parts = repeated(copies.group)
    judged, certain, conflict = _settle_conflicts(inputs, copies, judged, parts)
    strange, q_foreign, q_label = 1 - local_rates(judged.foreign), q_values(judged.foreign), bayes_q_values(certain)
    is_foreign = (q_foreign <= inputs.rate) | ((q_label > inputs.rate) & (strange > judged.wrong))
    is_foreign |= judged.posterior is None
    is_foreign[conflict] = False
    probability = np.where(is_foreign, strange, judged.wrong)
    q = np.where(is_foreign, q_foreign, q_label)
    # local rates are steps: on a step, what is the least likely to belong comes first
    ranked = np.lexsort((np.where(is_foreign, judged.foreign, 1 - judged.wrong), -probability.round(6)))
    listed = (probability >= LISTED) | (q <= inputs.rate)
    listed[ranked[:AT_LEAST]] = probability[ranked[:AT_LEAST]] > 0
    copied = np.isin(groups, list(parts))
    listed &= ~copied | (q <= inputs.rate) | (probability >= SURE_OF_COPY)
    listed[conflict] = True
    chosen = ranked[listed[ranked]]
    neighbours = _find_neighbours(inputs, copies, judged, chosen[is_foreign[chosen]])
    findings, no_copies = [], np.zeros(0, int)
    for i in chosen.tolist():
        row, part = int(judged.rows[i]), parts.get(groups[i], no_copies)
        suggested = None if is_foreign[i] else _likely_class(inputs, judged, i)
        scores = {"distance": judged.distance[i], "foreign": strange[i], "wrong label": judged.wrong[i]}
        findings.append(
            _finding(
                inputs,
                row,
                question="foreign" if is_foreign[i] else "label",
                suggested=suggested,
                probability=round(float(probability[i]), 6),
                q=round(float(q[i]), 6),
                flagged=round(float(q[i]), 6) <= inputs.rate,
                why=(f"the same picture is in {suggested}" if conflict[i] else _reason(judged, i, suggested),),
                neighbours=neighbours.get(i, ()),
                copies=inputs.images(part[part != row]),
                scores={name: round(float(value), 6) for name, value in scores.items()},
            )
        )
    shown = set(groups[chosen].tolist())
    first = {int(group): int(row) for group, row in zip(groups[::-1], judged.rows[::-1], strict=True)}
    hidden = ((part, first.get(group, int(part[0]))) for group, part in parts.items() if group not in shown)
    return (*findings, *(_duplicate(inputs, copies, part, row) for part, row in hidden))


def _settle_conflicts(
    inputs: Inputs, copies: Copies, judged: Judged, parts: dict[int, np.ndarray]
) -> tuple[Judged, np.ndarray, np.ndarray]:
    """Of each picture that is in several classes, leave the image in the least likely one to be found.

    Every copy is a vote for its class that is wrong as often as labels are. Returns what was judged, changed so; how
    sure it is that an image or its copy has a wrong label (m,); and which images are left of such pictures (m,).
    """
    conflict = np.zeros(len(judged.rows), bool)
    if judged.posterior is None:
        return judged, judged.wrong, conflict
    noise, log = judged.posterior.noise, judged.posterior.log
    foreign, wrong, likely = judged.foreign.copy(), judged.wrong.copy(), judged.likely.copy()
    certain = wrong.copy()
    for group, images in repeated(copies.group[judged.rows]).items():
        part, own = parts[group], judged.labels[images]
        votes = [(inputs.labels[part] == inputs.labels[judged.rows[i]]).sum() for i in images]
        support = np.array(votes) * np.log((1 - noise) / noise) + log[images, own]
        share = np.exp(support - support.max())
        least, equal = int(share.argmin()), copies.equal[part]
        foreign[images], wrong[images], certain[images] = 1.0, 0.0, 0.0
        i = images[least]
        wrong[i], likely[i] = 1 - float(share[least] / share.sum()), own[share.argmax()]
        pairs = np.unique(np.stack([inputs.labels[part], equal]), axis=1)
        in_two_classes = pairs.shape[1] > len(np.unique(equal))  # equal pictures: one label is wrong for sure
        certain[i] = 1.0 if in_two_classes else wrong[i]
        conflict[i] = True
    return replace(judged, foreign=foreign, wrong=wrong, likely=likely), certain, conflict


def _find_neighbours(
    inputs: Inputs, copies: Copies, judged: Judged, images: np.ndarray
) -> dict[int, tuple[Image, ...]]:
    """For each of the judged images (k,) those that are most like it, no copies of it."""
    if not len(images):
        return {}
    rows = judged.rows[images]
    k = min(2 * NEIGHBOURS, len(judged.rows))  # some may be copies in other classes
    near = judged.rows[nearest(inputs.features[rows], inputs.features, k, judged.rows)[0]]
    others = (some[copies.group[some] != copies.group[row]] for row, some in zip(rows, near, strict=True))
    return {int(i): inputs.images(some[:NEIGHBOURS]) for i, some in zip(images, others, strict=True)}


def _duplicate(inputs: Inputs, copies: Copies, part: np.ndarray, row: int) -> Finding:
    """The finding of the copies (k,) of a picture; row: the one that counts."""
    same = int((copies.equal[part] == copies.equal[row]).sum()) - 1
    near = len(part) - 1 - same
    why = [f"{same:,} more of exactly this picture"] if same else []
    why += [f"{near:,} more of nearly this picture"] if near else []
    others = inputs.images(part[part != row])
    return _finding(inputs, row, question="duplicate", probability=1.0, why=tuple(why), copies=others)


def _finding(inputs: Inputs, row: int, **answer: Any) -> Finding:
    own = inputs.class_names[inputs.labels[row]] if inputs.class_names else None
    return Finding(row=row, path=inputs.paths[row], split=inputs.splits[row], own=own, **answer)


def _likely_class(inputs: Inputs, judged: Judged, i: int) -> str:
    return inputs.class_names[inputs.labels[judged.rows[judged.labels == judged.likely[i]][0]]]


def _reason(judged: Judged, i: int, suggested: str | None) -> str:
    if suggested is None or judged.posterior is None:
        return "far from the other images"
    log = judged.posterior.log[i]
    return f"nearer to {suggested}" if log[judged.likely[i]] > log[judged.labels[i]] else "hard to tell"
