"""The store of what is asked for: the one that is there, the same with the file names of today, or one made now."""

import pkgutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.cluster import Cluster
from common.errors import UserError
from common.files import exclusive
from common.images import printable
from common.machine import choose_device
from common.progress import Progress, say
from common.store import DamagedStore, FeatureStore
from common.store_partial import clear_up, partial_folder
from common.store_writer import name_arrays, write_store
from extract.backbones import Backbone, load_backbone, parse_layers, preprocessing_of
from extract.network import Connect, Extraction, local_network
from extract.pipeline import as_rows, as_text, busy, extract, identity, without_unreadable
from extract.preprocessing import parse_views
from extract.reading import AllImages, Unreadable, digests_of, names_of
from extract.request import Request, is_up_to_date, request, require_identity, store_at
from extract.sources import ImageSource, left_out_line, load_source

MAKING = {"engine", "batch_size", "device", "overwrite", "list_left_out", "cluster", "ship_images"}


def features(root: Path | str, store: Path | str, dataset: str = "imagefolder", **options: Any) -> FeatureStore:
    """The feature store of the images at `root`, made at `store` now, or the one that is there for the same request.

    options: those of `python -m extract features`, such as backbone="resnet50" or on_error="skip", of
    `extract.request.request`; and those of `make_features`. Raises UserError as that.
    """
    how = {name: options.pop(name) for name in MAKING & options.keys()}
    asked, target = request(dataset, Path(root), **options), Path(store)
    found = store_at(target, how.get("overwrite", False))
    if found is not None and is_up_to_date(found, asked.as_json()):
        clear_up(found)
        return found
    return make_features(asked, target, **how)[0]


def make_features(
    request: Request,
    target: Path,
    *,
    engine: str = "auto",
    batch_size: int = 64,
    device: str = "auto",
    overwrite: bool = False,
    list_left_out: bool = False,
    cluster: Cluster | None = None,
    ship_images: bool = False,
) -> tuple[FeatureStore, str]:
    """The store of what is asked for at `target`, made now if need be; and a line that says what was done.

    cluster: where the network is to be at work, None for this process; ship_images: its nodes do not see the files.
    Raises UserError for bad input, when `target` holds features of something else and must not be overwritten, and as
    `extract` does.
    """
    found = None if overwrite else store_at(target, overwrite)
    views, layers = parse_views(request.views), parse_layers(request.layers)
    chosen, cluster = on_nodes(device, cluster) if cluster else (choose_device(device), None)
    backbone = load_backbone(request.backbone, request.weights, request.weights_seed, request.image_size, layers)
    preprocessing = preprocessing_of(request.backbone, request.image_size, views)
    reading = replace(request.reading, least_side=preprocessing.least_side())
    source = load_source(request.dataset, request.root, reading)
    _tell(source, backbone, list_left_out)
    # A data set that was downloaded a moment ago has its fingerprint only now
    wanted = request.as_json()
    on_error = request.reading.on_error
    job = Extraction(source, backbone, preprocessing, request.precision, wanted, batch_size, chosen, engine, on_error)
    if found is None:
        return extract(job, target, _connect(cluster, ship_images)), ""
    if found.identity["precision"] == "float32":  # as true as bfloat16 may be
        job = replace(job, precision="float32")
    job, image_sha256 = readable(job)
    require_identity(found, identity(job, image_sha256), image_sha256)
    try:
        found = renewed(job, found)
        note = ""
    except DamagedStore:
        raise
    except UserError as error:  # such as a full disk: the store is what it was
        note = f"; this is not noted in it: {error.message}"
    return found, f"up to date: {target} (files changed their names or times, their pixels are the same{note})"


def _connect(cluster: Cluster | None, ship_images: bool) -> Connect:
    if cluster is None:
        return local_network
    # By name, so that one machine's path does without Ray's part
    return partial(pkgutil.resolve_name("extract.cluster:on_cluster"), cluster=cluster, ship_images=ship_images)


def on_nodes(device: str, cluster: Cluster) -> tuple[torch.device, Cluster]:
    """The device of the workers as far as it is known before the nodes are, and the cluster with the GPUs for it.

    Raises UserError for one that workers cannot share out.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"with --ray, --device must be auto, cpu or cuda (Ray chooses which), got {device}")
    wanted = {"auto": cluster.gpus, "cpu": 0.0, "cuda": cluster.gpus or 1.0}[device]
    return torch.device("cpu" if device == "cpu" else "cuda"), replace(cluster, gpus=wanted)


def readable(job: Extraction) -> tuple[Extraction, np.ndarray]:
    """The same without the images that cannot be read, and the digests (N, 32) of the others.

    Raises UserError, which names them, where they must not be skipped.
    """
    images, unreadable = AllImages(job.source), Unreadable(names_of(job.source), say)
    digests = []
    with Progress(len(images), "comparing", "images") as progress:
        for digest in digests_of(images, unreadable):
            digests.append(digest)
            progress.update()
    image_sha256 = as_rows(digests)
    if unreadable.reasons and job.on_error == "fail":
        raise unreadable.error()
    return without_unreadable(job, image_sha256)


def renewed(job: Extraction, store: FeatureStore) -> FeatureStore:
    """The same features, with the request and the file names of today: the next time nothing needs to be decoded.

    Raises DamagedStore, since what is damaged must not be sealed again, and UserError where it cannot be written.
    """
    with exclusive(partial_folder(store.path), busy(store.path), store.path):
        said = {"request": job.request, "data_set": as_text(job.source.name)}
        header = {**store.header, "provenance": {**store.header["provenance"], **said}}
        arrays = {name: store.array(name) for name in store.places}
        write_store(store.path, header, {**arrays, **name_arrays(names_of(job.source))})
    return FeatureStore.open(store.path)


def _tell(source: ImageSource, backbone: Backbone, list_left_out: bool) -> None:
    """What was decided about images and weights, in a line each."""
    for name, reason in source.left_out if list_left_out else ():
        say(f"left out: {printable(name)}: {reason}")
    for line in [*source.notes, left_out_line(source.left_out) if source.left_out else "", backbone.said]:
        if line:
            say(line)
    if backbone.random_seed is not None:
        say(
            f"{backbone.name} has RANDOM weights (seed {backbone.random_seed}): its features show that the "
            "pipeline works, not what a trained network can do"
        )
