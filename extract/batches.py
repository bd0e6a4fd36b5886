"""From images to batches of features. Many threads decode files; the frozen network is in this process.

`extract.ray_pool` implements the same `Network` on many machines.
"""

import contextlib
import os
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor

from common.cluster import Cluster
from common.errors import UserError
from common.images import UnreadableImage, pixel_digest
from common.progress import Progress
from common.shapes import check_shape
from common.store_header import STORED_AS
from extract.backbones import Backbone
from extract.engines import SAMPLE, Engine, EngineChoice
from extract.preprocessing import SMALL, Preprocessing
from extract.sources import ImageSource

THUMBNAIL, THUMBNAIL_FROM = 32, 256  # pixels a side, of as many or more
GROUP = 4  # images that a thread takes at a time
AT_ONCE = 256  # images that are compared at a time

Arrays = dict[str, np.ndarray]
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Extraction:
    """All that fixes the features, and how to compute them.

    precision: the lowest one that is allowed. With "bfloat16", float32 is used where bfloat16 is not faster, or not
    exact enough. request: `Request.as_json`. on_error: "fail" or "skip" images that cannot be read.
    threads: of the engine, None for its default. cluster: where the network is at work, None for this process.
    ship_images: the nodes of the cluster do not see the files.
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
    cluster: Cluster | None = None
    ship_images: bool = False

    @property
    def choice(self) -> EngineChoice:
        """The engines that can compute it here."""
        size = self.preprocessing.image_size
        return EngineChoice(self.backbone, self.precision, self.device, size, self.engine, self.threads)


class Network(Protocol):
    """A frozen network, ready to compute on a chosen engine.

    environment: its engine, fidelity, device and versions, for the plan and the provenance.
    precision: the executed one.
    """

    environment: dict[str, Any]
    precision: str

    def batches(self, starts: Sequence[int], watch: "Stopwatch") -> Iterator[tuple[int, Arrays | None, dict[int, str]]]:
        """Yield each batch, in any order: its start, its arrays, and {row: reason} of images that cannot be read.

        The arrays are features (V, B, D), image_sha256 (B, 32) and thumbnails (B, 32, 32, 3); None where an image
        cannot be read and must not be skipped.
        """


class LocalNetwork:
    """A `Network` in this process, on an engine.

    A batch is first read, then computed, so that one can be read while another is computed. Both are thread-safe.
    """

    def __init__(self, job: Extraction, engine: Engine, environment: dict[str, Any], readers: int | None = None):
        self.environment, self.precision = environment, engine.precision
        self._job, self._engine = replace(job, precision=engine.precision), engine
        self._pool = ThreadPoolExecutor(readers or os.cpu_count())
        self._turn = threading.Lock()

    def batches(self, starts: Sequence[int], watch: "Stopwatch") -> Iterator[tuple[int, Arrays | None, dict[int, str]]]:
        source = self._job.source

        def read(start: int) -> tuple[int, dict[str, Any], dict[int, str]]:
            rows = range(start, min(start + self._job.batch_size, len(source)))
            with watch.time("reading"):
                return start, *self.read(source.image, rows)

        for start, batch, unreadable in ahead(read, starts):
            with watch.time("network"):
                arrays = self.compute(start, batch)
            yield start, arrays, unreadable

    def read(self, image: Callable[[int], np.ndarray], rows: range) -> tuple[dict[str, Any], dict[int, str]]:
        """`read_batch`, with the images "uploaded" to the device."""
        batch, unreadable = read_batch(self._pool, image, rows, self._job.preprocessing)
        batch["uploaded"] = [self._engine.upload(view) for view in batch.pop("images")]
        return batch, unreadable

    def compute(self, start: int, batch: dict[str, Any]) -> Arrays | None:
        """The batch with its features (V, B, D); None where an image is unreadable and must not be skipped."""
        if self._job.on_error == "fail" and not batch["image_sha256"].any(1).all():
            return None
        with self._turn:
            batch["features"] = features_of(self._job, self._engine, batch.pop("uploaded"), start)
        return batch

    def close(self) -> None:
        """Start no further work."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def read_batch(
    pool: ThreadPoolExecutor, image: Callable[[int], np.ndarray], rows: range, preprocessing: Preprocessing
) -> tuple[dict[str, Any], dict[int, str]]:
    """Images of these rows: preprocessed (V, B, 3, size, size), image_sha256 (B, 32), thumbnails (B, 32, 32, 3).

    An unreadable image is black, its digest is zeros, and it is in the second dictionary, {row: reason}. A thread takes
    `GROUP` images at a time.
    """
    n, size = len(rows), preprocessing.image_size
    preprocessed = torch.empty(len(preprocessing.views), n, 3, size, size)
    image_sha256 = np.zeros((n, 32), np.uint8)
    thumbnails = np.zeros((n, THUMBNAIL, THUMBNAIL, 3), np.uint8)

    def read(first: int) -> dict[int, str]:
        decoded, unreadable, begin = [], {}, first
        for i in range(first, min(first + GROUP, n)):
            try:
                pixels = image(rows[i])
                image_sha256[i] = np.frombuffer(pixel_digest(pixels), np.uint8)
                thumbnails[i] = thumbnail(pixels)
            except UnreadableImage as error:
                pixels, unreadable[rows[i]] = np.zeros((1, 1, 3), np.uint8), error.reason
            decoded.append(pixels)
            if max(pixels.shape) > SMALL or i + 1 == min(first + GROUP, n):
                preprocessed[:, begin : i + 1] = preprocessing(decoded)
                begin = i + 1
                decoded.clear()
            del pixels  # a thread holds no more than one large image
        return unreadable

    unreadable: dict[int, str] = {}
    for some in pool.map(read, range(0, n, GROUP)):
        unreadable |= some
    return {"images": preprocessed, "image_sha256": image_sha256, "thumbnails": thumbnails}, unreadable


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


def features_of(job: Extraction, engine: Engine, views: list, start: int) -> np.ndarray:
    """Uploaded images of each view → (V, B, D) in the precision of the store."""
    with np.errstate(over="ignore"):  # values that are too large become infinite, which is checked below
        features = np.stack([engine.features(view) for view in views]).astype(STORED_AS[job.precision])
    where = f"images {start} to {start + features.shape[1] - 1}"
    check_shape("features", features, where, D=job.backbone.feature_dim)
    if not np.isfinite(features).all():
        raise UserError(f"non-finite features at {where}: the weights do not suit these images or this precision")
    return features


def read_sample(source: ImageSource, preprocessing: Preprocessing) -> Tensor | None:
    """Preprocessed images (n, 3, H, W), n ≤ `SAMPLE`: training images, evenly spaced, in the first view.

    Unreadable images are left out. None where no image can be read.
    """
    rows, seen = source.rows_of("train"), []
    for number in np.unique(np.linspace(0, len(rows) - 1, SAMPLE).astype(int)):
        with contextlib.suppress(UnreadableImage):
            seen.append(preprocessing([source.image(rows[number])])[0])
    return torch.cat(seen) if seen else None


def digests_of(source: ImageSource, rows: range, progress: Progress) -> tuple[np.ndarray, dict[int, str]]:
    """The pixel digests (n, 32) of these images; zeros for those that cannot be read, and {row: reason} of these."""

    def digest(row: int) -> bytes | str:
        try:
            return pixel_digest(source.image(row))
        except UnreadableImage as error:
            return error.reason

    digests, unreadable = np.zeros((len(rows), 32), np.uint8), {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(rows), AT_ONCE):
            for i, result in enumerate(pool.map(digest, rows[start : start + AT_ONCE]), start):
                if isinstance(result, bytes):
                    digests[i] = np.frombuffer(result, np.uint8)
                else:
                    unreadable[rows[i]] = result
                progress.update()
    return digests, unreadable


def ahead(function: Callable[[Item], Result], items: Iterable[Item], threads: int = 1) -> Generator[Result, None, None]:
    """`map` in threads, one item more than these ahead; its exceptions are raised here."""
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[Result]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > threads + 1:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class Stopwatch:
    """Seconds by stage. Reading runs beside the others, so the sum may exceed the time that passes."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._started = time.perf_counter()

    @contextlib.contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Add the seconds that the body takes to a stage."""
        started = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - started

    def line(self, images: int) -> str:
        """One line: images a second, the share of each stage, and the slowest stage."""
        total = time.perf_counter() - self._started
        shares = ", ".join(f"{stage} {seconds / total:.0%}" for stage, seconds in self.seconds.items())
        slowest = max(self.seconds, key=self.seconds.__getitem__)
        return f"{images:,} images in {total:.0f} s ({images / total:.0f}/s); busy: {shares}; {slowest} set the pace"
