"""Sets that are not those of the protocol: of other sizes, and with none, one or more anomalies."""

import numpy as np
import torch
from sklearn.metrics import roc_auc_score, roc_curve

from train.loop import Scorer
from train.metrics import top_k
from train.report.schema import BestThreshold, Detection, OtherSets, Proportion, Ranking
from train.sets import ClassIndex, sample_mixed_sets, sample_sets
from train.task import Task

SIZES = (3, 5, 10, 20, 30, 50)
ANOMALIES = (0, 1, 2, 3)
MOST_SETS = 2000
FALSE_ALARMS = 0.05  # fraction of the validation sets without an anomaly that exceed the threshold
SEED = 4


def measure_other_sets(score: Scorer, task: Task) -> OtherSets:
    """What a method does on other sets of test images than those of the protocol.

    set_size: top-1 for each S that the method and the classes allow. anomalies: by their number k in a set of the
    protocol's size, AUROC over items within their set, and the precision of the k highest scores. detection: whether
    "there is no anomaly" can be told; None where classes are too small for sets without an anomaly.
    """
    largest = task.test_images.counts.min() + 1
    sizes = {
        str(size): _measure_size(score, task.test_images, size)
        for size in SIZES
        if size <= largest and score.model.set_size in (None, size)
    }
    mixed = {k: _score_mixed(score, task, task.test_images, k) for k in ANOMALIES if _fits(task.test_images, task, k)}
    detection = None
    if 0 in mixed and _fits(task.val_images, task, 0):
        calibration = {k: _score_mixed(score, task, task.val_images, k)[0] for k in (0, 1)}
        detection = measure_detection(calibration, {k: scores for k, (scores, _) in mixed.items()})
    rankings = {str(k): _measure_ranking(*scored, k) for k, scored in mixed.items() if k}
    return OtherSets(sizes, rankings, detection)


def measure_detection(val: dict[int, np.ndarray], test: dict[int, np.ndarray]) -> Detection:
    """Telling sets with anomalies from sets without; `val` and `test` hold scores (n, S) by the number of anomalies.

    A set is called anomalous where a statistic of its scores exceeds a threshold, which is the one that 5 % of the
    validation sets without an anomaly pass. The statistic is the one of `STATISTICS` that tells validation sets better.

    >>> rng = np.random.default_rng(0)
    >>> sets = {0: rng.normal(size=(400, 10)), 1: rng.normal(size=(400, 10)) + 9 * np.eye(10)[0]}
    >>> detection = measure_detection(sets, sets)
    >>> detection.detected["1"], round(detection.false_alarms, 2), round(detection.auroc["1"], 1)
    (1.0, 0.05, 1.0)
    """
    name = max(STATISTICS, key=lambda name: _auroc(*(STATISTICS[name](val[k]) for k in (0, 1))))
    statistic = STATISTICS[name]
    threshold = float(np.quantile(statistic(val[0]), 1 - FALSE_ALARMS))
    with_anomalies = {k: statistic(scores) for k, scores in test.items() if k}
    without = statistic(test[0])
    return Detection(
        n=len(without),
        statistic=name,
        threshold=threshold,
        false_alarms=float((without > threshold).mean()),
        detected={str(k): float((values > threshold).mean()) for k, values in with_anomalies.items()},
        auroc={str(k): _auroc(without, values) for k, values in with_anomalies.items()},
        best_accuracy=_best_accuracy(statistic(val[0]), statistic(val[1]), without, with_anomalies[1]),
    )


def contrast(scores: np.ndarray) -> np.ndarray:
    """How far the highest score of each set (n, S) stands out from its median → (n,).

    The median, so that several anomalies do not hide each other.
    """
    return scores.max(1) - np.median(scores, 1)


def compute_log_odds_of_any(scores: np.ndarray) -> np.ndarray:
    """log p(an item is the anomaly) / p(none is) of sets (n, S) whose scores are log-odds against "none" → (n,)."""
    return np.logaddexp.reduce(scores, 1)


STATISTICS = {"contrast": contrast, "log-odds": compute_log_odds_of_any}


def _best_accuracy(
    val_without: np.ndarray, val_with: np.ndarray, without: np.ndarray, with_one: np.ndarray
) -> BestThreshold:
    truth = np.repeat([0, 1], [len(val_without), len(val_with)])
    false_alarms, detected, thresholds = roc_curve(truth, np.concatenate([val_without, val_with]))
    thresholds[0] = np.nextafter(thresholds[1], np.inf)  # infinity, where no set is to be called anomalous
    threshold = float(thresholds[(detected - false_alarms).argmax()])
    return BestThreshold(threshold, float(((without < threshold).mean() + (with_one >= threshold).mean()) / 2))


def _auroc(without: np.ndarray, with_anomalies: np.ndarray) -> float:
    truth = np.repeat([0, 1], [len(without), len(with_anomalies)])
    return float(roc_auc_score(truth, np.concatenate([without, with_anomalies])))


def _measure_size(score: Scorer, index: ClassIndex, size: int) -> Proportion:
    n = len(index.rows)
    anomalies = np.linspace(0, n - 1, min(MOST_SETS, n)).astype(int)
    sets = sample_sets(index, anomalies, size, np.random.default_rng([SEED, size]))
    return Proportion.of(top_k(score(sets.rows).numpy(), sets.target, 1))


def _fits(images: ClassIndex, task: Task, k: int) -> bool:
    """Whether the classes are many and large enough for sets with k anomalies, and inliers."""
    inliers = task.set_size - k
    return 0 < inliers <= images.counts.min() and k < len(images.classes)


def _score_mixed(score: Scorer, task: Task, images: ClassIndex, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores (n, S) of sets with k anomalies, and which of their items these are (n, S) bool."""
    count = min(MOST_SETS, len(images.rows))
    rows, is_anomaly = sample_mixed_sets(images, count, k, task.set_size, np.random.default_rng([SEED, 100 + k]))
    return score(rows).numpy(), is_anomaly


def _measure_ranking(scores: np.ndarray, is_anomaly: np.ndarray, k: int) -> Ranking:
    above = scores[:, :, None] > scores[:, None]
    equal = scores[:, :, None] == scores[:, None]
    compared = is_anomaly[:, :, None] & ~is_anomaly[:, None]  # each anomaly with each inlier of its set
    highest = torch.from_numpy(scores).topk(k).indices.numpy()
    precision = np.take_along_axis(is_anomaly, highest, 1).mean()
    return Ranking(len(scores), float((above + 0.5 * equal)[compared].mean()), float(precision))
