"""Foreign pictures and wrong labels in data sets and folders, beside other ways. Truth is known: both were put in."""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score

from bench.detectors import datalab, outliers, predict, ten_lines, within_classes
from find.auditing import judge
from find.duplicates import find_copies
from find.oddities import Judge
from find.rates import bayes_q_values, q_values

SEED = 100  # of the first draw: smaller ones were looked at while the methods were made
RATE = 0.1  # the false-discovery rate that is asked for
NOISE = 0.05  # of the labels are changed
SHARES = 0.005, 0.02, 0.05  # of foreign pictures
SIZES, FOREIGN = (20, 100, 500), (0, 1, 5)  # images of one class in a folder, and foreign pictures beside them
DRAWS = 3
OURS = "find.audit"

Row = dict[str, Any]
Arrays = tuple[np.ndarray, np.ndarray]  # features (n, D) float32, labels (n,)
Ways = Iterator[tuple[str, np.ndarray, np.ndarray | None]]  # name, scores (n,), flagged (n,) where it says so


def foreign_pictures(
    features: np.ndarray, labels: np.ndarray, foreign: np.ndarray, draws: int = DRAWS
) -> Iterator[Row]:
    """Some of the foreign pictures (m, D) put into random classes of a data set (n, D), `draws` times."""
    for share in SHARES:
        for seed in range(SEED, SEED + draws):
            generator = np.random.default_rng(seed)
            number = min(len(foreign), max(1, round(share * len(features))))
            x = np.concatenate([features, foreign[generator.choice(len(foreign), number, replace=False)]])
            mixed = np.concatenate([labels, generator.choice(labels, number)])
            for row in compare(find_foreign(x, mixed, seed), np.arange(len(x)) >= len(features)):
                yield {"share": share, **row}


def wrong_labels(features: np.ndarray, labels: np.ndarray, group: np.ndarray, draws: int = DRAWS) -> Iterator[Row]:
    """Labels changed to others of the same group (C,), `draws` times."""
    for seed in range(SEED, SEED + draws):
        noisy, bad = change(labels, group, seed)
        yield from compare(find_wrong_labels(features, noisy, seed), bad)


def change(labels: np.ndarray, group: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,), some changed to another class of the same group (C,), and which were (n,) bool."""
    generator = np.random.default_rng(seed)
    bad = generator.random(len(labels)) < NOISE
    noisy = labels.copy()
    for row in np.flatnonzero(bad):
        others = np.flatnonzero(group == group[labels[row]])
        noisy[row] = generator.choice(others[others != labels[row]])
    return noisy, bad


def compare(ways: Ways, bad: np.ndarray) -> Iterator[Row]:
    """What each way takes, its average precision, and what is true of what it flags; bad: the truth (n,)."""
    started = time.perf_counter()
    for way, scores, flagged in ways:
        row: Row = {"way": way, "seconds": time.perf_counter() - started, "bad": int(bad.sum())}
        row["average_precision"] = float(average_precision_score(bad, scores))
        if flagged is not None:
            row |= {"flagged": int(flagged.sum()), "recall": float(flagged[bad].mean())}
            row["precision"] = float(bad[flagged].mean()) if flagged.any() else None
        yield row
        started = time.perf_counter()


def find_foreign(x: np.ndarray, labels: np.ndarray, seed: int) -> Ways:
    """The ways to find foreign pictures among features (n, D) with labels (n,)."""
    judged = judge(x, labels, find_copies(x).group, seed)
    yield OURS, judged.distance, q_values(judged.foreign) <= RATE
    yield "kNN within the class", within_classes(x, labels), None
    yield "ten lines", *ten_lines(x, labels, RATE)
    for name, scores in outliers(x).items():
        yield name, scores, None
    predicted = predict(x, labels)
    yield "logistic regression", -predicted[np.arange(len(x)), labels], None
    if find_spec("cleanlab"):
        yield "Datalab: outliers", *datalab(x, labels, predicted, "outlier")


def find_wrong_labels(x: np.ndarray, labels: np.ndarray, seed: int) -> Ways:
    """The ways to find wrong labels, as `find_foreign`."""
    judged = judge(x, labels, find_copies(x).group, seed)
    yield OURS, judged.wrong, bayes_q_values(judged.wrong) <= RATE
    yield "kNN within the class", within_classes(x, labels), None
    predicted = predict(x, labels)
    yield "logistic regression", -predicted[np.arange(len(x)), labels], None
    if find_spec("cleanlab"):
        yield "Datalab: labels", *datalab(x, labels, predicted, "label")


def folders(
    images: Arrays, foreign: np.ndarray | None, size: int, number: int, draws: int = DRAWS
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
                chosen = x[generator.choice(own, size, replace=False)]
                strangers = others[generator.choice(len(others), number, replace=False)]
                yield np.concatenate([chosen, strangers]), np.arange(size + number) >= size


def measure_folders(
    images: Arrays, foreign: np.ndarray | None, size: int, judges: Mapping[str, Judge], draws: int = DRAWS
) -> list[Row]:
    """Each way in folders of `size` images: alarms in clean ones, what is noticed in others, and how often rightly."""
    values: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for number in FOREIGN:
        for x, odd in folders(images, foreign, size, number, draws):
            for way, judge_folder in judges.items():
                scores, p = judge_folder(x)
                flagged = q_values(p) <= RATE
                if number:
                    values[way][f"average_precision_{number}"].append(average_precision_score(odd, scores))
                    values[way][f"noticed_{number}"].append(flagged[odd].any())
                    if flagged.any():
                        values[way]["right"].append(odd[flagged].mean())
                else:
                    values[way]["alarms"].append(flagged.any())
            for way, scores in outliers(x).items() if number else ():
                values[way][f"average_precision_{number}"].append(average_precision_score(odd, scores))
    return [{"way": way, **{key: float(np.mean(one)) for key, one in found.items()}} for way, found in values.items()]
