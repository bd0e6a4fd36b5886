"""Wrong labels found, beside cleanlab and what is done with scikit-learn. Truth is known: labels were changed."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score

from bench.folders import SEED, nearest_others
from find.auditing import judge
from find.calibration import choose_threshold, reliability
from find.duplicates import find_pairs

NOISE = 0.05  # of the labels are changed
RATES = 0.1, 0.2  # false-discovery rates that are asked for
KINDS = "any class", "same super-class"

Scores = tuple[np.ndarray, np.ndarray | None]  # how suspicious each image is (n,); whether it is flagged (n,), or None


def audits(features: np.ndarray, labels: np.ndarray, superclass: np.ndarray, seeds: int) -> dict[str, Any]:
    """Audits of features (n, D) whose labels (n,) were changed `seeds` times; superclass (C,): of each class."""
    found: dict[str, Any] = {"n": len(labels), "seeds": seeds, "rows": [], "left_out": {}}
    for kind in KINDS:
        for seed in range(SEED, SEED + seeds):
            given, bad = changed(labels, superclass if kind != "any class" else np.zeros_like(superclass), seed)
            for name, way in _ways().items():
                started = time.perf_counter()
                try:
                    scores, flagged = way(features, given)
                except ImportError as error:
                    found["left_out"][name] = str(error)
                    continue
                seconds = round(time.perf_counter() - started, 1)
                found["rows"].append({"kind": kind, "way": name, **judged(scores, flagged, bad), "seconds": seconds})
            started = time.perf_counter()
            of_find = _find(features, given, bad, seed)
            seconds = round(time.perf_counter() - started, 1)
            found["rows"].append({"kind": kind, "way": "find.audit", **of_find, "seconds": seconds})
    return found


def changed(labels: np.ndarray, group: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,), some changed to another class of the same group (C,), and which were (n,) bool."""
    generator = np.random.default_rng(seed)
    bad = generator.random(len(labels)) < NOISE
    given = labels.copy()
    for row in np.flatnonzero(bad):
        others = np.flatnonzero(group == group[labels[row]])
        given[row] = generator.choice(others[others != labels[row]])
    return given, bad


def judged(scores: np.ndarray, flagged: np.ndarray | None, bad: np.ndarray) -> dict[str, Any]:
    """Average precision, precision at the number of bad ones, and what is true of the flagged ones."""
    k = int(bad.sum())
    found: dict[str, Any] = {
        "bad": k,
        "average_precision": float(average_precision_score(bad, scores)),
        "precision_at_k": float(bad[np.argsort(-scores, kind="stable")[:k]].mean()),
    }
    if flagged is not None:
        found |= {"flagged": int(flagged.sum()), "recall": float(flagged[bad].mean())}
        found["precision"] = float(bad[flagged].mean()) if flagged.any() else None
    return found


def _find(features: np.ndarray, given: np.ndarray, bad: np.ndarray, seed: int) -> dict[str, Any]:
    posterior, wrong, strange = judge(features, given, find_pairs(features), seed)
    probabilities = 1 - (1 - wrong) * (1 - strange)
    order, asked = np.argsort(-probabilities, kind="stable"), {}
    for rate in RATES:
        flagged = np.zeros(len(bad), bool)
        flagged[order[: choose_threshold(probabilities, rate).flagged]] = True
        asked[rate] = judged(probabilities, flagged, bad)
    bars = reliability(probabilities, bad)
    return {
        **asked[RATES[-1]],
        "at_rates": {str(rate): each for rate, each in asked.items()},
        "noise_rate": posterior.noise,
        "to_similar_classes": posterior.near,
        "reliability": [[bar.n, bar.mean, bar.observed] for bar in bars],
    }


def _ways() -> dict[str, Callable[[np.ndarray, np.ndarray], Scores]]:
    """Name → features (n, D), given labels (n,) → scores."""
    kept: list[np.ndarray] = []  # the class probabilities that several ways share

    def predicted(x: np.ndarray, given: np.ndarray) -> np.ndarray:
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import cross_val_predict
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        if not kept:
            model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200))
            kept.append(cross_val_predict(model, x, given, cv=5, method="predict_proba"))
        return kept[0]

    def neighbours(x: np.ndarray, given: np.ndarray) -> Scores:
        score = np.empty(len(x))
        for label in np.unique(given):
            rows = np.flatnonzero(given == label)
            score[rows] = nearest_others(x[rows])
        return score, None

    def confidence(x: np.ndarray, given: np.ndarray) -> Scores:
        return -predicted(x, given)[np.arange(len(x)), given], None

    def cleanlab(x: np.ndarray, given: np.ndarray) -> Scores:
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores

        p = predicted(x, given)
        return -get_label_quality_scores(given, p, method="normalized_margin"), find_label_issues(given, p)

    return {
        "kNN within the class": neighbours,
        "logistic regression, 5 folds: self-confidence": confidence,
        "cleanlab on the same: normalised margin, find_label_issues": cleanlab,
    }
