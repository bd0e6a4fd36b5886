"""What `find.auditing` and `find.oddities` both need: which copy of a picture counts, and what is shown beside it."""

from collections.abc import Collection

import numpy as np

from find.duplicates import Copies
from find.findings import Finding, Image
from find.foreign import nearest, unit
from find.inputs import Inputs

NEIGHBOURS = 5


def take_one_of_each(inputs: Inputs, copies: Copies, labels: np.ndarray) -> np.ndarray:
    """The rows (m,) that count: of the copies of a picture in one class (labels (n,)) the first.

    What is first, and the order of the rows, depend on features and paths, not on the order of the images. So nothing
    that is found, or drawn by a seed, depends on it either.
    """
    x = inputs.features
    key = (x * np.random.default_rng(0).random(x.shape[1])).sum(1)
    order = np.lexsort((inputs.images.paths, labels, key))
    _, first = np.unique(np.stack([copies.group, labels])[:, order], axis=1, return_index=True)
    return order[np.sort(first)]


def find_neighbours(inputs: Inputs, copies: Copies, counted: np.ndarray, rows: np.ndarray) -> list[tuple[Image, ...]]:
    """For each of the rows (k,) the images that are most like it among those that count (m,), no copies of it."""
    if not len(rows):
        return []
    others = unit(inputs.features[counted])
    k = min(2 * NEIGHBOURS, len(counted))  # some may be copies in other classes
    found = counted[nearest(unit(inputs.features[rows]), others, k)]
    return [
        inputs.images.shown(near[copies.group[near] != copies.group[row]][:NEIGHBOURS])
        for row, near in zip(rows, found, strict=True)
    ]


def other_copies(inputs: Inputs, part: np.ndarray, row: int) -> tuple[Image, ...]:
    """The other copies of a picture, part (k,) being the rows of all of them."""
    return inputs.images.shown(part[part != row])


def find_duplicates(inputs: Inputs, copies: Copies, counted: np.ndarray, done: Collection[int]) -> list[Finding]:
    """A finding for each group of copies, but those whose number is in `done`.

    counted (m,): the rows that count; they stand for their groups.
    """
    first = {int(copies.group[row]): int(row) for row in counted[::-1]}
    findings = []
    for part in copies.groups():
        number = int(copies.group[part[0]])
        if number in done:
            continue
        row = first.get(number, int(part[0]))
        same = int((copies.equal[part] == copies.equal[row]).sum()) - 1
        near = len(part) - 1 - same
        why = [f"{same:,} more of exactly this picture"] if same else []
        why += [f"{near:,} more of nearly this picture"] if near else []
        findings.append(
            Finding(
                row=row,
                path=inputs.images.paths[row],
                split=inputs.images.splits[row],
                question="duplicate",
                own=inputs.class_names[inputs.labels[row]] if inputs.class_names else None,
                probability=1.0,
                why=tuple(why),
                copies=other_copies(inputs, part, row),
            )
        )
    return findings
