"""Foreign pictures in folders of one class, beside other ways."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score

from bench.audits import RATE, SEED
from bench.detectors import outliers
from find.oddities import Judge, judge_alone, make_judge
from find.rates import q_values

SIZES = 20, 100, 500
FOREIGN = 0, 1, 5
ALONE = "find.odd, the folder alone"

Arrays = tuple[np.ndarray, np.ndarray]  # features (n, D) float32, labels (n,)


def folders(
    images: Arrays, foreign: np.ndarray | None, size: int, number: int, draws: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each class of at least `size` images, `draws` times: the features of some, and of `number` foreign ones.

    foreign (m, D): None for images of the other classes. Also which are foreign (size + number,) bool.
    """
    x, labels = images
    for seed in range(SEED, SEED + draws):
        generator = np.random.default_rng(seed)
        for label in np.unique(labels):
            own = np.flatnonzero(labels == label)
            if len(own) >= size:
                others = x[labels != label] if foreign is None else foreign
                chosen = [x[generator.choice(own, size, replace=False)], others[_some(generator, len(others), number)]]
                yield np.concatenate(chosen), np.arange(size + number) >= size


def _some(generator: np.random.Generator, n: int, number: int) -> np.ndarray:
    return generator.choice(n, number, replace=False)


def measure_folders(
    images: Arrays, foreign: np.ndarray | None, size: int, draws: int, judges: dict[str, Judge]
) -> list[dict[str, Any]]:
    """Each way in folders of `size` images: alarms in clean ones, what is noticed in others, and how often rightly."""
    seen: dict[str, dict[str, list[Any]]] = {}
    for number in FOREIGN:
        for x, odd in folders(images, foreign, size, number, draws):
            for name, judge in judges.items():
                scores, p = judge(x)
                flagged = q_values(p) <= RATE
                _note(seen.setdefault(name, {}), number, odd, scores, flagged)
            if number and ALONE in judges:
                for name, scores in outliers(x).items():
                    _note(seen.setdefault(name, {}), number, odd, scores, None)
    return [
        {"way": name, **{key: float(np.mean(values)) for key, values in of_way.items()}}
        for name, of_way in seen.items()
    ]


def _note(
    of_way: dict[str, list[Any]], number: int, odd: np.ndarray, scores: np.ndarray, flagged: np.ndarray | None
) -> None:
    if number:
        of_way.setdefault(f"average_precision_{number}", []).append(average_precision_score(odd, scores))
    if flagged is not None:
        of_way.setdefault(f"noticed_{number}" if number else "alarms", []).append(
            (flagged & (odd | (not number))).any()
        )
        if number and flagged.any():
            of_way.setdefault("right", []).append(odd[flagged].mean())


def judges_of(reference: Arrays | None, size: int, dim: int) -> dict[str, Judge]:
    """`find.odd` with what it may be given."""
    judges: dict[str, Judge] = {ALONE: judge_alone}
    if reference is not None:
        judges["find.odd, a reference store"] = make_judge(None, reference, None, np.empty((size, dim)), 0)[1]
    return judges
