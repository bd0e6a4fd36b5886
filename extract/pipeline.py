"""The way of the images: read → preprocess → frozen backbone → feature store, each image once, resumable by batch."""

import hashlib
import itertools
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from common.files import exclusive, sha256_text
from common.machine import versions
from common.store import SPLITS, FeatureStore, check_features, identity_digest
from common.store_writer import StoreWriter, partial_folder
from extract.backbones import Backbone
from extract.preprocessing import Preprocessing
from extract.sources import ImageSource, pixel_digest

STORED_AS = {"float32": "<f4", "bfloat16": "<f2"}  # half precision has room for every digit that bfloat16 gives
THUMBNAIL = 32  # pixels
PREFETCHED = 2  # batches


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

    def run(self, target: Path) -> FeatureStore:
        """Make the store at `target`, or go on with one that was interrupted, and return it.

        Raises UserError for an unreadable image, non-finite features, a target that cannot be written, and while
        another process is at work on the same target.
        """
        busy = f"another extraction is writing {target}: wait for it, or choose another --store"
        with exclusive(partial_folder(target), busy):
            return self._run_alone(target)

    def identity(self, pixels: dict[str, str]) -> dict[str, Any]:
        """What the features are: two stores of one identity are interchangeable. `pixels` is a digest per split."""
        return {
            "data_set": {
                "pixels": pixels,
                "labels": {name: sha256_text(str(self.source.splits[name].labels.tolist())) for name in SPLITS},
                "class_names": self.source.class_names,
            },
            "backbone": {"name": self.backbone.name, "feature_dim": self.backbone.feature_dim},
            "weights": {"sha256": self.backbone.weights_sha256, "random_seed": self.backbone.random_seed},
            "preprocessing": self.preprocessing.as_json(),
            "precision": self.precision,
        }

    def identity_of_pixels(self) -> dict[str, Any]:
        """The identity that a run would give, from the decoded images alone."""
        digests = [pixel_digest(image(i)) for image, i in tqdm(_all_images(self.source), **_bar("comparing images"))]
        return self.identity(self._split_digests(np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)))

    def _run_alone(self, target: Path) -> FeatureStore:
        images = _all_images(self.source)
        n, views = len(images), len(self.preprocessing.views)
        layout = {
            "features": (STORED_AS[self.precision], (views, n, self.backbone.feature_dim)),
            "image_sha256": ("|u1", (n, 32)),
            "thumbnails": ("|u1", (n, THUMBNAIL, THUMBNAIL, 3)),
        }
        # Batches of another size, device or library may differ in the last digits: a resumed file must not
        plan = {
            "n": n,
            "request": self.request,
            "weights": self.backbone.weights_sha256,
            "batch_size": self.batch_size,
            "environment": self._environment(),
        }
        writer = StoreWriter(target, plan, layout)
        starts = [start for start in range(0, n, self.batch_size) if start not in writer.done]
        if len(starts) < -(-n // self.batch_size):
            tqdm.write(f"going on with {target}: {sum(b - a for a, b in writer.done.items()):,} of {n:,} images done")
        self._fill(writer, images, starts)
        return self._finish(writer)

    def _fill(self, writer: StoreWriter, images: list, starts: list[int]) -> None:
        self.backbone.module.to(self.device)
        jobs = ((start, images[start : start + self.batch_size]) for start in starts)
        total, done = len(images), sum(stop - start for start, stop in writer.done.items())
        with tqdm(total=total, initial=done, **_bar("extracting")) as bar:
            for start, batch in _prefetch((start, self._read(chosen)) for start, chosen in jobs):
                pixels = batch.pop("pixels")
                batch["features"] = self._features(pixels, start)
                writer.write(start, batch)
                bar.update(pixels.shape[1])

    def _read(self, chosen: list) -> dict[str, Any]:
        images = [image(i) for image, i in chosen]
        return {
            "pixels": self.preprocessing(images),
            "image_sha256": np.frombuffer(b"".join(map(pixel_digest, images)), np.uint8).reshape(-1, 32),
            "thumbnails": np.stack([_thumbnail(image) for image in images]),
        }

    def _features(self, pixels: Tensor, start: int) -> np.ndarray:
        """(V, B, 3, H, W) float32 → (V, B, D) in the precision of the store."""
        views = [self.backbone.features(view.to(self.device), self.precision).cpu() for view in pixels]
        with np.errstate(over="ignore"):  # what does not fit becomes infinite, and the check says so
            features = torch.stack(views).numpy().astype(STORED_AS[self.precision])
        check_features(features, self.backbone.feature_dim, f"images {start} to {start + features.shape[1] - 1}")
        return features

    def _finish(self, writer: StoreWriter) -> FeatureStore:
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
                **self._environment(),
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

    def _environment(self) -> dict[str, Any]:
        return {"engine": "torch", "device": self.device.type, "versions": versions()}


def _all_images(source: ImageSource) -> list:
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


def _prefetch(items: Iterator[Any]) -> Iterator[Any]:
    """Run an iterator in a thread, `PREFETCHED` items ahead; its exceptions are raised here."""
    ahead: queue.Queue = queue.Queue(PREFETCHED)
    stopped = threading.Event()

    def put(item: Any) -> None:
        while not stopped.is_set():
            try:
                ahead.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put((item, None))
                if stopped.is_set():
                    return
            put((None, StopIteration()))
        except BaseException as error:
            put((None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        while True:
            item, error = ahead.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        stopped.set()
