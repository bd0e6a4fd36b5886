"""From scores to error rates: an empirical null, p-values, q-values and local false-discovery rates.

What a score means is learnt from the images at hand. Most of them belong where they are, so the bulk of their scores
shows how scores of such images are spread (the empirical null of Efron, *Large-scale simultaneous hypothesis testing*,
2004; quantiles are matched as in the automatic mode of SelfClean, Gröger et al. 2023, arXiv 2305.17048). Where labelled
images were held out, they take the place of the bulk (conformal p-values; Bates et al., *Testing for outliers with
conformal p-values*, 2023).
"""

import numpy as np
from scipy.optimize import isotonic_regression
from scipy.special import ndtri, stdtr

BULK = 0.1, 0.75  # quantiles between which the null is fitted: a quarter of foreign images does not reach them
MATCHED = 14  # quantiles
# Degrees of freedom. The bulk does not show how long the tail of usual images is; in photographs it is longer than a
# normal one. And the fitted scale has these for each image: 2 / its squared coefficient of variation, for normal scores
TAILED, FREEDOM = 15.0, 0.5
SMALLEST = 1e-9
FEW, TAIL = 50, 0.01  # images and p-values of `find_caveat`


def standardise(scores: np.ndarray) -> np.ndarray:
    """Scores (n,) minus the centre of their bulk, over its spread: N(0, 1) where all images belong."""
    levels = np.linspace(*BULK, MATCHED)
    normal, matched = ndtri(levels), np.quantile(scores, levels)
    slope = float(np.cov(normal, matched, bias=True)[0, 1] / normal.var())
    spread = max(slope, SMALLEST * (1 + float(np.abs(matched).max())))
    return (scores - (matched.mean() - slope * normal.mean())) / spread


def p_values(scores: np.ndarray) -> np.ndarray:
    """One-sided p-values (n,) of scores (n,) under their own empirical null.

    Student's distribution accounts for a tail longer than the normal one, and for what is not known of the spread: the
    fewer images, the larger a score has to be.
    """
    of_spread = FREEDOM * len(scores)
    freedom = 1 / (1 / TAILED + 1 / of_spread)
    return stdtr(freedom, -standardise(scores) / np.sqrt(1 + 1 / of_spread))


def conformal_p_values(scores: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """p-values (n,) of scores (n,): the share of held-out images (m,) that score at least as high, counting itself.

    Beyond the highest of them it falls off exponentially, as fast as their upper tenth does.
    """
    known = np.sort(held_out)
    above = len(known) - np.searchsorted(known, scores, side="left")
    tail = known[-max(1, len(known) // 10) :]
    fall = max(float(tail.mean() - tail[0]), SMALLEST * (1 + abs(float(known[-1]))))
    return (1 + above) / (1 + len(known)) * np.exp(-np.maximum(scores - known[-1], 0) / fall)


def q_values(p: np.ndarray) -> np.ndarray:
    """The lowest false-discovery rate (n,) at which each p-value (n,) is flagged.

    By Benjamini and Hochberg (1995). In a set where nothing is wrong, they flag something with the probability of the
    rate. Here that is halved: nothing is flagged unless something is at half the rate.

    >>> q_values(np.array([0.001, 0.5, 0.02, 0.9])).round(3).tolist()
    [0.008, 0.667, 0.04, 0.9]
    """
    order = np.argsort(p)
    rates = p[order] * len(p) / np.arange(1, len(p) + 1)
    q = np.empty(len(p))
    q[order] = np.minimum.accumulate(rates[::-1])[::-1]
    return np.clip(np.maximum(q, 2 * q.min(initial=1.0)), 0.0, 1.0)


def local_rates(p: np.ndarray) -> np.ndarray:
    """The local false-discovery rate (n,) of each p-value (n,): how probable it is that this image belongs.

    The density of p-values under the null is 1; that of all is estimated as falling (Strimmer, *A unified approach to
    false discovery rate estimation*, 2008, after Grenander).
    """
    order = np.argsort(p)
    spacings = len(p) * np.diff(p[order], prepend=0.0)
    local = np.empty(len(p))
    local[order] = np.minimum(isotonic_regression(spacings).x, 1.0)
    return local


def bayes_q_values(probabilities: np.ndarray) -> np.ndarray:
    """The lowest expected share of false finds (n,) of a list that begins with the most probable and ends at each.

    The expected share is the mean of 1 - probability (Müller et al., *Optimal sample size for multiple testing*, 2004).

    >>> bayes_q_values(np.array([0.1, 1.0, 0.7, 0.9])).round(3).tolist()
    [0.325, 0.0, 0.133, 0.05]
    """
    order = np.argsort(-probabilities, kind="stable")
    q = np.empty(len(order))
    q[order] = np.cumsum(1 - probabilities[order]) / np.arange(1, len(order) + 1)
    return q


def find_caveat(p: np.ndarray, rate: float) -> str | None:
    """Why the false-discovery rate of p-values (n,) cannot be promised, one sentence; None where it can.

    Where foreign images are of another kind, there is a gap between them and the others. Where there is none, and more
    images than the null has lie just above the last flagged one, its right tail is longer than its bulk shows.
    """
    flagged = q_values(p) <= rate
    if not flagged.any():
        return None
    if len(p) < FEW:
        return f"{len(p)} images are too few to see how much such images differ by themselves"
    last = float(p[flagged].max())
    end = max(TAIL, 2 * last)
    expected = (end - last) * len(p)
    if ((p > last) & (p <= end)).sum() <= expected + np.sqrt(expected):
        return None
    return (
        "there is no gap between usual and unusual images here: more of the flagged ones may belong than the rate says"
    )
