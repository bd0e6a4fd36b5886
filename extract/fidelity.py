"""Which engine extracts: the fastest one here that is true to the reference on images of the data set at hand."""

import itertools
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.intervals import wilson_interval
from extract.backbones import Backbone
from extract.engines import (
    Arithmetic,
    Engine,
    NotHere,
    TorchEngine,
    available,
    bfloat16,
    build_engine,
    float32,
    folded,
    gains_from_bfloat16,
)

PER_CLASS = 10  # images in the sample
MIN_COSINE = 0.9999
MAX_ERROR = {"float32": 1e-5, "bfloat16": float("inf")}
MAX_TRIES = 4
TIMED_IMAGES = 32


@dataclass(frozen=True)
class Fidelity:
    """How near features come to the reference's, on ten images of each of some classes.

    cosine: with the reference's, the lowest of all images. error: the largest difference, over the largest absolute
    feature. top1, reference_top1: of the centroid baseline on `sets` sets of nine images of a class and one of another.
    """

    cosine: float
    error: float
    top1: float
    reference_top1: float
    sets: int

    def suffices(self, precision: str) -> bool:
        """Whether the features may stand in for the reference's."""
        low, high = wilson_interval(self.reference_top1 * self.sets, self.sets)
        return self.cosine >= MIN_COSINE and self.error <= MAX_ERROR[precision] and low <= self.top1 <= high


def measure_fidelity(reference: np.ndarray, features: np.ndarray) -> Fidelity:
    """Compare features (C · 10, D), ten images of each of C ≥ 2 classes side by side, with the reference's.

    >>> features = np.random.default_rng(0).normal(size=(30, 8))
    >>> round(measure_fidelity(features, 2 * features).cosine, 6)
    1.0
    """
    a, b = reference.astype(np.float64), features.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = np.divide((a * b).sum(1), lengths, out=np.zeros(len(a)), where=lengths > 0)
    classes = len(a) // PER_CLASS
    return Fidelity(
        cosine=float(cosine.min()),
        error=float(np.abs(a - b).max() / np.abs(a).max()),
        top1=_centroid_top1(b),
        reference_top1=_centroid_top1(a),
        sets=classes * (classes - 1),
    )


@dataclass(frozen=True)
class EngineChoice:
    """What engines there are for a backbone; `wanted` is "auto", "torch" or "openvino".

    precision: "float32"; or "bfloat16", as far as that is true and faster than float32 on this machine.
    Raises UserError when `wanted` cannot be loaded for the device.
    """

    backbone: Backbone
    precision: str
    device: torch.device
    image_size: int
    wanted: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        if not self._kinds():
            raise UserError(
                f"the engine {self.wanted} cannot be loaded here on {self.device.type}: install it with "
                f"`pip install {self.wanted}` and use --device cpu, or take --engine torch"
            )

    def reference(self) -> Engine:
        """PyTorch in float32."""
        return TorchEngine(float32(self.backbone), self.device)

    def named(self, name: str) -> Engine | None:
        """The engine of this name, or None where it is not among those wanted, or cannot be had on this machine."""
        if "torch" in self._kinds() and name == "torch float32":
            return self.reference()
        for kind in self._kinds():
            for arithmetic in (*self._in_float32(kind), *self._in_bfloat16()):
                if f"{kind} {arithmetic.name}" == name:
                    return self._build(kind, arithmetic)
        return None

    @cached_property
    def low_kinds(self) -> list[str]:
        """The kinds of engines that may gain from bfloat16 here; none where it was not asked for."""
        return [
            kind for kind in self._kinds() if self.precision != "float32" and gains_from_bfloat16(kind, self.device)
        ]

    def reference_will_do(self) -> bool:
        """Whether nothing but the reference's speed speaks for another engine."""
        return not self.low_kinds and "torch" in self._kinds()

    def fastest(self, sample: Tensor) -> tuple[Engine, dict[str, Any]]:
        """The fastest engine that is true on a sample (C · 10, 3, H, W), ten images of a class, and its Fidelity.

        The reference, with nothing measured, where no other is true or faster. bfloat16 must be faster than all of
        float32.
        """
        reference = self.reference()
        expected, speed = _run(reference, sample)
        best: tuple[float, Engine, dict[str, Any]] = (speed if "torch" in self._kinds() else 0.0, reference, {})
        tries: list[tuple[str, Iterable[Arithmetic]]] = [(kind, self._in_float32(kind)) for kind in self._kinds()]
        tries += [(kind, self._in_bfloat16()) for kind in self.low_kinds]
        for kind, arithmetics in tries:
            for arithmetic in arithmetics:
                engine = self._build(kind, arithmetic)
                if engine is None:
                    break
                features, speed = _run(engine, sample)
                if speed <= best[0]:
                    break  # those that follow are slower still
                fidelity = measure_fidelity(expected, features)
                if fidelity.suffices(arithmetic.precision):
                    best = speed, engine, asdict(fidelity)
                    break
        return best[1], best[2]

    def _kinds(self) -> list[str]:
        return [kind for kind in available(self.device) if self.wanted in ("auto", kind)]

    def _in_float32(self, kind: str) -> list[Arithmetic]:
        """Beside the reference's own."""
        if kind == "openvino":
            return [float32(self.backbone)]
        found = folded(self.backbone)
        return [found] if found else []

    def _in_bfloat16(self) -> Iterator[Arithmetic]:
        """The fastest first."""
        return itertools.islice(bfloat16(self.backbone), MAX_TRIES) if self.precision != "float32" else iter(())

    def _build(self, kind: str, arithmetic: Arithmetic) -> Engine | None:
        try:
            return build_engine(kind, arithmetic, self.device, self.image_size, self.threads)
        except NotHere:
            return None


def _run(engine: Engine, images: Tensor) -> tuple[np.ndarray, float]:
    """Features (n, D) of the images, and images a second: the median of batches but for the first, which warms up."""
    features, rates = [], []
    for batch in images.split(TIMED_IMAGES):
        started = time.perf_counter()
        features.append(engine.features(engine.upload(batch)))
        rates.append(len(batch) / (time.perf_counter() - started))
    return np.concatenate(features), float(np.median(rates[1:] or rates))


def _centroid_top1(features: np.ndarray) -> float:
    """Top-1 of "the farthest, by cosine, from the mean of the others", on a set for every pair of classes."""
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-300)
    by_class = unit.reshape(-1, PER_CLASS, features.shape[1])
    hits = []
    for own, inliers in enumerate(by_class[:, :-1]):
        anomalies = np.delete(by_class[:, -1], own, 0)
        sets = np.concatenate([np.broadcast_to(inliers, (len(anomalies), *inliers.shape)), anomalies[:, None]], 1)
        others = sets.sum(1, keepdims=True) - sets
        similarity = (sets * others).sum(-1) / np.maximum(np.linalg.norm(others, axis=-1), 1e-300)
        hits.append(similarity.argmin(1) == PER_CLASS - 1)
    return float(np.mean(hits))
