"""Other ways to find foreign pictures and wrong labels, each in the few lines that its users would write."""

import contextlib
import io

import numpy as np
from scipy.stats import norm
from sklearn.ensemble import IsolationForest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

Scores = dict[str, np.ndarray]  # way → how suspicious each image is (n,)


def unit(x: np.ndarray) -> np.ndarray:
    """Vectors of length 1."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def nearest_others(x: np.ndarray, k: int = 5) -> np.ndarray:
    """1 - the mean cosine with the k nearest others, of features (n, D) → (n,)."""
    return distances(x, k)[0]


def distances(x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """1 - the mean cosine with the k nearest others (n,), and the nearest (n,), of features (n, D)."""
    x = unit(x).astype(np.float32)
    cosine = x @ x.T
    np.fill_diagonal(cosine, -np.inf)
    nearest, k = cosine.argmax(1), min(k, len(x) - 1)
    return 1 - np.partition(cosine, len(x) - k, axis=1)[:, len(x) - k :].mean(1), nearest


def within_classes(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """`nearest_others` of each image among those of its class."""
    score = np.empty(len(x))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        score[rows] = nearest_others(x[rows])
    return score


def outliers(x: np.ndarray) -> Scores:
    """Detectors that know no labels: features (n, D) → scores."""
    return {
        "kNN over all": nearest_others(x),
        "local outlier factor": -LocalOutlierFactor().fit(x).negative_outlier_factor_,
        "isolation forest": -IsolationForest(random_state=0).fit(x).score_samples(x),
    }


def predict(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Class probabilities (n, C) of a logistic regression, 5 folds."""

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200))
    return cross_val_predict(model, x, labels, cv=5, method="predict_proba")


def datalab(x: np.ndarray, labels: np.ndarray, predicted: np.ndarray) -> tuple[Scores, dict[str, np.ndarray]]:
    """cleanlab's Datalab: scores and flags (n,) of its issues "label" and "outlier". Raises ImportError without it."""

    from cleanlab import Datalab

    with contextlib.redirect_stdout(io.StringIO()):
        lab = Datalab({"label": labels}, label_name="label", verbosity=0)
        lab.find_issues(features=x, pred_probs=predicted, issue_types={"label": {}, "outlier": {}})
    issues = lab.get_issues()
    return (
        {name: -issues[f"{name}_score"].to_numpy() for name in ("label", "outlier")},
        {name: issues[f"is_{name}_issue"].to_numpy() for name in ("label", "outlier")},
    )


def floor(x: np.ndarray, labels: np.ndarray, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Ten lines: log distance to 10 neighbours, a normal null in each nearest class, Benjamini and Hochberg.

    Scores (n,), and which are flagged (n,) bool.
    """

    d, nearest = distances(x, 10)
    p, levels = np.empty(len(x)), np.linspace(0.1, 0.7, 13)
    for label in np.unique(labels[nearest]):
        rows = np.flatnonzero(labels[nearest] == label)
        log = np.log(d[rows] + 1e-9)
        slope, centre = np.polyfit(norm.ppf(levels), np.quantile(log, levels), 1)
        p[rows] = norm.sf((log - centre) / max(slope, 1e-9))
    order = np.sort(p)
    kept = np.flatnonzero(order <= rate * np.arange(1, len(p) + 1) / len(p))
    return np.log(d + 1e-9), p <= (order[kept[-1]] if len(kept) else -1.0)
