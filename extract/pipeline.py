"""The way of the images: read → preprocess → frozen backbone → feature store, each image once, resumable by batch."""

import contextlib
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from common.command_line import keeping
from common.errors import UserError
from common.files import exclusive
from common.machine import choose_device, versions
from common.store import SPLITS, DamagedStore, FeatureStore, check_features
from common.store_partial import StoreWriter, partial_folder, read_plan
from common.store_schema import STORED_AS
from common.store_writer import name_arrays, write_store
from extract.backbones import Backbone, load_backbone, parse_layers
from extract.engines import Engine
from extract.fidelity import PER_CLASS, EngineChoice
from extract.identity import identity_of
from extract.preprocessing import Preprocessing, parse_views
from extract.request import Request, require_identity, store_at
from extract.sources import ImageSource, load_source, pixel_digest

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

    `precision` is the lowest one that is allowed: "bfloat16" may end in float32, where that is as fast or nothing else
    is true. `request` is what the user asked for, as JSON, with a cheap fingerprint of the images: by it an unchanged
    request is recognised without reading them.
    """

    source: ImageSource
    backbone: Backbone
    preprocessing: Preprocessing
    precision: str
    request: dict[str, Any]
    batch_size: int
    device: torch.device
    engine: str = "auto"


def make_features(
    request: Request, target: Path, *, engine: str, batch_size: int, device: str, overwrite: bool
) -> tuple[FeatureStore, str]:
    """The store of what is asked for at `target`, made now if need be; and a line that says what was done.

    Raises UserError for bad input, when `target` holds features of something else and must not be overwritten, and as
    `extract` does.
    """
    found = None if overwrite else store_at(target, overwrite)
    views, layers = parse_views(request.views), parse_layers(request.layers)
    chosen = choose_device(device)
    backbone = load_backbone(request.backbone, request.weights, request.weights_seed, request.image_size, layers)
    source = load_source(request.dataset, request.root)
    preprocessing = Preprocessing(request.image_size, views)
    if backbone.random_seed is not None:
        _say(
            f"{backbone.name} has RANDOM weights (seed {backbone.random_seed}): its features show that the "
            "pipeline works, not what a trained network can do"
        )
    # A data set that was downloaded a moment ago has its fingerprint only now
    wanted = request.as_json()
    job = Extraction(source, backbone, preprocessing, request.precision, wanted, batch_size, chosen, engine)
    if found is None:
        return extract(job, target), ""
    if found.identity["precision"] == "float32":  # as true as bfloat16 may be
        job = replace(job, precision="float32")
    require_identity(found, identity_of_pixels(job))
    try:
        found = renewed(job, found)
        note = ""
    except DamagedStore:
        raise
    except UserError as error:  # such as a full disk: the store is what it was
        note = f"; this is not noted in it: {error.message}"
    return found, f"up to date: {target} (files changed their names or times, their pixels are the same{note})"


def identity_of_pixels(job: Extraction) -> dict[str, Any]:
    """The identity that the features would have, from the decoded images alone."""
    digests = [pixel_digest(image(i)) for image, i in tqdm(all_images(job.source), **_bar("comparing images"))]
    return _identity(job, _as_rows(digests))


def renewed(job: Extraction, store: FeatureStore) -> FeatureStore:
    """The same features, with the request and the file names of today: the next time nothing needs to be decoded.

    Raises DamagedStore, since what is damaged must not be sealed again, and UserError where it cannot be written.
    """
    with exclusive(partial_folder(store.path), _busy(store.path), store.path):
        store.verify()
        said = {"request": job.request, "data_set": _text(job.source.name)}
        header = {**store.header, "provenance": {**store.header["provenance"], **said}}
        arrays = {name: store.array(name) for name in store.places}
        write_store(store.path, header, {**arrays, **name_arrays(names_of(job.source))})
    return FeatureStore.open(store.path)


def extract(job: Extraction, target: Path) -> FeatureStore:
    """Make the store at `target`, or go on with one that was interrupted, and return it.

    Raises UserError for an unreadable image, non-finite features, a target that cannot be written, and while
    another process is at work on the same target.
    """
    with exclusive(partial_folder(target), _busy(target), target):
        images = all_images(job.source)
        engine, environment = _engine(job, target)
        job = replace(job, precision=engine.precision)  # from here on what is executed, no longer what was asked for
        writer = _writer(job, target, environment)
        _keep_what_is_sound(writer, images)
        with keeping(lambda: f"{sum(b - a for a, b in writer.done.items()):,} of {len(images):,} images are kept"):
            _fill(job, writer, engine, images)
            return writer.finish(_header(job, writer.array("image_sha256"), environment), _whole(job.source))


def computed(
    job: Extraction, engine: Engine, images: list, starts: Iterable[int], watch: "_Stopwatch | None" = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """For each start the arrays of its batch of `images`, the next batches being read meanwhile."""
    watch = watch or _Stopwatch()

    def read(start: int) -> tuple[int, dict[str, Any]]:
        with watch.time("reading"):
            return start, _read(job, engine, images[start : start + job.batch_size])

    for start, batch in _ahead(read, starts):
        with watch.time("network"):
            batch["features"] = _features(job, engine, batch.pop("uploaded"), start)
        yield start, batch


def all_images(source: ImageSource) -> list:
    """(image function, index) of every image, in the order of the rows: train, then test."""
    return [(source.splits[name].image, i) for name in SPLITS for i in range(len(source.splits[name].labels))]


def names_of(source: ImageSource) -> list[str]:
    """The file name of each row, relative to the root; split and number where the source has no files."""
    return [
        name
        for key in SPLITS
        for name in source.splits[key].names or [f"{key}/{i:05d}" for i in range(len(source.splits[key].labels))]
    ]


def _writer(job: Extraction, target: Path, environment: dict[str, Any]) -> StoreWriter:
    n, views = sum(len(split.labels) for split in job.source.splits.values()), len(job.preprocessing.views)
    layout = {
        "features": (STORED_AS[job.precision], (views, n, job.backbone.feature_dim)),
        "image_sha256": ("|u1", (n, 32)),
        "thumbnails": ("|u1", (n, THUMBNAIL, THUMBNAIL, 3)),
    }
    # Batches of another size, engine, device or library may differ in the last digits: a resumed file must not
    plan = {
        "n": n,
        "request": {key: value for key, value in job.request.items() if key != "fingerprint"},
        "weights": job.backbone.weights_sha256,
        "batch_size": job.batch_size,
        "environment": environment,
    }
    writer = StoreWriter(target, plan, layout, job.request.get("fingerprint", ""))
    if writer.discarded:
        _say(f"beginning {target} anew: what was there of it {writer.discarded}")
    return writer


def _keep_what_is_sound(writer: StoreWriter, images: list) -> None:
    """Where files have changed since their batch was written, an image was repaired, say, the pixels decide."""
    begun = len(writer.done)
    if writer.moved:
        bar = tqdm(total=sum(b - a for a, b in writer.done.items()), **_bar("comparing images"))

        def same(start: int, digests: np.ndarray) -> bool:
            bar.update(len(digests))
            chosen = images[start : start + len(digests)]
            return bool((_as_rows([pixel_digest(image(i)) for image, i in chosen]) == digests).all())

        with bar:
            writer.keep(same)
    if begun:
        done = sum(b - a for a, b in writer.done.items())
        again = begun - len(writer.done)
        _say(
            f"going on with {writer.target}: {done:,} of {len(images):,} images done"
            + (f"; {again} batch(es) are made again, since images in them have changed" if again else "")
        )


def _fill(job: Extraction, writer: StoreWriter, engine: Engine, images: list) -> None:
    watch, starts = _Stopwatch(), writer.missing()
    done = sum(stop - start for start, stop in writer.done.items())
    with tqdm(total=len(images), initial=done, **_bar("extracting")) as bar:
        for start, batch in computed(job, engine, images, starts, watch):
            with watch.time("writing"):
                writer.write(start, batch)
            bar.update(len(batch["thumbnails"]))
    if starts:
        _say(watch.line(len(images) - done))


def _read(job: Extraction, engine: Engine, chosen: list) -> dict[str, Any]:
    images = [image(i) for image, i in chosen]
    return {
        "uploaded": [engine.upload(view) for view in job.preprocessing(images)],
        "image_sha256": _as_rows([pixel_digest(image) for image in images]),
        "thumbnails": np.stack([_thumbnail(image) for image in images]),
    }


def _features(job: Extraction, engine: Engine, views: list, start: int) -> np.ndarray:
    """Uploaded images of each view → (V, B, D) in the precision of the store."""
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and the check says so
        features = np.stack([engine.features(view) for view in views]).astype(STORED_AS[job.precision])
    check_features(features, job.backbone.feature_dim, f"images {start} to {start + features.shape[1] - 1}")
    return features


def _header(job: Extraction, image_sha256: np.ndarray, environment: dict[str, Any]) -> dict[str, Any]:
    superclass_names, class_superclass = job.source.superclasses()
    return {
        "identity": _identity(job, image_sha256),
        "class_names": job.source.class_names,
        "superclass_names": superclass_names,
        "class_superclass": class_superclass,
        "provenance": {
            "data_set": _text(job.source.name),
            "weights": job.backbone.weights,
            "request": job.request,
            "batch_size": job.batch_size,
            **environment,
        },
    }


def _whole(source: ImageSource) -> dict[str, np.ndarray]:
    """The arrays that do not come in batches."""
    splits = [source.splits[name] for name in SPLITS]
    return {
        "labels": np.concatenate([split.labels for split in splits]),
        "image_index": np.concatenate([np.arange(len(split.labels)) for split in splits]),
        "split": np.repeat(np.arange(len(SPLITS), dtype=np.uint8), [len(split.labels) for split in splits]),
        **name_arrays(names_of(source)),
    }


def _identity(job: Extraction, image_sha256: np.ndarray) -> dict[str, Any]:
    return identity_of(job.source, job.backbone, job.preprocessing, job.precision, image_sha256)


def _engine(job: Extraction, target: Path) -> tuple[Engine, dict[str, Any]]:
    """The engine, and the part of the plan and of the provenance that it makes up."""
    environment: dict[str, Any] = {"device": job.device.type, "versions": versions()}
    choice = EngineChoice(job.backbone, job.precision, job.device, job.preprocessing.image_size, job.engine)
    begun = read_plan(target).get("environment", {})
    if begun and {**begun, **environment} == begun and (engine := choice.named(begun["engine"])):
        return engine, begun  # another measurement might choose another one
    if job.precision != "float32" and not choice.low_kinds:
        _say("bfloat16 is not faster than float32 on this machine: computing in float32")
    n = sum(len(split.labels) for split in job.source.splits.values())
    sample = _sample(job.source)
    if sample and (n >= MIN_GAIN * len(sample) or not choice.reference_will_do()):
        engine, fidelity = choice.fastest(job.preprocessing(sample)[0])
        if choice.low_kinds and engine.precision == "float32":
            _say("no engine is true enough, and faster, in bfloat16: computing in float32")
    else:
        engine, fidelity = choice.reference(), {}
    _say(f"engine: {engine.name}" + "".join(f", {k} {v:.6g}" for k, v in fidelity.items()))
    return engine, {"engine": engine.name, "fidelity": fidelity, **environment}


def _sample(source: ImageSource) -> list[np.ndarray]:
    """Ten training images of each of some classes, spread over all."""
    split = source.splits["train"]
    classes = np.unique(split.labels)
    some = classes[np.linspace(0, len(classes) - 1, min(SAMPLED_CLASSES, len(classes))).astype(int)]
    return [split.image(int(i)) for label in some for i in np.flatnonzero(split.labels == label)[:PER_CLASS]]


def _thumbnail(image: np.ndarray) -> np.ndarray:
    if image.shape[:2] == (THUMBNAIL, THUMBNAIL):
        return image
    from PIL import Image, ImageOps

    return np.asarray(ImageOps.fit(Image.fromarray(image), (THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR))


def _as_rows(digests: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)


def _text(name: str) -> str:
    """A path as text: what is not UTF-8 in it is replaced."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _busy(target: Path) -> str:
    return f"another extraction is writing {target}: wait for it, or choose another --store"


def _say(line: str) -> None:
    tqdm.write(line, file=sys.stderr)


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
    """Seconds by stage. Reading runs beside the others, so the sum may exceed the time that passes."""

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
