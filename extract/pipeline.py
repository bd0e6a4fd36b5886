"""The way of the images: read → preprocess → frozen backbone → feature store, each image once, resumable by batch."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from common.command_line import keeping
from common.files import exclusive
from common.machine import versions
from common.store import SPLITS, FeatureStore, check_features
from common.store_partial import StoreWriter, partial_folder, read_plan
from common.store_schema import STORED_AS
from common.store_writer import name_arrays
from extract.backbones import Backbone
from extract.decoding import UnreadableImage, printable
from extract.engines import Engine
from extract.fidelity import PER_CLASS, EngineChoice
from extract.identity import identity_of
from extract.preprocessing import Preprocessing
from extract.progress import Stopwatch, ahead, bar_of, say
from extract.reading import (
    THUMBNAIL,
    Unreadable,
    all_images,
    digests_of,
    names_of,
    read_batch,
    read_sample,
    sample_rows,
    without,
)
from extract.sources import ImageSource

MIN_GAIN = 20  # choosing an engine takes as long as a few passes of its sample: fewer images are not worth it


@dataclass(frozen=True)
class Extraction:
    """All that fixes the features, and how to compute them.

    `precision` is the lowest one that is allowed: "bfloat16" may end in float32, where that is as fast or nothing else
    is true. `request` is what the user asked for, as JSON, with a cheap fingerprint of the images: by it an unchanged
    request is recognised without reading them. on_error: "fail" or "skip" images that cannot be read.
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


def extract(job: Extraction, target: Path) -> FeatureStore:
    """Make the store at `target`, or go on with one that was interrupted, and return it.

    Raises UserError for unreadable images, when all others are done, non-finite features, a target that cannot be
    written, and while another process is at work on the same target.
    """
    with exclusive(partial_folder(target), busy(target), target):
        images = all_images(job.source)
        engine, environment = _engine(job, target)
        job = replace(job, precision=engine.precision)  # from here on what is executed, no longer what was asked for
        writer = _writer(job, target, environment)
        _keep_what_is_sound(writer, images)
        unreadable = Unreadable(names_of(job.source), say)
        with keeping(lambda: f"{sum(b - a for a, b in writer.done.items()):,} of {len(images):,} images are kept"):
            _fill(job, writer, engine, images, unreadable)
            if unreadable.reasons and job.on_error == "fail":
                raise unreadable.error()
            return _finish(job, writer, environment, unreadable)


def computed(
    job: Extraction,
    engine: Engine,
    images: list,
    starts: Iterable[int],
    watch: Stopwatch | None = None,
    unreadable: Unreadable | None = None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """For each start the arrays of its batch of `images`, the next batches being read meanwhile.

    A batch with an image that cannot be read is left out, unless such images are to be skipped.
    """
    watch = watch or Stopwatch()
    unreadable = unreadable or Unreadable(names_of(job.source), say)
    pool = ThreadPoolExecutor(os.cpu_count())

    def read(start: int) -> tuple[int, dict[str, Any]]:
        with watch.time("reading"):
            batch = read_batch(pool, images[start : start + job.batch_size], start, job.preprocessing, unreadable)
            batch["uploaded"] = [engine.upload(view) for view in batch.pop("images")]
            return start, batch

    try:
        for start, batch in ahead(read, starts):
            if job.on_error == "fail" and not batch["image_sha256"].any(1).all():
                continue
            with watch.time("network"):
                batch["features"] = _features(job, engine, batch.pop("uploaded"), start)
            yield start, batch
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


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
        say(f"beginning {target} anew: what was there of it {writer.discarded}")
    return writer


def _keep_what_is_sound(writer: StoreWriter, images: list) -> None:
    """Where files have changed since their batch was written, an image was repaired, say, the pixels decide."""
    begun = len(writer.done)
    if writer.moved:
        bar = tqdm(total=sum(b - a for a, b in writer.done.items()), **bar_of("comparing images"))

        def same(start: int, digests: np.ndarray) -> bool:
            bar.update(len(digests))
            chosen = images[start : start + len(digests)]
            return bool((as_rows(list(digests_of(chosen))) == digests).all())

        with bar:
            writer.keep(same)
    if begun:
        done = sum(b - a for a, b in writer.done.items())
        again = begun - len(writer.done)
        say(
            f"going on with {writer.target}: {done:,} of {len(images):,} images done"
            + (f"; {again} batch(es) are made again, since images in them have changed" if again else "")
        )


def _fill(job: Extraction, writer: StoreWriter, engine: Engine, images: list, unreadable: Unreadable) -> None:
    watch, starts = Stopwatch(), writer.missing()
    done = sum(stop - start for start, stop in writer.done.items())
    with tqdm(total=len(images), initial=done, **bar_of("extracting")) as bar:
        for start, batch in computed(job, engine, images, starts, watch, unreadable):
            with watch.time("writing"):
                writer.write(start, batch)
            bar.update(len(batch["thumbnails"]))
    if starts:
        say(watch.line(len(images) - done))


def _finish(job: Extraction, writer: StoreWriter, environment: dict[str, Any], unreadable: Unreadable) -> FeatureStore:
    digests = np.array(writer.array("image_sha256"))
    images, skipped = all_images(job.source), []
    for row in np.flatnonzero(~digests.any(1)).tolist():
        if row not in unreadable.reasons:  # an earlier process met it
            try:
                images[row][0](images[row][1])
            except UnreadableImage as error:
                unreadable.reasons[row] = error.reason
        skipped.append([printable(unreadable.names[row]), unreadable.reasons.get(row, "could not be read")])
    kept = np.flatnonzero(digests.any(1)) if skipped else None
    job, digests = without_unreadable(job, digests)
    provenance = {**environment, **_account(job.source), **({"skipped": skipped} if skipped else {})}
    store = writer.finish(_header(job, digests, provenance), _whole(job.source), kept)
    if skipped:
        say(f"{len(skipped):,} images were skipped, since they cannot be read; the store names them")
    same = len(digests) - len(np.unique(digests.view("V32")))
    if same:
        say(f"{same:,} of {len(digests):,} images have the same pixels as another one")
    return store


def without_unreadable(job: Extraction, digests: np.ndarray) -> tuple[Extraction, np.ndarray]:
    """The same without the images that have no digest, and the digests of the others."""
    has_digest = digests.any(1)
    if has_digest.all():
        return job, digests
    return replace(job, source=without(job.source, np.flatnonzero(~has_digest))), digests[has_digest]


def _account(source: ImageSource) -> dict[str, Any]:
    """How a source's files were split and which were left out: part of the provenance, where there is anything."""
    reasons = dict(sorted(Counter(reason for _, reason in source.left_out).items()))
    return {key: value for key, value in {"layout": source.notes, "left_out": reasons}.items() if value}


def _features(job: Extraction, engine: Engine, views: list, start: int) -> np.ndarray:
    """Uploaded images of each view → (V, B, D) in the precision of the store."""
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and the check says so
        features = np.stack([engine.features(view) for view in views]).astype(STORED_AS[job.precision])
    check_features(features, job.backbone.feature_dim, f"images {start} to {start + features.shape[1] - 1}")
    return features


def _header(job: Extraction, image_sha256: np.ndarray, environment: dict[str, Any]) -> dict[str, Any]:
    superclass_names, class_superclass = job.source.superclasses()
    return {
        "identity": identity(job, image_sha256),
        "class_names": job.source.class_names,
        "superclass_names": superclass_names,
        "class_superclass": class_superclass,
        "provenance": {
            "data_set": as_text(job.source.name),
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


def identity(job: Extraction, image_sha256: np.ndarray) -> dict[str, Any]:
    return identity_of(job.source, job.backbone, job.preprocessing, job.precision, image_sha256)


def _engine(job: Extraction, target: Path) -> tuple[Engine, dict[str, Any]]:
    """The engine, and the part of the plan and of the provenance that it makes up."""
    environment: dict[str, Any] = {"device": job.device.type, "versions": versions()}
    choice = EngineChoice(job.backbone, job.precision, job.device, job.preprocessing.image_size, job.engine)
    begun = read_plan(target).get("environment", {})
    if begun and {**begun, **environment} == begun and (engine := choice.named(begun["engine"])):
        return engine, begun  # another measurement might choose another one
    if job.precision != "float32" and not choice.low_kinds:
        say("bfloat16 is not faster than float32 on this machine: computing in float32")
    n = sum(len(split.labels) for split in job.source.splits.values())
    groups = sample_rows(job.source.splits["train"].labels, PER_CLASS)
    worth_it = n >= MIN_GAIN * PER_CLASS * len(groups) or not choice.reference_will_do()
    sample = read_sample(job.source, groups, job.preprocessing, PER_CLASS) if worth_it else None
    if sample is not None:
        engine, fidelity = choice.fastest(sample)
        if choice.low_kinds and engine.precision == "float32":
            say("no engine is true enough, and faster, in bfloat16: computing in float32")
    else:
        engine, fidelity = choice.reference(), {}
    say(f"engine: {engine.name}" + "".join(f", {k} {v:.6g}" for k, v in fidelity.items()))
    return engine, {"engine": engine.name, "fidelity": fidelity, **environment}


def as_rows(digests: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)


def as_text(name: str) -> str:
    """A path as text: what is not UTF-8 in it is replaced."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def busy(target: Path) -> str:
    return f"another extraction is writing {target}: wait for it, or choose another --store"
