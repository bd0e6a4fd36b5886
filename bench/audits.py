"""Foreign pictures and wrong labels in data sets, beside other ways. Truth is known: both were put in."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score

from bench.detectors import datalab, floor, outliers, predict, within_classes
from find.auditing import judge
from find.duplicates import find_copies
from find.rates import bayes_q_values, q_values

SEED = 100  # of the first draw: smaller ones were looked at while the methods were made
RATE = 0.1  # the false-discovery rate that is asked for
NOISE = 0.05  # of the labels are changed
SHARES = 0.005, 0.02, 0.05  # of foreign pictures
OURS = "find.audit"

Row = dict[str, Any]


def foreign_pictures(features: np.ndarray, labels: np.ndarray, foreign: np.ndarray, draws: int) -> Iterator[Row]:
    """Some of the foreign pictures (m, D) put into random classes of a data set (n, D), `draws` times."""
    for share in SHARES:
        for seed in range(SEED, SEED + draws):
            generator = np.random.default_rng(seed)
            number = min(len(foreign), max(1, round(share * len(features))))
            x = np.concatenate([features, foreign[generator.choice(len(foreign), number, replace=False)]])
            given = np.concatenate([labels, generator.choice(labels, number)])
            bad = np.arange(len(x)) >= len(features)
            for way, scores, flagged, seconds in _foreign_ways(x, given, seed):
                yield {"share": share, "way": way, "seconds": seconds, **judged(scores, flagged, bad)}


def wrong_labels(features: np.ndarray, labels: np.ndarray, group: np.ndarray, draws: int) -> Iterator[Row]:
    """Labels changed to others of the same group (C,), `draws` times."""
    for seed in range(SEED, SEED + draws):
        given, bad = changed(labels, group, seed)
        for way, scores, flagged, seconds in _label_ways(features, given, seed):
            yield {"way": way, "seconds": seconds, **judged(scores, flagged, bad)}


def changed(labels: np.ndarray, group: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,), some changed to another class of the same group (C,), and which were (n,) bool."""
    generator = np.random.default_rng(seed)
    bad = generator.random(len(labels)) < NOISE
    given = labels.copy()
    for row in np.flatnonzero(bad):
        others = np.flatnonzero(group == group[labels[row]])
        given[row] = generator.choice(others[others != labels[row]])
    return given, bad


def judged(scores: np.ndarray, flagged: np.ndarray | None, bad: np.ndarray) -> Row:
    """Average precision, and what is true of the flagged ones."""
    found: Row = {"bad": int(bad.sum()), "average_precision": float(average_precision_score(bad, scores))}
    if flagged is not None:
        found |= {"flagged": int(flagged.sum()), "recall": float(flagged[bad].mean())}
        found["precision"] = float(bad[flagged].mean()) if flagged.any() else None
    return found


Judged = Iterator[tuple[str, np.ndarray, np.ndarray | None, float]]


def _foreign_ways(x: np.ndarray, labels: np.ndarray, seed: int) -> Judged:
    """The ways to find foreign pictures: name, scores (n,), flagged (n,) or None, seconds."""
    started = time.perf_counter()
    found = judge(x, labels, find_copies(x).group, seed)
    yield OURS, found.distance, q_values(found.foreign) <= RATE, time.perf_counter() - started
    started = time.perf_counter()
    yield "kNN within the class", within_classes(x, labels), None, time.perf_counter() - started
    scores, flagged = floor(x, labels, RATE)
    yield "ten lines", scores, flagged, 0.0
    for name, scores in outliers(x).items():
        yield name, scores, None, 0.0
    predicted = predict(x, labels)
    yield "logistic regression", -predicted[np.arange(len(x)), labels], None, 0.0
    try:
        of, flags = datalab(x, labels, predicted)
    except ImportError:
        return
    yield "Datalab: outliers", of["outlier"], flags["outlier"], 0.0


def _label_ways(x: np.ndarray, labels: np.ndarray, seed: int) -> Judged:
    """The ways to find wrong labels, as `_foreign_ways`."""
    started = time.perf_counter()
    found = judge(x, labels, find_copies(x).group, seed)
    yield OURS, found.wrong, bayes_q_values(found.wrong) <= RATE, time.perf_counter() - started
    yield "kNN within the class", within_classes(x, labels), None, 0.0
    started = time.perf_counter()
    predicted = predict(x, labels)
    yield "logistic regression", -predicted[np.arange(len(x)), labels], None, time.perf_counter() - started
    try:
        of, flags = datalab(x, labels, predicted)
    except ImportError:
        return
    yield "Datalab: labels", of["label"], flags["label"], 0.0
