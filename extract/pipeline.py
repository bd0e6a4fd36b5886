"""From a job to a feature store: each image is read, preprocessed and seen by the network once. Resumable."""

import contextlib
import hashlib
import pkgutil
from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.command_line import keeping
from common.errors import UserError
from common.files import exclusive
from common.images import UnreadableImage, printable
from common.progress import Progress, say
from common.store import DamagedStore, FeatureStore
from common.store_header import SPLITS, STORED_AS, identity_digest, labels_digest
from common.store_partial import PartialStore, partial_folder, read_plan
from common.store_writer import name_arrays, write_store
from extract.batches import THUMBNAIL, Extraction, LocalNetwork, Network, Stopwatch, digests_of, read_sample
from extract.cifar import superclasses_of
from extract.sources import ImageSource

LISTED = 10  # unreadable images in one sentence; each has had a line of its own before


def extract(job: Extraction, target: Path) -> FeatureStore:
    """Make the store at `target`, or resume one that was interrupted, and return it.

    Raises UserError for unreadable images (after all others are done), for features that are not finite, for a target
    that cannot be written or that another process is writing, and for a cluster that cannot do the job.
    """
    with exclusive(partial_folder(target), busy(target), target), contextlib.ExitStack() as stack:
        network = stack.enter_context(start_network(job, read_plan(target).get("environment", {})))
        job = replace(job, precision=network.precision)  # from here on the executed one, not the requested one
        unfinished = _begin(job, target, network.environment)
        _keep_unchanged(unfinished, job.source)
        with keeping(lambda: f"{unfinished.rows_done:,} of {len(job.source):,} images are saved"):
            unreadable = _fill(unfinished, network, job.source)
            stack.close()
            if unreadable and job.on_error == "fail":
                raise unreadable_error(job.source, unreadable)
            return _finish(job, unfinished, network.environment, unreadable)


def start_network(job: Extraction, resumed: dict[str, Any]) -> AbstractContextManager[Network]:
    """The network of a job, ready in this process or on the cluster of the job.

    resumed: the environment of the extraction to resume, {} for none.
    """
    if job.cluster is not None:  # by name, so that on one machine nothing of Ray is imported
        return pkgutil.resolve_name("extract.ray_pool:on_cluster")(job, resumed)
    sample = partial(read_sample, job.source, job.preprocessing)
    return contextlib.closing(LocalNetwork(job, *job.choice.settle(len(job.source), sample, resumed, say)))


def _begin(job: Extraction, target: Path, environment: dict[str, Any]) -> PartialStore:
    """The unfinished store of a job: the one that an earlier process began, or a new one, and why that is so."""
    n, views = len(job.source), len(job.preprocessing.views)
    layout = {
        "features": (STORED_AS[job.precision], (views, n, job.backbone.feature_dim)),
        "image_sha256": ("|u1", (n, 32)),
        "thumbnails": ("|u1", (n, THUMBNAIL, THUMBNAIL, 3)),
    }
    # Batches of another size, engine, device or library may differ in the last digits; then a file is not resumed
    plan = {
        "n": n,
        "request": {key: value for key, value in job.request.items() if key != "fingerprint"},
        "weights": job.backbone.weights_sha256,
        "batch_size": job.batch_size,
        "environment": environment,
    }
    unfinished = PartialStore(target, plan, layout, job.request.get("fingerprint", ""))
    if unfinished.discarded:
        say(f"restarting {target} from zero: the unfinished extraction {unfinished.discarded}")
    return unfinished


def _keep_unchanged(unfinished: PartialStore, source: ImageSource) -> None:
    """If files have changed since, keep only the batches whose pixels are the same."""
    before = len(unfinished.done)
    if unfinished.source_changed:
        progress = Progress(unfinished.rows_done, "comparing", "images")

        def same(start: int, digests: np.ndarray) -> bool:
            rows = range(start, start + len(digests))
            return bool((digests_of(source, rows, progress)[0] == digests).all())

        with progress:
            unfinished.keep_unchanged(same)
    if before:
        again = before - len(unfinished.done)
        say(
            f"resuming {unfinished.target}: {unfinished.rows_done:,} of {len(source):,} images done"
            + (f"; {again} batch(es) are made again, since images in them have changed" if again else "")
        )


def _fill(unfinished: PartialStore, network: Network, source: ImageSource) -> dict[int, str]:
    """Write the batches that are missing; return {row: reason} of the images that cannot be read."""
    watch, starts, n, done = Stopwatch(), unfinished.missing(), len(source), unfinished.rows_done
    unreadable: dict[int, str] = {}
    with Progress(n, "extracting", "images", done) as progress:
        for start, arrays, some in network.batches(starts, watch):
            _report(source, some)
            unreadable |= some
            if arrays is not None:
                with watch.time("writing"):
                    unfinished.write(start, arrays)
                progress.update(len(arrays["thumbnails"]))
    if starts:
        say(watch.line(n - done))
    return unreadable


def _report(source: ImageSource, unreadable: dict[int, str]) -> None:
    for row, reason in unreadable.items():
        say(UnreadableImage(source.path(row), reason).message)


def unreadable_error(source: ImageSource, unreadable: dict[int, str]) -> UserError:
    """All images that cannot be read, {row: reason}, in one sentence."""
    rows = sorted(unreadable)
    some = ", ".join(f"{printable(source.names[row])} ({unreadable[row]})" for row in rows[:LISTED])
    more = f" and {len(rows) - LISTED} more, named above" if len(rows) > LISTED else ""
    return UserError(
        f"{len(rows)} of {len(source)} images cannot be read: {some}{more}. Repair them and run the same "
        "command again to resume; or leave them out with --on-error skip (make: ON_ERROR=skip)"
    )


def _finish(
    job: Extraction, unfinished: PartialStore, environment: dict[str, Any], unreadable: dict[int, str]
) -> FeatureStore:
    digests = np.array(unfinished.array("image_sha256"))
    skipped = []
    for row in np.flatnonzero(~digests.any(1)).tolist():
        reason = unreadable.get(row) or _why_unreadable(job.source, row)  # an earlier process met it
        skipped.append([printable(job.source.names[row]), reason])
    kept = np.flatnonzero(digests.any(1)) if skipped else None
    job, digests = without_unreadable(job, digests)
    provenance = {**environment, **_facts_about_files(job.source), **({"skipped": skipped} if skipped else {})}
    source = job.source
    whole = {"labels": source.labels, "image_index": source.image_index, "split": source.split}
    store = unfinished.finish(_header(job, digests, provenance), {**whole, **name_arrays(source.names)}, kept)
    if skipped:
        say(f"{len(skipped):,} images were skipped, since they cannot be read; the store names them")
    same = len(digests) - len(np.unique(digests.view("V32")))
    if same:
        say(f"{same:,} of {len(digests):,} images have the same pixels as another one")
    return store


def _why_unreadable(source: ImageSource, row: int) -> str:
    try:
        source.image(row)
    except UnreadableImage as error:
        return error.reason
    return "could not be read"


def without_unreadable(job: Extraction, digests: np.ndarray) -> tuple[Extraction, np.ndarray]:
    """Return the job without the images that have no digest, and the digests of the others."""
    has_digest = digests.any(1)
    if has_digest.all():
        return job, digests
    if not has_digest.any():
        raise UserError(
            f"none of the {len(digests)} images of {job.source.name} can be read: repair them, or give others"
        )
    source = job.source.subset(np.flatnonzero(has_digest))
    source.check()
    return replace(job, source=source), digests[has_digest]


def _facts_about_files(source: ImageSource) -> dict[str, Any]:
    """For the provenance: how the files of a source were split, left out and decoded."""
    reasons = dict(sorted(Counter(reason for _, reason in source.left_out).items()))
    least_side = source.files.least_side if source.files else None
    facts = {"layout": source.notes, "left_out": reasons, "least_side": least_side}
    return {key: value for key, value in facts.items() if value}


def _header(job: Extraction, image_sha256: np.ndarray, environment: dict[str, Any]) -> dict[str, Any]:
    superclass_names, class_superclass = superclasses_of(job.source.class_names)
    return {
        "identity": identity(job, image_sha256),
        "class_names": job.source.class_names,
        "superclass_names": superclass_names,
        "class_superclass": class_superclass,
        "provenance": {
            "data_set": printable(job.source.name),
            "weights": job.backbone.weights,
            "request": job.request,
            "batch_size": job.batch_size,
            **environment,
        },
    }


def identity(job: Extraction, image_sha256: np.ndarray) -> dict[str, Any]:
    """All that fixes the features. Two stores of one identity are interchangeable, whatever their paths and times.

    image_sha256: the pixel digests (N, 32) of the job's images.
    """
    source, backbone = job.source, job.backbone
    layers = {} if len(backbone.layers) == 1 else {"layers": list(backbone.layers.items())}
    rows = {name: source.rows_of(name) for name in SPLITS}
    return {
        "data_set": {
            "pixels": {name: hashlib.sha256(image_sha256[rows[name]].tobytes()).hexdigest() for name in SPLITS},
            "labels": {name: labels_digest(source.labels[rows[name]]) for name in SPLITS},
            "class_names": source.class_names,
        },
        # Left out where it is the default, so that the digest of older stores does not change
        "backbone": {"name": backbone.name, "feature_dim": backbone.feature_dim, **layers},
        "weights": {"sha256": backbone.weights_sha256, "random_seed": backbone.random_seed},
        "preprocessing": job.preprocessing.as_json(),
        "precision": job.precision,
    }


def renew(job: Extraction, store: FeatureStore) -> FeatureStore:
    """Keep a store that was made for another request, if its identity is that of the job; a line says so.

    The job's request and file names are noted in it, so that next time nothing needs to be decoded.
    Raises UserError, which says what differs, for another identity, and for images that cannot be read; DamagedStore,
    since damage must not be sealed again.
    """
    if store.identity["precision"] == "float32":  # at least as exact as bfloat16
        job = replace(job, precision="float32")
    job, image_sha256 = readable(job)
    require_identity(store, identity(job, image_sha256), image_sha256)
    note = ""
    try:
        with exclusive(partial_folder(store.path), busy(store.path), store.path):
            changes = {"request": job.request, "data_set": printable(job.source.name)}
            header = {**store.header, "provenance": {**store.header["provenance"], **changes}}
            arrays = {name: store.array(name) for name in store.places}
            write_store(store.path, header, {**arrays, **name_arrays(job.source.names)})
        store = FeatureStore.open(store.path)
    except DamagedStore:
        raise
    except UserError as error:  # such as a full disk: the store is what it was
        note = f"; this is not noted in it: {error.message}"
    say(f"up to date: {store.path} (files changed their names or times, their pixels are the same{note})")
    return store


def readable(job: Extraction) -> tuple[Extraction, np.ndarray]:
    """Return the job without the images that cannot be read, and the digests (N, 32) of the others.

    Raises UserError, which names them, where they must not be skipped.
    """
    source = job.source
    with Progress(len(source), "comparing", "images") as progress:
        image_sha256, unreadable = digests_of(source, range(len(source)), progress)
    _report(source, unreadable)
    if unreadable and job.on_error == "fail":
        raise unreadable_error(source, unreadable)
    return without_unreadable(job, image_sha256)


def busy(target: Path) -> str:
    return f"another extraction is writing {target}: wait for it, or choose another --store"


def require_identity(store: FeatureStore, wanted: dict[str, Any], image_sha256: np.ndarray) -> None:
    """Raise UserError, which says what differs, unless a store has this identity.

    image_sha256: the digests (N, 32) of the images of `wanted`.
    """
    if store.identity_sha256 == identity_digest(wanted):
        return
    different = [key for key in wanted if store.identity.get(key) != wanted[key]]
    if different == ["data_set"]:
        raise UserError(
            f"the images are not those of {store.path} ({_changes(store, image_sha256)}): give --overwrite to extract "
            "them all again, or another --store to keep both"
        )
    raise UserError(
        f"{store.path} holds features of something else (other {', '.join(different)}): "
        "choose another --store (--overwrite would replace these)"
    )


def _changes(store: FeatureStore, image_sha256: np.ndarray) -> str:
    """Say how many images are new, and how many are gone, by their pixels."""
    then, now = (np.ascontiguousarray(digests).view("V32").ravel() for digests in (store.image_sha256, image_sha256))
    new, gone = len(np.setdiff1d(now, then)), len(np.setdiff1d(then, now))
    if len(then) == len(now) and not new and not gone:
        return "other names, order, labels or split of the same images"
    return f"{len(then):,} then, {len(now):,} now: {new:,} new, {gone:,} gone"
