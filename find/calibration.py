"""Probabilities that mean something: the threshold that keeps a false-discovery rate, and a check of them."""

from collections.abc import Callable

import numpy as np

from find.findings import Bin, Threshold

BINS = 10
LARGEST = 12.0  # log-odds that count
RIDGE = 1e-4
# What is thought of the share of odd images in a folder before it is seen: none in half of all folders, else any
# share from one in a thousand to three in ten, each order of magnitude alike
SHARES = np.concatenate([[0.0], np.geomspace(0.001, 0.3, 24)])
PRIOR = np.concatenate([[0.5], np.full(24, 0.5 / 24)])


def choose_threshold(probabilities: np.ndarray, rate: float) -> Threshold:
    """The longest head of the list (n,) whose expected share of false finds is at most `rate`.

    The expected share of true finds is the mean of the probabilities (Müller et al., *Optimal sample size for
    multiple testing*, 2004, call it the posterior expected false-discovery rate).

    >>> choose_threshold(np.array([0.1, 0.99, 0.7, 0.95]), 0.15)
    Threshold(asked=0.15, probability=0.7, flagged=3, expected_true=0.88)
    """
    falling = np.sort(probabilities)[::-1]
    true = np.cumsum(falling) / np.arange(1, len(falling) + 1)
    allowed = np.flatnonzero(true >= 1 - rate)
    if not len(allowed):
        return Threshold(rate, 1.0, 0, None)
    last = int(allowed[-1])
    return Threshold(rate, float(falling[last]), last + 1, round(float(true[last]), 6))


def reliability(probabilities: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> tuple[Bin, ...]:
    """The bars of a reliability diagram, of probabilities (n,) and truth (n,) bool; empty ones are left out.

    >>> reliability(np.array([0.05, 0.95, 0.97]), np.array([False, True, True]))[1]
    Bin(low=0.9, high=1.0, n=2, mean=0.96, observed=1.0)
    """
    weights = np.ones(len(truth)) if weights is None else weights
    number = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    bars = []
    for bar in np.unique(number):
        chosen = number == bar
        weight = weights[chosen] / max(weights[chosen].sum(), 1e-12)
        mean, observed = float(probabilities[chosen] @ weight), float(truth[chosen] @ weight)
        bars.append(Bin(int(bar) / BINS, (int(bar) + 1) / BINS, int(chosen.sum()), round(mean, 4), round(observed, 4)))
    return tuple(bars)


def share_at_most(found: np.ndarray, known: np.ndarray) -> float:
    """The largest share of wrong labels that the probabilities found (n,) allow.

    known (m,): the probabilities of labels that are wrong for certain. Say the √n most suspicious labels are all wrong.
    Among the known ones a part p is as suspicious. Then √n / p labels are wrong, and no more (the argument of Storey,
    *A direct approach to false discovery rates*, 2002, turned around).

    >>> found = np.array([0.9, 0.8] + 14 * [0.1])
    >>> share_at_most(found, np.array([0.9, 0.1]))
    0.25
    """
    most = int(np.sqrt(len(found)))
    limit = np.sort(found)[-most]
    return most / len(found) / max(float((known >= limit).mean()), 1 / len(known))


def tempered(found: np.ndarray, known: np.ndarray, share: float) -> Callable[[np.ndarray], np.ndarray]:
    """What turns probabilities that promise too much into more careful ones; none gets larger.

    found (n,): of labels, `share` of which are wrong. known (m,): of labels that are wrong for certain. The log-odds
    are shifted and stretched until the found probabilities agree with that share of the known ones, in their sum and
    in their sum weighted by the log-odds. That is logistic regression of wrong against right where only wrong ones are
    known (du Plessis, Niu and Sugiyama, *Convex formulation for learning from positive and unlabeled data*, 2015).
    """
    from scipy.optimize import minimize  # here: it is slow to start
    from scipy.special import expit

    x, of_known = _log_odds(found), float(_log_odds(known).mean())
    start = np.array([0.0, 1.0])

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        z = weights[0] + weights[1] * x
        p = expit(z)
        value = np.logaddexp(0, z).mean() - share * (weights[0] + weights[1] * of_known)
        slope = np.array([p.mean() - share, (p * x).mean() - share * of_known])
        pull = RIDGE * (weights - start)  # where wrong and right labels lie far apart, any weights would do
        return float(value + pull @ (weights - start) / 2), slope + pull

    shift, stretch = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(None, None), (0, None)]).x

    def temper(probabilities: np.ndarray) -> np.ndarray:
        return np.minimum(probabilities, expit(shift + stretch * _log_odds(probabilities)))

    return temper


def folder_posterior(log_ratios: np.ndarray) -> tuple[np.ndarray, float]:
    """Of log p(score | odd) - log p(score | not odd) (n,): the probability (n,) that each is odd, and that any is.

    The share of odd images is unknown: Bayes' rule over `SHARES`. So an image is judged by the company that it keeps:
    the same score means more in a folder with many odd images than in a clean one of ten thousand.
    """
    mixed = np.logaddexp(np.log1p(-SHARES)[:, None], _log(SHARES)[:, None] + log_ratios)
    weight = np.log(PRIOR) + mixed.sum(1)
    weight = np.exp(weight - weight.max())
    weight /= weight.sum()
    each = np.exp(_log(SHARES)[:, None] + log_ratios - mixed)
    return np.clip(weight @ each, 0.0, 1.0), float(1 - weight[0])


def _log_odds(p: np.ndarray) -> np.ndarray:
    return np.clip(_log(p) - _log(1 - p), -LARGEST, LARGEST)


def _log(x: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(x, 1e-300))
