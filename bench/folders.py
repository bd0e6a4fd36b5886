"""Odd images found in folders, beside the detectors of scikit-learn and simple distances."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score

from common.store import FeatureStore
from find.calibration import choose_threshold, folder_posterior, reliability
from find.oddities import judge
from train.checkpoint import config_of, load_checkpoint, load_head
from train.sets import split_validation

FOREIGN = 1, 5
RATE = 0.1  # the false-discovery rate that is asked for
SEED = 100  # of the first draw: smaller ones were looked at while the methods were made

Arrays = tuple[np.ndarray, np.ndarray]  # features (n, D) float32, labels (n,)
Said = tuple[bool, np.ndarray]  # whether anything is odd, and which images are flagged (n,) bool
# Features of a folder (n, D) → scores (n,), and what is said of them; None where they are all that there is
Way = Callable[[np.ndarray], tuple[np.ndarray, Said | None]]


def oddities(store: FeatureStore, runs: Sequence[Path], draws: int) -> dict[str, Any]:
    """A folder of each test class, all its images and 0, 1 or 5 foreign ones, `draws` times, by every way."""
    train, test = split_of(store, "train"), split_of(store, "test")
    every = np.unique(test[1])
    found: dict[str, Any] = {"draws": draws, "rows": []}

    def measure(name: str, classes: np.ndarray, way: Way) -> None:
        found["rows"].append({"way": name, "classes": len(classes), **measured(test, classes, way, draws)})

    for name, score in detectors(train[0]).items():
        measure(name, every, lambda x, score=score: (score(x), None))  # type: ignore[misc]
    measure("find.odd, the folder alone", every, asked(None, None, None))
    measure("find.odd, a reference store", every, asked(None, train, None))
    for run in runs:
        checkpoint = run / "checkpoint.pt"
        config = config_of(load_checkpoint(checkpoint), checkpoint)
        unseen = np.random.default_rng(config.data.split_seed).permutation(every)[: config.data.unseen_classes]
        rows = store.rows_of("train")
        rows = rows[~np.isin(store.labels[rows], unseen)]
        labels = np.array(store.labels)
        _, held_out = split_validation(
            rows, labels[rows], config.data.val_fraction, config.data.set_size, config.data.split_seed
        )
        classes = unseen if len(unseen) else every
        about = f"trained on {len(every) - len(unseen)} classes" + (", others tested" if len(unseen) else "")
        way = asked(load_head(checkpoint), None, (features_of(store, held_out), labels[held_out]))
        measure(f"find.odd, {config.method} {about}", classes, way)
        if len(unseen):
            known = ~np.isin(train[1], unseen)
            way = asked(None, (train[0][known], train[1][known]), None)
            measure("find.odd, a reference store of other classes", classes, way)
            measure("find.odd, the folder alone", classes, asked(None, None, None))
    return found


def split_of(store: FeatureStore, split: str) -> Arrays:
    """Features (n, D) of view 0, and labels (n,)."""
    rows = store.rows_of(split)
    return features_of(store, rows), np.array(store.labels[rows])


def features_of(store: FeatureStore, rows: np.ndarray) -> np.ndarray:
    """Of view 0, (n, D) float32."""
    return store.features[0][rows].astype(np.float32)


def asked(head: Any, reference: Arrays | None, held_out: Arrays | None) -> Way:
    """What `find.odd` thinks of a folder, says and flags."""
    kept: list[Any] = []

    def way(x: np.ndarray) -> tuple[np.ndarray, Said]:
        if not kept:  # what a score says is learnt once, for all folders of this size
            kept.append(judge(head, reference, held_out, len(x), x.shape[1], 0))
        scorer, evidence_of = kept[0]
        evidence = evidence_of(len(x))
        each, anything = folder_posterior(evidence(scorer(x)))
        said, flagged = bool(anything > evidence.limit), np.zeros(len(x), bool)
        if said:
            flagged[np.argsort(-each, kind="stable")[: choose_threshold(each, RATE).flagged]] = True
        return each, (said, flagged)

    return way


def detectors(reference: np.ndarray) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """What else there is: features of a folder (n, D) → scores (n,). reference: other features, to standardise by."""
    from sklearn.ensemble import IsolationForest
    from sklearn.neighbors import LocalOutlierFactor

    mean, std = reference.mean(0), reference.std(0) + 1e-6

    def centre(x: np.ndarray) -> np.ndarray:
        x = _unit((x - mean) / std)
        return -np.einsum("ij,ij->i", x, _unit(x.sum(0) - x))

    return {
        "isolation forest": lambda x: -IsolationForest(random_state=0).fit(x).score_samples(x),
        "local outlier factor": lambda x: -LocalOutlierFactor().fit(x).negative_outlier_factor_,
        "kNN, cosine, raw": nearest_others,
        "cosine to the mean of the others, standardised by a reference": centre,
    }


def nearest_others(x: np.ndarray, k: int = 5) -> np.ndarray:
    """1 - the mean cosine with the k nearest others, of features (n, D) → (n,)."""
    x = _unit(x)
    cosine = x @ x.T
    np.fill_diagonal(cosine, -np.inf)
    return 1 - np.sort(cosine, 1)[:, -k:].mean(1)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def folders(labels: np.ndarray, classes: np.ndarray, foreign: int, seed: int) -> Iterator[Arrays]:
    """For each class: all its rows and some of the other classes, and which are foreign."""
    generator = np.random.default_rng(seed)
    for label in classes:
        own = np.flatnonzero(labels == label)
        others = np.flatnonzero(np.isin(labels, classes) & (labels != label))
        rows = np.concatenate([own, generator.choice(others, foreign, replace=False)])
        yield rows, np.arange(len(rows)) >= len(own)


def measured(images: Arrays, classes: np.ndarray, way: Way, draws: int) -> dict[str, Any]:
    """For each number of foreign images: the mean average precision of a folder, draw by draw, and what is said.

    `right` is the share of foreign images among the flagged ones, and `reliability` its diagram, as `find.odd` expects
    folders to be: half of them without a foreign image.
    """
    x, labels = images
    found: dict[str, Any] = {}
    seen: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
    for foreign in (0, *FOREIGN):
        seeds = range(SEED, SEED + (draws if foreign else 1))
        judged = [[(odd, *way(x[rows])) for rows, odd in folders(labels, classes, foreign, seed)] for seed in seeds]
        of_number: dict[str, Any] = {}
        if foreign:
            of_number["average_precision"] = [
                float(np.mean([average_precision_score(odd, scores) for odd, scores, _ in draw])) for draw in judged
            ]
        every = [(odd, each, *said) for draw in judged for odd, each, said in draw if said is not None]
        if every:
            of_number["said_odd"] = float(np.mean([said for _, _, said, _ in every]))
            share = 0.5 / len(FOREIGN) if foreign else 0.5
            seen += [(odd, each, flagged, np.full(len(odd), share / len(every))) for odd, each, _, flagged in every]
        found[str(foreign)] = of_number
    if seen:
        odd, each, flagged, weights = (np.concatenate(parts) for parts in zip(*seen, strict=True))
        if flagged.any():
            found["right"] = float(weights[flagged & odd].sum() / weights[flagged].sum())
        bars = reliability(each, odd, weights)
        found["reliability"] = [[bar.n, bar.mean, bar.observed] for bar in bars]
    return found
