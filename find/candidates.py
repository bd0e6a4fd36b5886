"""From what was found out about images to findings, for `find.auditing` and `find.oddities`."""

from dataclasses import dataclass

import numpy as np

from find.classes import Posterior
from find.duplicates import Copies
from find.findings import Finding, Image
from find.foreign import nearest
from find.inputs import Inputs
from find.listing import AT_LEAST, LISTED
from find.rates import bayes_q_values, local_rates, q_values

NEIGHBOURS = 5
SURE_OF_COPY = 0.5  # probability from which a picture that is there twice is listed for another reason


@dataclass(frozen=True)
class Judged:
    """The images that were judged, a picture once in each class that it is in, and what was found.

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


@dataclass(frozen=True)
class Conflict:
    """A picture in several classes. other: the likeliest. wrong: p(the label is wrong). equal: no pixel differs."""

    other: int
    wrong: float
    equal: bool


def take_one_of_each(inputs: Inputs, copies: Copies, labels: np.ndarray) -> np.ndarray:
    """The rows (m,) that count: of the copies of a picture in one class (labels (n,)) the first.

    What is first, and the order of the rows, depend on features and paths, not on the order of the images. So nothing
    that is found, or drawn by a seed, depends on it either.
    """
    x = inputs.features
    key = np.einsum("ij,j->i", x, np.random.default_rng(0).random(x.shape[1]))
    order = np.lexsort((np.array(inputs.images.paths, str), labels, key))
    _, first = np.unique(np.stack([copies.group, labels])[:, order], axis=1, return_index=True)
    return order[np.sort(first)]


def make_candidates(inputs: Inputs, copies: Copies, judged: Judged) -> list[Finding]:
    """A finding for every image that may be in the list, and for every group of copies that none of them shows."""
    groups = copies.group[judged.rows]
    parts = {int(copies.group[part[0]]): part for part in copies.groups()}
    conflicts, settled = _find_conflicts(inputs, copies, judged, parts)
    wrong, foreign = judged.wrong.copy(), judged.foreign.copy()
    wrong[settled], foreign[settled] = 0.0, 1.0  # one finding for all images of a conflict
    certain = wrong.copy()
    for i, each in conflicts.items():
        wrong[i] = each.wrong
        certain[i] = 1.0 if each.equal else each.wrong  # of equal pictures in two classes, one is wrong
    strange, q_foreign, q_label = 1 - local_rates(foreign), q_values(foreign), bayes_q_values(certain)
    is_foreign = (q_foreign <= inputs.rate) | ((q_label > inputs.rate) & (strange > wrong)) | (judged.posterior is None)
    is_foreign[list(conflicts)] = False
    probability = np.where(is_foreign, strange, wrong)
    q = np.where(is_foreign, q_foreign, q_label)
    # local rates are steps: on a step, what is the least likely to belong comes first
    ranked = np.lexsort((np.where(is_foreign, foreign, 1 - wrong), -probability.round(6)))
    listed = (probability >= LISTED) | (q <= inputs.rate)
    listed[ranked[:AT_LEAST]] = probability[ranked[:AT_LEAST]] > 0
    copied = np.isin(groups, list(parts))
    listed &= ~copied | (q <= inputs.rate) | (probability >= SURE_OF_COPY)
    listed[list(conflicts)] = True
    chosen = ranked[listed[ranked]]
    strangers = chosen[is_foreign[chosen]]
    near = _find_neighbours(inputs, copies, judged.rows, judged.rows[strangers])
    neighbours = dict(zip(strangers.tolist(), near, strict=True))
    findings = []
    for i in chosen.tolist():
        row, conflict = int(judged.rows[i]), conflicts.get(i)
        suggested = None if is_foreign[i] else _name(inputs, judged, conflict.other if conflict else judged.likely[i])
        scores = {"distance": judged.distance[i], "foreign": strange[i], "wrong label": wrong[i]}
        findings.append(
            Finding(
                row=row,
                path=inputs.images.paths[row],
                split=inputs.images.splits[row],
                question="foreign" if is_foreign[i] else "label",
                own=_name(inputs, judged, judged.labels[i]),
                suggested=suggested,
                probability=round(float(probability[i]), 6),
                q=round(float(q[i]), 6),
                why=_reasons(judged, i, suggested, conflict),
                neighbours=neighbours.get(i, ()),
                copies=_others(inputs, parts[groups[i]], row) if copied[i] else (),
                scores={name: round(float(value), 6) for name, value in scores.items()},
            )
        )
    shown = set(groups[chosen].tolist())
    first = {int(group): int(row) for group, row in zip(groups[::-1], judged.rows[::-1], strict=True)}
    return findings + [
        _duplicate(inputs, copies, part, first.get(group, int(part[0])))
        for group, part in parts.items()
        if group not in shown
    ]


def _find_conflicts(
    inputs: Inputs, copies: Copies, judged: Judged, parts: dict[int, np.ndarray]
) -> tuple[dict[int, Conflict], list[int]]:
    """Of each picture that is in several classes the image in the least likely one; and all images of such pictures.

    Every copy is a vote for its class that is wrong as often as labels are.
    """
    found: dict[int, Conflict] = {}
    settled: list[int] = []
    if judged.posterior is None:
        return found, settled
    noise, log = judged.posterior.noise, judged.posterior.log
    of_group: dict[int, list[int]] = {}
    for i in np.flatnonzero(np.isin(copies.group[judged.rows], list(parts))).tolist():
        of_group.setdefault(int(copies.group[judged.rows[i]]), []).append(i)
    for group, images in of_group.items():
        if len(images) < 2:
            continue
        part, own = parts[group], judged.labels[images]
        votes = [(inputs.labels[part] == inputs.labels[judged.rows[i]]).sum() for i in images]
        support = np.array(votes) * np.log((1 - noise) / noise) + log[images, own]
        share = np.exp(support - support.max())
        least, equal = int(share.argmin()), copies.equal[part]
        classes = np.unique(np.stack([inputs.labels[part], equal]), axis=1).shape[1]
        wrong = 1 - float(share[least] / share.sum())
        found[images[least]] = Conflict(int(own[share.argmax()]), wrong, classes > len(np.unique(equal)))
        settled += images
    return found, settled


def _find_neighbours(inputs: Inputs, copies: Copies, counted: np.ndarray, rows: np.ndarray) -> list[tuple[Image, ...]]:
    """For each of the rows (k,) the images that are most like it among those that count (m,), no copies of it."""
    if not len(rows):
        return []
    k = min(2 * NEIGHBOURS, len(counted))  # some may be copies in other classes
    found = counted[nearest(inputs.features[rows], inputs.features, k, counted)[0]]
    return [
        inputs.images.shown(near[copies.group[near] != copies.group[row]][:NEIGHBOURS])
        for row, near in zip(rows, found, strict=True)
    ]


def _duplicate(inputs: Inputs, copies: Copies, part: np.ndarray, row: int) -> Finding:
    """The finding of the copies (k,) of a picture; row: the one that counts."""
    same = int((copies.equal[part] == copies.equal[row]).sum()) - 1
    near = len(part) - 1 - same
    why = [f"{same:,} more of exactly this picture"] if same else []
    why += [f"{near:,} more of nearly this picture"] if near else []
    return Finding(
        row=row,
        path=inputs.images.paths[row],
        split=inputs.images.splits[row],
        question="duplicate",
        own=inputs.class_names[inputs.labels[row]] if inputs.class_names else None,
        probability=1.0,
        why=tuple(why),
        copies=_others(inputs, part, row),
    )


def _others(inputs: Inputs, part: np.ndarray, row: int) -> tuple[Image, ...]:
    return inputs.images.shown(part[part != row])


def _name(inputs: Inputs, judged: Judged, label: int) -> str | None:
    if not inputs.class_names:
        return None
    return inputs.class_names[inputs.labels[judged.rows[judged.labels == label][0]]]


def _reasons(judged: Judged, i: int, suggested: str | None, conflict: Conflict | None) -> tuple[str, ...]:
    if conflict:
        return (f"the same picture is in {suggested}",)
    if suggested is None or judged.posterior is None:
        return ("far from the other images",)
    log = judged.posterior.log[i]
    return (f"nearer to {suggested}",) if log[judged.likely[i]] > log[judged.labels[i]] else ("hard to tell",)
