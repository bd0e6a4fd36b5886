"""The way of the images: read → preprocess → frozen backbone → feature store, each image once, resumable by batch."""

import contextlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from common.command_line import keeping
from common.files import exclusive
from common.images import UnreadableImage, printable
from common.progress import Progress, say
from common.store import SPLITS, FeatureStore
from common.store_header import STORED_AS
from common.store_partial import StoreWriter, partial_folder, read_plan
from common.store_writer import name_arrays
from extract.identity import identity_of
from extract.network import Connect, Extraction, Network, local_network
from extract.progress import Stopwatch
from extract.reading import THUMBNAIL, AllImages, Unreadable, digests_of, names_of, without
from extract.sources import ImageSource
from extract.superclasses import superclasses_of


def extract(job: Extraction, target: Path, connect: Connect = local_network) -> FeatureStore:
    """Make the store at `target`, or resume one that was interrupted, and return it.

    connect: gives the network at work; by default in this process.
    Raises UserError for unreadable images, when all others are done, non-finite features, a target that cannot be
    written, while another process is at work on the same target, and as `connect` does.
    """
    with exclusive(partial_folder(target), busy(target), target), contextlib.ExitStack() as stack:
        network = stack.enter_context(connect(job, read_plan(target).get("environment", {})))
        job = replace(job, precision=network.precision)  # from here on what is executed, no longer what was asked for
        images = AllImages(job.source)
        writer = _writer(job, target, network.environment)
        _keep_what_is_sound(writer, images)
        unreadable = Unreadable(names_of(job.source), say)
        with keeping(lambda: f"{sum(b - a for a, b in writer.done.items()):,} of {len(images):,} images are saved"):
            _fill(writer, network, unreadable)
            stack.close()
            if unreadable.reasons and job.on_error == "fail":
                raise unreadable.error()
            return _finish(job, writer, network.environment, unreadable)


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
        say(f"restarting {target} from zero: the unfinished extraction {writer.discarded}")
    return writer


def _keep_what_is_sound(writer: StoreWriter, images: AllImages) -> None:
    """Where files have changed since their batch was written, an image was repaired, say, the pixels decide."""
    begun = len(writer.done)
    if writer.moved:
        progress = Progress(sum(b - a for a, b in writer.done.items()), "comparing", "images")

        def same(start: int, digests: np.ndarray) -> bool:
            progress.update(len(digests))
            chosen = images[start : start + len(digests)]
            return bool((as_rows(list(digests_of(chosen))) == digests).all())

        with progress:
            writer.keep(same)
    if begun:
        done = sum(b - a for a, b in writer.done.items())
        again = begun - len(writer.done)
        say(
            f"resuming {writer.target}: {done:,} of {len(images):,} images done"
            + (f"; {again} batch(es) are made again, since images in them have changed" if again else "")
        )


def _fill(writer: StoreWriter, network: Network, unreadable: Unreadable) -> None:
    watch, starts, n = Stopwatch(), writer.missing(), len(unreadable.names)
    done = sum(stop - start for start, stop in writer.done.items())
    with Progress(n, "extracting", "images", done) as progress:
        for start, batch in network.batches(starts, unreadable, watch):
            with watch.time("writing"):
                writer.write(start, batch)
            progress.update(len(batch["thumbnails"]))
    if starts:
        say(watch.line(n - done) + network.closing())


def _finish(job: Extraction, writer: StoreWriter, environment: dict[str, Any], unreadable: Unreadable) -> FeatureStore:
    digests = np.array(writer.array("image_sha256"))
    images, skipped = AllImages(job.source), []
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
    """How a source's files were split, left out and decoded: part of the provenance, where there is anything."""
    reasons = dict(sorted(Counter(reason for _, reason in source.left_out).items()))
    least_side = source.files.least_side if source.files else None
    account = {"layout": source.notes, "left_out": reasons, "least_side": least_side}
    return {key: value for key, value in account.items() if value}


def _header(job: Extraction, image_sha256: np.ndarray, environment: dict[str, Any]) -> dict[str, Any]:
    superclass_names, class_superclass = superclasses_of(job.source.class_names)
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


def as_rows(digests: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)


def as_text(name: str) -> str:
    """A path as text: what is not UTF-8 in it is replaced."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def busy(target: Path) -> str:
    return f"another extraction is writing {target}: wait for it, or choose another --store"
