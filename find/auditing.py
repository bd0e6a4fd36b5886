"""Which images of a labelled data set are in the wrong class, in none, or there twice."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from common.errors import UserError
from find.calibration import BINS, folder_posterior, share_at_most, tempered
from find.classes import FOLDS, LEAST_NOISE, Posterior, posterior
from find.duplicates import Pairs, find_pairs
from find.evidence import Evidence
from find.findings import Bin, Finding, Findings
from find.listing import AT_LEAST, TYPICAL, Images, make_findings, require_features
from find.scorers import folder_alone

LARGE = 20_000  # images, from which on one round with one network has to do


def audit(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    class_names: Sequence[str] | None = None,
    paths: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
    digests: np.ndarray | None = None,
    rate: float = 0.1,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> Findings:
    """Judge every image of features (n, D) with labels (n,) int by models that never saw it.

    class_names: of the labels 0 … C - 1. paths, splits: of the images. digests: (n, 32) uint8, equal for equal
    pictures. rate: the false-discovery rate that the flagged ones keep. settings: provenance, taken over.

    An image is wrong if its label is (`find.classes`: class posteriors, a noise rate that is estimated, Bayes' rule),
    or if it belongs to no class. Of pictures that are there more than once with different labels, something is wrong
    for certain. Raises UserError where there are fewer than 2 classes, a class has a single image, or all have two.
    """
    features, labels = np.asarray(features, np.float32), np.asarray(labels, np.int64)
    require_features(features)
    names = [str(name) for name in (range(int(labels.max(initial=-1)) + 1) if class_names is None else class_names)]
    used, labels = np.unique(labels, return_inverse=True)
    names = [names[label] for label in used]
    _require_classes(labels, names)
    images = Images.numbered(len(labels), paths, splits)
    pairs = find_pairs(features, digests)
    judged, wrong, strange = judge(features, labels, pairs, seed)
    twins, agreement = _twins(pairs), _agreement(pairs, labels)
    findings = [
        _finding(i, labels, names, images, judged, wrong[i], strange[i], twins.get(i, []), agreement)
        for i in sorted(
            {
                *np.argsort(-wrong - strange)[: 2 * AT_LEAST].tolist(),
                *np.flatnonzero(wrong + strange > 0.01).tolist(),
                *twins,
            }
        )
    ]
    typical = {}
    for label, name in enumerate(names):
        rows = np.flatnonzero(labels == label)
        typical[name] = images.shown(rows[np.argsort(-judged.ratios[rows, label], kind="stable")[:TYPICAL]])
    settings = dict(settings or {}) | {"noise_rate": round(judged.noise, 5), "seed": seed}
    settings["wrong_labels_to_similar_classes"] = round(judged.near, 3)
    return make_findings(
        "audit",
        findings,
        len(labels),
        rate,
        typical,
        class_names=names,
        calibration=check_calibration(judged, labels, seed),
        settings=settings,
    )


def judge(
    features: np.ndarray, labels: np.ndarray, pairs: Pairs, seed: int
) -> tuple[Posterior, np.ndarray, np.ndarray]:
    """The class posteriors, and the probabilities (n,) that the label is wrong and that the image is of no class.

    Wrong labels that are like hard images are easily overrated. So there are no more of them than the most suspicious
    labels allow. What a probability means is learnt from labels that are wrong for certain.
    """
    folds = min(FOLDS, int(np.bincount(labels).min()))
    effort = {"networks": 1, "rounds": 1} if len(labels) > LARGE else {"networks": 3, "rounds": 2}
    judged = posterior(features, labels, pairs.groups(len(labels)), folds=folds, **effort, seed=seed)
    most = share_at_most(judged.wrong(labels), with_wrong_labels(judged, labels, seed))
    judged = replace(judged, noise=max(LEAST_NOISE, min(judged.noise, most)))
    temper = tempered(judged.wrong(labels), with_wrong_labels(judged, labels, seed), judged.noise)
    judged = replace(judged, temper=temper)
    return judged, judged.wrong(labels), no_class(features, judged, labels)


def with_wrong_labels(judged: Posterior, labels: np.ndarray, seed: int) -> np.ndarray:
    """The probability (n,) that a label is wrong if every image had another one, drawn as wrong ones are thought to be.

    Models never saw the image, so nothing has to be trained anew.
    """
    upto = judged.given_wrong().cumsum(1)[labels]
    drawn = (np.random.default_rng(seed).random((len(labels), 1)) * upto[:, -1:] > upto).sum(1)
    return judged.wrong(drawn)


def no_class(features: np.ndarray, judged: Posterior, labels: np.ndarray) -> np.ndarray:
    """The probability (n,) that an image of features (n, D) with a label (n,) is of no class.

    Hard images of a class look like images of none. So what counts is how far beyond the others an image is from the
    mean of the others of its most likely class, as in a folder that is all there is. An image of no class has a label
    by chance, so a label that suits the image speaks against. Classes of fewer than ten images hide what is odd in
    them, and where there are fewer than three nothing is said.
    """
    scorer, likely = folder_alone(), judged.log.argmax(1)
    x = scorer.embed(features)
    counts = np.bincount(likely, minlength=judged.log.shape[1])
    means = np.zeros((len(counts), x.shape[1]), np.float32)
    np.add.at(means, likely, x)
    means /= np.maximum(counts, 1)[:, None]
    others = np.maximum(counts[likely] - 1, 1)[:, None]
    residuals = (x - means[likely]) * np.sqrt((others + 1) / others)  # of one variance in classes of any size
    evidence = Evidence.alone(*x.shape)(scorer.score(residuals))
    own, any_label = judged.log[np.arange(len(labels)), labels], -np.log(len(counts))
    evidence = np.where(counts[likely] < 3, np.minimum(evidence, 0.0), evidence)
    return folder_posterior(evidence + np.minimum(any_label - own, 0.0))[0]


def check_calibration(judged: Posterior, labels: np.ndarray, seed: int) -> tuple[Bin, ...]:
    """How often a label of each probability is wrong, if labels are as often wrong as estimated.

    `with_wrong_labels` shows which part of all wrong labels gets which probability, with other labels than those from
    which it was learnt what probabilities mean.
    """
    found, simulated = judged.wrong(labels), with_wrong_labels(judged, labels, seed + 1)
    bars = []
    for bar in range(BINS):
        low, high = bar / BINS, (bar + 1) / BINS
        chosen = (found >= low) & ((found < high) | (bar == BINS - 1))
        if n := int(chosen.sum()):
            share = float(((simulated >= low) & ((simulated < high) | (bar == BINS - 1))).mean())
            observed = min(1.0, share * judged.noise * len(labels) / n)
            bars.append(Bin(low, high, n, round(float(found[chosen].mean()), 4), round(observed, 4)))
    return tuple(bars)


def _finding(
    i: int,
    labels: np.ndarray,
    names: Sequence[str],
    images: Images,
    judged: Posterior,
    wrong: float,
    strange: float,
    twins: list[tuple[int, bool]],
    agreement: float,
) -> Finding:
    label = int(labels[i])
    others = judged.log[i].copy()
    others[label] = -np.inf
    nearest = int(others.argmax())
    probability, why, kind = 1 - (1 - wrong) * (1 - strange), [], "wrong label"
    suggested: str | None = names[nearest]
    if strange > max(wrong, 0.05):
        kind, suggested = "no class", None
        why.append("far from every class")
    else:
        if judged.ratios[i, label] < 0:
            why.append("far from its class")
        if judged.log[i, nearest] > judged.log[i, label]:
            why.append(f"nearer to {names[nearest]}")
    conflicts = [(twin, exact) for twin, exact in twins if labels[twin] != label]
    if twins:
        exact = any(exact for _, exact in conflicts or twins)
        if conflicts or probability < 0.5:
            kind = "duplicate" if exact else "near duplicate"
        if conflicts:
            probability = max(probability, 1.0 if exact else agreement)
            suggested = names[labels[conflicts[0][0]]]
        for twin, same in twins:
            what = "duplicate" if same else "near duplicate"
            label_of = f" with another label, {names[labels[twin]]}" if labels[twin] != label else ""
            why.append(f"{what} of {images.paths[twin]}{label_of}")
        if not conflicts and kind != "wrong label":
            suggested = None
    scores = {
        "own class": float(np.exp(judged.log[i, label])),
        "suggested class": float(np.exp(judged.log[i, nearest])),
        "wrong label": float(wrong),
        "no class": float(strange),
    }
    return Finding(
        int(images.rows[i]),
        images.paths[i],
        images.splits[i],
        names[label],
        suggested,
        round(float(probability), 6),
        False,
        kind,
        tuple(why),
        tuple(int(images.rows[twin]) for twin, _ in twins),
        tuple(images.paths[twin] for twin, _ in twins),
        {name: round(value, 6) for name, value in scores.items()},
    )


def _twins(pairs: Pairs) -> dict[int, list[tuple[int, bool]]]:
    """For each image that is there more than once: the others, and whether they are exactly equal."""
    found = defaultdict(list)
    for first, second, exact in zip(pairs.first.tolist(), pairs.second.tolist(), pairs.exact.tolist(), strict=True):
        found[first].append((second, exact))
        found[second].append((first, exact))
    return found


def _agreement(pairs: Pairs, labels: np.ndarray) -> float:
    """The share of near duplicates that have one label: how surely such a pair shows one thing."""
    near = ~pairs.exact
    same = labels[pairs.first[near]] == labels[pairs.second[near]]
    return float((same.sum() + 1) / (near.sum() + 2))


def _require_classes(labels: np.ndarray, names: Sequence[str]) -> None:
    if len(names) < 2:
        raise UserError(
            f"there are {len(names)} class(es) to audit, at least 2 are needed: use find odd for one folder"
        )
    counts = np.bincount(labels)
    if counts.min() < 2:
        raise UserError(
            f'class "{names[int(counts.argmin())]}" has a single image: each image is judged by others of its class'
        )
    if counts.max() < 3:
        raise UserError("no class has more than 2 images: too few to know a class by; add images")
