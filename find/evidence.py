"""What a score says: log p(score | odd) - log p(score | not odd), learnt on folders, now or once before."""

from dataclasses import dataclass

import numpy as np

from find.alone import ALONE
from find.calibration import folder_posterior, reliability
from find.findings import Bin
from find.scorers import Scorer
from train.sets import ClassIndex

FOLDERS = 400
STRANGERS = 1, 2, 5  # in those simulated folders that have odd images
SMALLEST, LARGEST = 3, 200  # images of a simulated folder
FALSE_ALARMS = 0.05
FEW = 30  # images: too few to see a tail
TAIL = 0.7, 0.9
TYPICAL_SCORE = -0.5  # what a score in the lower two thirds says for "not odd"
SURE = 0.7  # the limit of what nothing was learnt for


@dataclass(frozen=True)
class Evidence:
    """weights (3,): of a score, of its robust deviation within the folder, and of 1; None: see `guarded`.

    typical: see `reckoned`. limit: the probability that anything is odd which `FALSE_ALARMS` of clean folders exceed.
    calibration: on folders that were held out.
    """

    weights: np.ndarray | None = None
    typical: float = np.inf
    limit: float = SURE
    calibration: tuple[Bin, ...] = ()

    @classmethod
    def learn(
        cls, scorer: Scorer, features: np.ndarray, labels: np.ndarray, size: int, seed: int, number: int = FOLDERS
    ) -> "Evidence":
        """Of folders of about `size` images, drawn from features (n, D) with labels (n,) that the scorer never saw.

        There are `number` of them. Half are clean, the others have some images of other classes. Half of all are held
        out.
        """
        index = ClassIndex.build(np.arange(len(labels)), labels)
        embedded = scorer.embed(features)
        generator = np.random.default_rng(seed)
        folders = [_draw(index, size, each, generator) for each in range(number)]
        scored = [(described(scorer.score(embedded[rows])), odd) for rows, odd in folders]
        fitted, held_out = scored[::2], scored[1::2]
        weights = _fit(np.concatenate([x for x, _ in fitted]), np.concatenate([odd for _, odd in fitted]))
        clean = [folder_posterior(x @ weights)[1] for x, odd in scored if not odd.any()]
        limit = float(np.quantile(clean, 1 - FALSE_ALARMS))
        probabilities = np.concatenate([folder_posterior(x @ weights)[0] for x, _ in held_out])
        return cls(weights, np.inf, limit, reliability(probabilities, np.concatenate([odd for _, odd in held_out])))

    @classmethod
    def alone(cls, size: int, dim: int) -> "Evidence":
        """Of the scores of `find.scorers.folder_alone` in a folder of `size` images, if the folder is all there is.

        It holds for fewer than D / 2 images. For up to `FEW` it is used all the same: a tail cannot be seen there.
        """
        if size > max(FEW, min(dim // 2, ALONE[-1][0])):
            return cls()
        known = np.array(ALONE)
        *weights, typical, limit = (
            float(np.interp(np.log(size), np.log(known[:, 0]), column)) for column in known.T[1:]
        )
        return cls(np.array(weights), typical, limit)

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Scores of a folder (n,) → evidence (n,)."""
        if self.weights is None:
            return guarded(scores)
        return described(reckoned(scores, self.typical)) @ self.weights


def guarded(scores: np.ndarray) -> np.ndarray:
    """Evidence (n,) of the scores (n,) of a folder, with nothing learnt. The folder should be large.

    Where nothing is odd, the upper scores of a folder fall off about exponentially; how fast is seen between their 70th
    and 90th percentile, where a few odd images do not reach. That gives each score a p-value, and the most that p can
    say against "not odd" is -1 / (e p log p) (Sellke, Bayarri and Berger, *Calibration of p values*, 2001).
    """
    low, high = np.quantile(scores, TAIL)
    fall = max((high - low) / np.log((1 - TAIL[0]) / (1 - TAIL[1])), 1e-6 * max(1.0, abs(low)))
    log_p = np.minimum(np.log(1 - TAIL[0]) - (scores - low) / fall, -1.0)
    bound = np.maximum(-1.0 - log_p - np.log(-log_p), 0.0)
    return np.where(log_p < -1.0, bound, TYPICAL_SCORE)


def reckoned(scores: np.ndarray, typical: float) -> np.ndarray:
    """Scores (n,), lowered so that their median is at most `typical`.

    In a folder whose images differ more than those of one class, that all are far from the others says nothing.
    """
    return scores - max(0.0, float(np.median(scores)) - typical)


def described(scores: np.ndarray) -> np.ndarray:
    """A score, its robust deviation within its folder, and 1: (n,) → (n, 3)."""
    middle = np.median(scores)
    spread = np.median(np.abs(scores - middle)) + 1e-6 * max(1.0, abs(middle))
    return np.stack([scores, np.arcsinh((scores - middle) / spread), np.ones(len(scores))], 1)


def _draw(index: ClassIndex, size: int, number: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    own = number // 4 % len(index.classes)  # each class as often, with strangers and without, in both halves
    n = int(np.clip(size, SMALLEST, min(LARGEST, index.counts[own])))
    start = int(index.starts[own])
    rows = generator.choice(index.rows[start : start + index.counts[own]], n, replace=False)
    if number // 2 % 2:  # so that both halves have clean folders
        return rows, np.zeros(len(rows), bool)
    others = np.concatenate([index.rows[:start], index.rows[start + index.counts[own] :]])
    strangers = max(1, min(int(generator.choice(STRANGERS)), len(rows) // 3))
    rows[:strangers] = generator.choice(others, strangers, replace=False)
    return rows, np.arange(len(rows)) < strangers


def _fit(x: np.ndarray, odd: np.ndarray) -> np.ndarray:
    """Logistic regression (n, 3) → weights (3,) of the evidence: odd images are as many as others, by their weights."""
    from sklearn.linear_model import LogisticRegression

    scale = x[:, :2].std(0) + 1e-9
    model = LogisticRegression(class_weight="balanced").fit(x[:, :2] / scale, odd)
    return np.append(model.coef_[0] / scale, model.intercept_[0])
