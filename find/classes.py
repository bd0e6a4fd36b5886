"""Class posteriors of every image by classifiers that never saw it, where some of the labels are wrong."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import optimize
from torch import Tensor
from torch.nn import functional

from common.errors import UserError
from common.machine import fast_bfloat16
from common.progress import Progress
from train.config import Config, HeadConfig, TrainingConfig
from train.gaussian import Normaliser, fit_two_covariances, log_likelihood_ratio
from train.loop import learning_rate_factor
from train.methods.base import Method, build_method

FOLDS = 5
# Images: up to FEW, a logistic regression does what networks do beside the Gaussian model, in a fraction of the time;
# from MANY on one round with one network has to do
FEW, MANY = 5_000, 15_000
PRIOR = 10_000.0  # variance of a logit of the regression before any image was seen, times images
# Strong dropout and few epochs: what matters is how little is left to a class that an image does not belong to, not
# how often the most likely one is right
HIDDEN, DROPOUT, RATE, DECAY = 512, 0.8, 5e-3, 0.05
BATCH = 256
WARMUP = 0.05  # of the steps
# Labels of data sets that people took care of are wrong this often at least (Northcutt et al., *Pervasive label errors
# in test sets*, 2021): less cannot be told from images that are hard
LEAST_NOISE = 0.005
# Bounds of log weights of scores and log-odds of noise. If more than half of the labels were wrong, labels that nothing
# predicts would be called wrong
WEIGHT_BOUNDS, NOISE_BOUNDS = (-5.0, 5.0), (-6.0, 0.0)
ROWS = 20_000  # that weights and noise are learnt from, at most
STEPS = 150  # of training at least; and two epochs more

Part = tuple[np.ndarray, np.ndarray]  # rows to learn from, and the rows of a fold, which are judged


@dataclass(frozen=True)
class Posterior:
    """log p(true class | image) (n, C), and the noise of the labels that suits them best.

    noise: the share of wrong labels. given_wrong (C, C): p(label | true class, the label is wrong). near: the share of
    wrong labels that went to a class which is like the true one; the others went to any.
    """

    log: np.ndarray
    noise: float
    given_wrong: np.ndarray
    near: float = 0.0

    def wrong(self, labels: np.ndarray) -> np.ndarray:
        """p(the label is wrong | image, label) (n,), by Bayes' rule with the noise as prior."""
        own, others = np.empty(len(labels)), np.empty(len(labels))
        for label in np.unique(labels):
            rows = np.flatnonzero(labels == label)
            p = np.exp(self.log[rows])
            own[rows], others[rows] = p[:, label], p @ self.given_wrong[:, label]
        others *= self.noise
        return others / np.maximum(others + (1 - self.noise) * own, 1e-300)


def posterior(features: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int) -> Posterior:
    """The class posteriors of features (n, D) with labels (n,), each by models that were trained on the other folds.

    labels: in 0 … C - 1, at least 2 images each, C ≥ 2. groups (n,): images of one group, copies, are in one fold.
    After a first round, labels that are more likely wrong than right are left out of training.
    """
    n = len(labels)
    networks, rounds = (0, 1) if n <= FEW else (1, 1) if n > MANY else (3, 2)
    folds = min(FOLDS, int(np.bincount(labels).min()))
    x = Normaliser.fit(features)(features)  # of all images: it knows no label
    del features  # memory
    generator = np.random.default_rng(seed)
    trusted = np.ones(n, bool)
    for number in range(rounds):
        fold = make_folds(labels, groups, folds, generator)
        scores = [out_of_fold(x, labels, fold, trusted, networks, seed + 1000 * number)]
        if number + 1 == rounds:
            del x  # memory, as above
        result = weigh(scores.pop(), labels)
        trusted = result.wrong(labels) < 0.5
        counts = np.bincount(labels[trusted], minlength=labels.max() + 1)
        trusted |= (counts < 2)[labels]  # a class is not left without images
    return result


def make_folds(labels: np.ndarray, groups: np.ndarray, folds: int, generator: np.random.Generator) -> np.ndarray:
    """The fold (n,) of each image: classes balanced, and images of one group in the same fold."""
    order = generator.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(len(labels), np.int64)
    fold[order] = np.arange(len(labels)) % folds
    _, leader, member = np.unique(groups, return_index=True, return_inverse=True)
    return fold[leader][member]


def out_of_fold(
    x: np.ndarray, labels: np.ndarray, fold: np.ndarray, trusted: np.ndarray, networks: int, seed: int
) -> list[np.ndarray]:
    """Class scores (n, C) of normalised features x (n, D): of a Gaussian model, and logits of `networks` MLPs.

    Without networks, those of a logistic regression. Each row's are those of models trained on the
    `trusted` rows of the other folds; 0 for a class that has none there.
    """
    classes, numbers = int(labels.max()) + 1, np.unique(fold).tolist()
    scores = [np.zeros((len(labels), classes), np.float32) for _ in range(1 + networks)]
    parts = [(np.flatnonzero((fold != number) & trusted), np.flatnonzero(fold == number)) for number in numbers]
    with Progress((1 + networks) * len(parts), "learning the classes", "models") as progress:
        for rest, rows in parts:
            known, codes = np.unique(labels[rest], return_inverse=True)
            with suppress(UserError):  # classes that do not differ are told apart by nothing
                scores[0][np.ix_(rows, known)] = gaussian_scores(x, rest, codes, rows)
            progress.update()
        for _ in _train_networks(x, labels, parts, scores, seed) if networks else ():
            progress.update()
    if not networks:
        scores.append(regress(x, labels, fold, trusted))
    for rest, rows in parts:
        unknown = np.bincount(labels[rest], minlength=classes) == 0
        if unknown.any():
            for logits in scores[1:]:
                logits[rows] -= logits[rows][:, ~unknown].mean(1, keepdims=True)
                logits[np.ix_(rows, unknown)] = 0
    return scores


def gaussian_scores(x: np.ndarray, known: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Class scores (m, C) of the rows (m,) of x (n, D), of a Gaussian model of the known rows (k,) with labels (k,).

    Raises UserError where the classes are too few, or do not differ.
    """
    mean, projection, ratio, means = fit_two_covariances(lambda part: x[known[part]], labels)
    counts = np.bincount(labels)
    embedded = x[rows] @ projection.astype(np.float32) - (mean @ projection).astype(np.float32)
    return log_likelihood_ratio(embedded, counts[:, None] * ((means - mean) @ projection), counts, ratio)


def regress(x: np.ndarray, labels: np.ndarray, fold: np.ndarray, trusted: np.ndarray) -> np.ndarray:
    """Logits (n, C) of a logistic regression for each fold, as in `out_of_fold`; all are fitted at once."""
    n, dim = x.shape
    classes, folds = int(labels.max()) + 1, int(fold.max()) + 1
    inputs, truth = torch.from_numpy(x), torch.from_numpy(labels)
    used = torch.from_numpy(((fold[:, None] != np.arange(folds)) & trusted[:, None]).astype(np.float32))

    def logits(values: Tensor) -> Tensor:
        return (inputs @ values[:-1]).view(n, folds, classes) + values[-1].view(folds, classes)

    def loss(values: Tensor) -> Tensor:
        own = functional.log_softmax(logits(values), 2).gather(2, truth[:, None, None].expand(n, folds, 1))[:, :, 0]
        return values[:-1].square().sum() * (dim / (2 * PRIOR)) - (own * used).sum() / (used.sum() / folds)

    best = minimise(loss, np.zeros((dim + 1, folds * classes)), maxiter=50, ftol=1e-5)
    return logits(best)[torch.arange(n), torch.from_numpy(fold)].numpy()


def minimise(
    loss: Callable[[Tensor], Tensor], start: np.ndarray, bounds: list[tuple[float, float]] | None = None, **options: Any
) -> Tensor:
    """The values, float32 and shaped as `start`, at which a loss is least, by L-BFGS-B with these options."""

    def with_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        values = torch.from_numpy(flat.astype(np.float32)).view(start.shape).requires_grad_()
        value = loss(values)
        (gradient,) = torch.autograd.grad(value, values)
        return value.item(), gradient.numpy().astype(np.float64).ravel()

    # Optimisers of torch are slower
    best = optimize.minimize(with_gradient, start.ravel(), jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return torch.from_numpy(best.x.astype(np.float32)).view(start.shape)


def _train_networks(
    x: np.ndarray, labels: np.ndarray, parts: Sequence[Part], scores: Sequence[np.ndarray], seed: int
) -> Iterator[None]:
    """Fill scores[1:] with the logits of networks, one each for each fold; one after the other is done."""
    inputs, truth, fast = torch.from_numpy(x), torch.from_numpy(labels), fast_bfloat16(torch.device("cpu"))
    head, threads = HeadConfig(hidden=HIDDEN, dropout=DROPOUT), torch.get_num_threads()

    def fill(logits: np.ndarray, part: Part, model: Method, seed: int) -> None:
        rest, rows = map(torch.from_numpy, part)
        train_network(model, inputs, truth, rest, seed, fast)
        with torch.inference_mode():
            for some in rows.split(4096):
                logits[some.numpy()] = model.encode(inputs[some]).numpy()

    jobs = []
    for number, part in enumerate(parts):
        for which, logits in enumerate(scores[1:], 1):
            own_seed = seed + 100 * which + number
            config = Config("posterior", head=head, training=TrainingConfig(seed=own_seed))
            jobs.append((logits, part, build_method(config, x.shape[1], logits.shape[1]), own_seed))
    # Steps this small are not worth sharing among threads: each thread trains a network of its own
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.map(fill, *zip(*jobs, strict=True))
    torch.set_num_threads(threads)


def train_network(model: Method, x: Tensor, labels: Tensor, used: Tensor, seed: int, fast: bool) -> None:
    """Train on classes alone: the rows `used` (m,) of x (n, D), labels (n,); in bfloat16 if that is `fast`."""
    generator = torch.Generator().manual_seed(seed)
    model.seed_dropout(generator)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY, fused=True)
    batches = max(1, len(used) // BATCH)
    total = STEPS + 2 * batches
    step = 0
    while step < total:
        for rows in used[torch.randperm(len(used), generator=generator)].chunk(batches)[: total - step]:
            step += 1
            for group in optimizer.param_groups:
                group["lr"] = RATE * learning_rate_factor(step, round(WARMUP * total), total)
            with torch.autocast("cpu", torch.bfloat16, enabled=fast):
                logits = model.encode(x[rows])
            loss = functional.cross_entropy(logits.float(), labels[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    model.eval()


def weigh(scores: Sequence[np.ndarray], labels: np.ndarray) -> Posterior:
    """One posterior out of class scores (n, C) that saw no label of their rows, and the noise of the labels.

    First as if wrong labels went to any class alike. The labels that are most likely wrong then show how many of them
    went to similar classes instead, and that is reckoned with, twice.
    """
    n, classes = scores[0].shape
    parts = [torch.from_numpy(np.asarray(each, np.float32)) for each in scores]
    parts = [(part - part.mean(1, keepdim=True)) / part.std().clamp(min=1e-6) for part in parts]
    del scores  # memory
    others = 1 - np.eye(classes)
    to_any = others / max(1, classes - 1)
    log, noise = _most_likely(parts, labels, to_any)
    shares = np.bincount(labels, minlength=classes) / n
    chance = shares.max() + 3 * np.sqrt(shares.max() * (1 - shares.max()) / n)
    if (log.argmax(1) == labels).mean() <= chance:  # the scores know no more than how frequent classes are
        flat = np.broadcast_to(np.log(np.maximum(shares, 1e-12)).astype(np.float32), log.shape)
        return Posterior(flat, LEAST_NOISE, to_any)
    to_similar = np.stack([np.exp(log[labels == label]).mean(0) for label in range(classes)]) * others + 1e-12
    to_similar /= to_similar.sum(1, keepdims=True)
    result = Posterior(log, noise, to_any)
    for _ in range(2):
        sure = np.flatnonzero(result.wrong(labels) > 0.5)
        p = np.exp(result.log[sure])
        similar, any_other = ((p * kind.T[labels[sure]]).sum(1) for kind in (to_similar, to_any))
        near = 0.5
        for _ in range(50):  # expectation-maximisation, with one label of each kind in advance
            share = near * similar / (near * similar + (1 - near) * any_other)
            near = (float(share.sum()) + 1) / (len(share) + 2)
        given_wrong = (1 - near) * to_any + near * to_similar
        log, noise = _most_likely(parts, labels, given_wrong)
        result = Posterior(log, max(LEAST_NOISE, noise), given_wrong, near)
    return result


def _most_likely(parts: Sequence[Tensor], labels: np.ndarray, given_wrong: np.ndarray) -> tuple[np.ndarray, float]:
    """log p(class | image) (n, C) and the noise rate under which the labels are most likely.

    parts: class scores (n, C), whose weights in a softmax are sought: those that are too sure get small ones.
    given_wrong: as `Posterior.given_wrong`.
    """
    every = -(-len(labels) // ROWS)  # so few numbers need no more rows
    some, labels = [part[::every] for part in parts], labels[::every]
    own = torch.from_numpy(labels)[:, None]
    to_label = torch.from_numpy(given_wrong.T.astype(np.float32))[labels]

    def log_posterior(parts: Sequence[Tensor], weights: Tensor) -> Tensor:
        mixed = sum(weight.exp() * part for weight, part in zip(weights, parts, strict=True))
        return functional.log_softmax(mixed, 1)  # type: ignore[arg-type]

    def loss(values: Tensor) -> Tensor:
        p, noise = log_posterior(some, values[:-1]).exp(), torch.sigmoid(values[-1])
        return -torch.log((1 - noise) * p.gather(1, own)[:, 0] + noise * (p * to_label).sum(1) + 1e-12).mean()

    start = np.array([0.0] * len(parts) + [NOISE_BOUNDS[0] / 2])
    best = minimise(loss, start, [WEIGHT_BOUNDS] * len(parts) + [NOISE_BOUNDS])
    log = np.empty(parts[0].shape, np.float32)
    for first in range(0, len(log), ROWS):
        block = slice(first, first + ROWS)
        log[block] = log_posterior([part[block] for part in parts], best[:-1]).numpy()
    return log, float(torch.sigmoid(best[-1]))
