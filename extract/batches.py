"""From images to batches of features. Many threads decode files; the frozen network is in this process.

`extract.ray_pool` implements the same `Network` on many machines.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor

from common.errors import UserError
from common.images import UnreadableImage, pixel_digest, printable
from common.machine import versions
from common.progress import Progress, say
from common.shapes import check_shape
from common.store_header import STORED_AS
from extract.backbones import Backbone
from extract.engines import Engine, EngineChoice
from extract.preprocessing import SMALL, Preprocessing
from extract.progress import Stopwatch, ahead
from extract.sources import ImageSource

THUMBNAIL, THUMBNAIL_FROM = 32, 256  # pixels a side, of as many or more
LISTED = 10  # unreadable images in one sentence; each has had a line of its own before
GROUP = 4  # images that a thread takes at a time
AT_ONCE = 256  # images that are compared at a time
SAMPLE = 160  # images, by which an engine is chosen
MIN_GAIN = 20  # times the sample: for fewer images, choosing an engine takes longer than it saves


@dataclass(frozen=True)
class Extraction:
    """All that fixes the features, and how to compute them.

    precision: the lowest one that is allowed. With "bfloat16", float32 is used where bfloat16 is not faster, or not
    exact enough. request: `Request.as_json`. on_error: "fail" or "skip" images that cannot be read.
    threads: of the engine, None for its default.
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
        """The engines that can compute it here."""
        size = self.preprocessing.image_size
        return EngineChoice(self.backbone, self.precision, self.device, size, self.engine, self.threads)


@dataclass
class Unreadable:
    """The images that could not be read, {row: reason}. `say` gets a line when one is found."""

    names: Sequence[str]
    say: Callable[[str], None]
    reasons: dict[int, str] = field(default_factory=dict)

    def note(self, row: int, error: UnreadableImage) -> None:
        """Add an image."""
        if row not in self.reasons:
            self.say(error.message)
        self.reasons[row] = error.reason

    def error(self) -> UserError:
        """All of them in one sentence."""
        rows = sorted(self.reasons)
        some = ", ".join(f"{printable(self.names[row])} ({self.reasons[row]})" for row in rows[:LISTED])
        more = f" and {len(rows) - LISTED} more, named above" if len(rows) > LISTED else ""
        return UserError(
            f"{len(rows)} of {len(self.names)} images cannot be read: {some}{more}. Repair them and run the same "
            "command again to resume; or leave them out with --on-error skip (make: ON_ERROR=skip)"
        )


def digests_of(
    source: ImageSource, rows: range, progress: Progress, unreadable: Unreadable | None = None
) -> np.ndarray:
    """The pixel digests (n, 32) of these images; zeros for those that cannot be read, which `unreadable` gets."""

    def digest(row: int) -> bytes | UnreadableImage:
        try:
            return pixel_digest(source.image(row))
        except UnreadableImage as error:
            return error

    digests = np.zeros((len(rows), 32), np.uint8)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(rows), AT_ONCE):
            some = rows[start : start + AT_ONCE]
            for i, result in enumerate(pool.map(digest, some), start):
                if isinstance(result, bytes):
                    digests[i] = np.frombuffer(result, np.uint8)
                elif unreadable:
                    unreadable.note(rows[i], result)
                progress.update()
    return digests


def read_sample(source: ImageSource, preprocessing: Preprocessing, size: int) -> Tensor | None:
    """Preprocessed images (n, 3, H, W), n ≤ `size`: training images, evenly spaced, in the first view.

    Unreadable images are left out. None where no image can be read.
    """
    rows, seen = source.rows_of("train"), []
    for number in np.unique(np.linspace(0, len(rows) - 1, size).astype(int)):
        with contextlib.suppress(UnreadableImage):
            seen.append(preprocessing([source.image(rows[number])])[0])
    return torch.cat(seen) if seen else None


def read_batch(
    pool: ThreadPoolExecutor,
    image: Callable[[int], np.ndarray],
    rows: range,
    preprocessing: Preprocessing,
    unreadable: Unreadable,
) -> dict[str, Any]:
    """Images of these rows: preprocessed (V, B, 3, size, size), image_sha256 (B, 32), thumbnails (B, 32, 32, 3).

    An unreadable image is black, its digest is zeros, and it is added to `unreadable`. A thread takes `GROUP` images at
    a time.
    """
    n, size = len(rows), preprocessing.image_size
    preprocessed = torch.empty(len(preprocessing.views), n, 3, size, size)
    image_sha256 = np.zeros((n, 32), np.uint8)
    thumbnails = np.zeros((n, THUMBNAIL, THUMBNAIL, 3), np.uint8)

    def read(first: int) -> dict[int, UnreadableImage]:
        decoded, errors, begin = [], {}, first
        for i in range(first, min(first + GROUP, n)):
            try:
                pixels = image(rows[i])
                image_sha256[i] = np.frombuffer(pixel_digest(pixels), np.uint8)
                thumbnails[i] = thumbnail(pixels)
            except UnreadableImage as error:
                pixels, errors[rows[i]] = np.zeros((1, 1, 3), np.uint8), error
            decoded.append(pixels)
            if max(pixels.shape) > SMALL or i + 1 == min(first + GROUP, n):
                preprocessed[:, begin : i + 1] = preprocessing(decoded)
                begin = i + 1
                decoded.clear()
            del pixels  # a thread holds no more than one large image
        return errors

    for errors in pool.map(read, range(0, n, GROUP)):
        for row, error in errors.items():
            unreadable.note(row, error)
    return {"images": preprocessed, "image_sha256": image_sha256, "thumbnails": thumbnails}


def thumbnail(image: np.ndarray) -> np.ndarray:
    """The centre square of an image in 32 × 32 pixels."""
    if image.shape[:2] == (THUMBNAIL, THUMBNAIL):
        return image
    height, width = image.shape[:2]
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    step = max(1, side // THUMBNAIL_FROM)  # of larger images, only every n-th pixel: thumbnails are for people
    box = tuple(edge / step for edge in (left, top, left + side, top + side))
    sampled = Pillow.fromarray(image[::step, ::step])
    return np.asarray(sampled.resize((THUMBNAIL, THUMBNAIL), Pillow.Resampling.BILINEAR, box))


class Network(Protocol):
    """A frozen network, ready to compute on a chosen engine.

    environment: its engine, fidelity, device and versions, for the plan and the provenance.
    precision: the executed one.
    """

    environment: dict[str, Any]
    precision: str

    def batches(
        self, starts: Sequence[int], unreadable: Unreadable, watch: Stopwatch
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield for each start, in any order, the arrays of its batch: features (V, B, D), image_sha256, thumbnails.

        A batch with an image that cannot be read is left out, unless such images are skipped.
        """

    def summary(self) -> str:
        """Text for the last line, such as the rate of each node; may be ""."""


Connect = Callable[[Extraction, dict[str, Any]], AbstractContextManager[Network]]
"""Starts the network of a job, given the environment of the extraction to resume, {} for none."""


@contextlib.contextmanager
def local_network(job: Extraction, resumed: dict[str, Any]) -> Iterator[Network]:
    """The network in this process. resumed: the environment of the extraction to resume, {} for none."""

    def sample() -> Tensor | None:
        return read_sample(job.source, job.preprocessing, SAMPLE)

    with contextlib.closing(LocalNetwork(job, *choose_engine(job, resumed, len(job.source), sample, say))) as network:
        yield network


class LocalNetwork:
    """A `Network` in this process, on an engine.

    A batch is first read, then computed, so that one can be read while another is computed. Both are thread-safe.
    """

    def __init__(self, job: Extraction, engine: Engine, environment: dict[str, Any], readers: int | None = None):
        self.environment, self.precision = environment, engine.precision
        self._job, self._engine = replace(job, precision=engine.precision), engine
        self._pool = ThreadPoolExecutor(readers or os.cpu_count())
        self._turn = threading.Lock()

    def batches(
        self, starts: Sequence[int], unreadable: Unreadable, watch: Stopwatch
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        source = self._job.source

        def read(start: int) -> tuple[int, dict[str, Any]]:
            rows = range(start, min(start + self._job.batch_size, len(source)))
            with watch.time("reading"):
                return start, self.read(source.image, rows, unreadable)

        for start, batch in ahead(read, starts):
            with watch.time("network"):
                arrays = self.compute(start, batch)
            if arrays is not None:
                yield start, arrays

    def read(self, image: Callable[[int], np.ndarray], rows: range, unreadable: Unreadable) -> dict[str, Any]:
        """Decode and preprocess the images of these rows, and bring them to the device."""
        batch = read_batch(self._pool, image, rows, self._job.preprocessing, unreadable)
        batch["uploaded"] = [self._engine.upload(view) for view in batch.pop("images")]
        return batch

    def compute(self, start: int, batch: dict[str, Any]) -> dict[str, Any] | None:
        """The batch with its features (V, B, D); None where an image is unreadable and must not be skipped."""
        if self._job.on_error == "fail" and not batch["image_sha256"].any(1).all():
            return None
        with self._turn:
            batch["features"] = features_of(self._job, self._engine, batch.pop("uploaded"), start)
        return batch

    def summary(self) -> str:
        return ""

    def close(self) -> None:
        """Start no further work."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def features_of(job: Extraction, engine: Engine, views: list, start: int) -> np.ndarray:
    """Uploaded images of each view → (V, B, D) in the precision of the store."""
    with np.errstate(over="ignore"):  # values that are too large become infinite, which is checked below
        features = np.stack([engine.features(view) for view in views]).astype(STORED_AS[job.precision])
    where = f"images {start} to {start + features.shape[1] - 1}"
    check_shape("features", features, where, D=job.backbone.feature_dim)
    if not np.isfinite(features).all():
        raise UserError(f"non-finite features at {where}: the weights do not suit these images or this precision")
    return features


def choose_engine(
    job: Extraction, resumed: dict[str, Any], n: int, sample: Callable[[], Tensor | None], tell: Callable[[str], object]
) -> tuple[Engine, dict[str, Any]]:
    """The engine for `n` images, and its environment: engine, fidelity, device and versions.

    resumed: the environment of the extraction to resume, whose engine is used if possible; {} for none.
    sample: reads some images; called only where choosing saves time. tell: gets a line for each decision.
    """
    environment: dict[str, Any] = {"device": job.device.type, "versions": versions()}
    choice = job.choice
    if resumed and {**resumed, **environment} == resumed and (engine := choice.named(resumed["engine"])):
        return engine, resumed  # another measurement might choose another one
    few = n < MIN_GAIN * SAMPLE and "torch" in choice.kinds
    images = None if few else sample()
    engine, fidelity = (choice.reference(), {}) if images is None else choice.choose(images)
    if job.precision != "float32" and engine.precision == "float32":
        if few:
            tell(f"using float32: for {n:,} images, finding a faster engine takes longer than it saves")
        elif not choice.low_kinds:
            tell("using float32: bfloat16 is not faster on this machine")
        else:
            tell("using float32: no bfloat16 engine was both faster and accurate")
    tell(f"engine: {engine.name}" + "".join(f", {k} {v:.6g}" for k, v in fidelity.items()))
    return engine, {"engine": engine.name, "fidelity": fidelity, **environment}
