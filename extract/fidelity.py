"""Which engine extracts, by a rule that noise cannot turn: OpenVINO before torch; bfloat16 where it gains clearly."""

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
    gains_from_bfloat16,
)

SAMPLE = 160  # images
MIN_COSINE = 0.9999
MAX_ERROR = {"float32": 1e-5, "bfloat16": float("inf")}
MARGIN = 1.3  # times float32's pace: what bfloat16 must reach, more than the noise of a busy machine
MAX_TRIES = 4
TIMED_IMAGES = 32


@dataclass(frozen=True)
class Fidelity:
    """How near features come to the reference's, on the same images.

    cosine: with the reference's, the lowest of all images. error: the largest difference, over the largest absolute
    feature.
    """

    cosine: float
    error: float

    def suffices(self, precision: str) -> bool:
        """Whether the features may stand in for the reference's."""
        return self.cosine >= MIN_COSINE and self.error <= MAX_ERROR[precision]


def measure_fidelity(reference: np.ndarray, features: np.ndarray) -> Fidelity:
    """Compare features (n, D) with the reference's.

    >>> features = np.random.default_rng(0).normal(size=(30, 8))
    >>> round(measure_fidelity(features, 2 * features).cosine, 6)
    1.0
    """
    a, b = reference.astype(np.float64), features.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = np.divide((a * b).sum(1), lengths, out=np.zeros(len(a)), where=lengths > 0)
    return Fidelity(float(cosine.min()), float(np.abs(a - b).max() / np.abs(a).max()))


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
            for arithmetic in (float32(self.backbone), *self._in_bfloat16()):
                if f"{kind} {arithmetic.name}" == name:
                    return self._build(kind, arithmetic)
        return None

    @cached_property
    def low_kinds(self) -> list[str]:
        """The kinds of engines that may gain from bfloat16 here; none where it was not asked for."""
        return [
            kind for kind in self._kinds() if self.precision != "float32" and gains_from_bfloat16(kind, self.device)
        ]

    def may_be_reference(self) -> bool:
        """Whether the reference is among the engines that are wanted."""
        return "torch" in self._kinds()

    def choose(self, sample: Tensor) -> tuple[Engine, dict[str, Any]]:
        """The engine for images like those of a sample (n, 3, H, W), and its Fidelity; {} for the reference.

        In float32 the first kind that is true to the reference. In bfloat16 the first that is true, if it is `MARGIN`
        times as fast as that. Only this is measured.
        """
        expected = _features(self.reference(), sample)
        full = self._first_true(((kind, [float32(self.backbone)]) for kind in self._kinds()), sample, expected)
        full = full or (self.reference(), {})
        low = self._first_true(((kind, self._in_bfloat16()) for kind in self.low_kinds), sample, expected)
        return low if low is not None and _gain(low[0], full[0], sample) >= MARGIN else full

    def _first_true(
        self, tries: Iterable[tuple[str, Iterable[Arithmetic]]], sample: Tensor, expected: np.ndarray
    ) -> tuple[Engine, dict[str, Any]] | None:
        """The first engine that is true, and its Fidelity."""
        for kind, arithmetics in tries:
            for arithmetic in arithmetics:
                engine = self._build(kind, arithmetic)
                if engine is None:
                    break
                fidelity = measure_fidelity(expected, _features(engine, sample))
                if fidelity.suffices(arithmetic.precision):
                    return engine, {} if engine.name == "torch float32" else asdict(fidelity)
        return None

    def _kinds(self) -> list[str]:
        return [kind for kind in available(self.device) if self.wanted in ("auto", kind)]

    def _in_bfloat16(self) -> Iterator[Arithmetic]:
        """The fastest first."""
        return itertools.islice(bfloat16(self.backbone), MAX_TRIES) if self.precision != "float32" else iter(())

    def _build(self, kind: str, arithmetic: Arithmetic) -> Engine | None:
        try:
            return build_engine(kind, arithmetic, self.device, self.image_size, self.threads)
        except NotHere:
            return None


def _features(engine: Engine, images: Tensor) -> np.ndarray:
    """Features (n, D) of the images."""
    return np.concatenate([engine.features(engine.upload(batch)) for batch in images.split(TIMED_IMAGES)])


def _gain(engine: Engine, other: Engine, images: Tensor) -> float:
    """How many times as fast as another an engine is.

    They take turns, and the best time of each counts: other work on the machine slows both, and never speeds one up.
    """
    seconds = {id(engine): float("inf"), id(other): float("inf")}
    for batch in images.split(TIMED_IMAGES):
        for each in (engine, other):
            started = time.perf_counter()
            each.features(each.upload(batch))
            seconds[id(each)] = min(seconds[id(each)], time.perf_counter() - started)
    return seconds[id(other)] / seconds[id(engine)]
