"""Beyond the protocol: sets of other sizes, and sets with none, one or more anomalies."""

from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score, roc_curve

from train.loop import predict_rows
from train.methods.base import Method
from train.metrics import top_k, wilson_interval
from train.sets import ClassIndex, Sets, sample_mixed_sets, sample_sets
from train.task import Task

SIZES = (3, 5, 10, 20, 30, 50)
ANOMALIES = (0, 1, 2, 3)
MOST_SETS = 2000
FALSE_ALARMS = 0.05  # the part of validation sets without an anomaly that the threshold lets through
SEED = 4


def measure_beyond(model: Method, task: Task, batch_size: int) -> dict[str, Any]:
    """What a method does on test images where the protocol ends → {"set_size": …, "anomalies": …, "none": …}.

    set_size: top-1 for each S that the method and the classes allow. anomalies: by their number k in a set of the
    protocol's size, AUROC over items within their set, and the precision of the k highest scores. none: whether "there
    is no anomaly" can be told, see `measure_detection`; None where classes are too small for sets without an anomaly.
    """
    found: dict[str, Any] = {"set_size": {}, "anomalies": {}, "none": None}
    for size in SIZES:
        fits = size - 1 <= task.test_images.counts.min()
        if fits and model.set_size in (None, size):
            found["set_size"][str(size)] = _measure_size(model, task, size, batch_size)
    mixed = {
        k: _scores(model, task, task.test_images, k, batch_size) for k in ANOMALIES if _fits(task.test_images, task, k)
    }
    for k, (scores, is_anomaly) in mixed.items():
        if k:
            found["anomalies"][str(k)] = _measure_ranking(scores, is_anomaly, k)
    if 0 in mixed and _fits(task.val_images, task, 0):
        calibration = {k: _scores(model, task, task.val_images, k, batch_size)[0] for k in (0, 1)}
        found["none"] = measure_detection(calibration, {k: scores for k, (scores, _) in mixed.items()})
    return found


def measure_detection(val: dict[int, np.ndarray], test: dict[int, np.ndarray]) -> dict[str, Any]:
    """Telling sets with anomalies from sets without; `val` and `test` hold scores (n, S) by the number of anomalies.

    A set is called anomalous where its highest score exceeds its median by more than a threshold, which is the one that
    5 % of the validation sets without an anomaly pass. The median, so that several anomalies do not hide each other.

    >>> rng = np.random.default_rng(0)
    >>> sets = {0: rng.normal(size=(400, 10)), 1: rng.normal(size=(400, 10)) + 9 * np.eye(10)[0]}
    >>> found = measure_detection(sets, sets)
    >>> found["detected"]["1"], round(found["false_alarms"], 2), round(found["auroc"]["1"], 1)
    (1.0, 0.05, 1.0)
    """
    threshold = float(np.quantile(contrast(val[0]), 1 - FALSE_ALARMS))
    with_anomalies = {k: contrast(scores) for k, scores in test.items() if k}
    without = contrast(test[0])
    return {
        "n": len(without),
        "threshold": threshold,
        "false_alarms": float((without > threshold).mean()),
        "detected": {str(k): float((found > threshold).mean()) for k, found in with_anomalies.items()},
        "auroc": {str(k): _auroc(without, found) for k, found in with_anomalies.items()},
        "best_accuracy": _best_accuracy(contrast(val[0]), contrast(val[1]), without, with_anomalies[1]),
    }


def contrast(scores: np.ndarray) -> np.ndarray:
    """How far the highest score of each set (n, S) stands out from its median → (n,)."""
    return scores.max(1) - np.median(scores, 1)


def _best_accuracy(
    val_without: np.ndarray, val_with: np.ndarray, without: np.ndarray, with_one: np.ndarray
) -> dict[str, float]:
    """Of the threshold that is best on validation, where half of the sets have one anomaly: its test accuracy."""
    truth = np.repeat([0, 1], [len(val_without), len(val_with)])
    false_alarms, detected, thresholds = roc_curve(truth, np.concatenate([val_without, val_with]))
    thresholds[0] = np.nextafter(thresholds[1], np.inf)  # infinity, where no set is to be called anomalous
    threshold = float(thresholds[(detected - false_alarms).argmax()])
    return {
        "threshold": threshold,
        "accuracy": float(((without < threshold).mean() + (with_one >= threshold).mean()) / 2),
    }


def _auroc(without: np.ndarray, found: np.ndarray) -> float:
    truth = np.repeat([0, 1], [len(without), len(found)])
    return float(roc_auc_score(truth, np.concatenate([without, found])))


def _measure_size(model: Method, task: Task, size: int, batch_size: int) -> dict[str, Any]:
    index = task.test_images
    labels = np.repeat(index.classes, index.counts)
    some = np.linspace(0, len(labels) - 1, min(MOST_SETS, len(labels))).astype(int)
    generator = np.random.default_rng([SEED, size])
    sets: Sets = sample_sets(index, index.rows[some], labels[some], size, generator)
    scores = predict_rows(model, task, sets.rows, batch_size).numpy()
    solved = float(top_k(scores, sets.target, 1).sum())
    return {"n": len(sets), "top1": solved / len(sets), "top1_interval": list(wilson_interval(solved, len(sets)))}


def _fits(images: ClassIndex, task: Task, k: int) -> bool:
    """Whether the classes are many and large enough for sets with k anomalies, and inliers."""
    inliers = task.set_size - k
    return 0 < inliers <= images.counts.min() and k < len(images.classes)


def _scores(model: Method, task: Task, images: ClassIndex, k: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    count = min(MOST_SETS, len(images.rows))
    rows, is_anomaly = sample_mixed_sets(images, count, k, task.set_size, np.random.default_rng([SEED, 100 + k]))
    return predict_rows(model, task, rows, batch_size).numpy(), is_anomaly


def _measure_ranking(scores: np.ndarray, is_anomaly: np.ndarray, k: int) -> dict[str, Any]:
    above = scores[:, :, None] > scores[:, None]
    equal = scores[:, :, None] == scores[:, None]
    compared = is_anomaly[:, :, None] & ~is_anomaly[:, None]  # each anomaly with each inlier of its set
    highest = torch.from_numpy(scores).topk(k).indices.numpy()
    return {
        "n": len(scores),
        "auroc_within_sets": float((above + 0.5 * equal)[compared].mean()),
        "precision_at_k": float(np.take_along_axis(is_anomaly, highest, 1).mean()),
    }
