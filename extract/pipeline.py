"""The way of the images: read → preprocess → frozen backbone → feature store, each image once, resumable by batch."""

import contextlib
import hashlib
import itertools
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from common.files import exclusive, sha256_text
from common.machine import versions
from common.store import SPLITS, FeatureStore, check_features, identity_digest
from common.store_partial import StoreWriter, partial_folder, read_plan
from extract.backbones import Backbone
from extract.choice import PER_CLASS, EngineChoice
from extract.engines import Engine
from extract.preprocessing import Preprocessing
from extract.sources import ImageSource, pixel_digest

STORED_AS = {"float32": "<f4", "bfloat16": "<f2"}  # half precision has room for every digit that bfloat16 gives
THUMBNAIL = 32  # pixels
PREFETCHED = 2  # batches
STAGES = ("reading", "network", "writing")
SAMPLED_CLASSES = 16
MIN_GAIN = 20  # choosing an engine takes as long as a few passes of its sample: fewer images are not worth it

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Extraction:
    """All that fixes the features, and how to compute them.

    `request` is what the user asked for, as JSON, with a cheap fingerprint of the images: by it an unchanged request is
    recognised without reading them.
    """

    source: ImageSource
    backbone: Backbone
    preprocessing: Preprocessing
    precision: str
    request: dict[str, Any]
    batch_size: int
    device: torch.device
    engine: str = "auto"

    def run(self, target: Path) -> FeatureStore:
        """Make the store at `target`, or go on with one that was interrupted, and return it.

        Raises UserError for an unreadable image, non-finite features, a target that cannot be written, and while
        another process is at work on the same target.
        """
        busy = f"another extraction is writing {target}: wait for it, or choose another --store"
        with exclusive(partial_folder(target), busy, target):
            return self._run_alone(target)

    def identity(self, pixels: dict[str, str]) -> dict[str, Any]:
        """What the features are: two stores of one identity are interchangeable. `pixels` is a digest per split."""
        return {
            "data_set": {
                "pixels": pixels,
                "labels": {name: sha256_text(str(self.source.splits[name].labels.tolist())) for name in SPLITS},
                "class_names": self.source.class_names,
            },
            "backbone": self._backbone_identity(),
            "weights": {"sha256": self.backbone.weights_sha256, "random_seed": self.backbone.random_seed},
            "preprocessing": self.preprocessing.as_json(),
            "precision": self.precision,
        }

    def identity_of_pixels(self) -> dict[str, Any]:
        """The identity that a run would give, from the decoded images alone."""
        digests = [pixel_digest(image(i)) for image, i in tqdm(all_images(self.source), **_bar("comparing images"))]
        return self.identity(self._split_digests(np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)))

    def _backbone_identity(self) -> dict[str, Any]:
        identity: dict[str, Any] = {"name": self.backbone.name, "feature_dim": self.backbone.feature_dim}
        # Where it goes without saying it stays unsaid: what was made before there were layers is still the same
        return identity if len(self.backbone.layers) == 1 else identity | {"layers": list(self.backbone.layers.items())}

    def _run_alone(self, target: Path) -> FeatureStore:
        images = all_images(self.source)
        n, views = len(images), len(self.preprocessing.views)
        layout = {
            "features": (STORED_AS[self.precision], (views, n, self.backbone.feature_dim)),
            "image_sha256": ("|u1", (n, 32)),
            "thumbnails": ("|u1", (n, THUMBNAIL, THUMBNAIL, 3)),
        }
        engine, environment = self._engine(target)
        # Batches of another size, engine, device or library may differ in the last digits: a resumed file must not
        plan = {
            "n": n,
            "request": self.request,
            "weights": self.backbone.weights_sha256,
            "batch_size": self.batch_size,
            "environment": environment,
        }
        writer = StoreWriter(target, plan, layout)
        starts = [start for start in range(0, n, self.batch_size) if start not in writer.done]
        if len(starts) < -(-n // self.batch_size):
            going_on = f"going on with {target}: {sum(b - a for a, b in writer.done.items()):,} of {n:,} images done"
            tqdm.write(going_on, file=sys.stderr)
        self._fill(writer, engine, images, starts)
        return self._finish(writer, environment)

    def computed(
        self, engine: Engine, images: list, starts: Iterable[int], watch: "_Stopwatch | None" = None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """For each start the arrays of its batch of `images`, the next batches being read meanwhile."""
        watch = watch or _Stopwatch()

        def read(start: int) -> tuple[int, dict[str, Any]]:
            with watch.time("reading"):
                return start, self._read(engine, images[start : start + self.batch_size])

        for start, batch in _ahead(read, starts):
            with watch.time("network"):
                batch["features"] = self._features(engine, batch.pop("uploaded"), start)
            yield start, batch

    def _fill(self, writer: StoreWriter, engine: Engine, images: list, starts: list[int]) -> None:
        watch = _Stopwatch()

        def write(job: tuple[int, dict[str, Any]]) -> int:
            with watch.time("writing"):
                writer.write(*job)
                return len(job[1]["thumbnails"])

        done = sum(stop - start for start, stop in writer.done.items())
        with tqdm(total=len(images), initial=done, **_bar("extracting")) as bar:
            for written in _ahead(write, self.computed(engine, images, starts, watch)):
                bar.update(written)
        if starts:
            tqdm.write(watch.line(len(images) - done), file=sys.stderr)

    def _read(self, engine: Engine, chosen: list) -> dict[str, Any]:
        images = [image(i) for image, i in chosen]
        return {
            "uploaded": [engine.upload(view) for view in self.preprocessing(images)],
            "image_sha256": np.frombuffer(b"".join(map(pixel_digest, images)), np.uint8).reshape(-1, 32),
            "thumbnails": np.stack([_thumbnail(image) for image in images]),
        }

    def _features(self, engine: Engine, views: list, start: int) -> np.ndarray:
        """Uploaded images of each view → (V, B, D) in the precision of the store."""
        with np.errstate(over="ignore"):  # what does not fit becomes infinite, and the check says so
            features = np.stack([engine.features(view) for view in views]).astype(STORED_AS[self.precision])
        check_features(features, self.backbone.feature_dim, f"images {start} to {start + features.shape[1] - 1}")
        return features

    def _finish(self, writer: StoreWriter, environment: dict[str, Any]) -> FeatureStore:
        splits = [self.source.splits[name] for name in SPLITS]
        superclass_names, class_superclass = self.source.superclasses()
        identity = self.identity(self._split_digests(writer.array("image_sha256")))
        header = {
            "identity": identity,
            "identity_sha256": identity_digest(identity),
            "class_names": self.source.class_names,
            "superclass_names": superclass_names,
            "class_superclass": class_superclass,
            "provenance": {
                "data_set": self.source.name,
                "weights": self.backbone.weights,
                "request": self.request,
                "batch_size": self.batch_size,
                **environment,
            },
        }
        whole = {
            "labels": np.concatenate([split.labels for split in splits]),
            "image_index": np.concatenate([np.arange(len(split.labels)) for split in splits]),
            "split": np.repeat(np.arange(len(SPLITS), dtype=np.uint8), [len(split.labels) for split in splits]),
        }
        return writer.finish(header, whole)

    def _split_digests(self, image_sha256: np.ndarray) -> dict[str, str]:
        """Per split, the SHA-256 over its images' digests (N, 32), in their order."""
        stops = list(itertools.accumulate(len(self.source.splits[name].labels) for name in SPLITS))
        ranges = zip(SPLITS, [0, *stops[:-1]], stops, strict=True)
        return {name: hashlib.sha256(image_sha256[a:b].tobytes()).hexdigest() for name, a, b in ranges}

    def _engine(self, target: Path) -> tuple[Engine, dict[str, Any]]:
        """The engine, and the part of the plan and of the provenance that it makes up."""
        environment: dict[str, Any] = {"device": self.device.type, "versions": versions()}
        size = self.preprocessing.image_size
        choice = EngineChoice(self.backbone, self.precision, self.device, size, self.engine)
        begun = read_plan(target).get("environment", {})
        if begun and {**begun, **environment} == begun and (engine := choice.named(begun["engine"])):
            return engine, begun  # another measurement might choose another one
        n = sum(len(split.labels) for split in self.source.splits.values())
        sample = self._sample() if choice.needs_sample() else []
        if sample and (self.precision != "float32" or self.engine != "auto" or n >= MIN_GAIN * len(sample)):
            engine, fidelity = choice.fastest(self.preprocessing(sample)[0])
            if self.precision != "float32" and not fidelity:
                tqdm.write("no engine is true enough in bfloat16: computing in float32", file=sys.stderr)
        else:
            engine, fidelity = choice.reference(), {}
        tqdm.write(f"engine: {engine.name}" + "".join(f", {k} {v:.6g}" for k, v in fidelity.items()), file=sys.stderr)
        return engine, {"engine": engine.name, "fidelity": fidelity, **environment}

    def _sample(self) -> list[np.ndarray]:
        """Ten training images of each of some classes, spread over all."""
        split = self.source.splits["train"]
        classes = np.unique(split.labels)
        some = classes[np.linspace(0, len(classes) - 1, min(SAMPLED_CLASSES, len(classes))).astype(int)]
        return [split.image(int(i)) for label in some for i in np.flatnonzero(split.labels == label)[:PER_CLASS]]


def all_images(source: ImageSource) -> list:
    """(image function, index) of every image, in the order of the rows: train, then test."""
    return [(source.splits[name].image, i) for name in SPLITS for i in range(len(source.splits[name].labels))]


def _thumbnail(image: np.ndarray) -> np.ndarray:
    if image.shape[:2] == (THUMBNAIL, THUMBNAIL):
        return image
    from PIL import Image, ImageOps

    return np.asarray(ImageOps.fit(Image.fromarray(image), (THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR))


def _bar(what: str) -> dict[str, Any]:
    """Arguments of a bar that shows itself on a terminal only."""
    return {"desc": what, "unit": "img", "disable": None, "smoothing": 0.05}


def _ahead(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`map` in a thread, `PREFETCHED` items ahead; its exceptions are raised here."""
    with ThreadPoolExecutor(1) as pool:
        pending: deque[Future[Result]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > PREFETCHED:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class _Stopwatch:
    """Seconds by stage. Stages run beside each other, so the sum may exceed the time that passes."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self._started = time.perf_counter()

    @contextlib.contextmanager
    def time(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - started

    def line(self, images: int) -> str:
        total = time.perf_counter() - self._started
        shares = ", ".join(f"{stage} {seconds / total:.0%}" for stage, seconds in self.seconds.items())
        slowest = max(self.seconds, key=self.seconds.__getitem__)
        return f"{images:,} images in {total:.0f} s ({images / total:.0f}/s); busy: {shares}; {slowest} set the pace"
