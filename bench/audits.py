"""Foreign pictures and wrong labels in data sets and folders, beside other ways. Truth is known: both were put in."""

import contextlib
import io
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
from scipy.stats import norm
from sklearn.ensemble import IsolationForest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from find.auditing import judge
from find.duplicates import find_copies
from find.foreign import nearest
from find.oddities import Judge
from find.rates import bayes_q_values, q_values

SEED = 100  # of the first draw: smaller ones were looked at while the methods were made
RATE = 0.1  # the false-discovery rate that is asked for
NOISE = 0.05  # of the labels are changed
SHARES = 0.005, 0.02, 0.05  # of foreign pictures
SIZES, FOREIGN = (20, 100, 500), (0, 1, 5)  # images of one class in a folder, and foreign pictures beside them
DRAWS = 3
OURS = "find.audit"

Row = dict[str, Any]
Arrays = tuple[np.ndarray, np.ndarray]  # features (n, D) float32, labels (n,)
Ways = Iterator[tuple[str, np.ndarray, np.ndarray | None]]  # name, scores (n,), flagged (n,) where it says so


def foreign_pictures(
    features: np.ndarray, labels: np.ndarray, foreign: np.ndarray, draws: int = DRAWS
) -> Iterator[Row]:
    """Some of the foreign pictures (m, D) put into random classes of a data set (n, D), `draws` times."""
    for share in SHARES:
        for seed in range(SEED, SEED + draws):
            generator = np.random.default_rng(seed)
            number = min(len(foreign), max(1, round(share * len(features))))
            x = np.concatenate([features, foreign[generator.choice(len(foreign), number, replace=False)]])
            mixed = np.concatenate([labels, generator.choice(labels, number)])
            for row in compare(judge_by_all("outlier", x, mixed, seed), np.arange(len(x)) >= len(features)):
                yield {"share": share, **row}


def wrong_labels(features: np.ndarray, labels: np.ndarray, group: np.ndarray, draws: int = DRAWS) -> Iterator[Row]:
    """Labels changed to others of the same group (C,), `draws` times."""
    for seed in range(SEED, SEED + draws):
        noisy, bad = change(labels, group, seed)
        yield from compare(judge_by_all("label", features, noisy, seed), bad)


def change(labels: np.ndarray, group: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,), some changed to another class of the same group (C,), and which were (n,) bool."""
    generator = np.random.default_rng(seed)
    bad = generator.random(len(labels)) < NOISE
    noisy = labels.copy()
    for row in np.flatnonzero(bad):
        others = np.flatnonzero(group == group[labels[row]])
        noisy[row] = generator.choice(others[others != labels[row]])
    return noisy, bad


def compare(ways: Ways, bad: np.ndarray) -> Iterator[Row]:
    """What each way takes, its average precision, and what is true of what it flags; bad: the truth (n,)."""
    started = time.perf_counter()
    for way, scores, flagged in ways:
        row: Row = {"way": way, "seconds": time.perf_counter() - started, "bad": int(bad.sum())}
        row["average_precision"] = float(average_precision_score(bad, scores))
        if flagged is not None:
            row |= {"flagged": int(flagged.sum()), "recall": float(flagged[bad].mean())}
            row["precision"] = float(bad[flagged].mean()) if flagged.any() else None
        yield row
        started = time.perf_counter()


def judge_by_all(issue: str, x: np.ndarray, labels: np.ndarray, seed: int) -> Ways:
    """The ways to find foreign pictures ("outlier") or wrong labels ("label") in features (n, D), labels (n,)."""
    judged = judge(x, labels, find_copies(x).group, seed)
    if issue == "outlier":
        yield OURS, judged.distance, q_values(judged.foreign) <= RATE
    else:
        yield OURS, judged.wrong, bayes_q_values(judged.wrong) <= RATE
    yield "kNN within the class", within_classes(x, labels), None
    if issue == "outlier":
        yield "ten lines", *ten_lines(x, labels, RATE)
        for name, scores in outliers(x).items():
            yield name, scores, None
    predicted = predict(x, labels)
    yield "logistic regression", -predicted[np.arange(len(x)), labels], None
    if find_spec("cleanlab"):
        yield f"Datalab: {issue}s", *datalab(x, labels, predicted, issue)


def folders(
    images: Arrays, foreign: np.ndarray | None, size: int, number: int, draws: int = DRAWS
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each class of at least `size` images, `draws` times: the features of some, and of `number` foreign ones.

    foreign (m, D): None for images of the other classes. Also which are foreign (size + number,) bool.
    """
    x, labels = images
    for seed in range(SEED, SEED + draws):
        generator = np.random.default_rng(seed)
        for label in np.unique(labels):
            own = np.flatnonzero(labels == label)
            if len(own) >= size:
                others = x[labels != label] if foreign is None else foreign
                chosen = x[generator.choice(own, size, replace=False)]
                strangers = others[generator.choice(len(others), number, replace=False)]
                yield np.concatenate([chosen, strangers]), np.arange(size + number) >= size


def measure_folders(
    images: Arrays, foreign: np.ndarray | None, size: int, judges: Mapping[str, Judge], draws: int = DRAWS
) -> list[Row]:
    """Each way in folders of `size` images: alarms in clean ones, what is noticed in others, and how often rightly."""
    values: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for number in FOREIGN:
        for x, odd in folders(images, foreign, size, number, draws):
            for way, judge_folder in judges.items():
                scores, p = judge_folder(x)
                flagged = q_values(p) <= RATE
                if number:
                    values[way][f"average_precision_{number}"].append(average_precision_score(odd, scores))
                    values[way][f"noticed_{number}"].append(flagged[odd].any())
                    if flagged.any():
                        values[way]["right"].append(odd[flagged].mean())
                else:
                    values[way]["alarms"].append(flagged.any())
            for way, scores in outliers(x).items() if number else ():
                values[way][f"average_precision_{number}"].append(average_precision_score(odd, scores))
    return [{"way": way, **{key: float(np.mean(one)) for key, one in found.items()}} for way, found in values.items()]


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
