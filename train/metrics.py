"""Metrics of scores (B, S), larger = more anomalous, against the anomaly's position (B,)."""

from typing import Any

import numpy as np
from scipy.special import log_softmax
from sklearn.metrics import average_precision_score, roc_auc_score

from common.intervals import wilson_interval
from common.shapes import check_shape


def top_k(scores: np.ndarray, target: np.ndarray, k: int) -> np.ndarray:
    """For each set the chance (B,) float64 that the anomaly is among the k highest, ties broken by lot.

    So constant scores give k / S exactly, whatever the position. Raises ValueError for a score that is not finite.

    >>> top_k(np.array([[0.0, 0.0, 1.0, 0.0]] * 2), np.array([2, 0]), 1).tolist()
    [1.0, 0.0]
    """
    _check(scores, target)
    anomaly = np.take_along_axis(scores, target[:, None], 1)
    above = (scores > anomaly).sum(1)
    tied = (scores == anomaly).sum(1)  # itself included
    return np.clip((k - above) / tied, 0.0, 1.0)


def average_precision(scores: np.ndarray, target: np.ndarray) -> float:
    """Area under precision and recall of all B · S items, the anomalies being positive."""
    _check(scores, target)
    return float(average_precision_score(_is_anomaly(scores, target).ravel(), scores.ravel()))


def auroc(scores: np.ndarray, target: np.ndarray) -> float | None:
    """Area under the ROC curve of all B · S items; None where S = 1 leaves no inlier to compare with."""
    _check(scores, target)
    if scores.shape[1] == 1:
        return None
    return float(roc_auc_score(_is_anomaly(scores, target).ravel(), scores.ravel()))


def evaluate_scores(scores: np.ndarray, target: np.ndarray) -> dict[str, Any]:
    """All metrics of scores (B, S) that are logits: top-1 and top-5 with their 95 % intervals, AP, AUROC, loss, n.

    Average precision and AUROC pool the items of all sets, by their probability within their set: logits of different
    sets have no common zero.
    """
    _check(scores, target)
    log_probabilities = log_softmax(scores.astype(np.float64), axis=1)
    n = len(target)
    metrics: dict[str, Any] = {"n": n}
    for k in (1, 5):
        credit = top_k(scores, target, min(k, scores.shape[1]))
        metrics[f"top{k}"] = float(credit.mean())
        metrics[f"top{k}_interval"] = list(wilson_interval(float(credit.sum()), n))
    metrics["average_precision"] = average_precision(log_probabilities, target)
    metrics["auroc"] = auroc(log_probabilities, target)
    metrics["loss"] = float(-np.take_along_axis(log_probabilities, target[:, None], 1).mean())
    return metrics


def _is_anomaly(scores: np.ndarray, target: np.ndarray) -> np.ndarray:
    return np.arange(scores.shape[1]) == target[:, None]


def _check(scores: np.ndarray, target: np.ndarray) -> None:
    check_shape("scores", scores)
    check_shape("target", target, B=len(scores))
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite")
