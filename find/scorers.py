"""How odd each image of a folder is: by a trained head, or by a store of other classes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from common.errors import UserError
from find.foreign import log_distance, unit
from train.gaussian import ROWS_AT_A_TIME, Normaliser, fit_two_covariances, log_density_together
from train.methods.base import Method
from train.methods.deep_plda import DeepPLDA
from train.methods.normalised_plda import NormalisedPLDA
from train.methods.posterior import ClassPosterior, log_complement
from train.methods.posterior_transformer import PosteriorTransformer

# The folder's class need not be one of the reference, and classes never seen differ in other directions, too
BETWEEN_SHRINKAGE = 0.3
FOLDER_WEIGHT = 5.0  # of the distance to other images of the folder, beside a log-likelihood ratio
ODD_BEFORE = 0.1  # the share of odd images that a robust estimate reckons with
ROUNDS = 8  # random sets that each image is judged in, by a head that knows sets alone
SETS_AT_ONCE = 512
ENCODED_AT_ONCE = 4096

Compute = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Scorer:
    """name; embed: features (n, D) → (n, K), where images of a class lie near each other; score: (n, K) → (n,).

    Scores are larger for odder images, and judge each by the others. dim: D.
    """

    name: str
    embed: Compute
    score: Compute
    dim: int


def from_head(head: Method) -> Scorer:
    """A trained head. Raises UserError for one that scores sets of one size alone, or learns nothing."""
    name, encode, dim = type(head).__name__, partial(_encode, head), head.input_dim
    if isinstance(head, ClassPosterior | PosteriorTransformer):
        return Scorer(name, encode, another_class, dim)
    if isinstance(head, DeepPLDA | NormalisedPLDA):
        return beside_folder(name, encode, head.ratio.detach().numpy().astype(np.float64), dim)
    if head.set_size is not None:
        raise UserError(
            f"a head of the method {name} judges sets of {head.set_size} images alone: "
            "train posterior_transformer, transformer or deep_plda"
        )
    return Scorer(name, lambda features: features, partial(in_sets, head), dim)


def from_reference(features: np.ndarray, labels: np.ndarray) -> Scorer:
    """A two-covariance model of other images (n, D) with labels (n,), which says how images of one class differ.

    Raises UserError where its classes are too few, or do not differ.
    """
    normaliser, (_, labels) = Normaliser.fit(features), np.unique(labels, return_inverse=True)
    mean, projection, ratio, _ = fit_two_covariances(lambda part: normaliser(features[part]), labels, BETWEEN_SHRINKAGE)
    shift, projection = (mean @ projection).astype(np.float32), projection.astype(np.float32)

    def embed(x: np.ndarray) -> np.ndarray:
        parts = (x[start : start + ROWS_AT_A_TIME] for start in range(0, len(x), ROWS_AT_A_TIME))
        return np.concatenate([normaliser(part) @ projection - shift for part in parts])

    return beside_folder("reference statistics", embed, ratio, len(mean))


def beside_folder(name: str, embed: Compute, ratio: np.ndarray, dim: int) -> Scorer:
    """What is known from other classes, and what the folder shows itself: how near its images are to each other.

    embed, ratio: of a two-covariance model of other classes.
    """
    return Scorer(
        name,
        lambda features: np.concatenate([embed(features), unit(features)], 1),
        lambda x: _alone(x[:, :-dim], ratio) + FOLDER_WEIGHT * log_distance(x[:, -dim:]),
        dim,
    )


def _alone(x: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """log p(image | another class) - log p(image | the class of the others) of coordinates (n, K).

    It is computed twice: at the second look, those that look odd do not count among the others.
    """
    x = x.astype(np.float64)
    member, score = np.ones(len(x)), np.empty(len(x))
    for _ in range(2):
        total = member @ x
        for start in range(0, len(x), ROWS_AT_A_TIME):  # all at once would take several times the memory of x
            part = slice(start, start + ROWS_AT_A_TIME)
            some, others, counts = x[part], total - member[part, None] * x[part], member.sum() - member[part]
            apart = log_density_together(some, np.ones(len(some)), ratio) + log_density_together(others, counts, ratio)
            score[part] = apart - log_density_together(others + some, counts + 1, ratio)
        limit = np.quantile(score, 1 - ODD_BEFORE)
        member = ((score <= 0) | (score <= limit)).astype(np.float64)
    return score


def another_class(logits: np.ndarray) -> np.ndarray:
    """log p(another class) - log p(the folder's class) of class logits (n, C), the folder's class being inferred.

    Each class explains the folder as well as its posteriors say, if some of the images are odd.
    """
    log_p = torch.log_softmax(torch.from_numpy(logits).double(), 1)
    by_chance = torch.full_like(log_p, np.log(ODD_BEFORE / log_p.shape[1]))
    explained = torch.logaddexp(np.log(1 - ODD_BEFORE) + log_p, by_chance).sum(0)
    own = torch.logsumexp(torch.log_softmax(explained, 0) + log_p, 1)
    return (log_complement(own) - own).numpy()


def in_sets(head: Method, features: np.ndarray, size: int = 10) -> np.ndarray:
    """The mean log-odds (n,) that an image is the odd one of a random set of the folder's images, of features (n, D).

    Later sets are made of the images that looked like each other in the sets before. Its cost grows with n alone.
    """
    generator = np.random.default_rng(0)
    n = len(features)
    size = min(size, n)
    x = torch.from_numpy(features)
    total, typical = np.zeros(n), np.arange(n)
    for number in range(2 * ROUNDS):
        companions = generator.choice(typical, (n, size - 1))
        rows = np.concatenate([np.arange(n)[:, None], companions], 1)
        if number == ROUNDS:
            typical, total = np.argsort(total)[: max(size, n // 2)], np.zeros(n)
        for start in range(0, n, SETS_AT_ONCE):
            some = torch.from_numpy(rows[start : start + SETS_AT_ONCE])
            logits = head.score_sets(x[some])
            total[start : start + SETS_AT_ONCE] += (logits[:, 0] - torch.logsumexp(logits[:, 1:], 1)).numpy()
    return total / ROUNDS


def _encode(head: Method, features: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        parts = torch.from_numpy(features).split(ENCODED_AT_ONCE)
        return torch.cat([head.encode(part) for part in parts]).numpy()
