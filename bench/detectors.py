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

from find.foreign import nearest


def distances(x: np.ndarray, k: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """1 - the mean cosine with the k nearest others (n,), and the nearest (n,), of features (n, D)."""
    others, cosines = nearest(x, x, min(k, len(x) - 1), itself=np.arange(len(x)))
    return 1 - cosines.mean(1), others[:, 0]


def within_classes(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The distance of each image to the nearest others of its class."""
    score = np.empty(len(x))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        score[rows] = distances(x[rows])[0]
    return score


def outliers(x: np.ndarray) -> dict[str, np.ndarray]:
    """Detectors that know no labels: features (n, D) → how suspicious each image is (n,)."""
    return {
        "kNN over all": distances(x)[0],
        "local outlier factor": -LocalOutlierFactor().fit(x).negative_outlier_factor_,
        "isolation forest": -IsolationForest(random_state=0).fit(x).score_samples(x),
    }


def predict(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Class probabilities (n, C) of a logistic regression, 5 folds."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200))
    return cross_val_predict(model, x, labels, cv=5, method="predict_proba")


def datalab(x: np.ndarray, labels: np.ndarray, predicted: np.ndarray, issue: str) -> tuple[np.ndarray, np.ndarray]:
    """cleanlab's Datalab: scores (n,) and flags (n,) of its issue "label" or "outlier"."""
    from cleanlab import Datalab

    with contextlib.redirect_stdout(io.StringIO()):
        lab = Datalab({"label": labels}, label_name="label", verbosity=0)
        lab.find_issues(features=x, pred_probs=predicted, issue_types={issue: {}})
    issues = lab.get_issues()
    return -issues[f"{issue}_score"].to_numpy(), issues[f"is_{issue}_issue"].to_numpy()


def ten_lines(x: np.ndarray, labels: np.ndarray, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Log distance to 10 neighbours, a normal null in each nearest class, Benjamini and Hochberg.

    Scores (n,), and which are flagged (n,) bool.
    """
    d, closest = distances(x, 10)
    p, levels = np.empty(len(x)), np.linspace(0.1, 0.7, 13)
    for label in np.unique(labels[closest]):
        rows = np.flatnonzero(labels[closest] == label)
        log = np.log(d[rows] + 1e-9)
        slope, centre = np.polyfit(norm.ppf(levels), np.quantile(log, levels), 1)
        p[rows] = norm.sf((log - centre) / max(slope, 1e-9))
    order = np.sort(p)
    kept = np.flatnonzero(order <= rate * np.arange(1, len(p) + 1) / len(p))
    return np.log(d + 1e-9), p <= (order[kept[-1]] if len(kept) else -1.0)
