"""Compute features in this process. `extract.cluster` implements the same interface, `Network`, on a Ray cluster."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.machine import versions
from common.progress import say
from common.shapes import check_shape
from common.store_header import STORED_AS
from extract.backbones import Backbone
from extract.engines import Engine
from extract.fidelity import SAMPLE, EngineChoice
from extract.preprocessing import Preprocessing
from extract.progress import Stopwatch, ahead
from extract.reading import AllImages, Image, Unreadable, names_of, read_batch, read_sample
from extract.sources import ImageSource

MIN_GAIN = 20  # choosing an engine takes as long as a few passes of its sample: fewer images are not worth it


@dataclass(frozen=True)
class Extraction:
    """All that fixes the features, and how to compute them.

    `precision` is the lowest one that is allowed: "bfloat16" may end in float32, where that is as fast or nothing else
    is true. `request` is what the user asked for, as JSON, with a cheap fingerprint of the images: by it an unchanged
    request is recognised without reading them. on_error: "fail" or "skip" images that cannot be read.
    threads: of the engine, None for as many as it takes by itself.
    """

    source: ImageSource
    backbone: Backbone
    preprocessing: Preprocessing
    precision: str
    request: dict[str, Any]
    batch_size: int
    device: torch.device
    engine: str = "auto"
    on_error: str = "fail"
    threads: int | None = None

    @property
    def choice(self) -> EngineChoice:
        """The engines that there are for it."""
        size = self.preprocessing.image_size
        return EngineChoice(self.backbone, self.precision, self.device, size, self.engine, self.threads)


class Network(Protocol):
    """A frozen network at work, its engine chosen.

    environment: engine, fidelity, device and versions, the part of the plan and of the provenance that they make up.
    precision: what is executed.
    """

    @property
    def environment(self) -> dict[str, Any]: ...

    @property
    def precision(self) -> str: ...

    def batches(
        self, starts: Sequence[int], unreadable: Unreadable, watch: Stopwatch
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """For each start, in any order, the arrays of its batch: features (V, B, D), image_sha256, thumbnails.

        A batch with an image that cannot be read is left out, unless such images are to be skipped.
        """

    def closing(self) -> str:
        """What is to be said of it in the end, where there is anything."""


Connect = Callable[[Extraction, dict[str, Any]], AbstractContextManager[Network]]
"""A job and the environment of an extraction that is resumed, {} for none → a network at work."""


@contextlib.contextmanager
def local_network(job: Extraction, resumed: dict[str, Any]) -> Iterator[Network]:
    """The network in this process."""
    yield LocalNetwork(job, resumed)


class LocalNetwork:
    """The network in this process. `begun` is the environment of an extraction that is resumed, {} for none."""

    def __init__(self, job: Extraction, begun: dict[str, Any]):
        self._images = AllImages(job.source)

        def sample() -> Tensor | None:
            return read_sample(job.source, job.preprocessing, SAMPLE)

        self._engine, self.environment = choose_engine(job, begun, len(self._images), sample, say)
        self.precision = self._engine.precision
        self._job = replace(job, precision=self.precision)

    def batches(
        self, starts: Sequence[int], unreadable: Unreadable, watch: Stopwatch
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        return computed(self._job, self._engine, self._images, starts, watch, unreadable)

    def closing(self) -> str:
        return ""


def computed(
    job: Extraction,
    engine: Engine,
    images: Sequence[Image],
    starts: Sequence[int],
    watch: Stopwatch | None = None,
    unreadable: Unreadable | None = None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """For each start the arrays of its batch of `images`, the next batches being read meanwhile; see `Network`."""
    unreadable = unreadable or Unreadable(names_of(job.source), say)
    maker = BatchMaker(job, engine, watch or Stopwatch(), os.cpu_count() or 1)

    def read(start: int) -> tuple[int, dict[str, Any]]:
        return start, maker.read(images[start : start + job.batch_size], start, unreadable)

    try:
        for start, batch in ahead(read, starts):
            if (made := maker.compute(start, batch)) is not None:
                yield start, made
    finally:
        maker.close()


class BatchMaker:
    """Images → the arrays of a batch, in two steps: batches may be read while another is computed."""

    def __init__(self, job: Extraction, engine: Engine, watch: Stopwatch, readers: int):
        self._job, self._engine, self._watch = job, engine, watch
        self._pool = ThreadPoolExecutor(readers)
        self._turn = threading.Lock()

    def read(self, images: Sequence[Image], start: int, unreadable: Unreadable) -> dict[str, Any]:
        """A batch of images from row `start` on, decoded, preprocessed and brought to the device."""
        with self._watch.time("reading"):
            batch = read_batch(self._pool, images, start, self._job.preprocessing, unreadable)
            batch["uploaded"] = [self._engine.upload(view) for view in batch.pop("images")]
            return batch

    def compute(self, start: int, batch: dict[str, Any]) -> dict[str, Any] | None:
        """The same with its features (V, B, D); None where an image is missing and must not be skipped."""
        if self._job.on_error == "fail" and not batch["image_sha256"].any(1).all():
            return None
        with self._turn, self._watch.time("network"):
            batch["features"] = features_of(self._job, self._engine, batch.pop("uploaded"), start)
        return batch

    def close(self) -> None:
        """Begin nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def features_of(job: Extraction, engine: Engine, views: list, start: int) -> np.ndarray:
    """Uploaded images of each view → (V, B, D) in the precision of the store."""
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and the check says so
        features = np.stack([engine.features(view) for view in views]).astype(STORED_AS[job.precision])
    where = f"images {start} to {start + features.shape[1] - 1}"
    check_shape("features", features, where, D=job.backbone.feature_dim)
    if not np.isfinite(features).all():
        raise UserError(f"non-finite features at {where}: the weights do not suit these images or this precision")
    return features


def choose_engine(
    job: Extraction, begun: dict[str, Any], n: int, sample: Callable[[], Tensor | None], say: Callable[[str], object]
) -> tuple[Engine, dict[str, Any]]:
    """The engine for `n` images, and the environment that it makes up.

    begun: the environment of what is gone on with, whose engine is taken if it can be had here. sample: reads some
    images, where a choice is worth it. say: gets what was decided, in a line each.
    """
    environment: dict[str, Any] = {"device": job.device.type, "versions": versions()}
    choice = job.choice
    if begun and {**begun, **environment} == begun and (engine := choice.named(begun["engine"])):
        return engine, begun  # another measurement might choose another one
    few = n < MIN_GAIN * SAMPLE and choice.may_be_reference()
    images = None if few else sample()
    engine, fidelity = (choice.reference(), {}) if images is None else choice.choose(images)
    if job.precision != "float32" and engine.precision == "float32":
        if few:
            say(f"using float32: for {n:,} images, finding a faster engine takes longer than it saves")
        elif not choice.low_kinds:
            say("using float32: bfloat16 is not faster on this machine")
        else:
            say("using float32: no bfloat16 engine was both faster and accurate")
    say(f"engine: {engine.name}" + "".join(f", {k} {v:.6g}" for k, v in fidelity.items()))
    return engine, {"engine": engine.name, "fidelity": fidelity, **environment}
