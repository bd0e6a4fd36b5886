"""What a method does on the test sets: where it fails, without images that it was trained on, what it attends to."""

import numpy as np
import torch
from msgspec.structs import asdict

from train.methods.base import Method
from train.report.schema import Attention, Failures, Proportion, Twins
from train.sets import Sets
from train.task import Task

WORST_PAIRS = 10
MOST_GROUPS = 30
ATTENTION_SETS = 1000


def measure_failures(solved: np.ndarray, task: Task, solved_hard: np.ndarray | None) -> Failures:
    """Where the solved test sets (n,) bool are, and the hard ones.

    by_set_class, by_anomaly_class: top-1 of each class. within_superclass, across: where set and anomaly share a
    super-class, and where not. groups, matrix: [sets, solved] by super-class of the set (row) and of the anomaly
    (column); by class where there are no super-classes, but few classes. worst_pairs: [class, class, sets, missed], of
    test and hard sets, whichever of the two is the anomaly.
    """
    sets, names = task.test, task.class_names
    within = across = matrix = None
    group_of, groups = np.arange(len(names)), names
    if task.superclass is not None:
        group_of, groups = task.superclass, task.store.header["superclass_names"]
        same = group_of[sets.set_label] == group_of[sets.anomaly_label]
        within, across = Proportion.of(solved[same]), Proportion.of(solved[~same])
    if len(groups) <= MOST_GROUPS:
        cell = (group_of[sets.set_label], group_of[sets.anomaly_label])
        counts = np.zeros((2, len(groups), len(groups)), int)
        np.add.at(counts[0], cell, 1)
        np.add.at(counts[1], cell, solved)
        matrix = [[(int(n), int(hits)) for n, hits in row] for row in counts.transpose(1, 2, 0)]
    return Failures(
        by_set_class=_by_class(sets.set_label, solved, names),
        by_anomaly_class=_by_class(sets.anomaly_label, solved, names),
        within_superclass=within,
        across=across,
        groups=groups if matrix else None,
        matrix=matrix,
        worst_pairs=_worst_pairs(task, solved, solved_hard),
    )


def measure_twins(solved: np.ndarray, task: Task) -> Twins:
    """Top-1 of the test sets (n,) bool without those that hold an image whose pixels are in the training split, too."""
    store = task.store
    digests = np.ascontiguousarray(store.image_sha256).view("V32").ravel()
    rows = task.test_images.rows
    twins = rows[np.isin(digests[rows], digests[store.rows_of("train")])]
    clean = ~np.isin(task.test.rows, twins).any(1)
    names = [(store.class_names[store.labels[row]], int(store.image_index[row])) for row in twins]
    return Twins(names, **asdict(Proportion.of(solved[clean])))


def measure_attention(model: Method, task: Task) -> Attention | None:
    """How much of their attention the inliers give to the anomaly: the mean by layer and head, beside 1/S.

    Over at most 1,000 of the test sets, evenly spaced, in view 0. None of a method without attention.
    """
    sets = task.test[np.linspace(0, len(task.test) - 1, min(ATTENTION_SETS, len(task.test))).astype(int)]
    with torch.inference_mode():
        maps = model.attention_maps(task.gather(sets.rows).to(model.device))  # (layers, B, heads, query, key)
    if maps is None:
        return None
    maps = maps.cpu()
    target = torch.from_numpy(sets.target)
    to_anomaly = maps.gather(-1, target.reshape(1, -1, 1, 1, 1).expand(*maps.shape[:-1], 1)).squeeze(-1)
    is_inlier = torch.arange(task.set_size) != target[:, None]
    mass = (to_anomaly * is_inlier[:, None]).sum((1, 3)) / is_inlier.sum()
    return Attention(len(sets), 1 / task.set_size, mass.double().numpy().round(4).tolist())


def _by_class(labels: np.ndarray, solved: np.ndarray, names: list[str]) -> dict[str, float]:
    return {names[label]: round(float(solved[labels == label].mean()), 4) for label in np.unique(labels)}


def _worst_pairs(task: Task, solved: np.ndarray, solved_hard: np.ndarray | None) -> list[tuple[str, str, int, int]]:
    evaluated: list[tuple[Sets, np.ndarray]] = [(task.test, solved)]
    if task.hard is not None and solved_hard is not None:
        evaluated.append((task.hard, solved_hard))
    classes = np.concatenate([np.stack([sets.set_label, sets.anomaly_label], 1) for sets, _ in evaluated])
    missed = ~np.concatenate([hits for _, hits in evaluated])
    pairs, which, counts = np.unique(np.sort(classes, 1), axis=0, return_inverse=True, return_counts=True)
    misses = np.bincount(which.ravel(), missed, len(pairs)).astype(int)
    worst = np.argsort(-misses, kind="stable")[:WORST_PAIRS]
    names = task.class_names
    return [(names[pairs[i][0]], names[pairs[i][1]], int(counts[i]), int(misses[i])) for i in worst if misses[i]]
