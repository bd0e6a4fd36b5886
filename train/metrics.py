"""Metrics of scores (B, S), larger = more anomalous, against the anomaly's position (B,)."""

from typing import Any

import numpy as np
from scipy.special import log_softmax
from sklearn.metrics import average_precision_score, roc_auc_score

from common.intervals import wilson_interval
from common.shapes import check_shape


def top_k(scores: np.ndarray, target: np.ndarray, k: int) -> np.ndarray:
    """For each set the chance (B,) float64 that the anomaly is among the k highest, ties broken by lot.

    So constant scores give k / S exactly, whatever the position. Raises ValueError for wrong shapes, and for a score
    that is not finite.

    >>> top_k(np.array([[0.0, 0.0, 1.0, 0.0]] * 2), np.array([2, 0]), 1).tolist()
    [1.0, 0.0]
    """
    check_shape("scores", scores)
    check_shape("target", target, B=len(scores))
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite")
    anomaly = np.take_along_axis(scores, target[:, None], 1)
    above = (scores > anomaly).sum(1)
    tied = (scores == anomaly).sum(1)  # itself included
    return np.clip((k - above) / tied, 0.0, 1.0)


def evaluate_scores(scores: np.ndarray, target: np.ndarray) -> dict[str, Any]:
    """All metrics of scores (B, S) that are logits: top-1 and top-5 with their 95 % intervals, AP, AUROC, loss, n.

    Average precision and AUROC, the anomalies being positive, are of the B · S items of all sets by their probability
    within their set: logits of different sets have no common zero. AUROC is None where S = 1: there are no inliers.
    """
    n = len(target)
    metrics: dict[str, Any] = {"n": n}
    for k in (1, 5):
        credit = top_k(scores, target, min(k, scores.shape[1]))
        metrics[f"top{k}"] = float(credit.mean())
        metrics[f"top{k}_interval"] = list(wilson_interval(float(credit.sum()), n))
    log_probabilities = log_softmax(scores.astype(np.float64), axis=1)
    items = (np.arange(scores.shape[1]) == target[:, None]).ravel(), log_probabilities.ravel()
    metrics["average_precision"] = float(average_precision_score(*items))
    metrics["auroc"] = float(roc_auc_score(*items)) if scores.shape[1] > 1 else None
    metrics["loss"] = float(-np.take_along_axis(log_probabilities, target[:, None], 1).mean())
    return metrics
