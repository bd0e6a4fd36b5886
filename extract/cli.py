"""The command line of stage 1. Heavy imports wait inside the commands, so that --help answers at once."""

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from common.cluster import asked_for, cluster_options
from common.command_line import CommandLine
from common.errors import UserError
from common.images import MAX_PIXELS
from common.store import SPLITS, FeatureStore
from common.store_partial import clear_up
from extract.request import is_up_to_date, request, store_at, store_status
from extract.sources import SOURCES, TEST_FRACTION

PRECISIONS = ("float32", "bfloat16")
ENGINES = ("auto", "torch", "openvino")
MAX_SEED, MAX_BATCH = (1 << 63) - 1, 1 << 20
ROWS = 10_000  # printed at a time


@click.group(cls=CommandLine, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Stage 1: run a frozen backbone over the images once and keep the vectors in a feature store."""


@main.command()
@click.option("--dataset", default="cifar100", show_default=True, help=f"Image source: {', '.join(SOURCES)}:….")
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    default=None,
    help="imagefolder, folder: the folder; csv: the file; CIFAR: where the archive is kept.  [default: data]",
)
@click.option(
    "--on-error", type=click.Choice(["fail", "skip"]), default="fail", help="What to do with unreadable files."
)
@click.option(
    "--test-fraction",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=None,
    help=f"Of each class, for the test, where your images have no split.  [default: {TEST_FRACTION}]",
)
@click.option(
    "--max-pixels", type=click.IntRange(1), default=MAX_PIXELS, show_default=True, help="Of an image, at most."
)
@click.option(
    "--decode",
    type=click.Choice(["scaled", "full"]),
    default="scaled",
    show_default=True,
    help="Large pictures: scaled, at 1/2, 1/4 or 1/8 of their size, JPEGs several times as fast; or full.",
)
@click.option("--image-column", help="Of hf:…  [default: the one with images]")
@click.option("--label-column", help="Of hf:…  [default: the one with class labels]")
@click.option("--list-left-out", is_flag=True, help="Name every file that is left out, and why.")
@click.option(
    "--backbone", default="resnet18", show_default=True, help="A classification model of torchvision, or timm:<name>."
)
@click.option(
    "--weights",
    default="torchvision",
    show_default=True,
    help='"torchvision" or "pretrained" (the published ones), "random", or the path of a state dict.',
)
@click.option(
    "--weights-seed",
    type=click.IntRange(0, MAX_SEED),
    default=0,
    show_default=True,
    help='The seed of "random" weights.',
)
@click.option(
    "--image-size",
    type=click.IntRange(8, 4096),
    default=None,
    help="Pixels, after resize.  [default: the model's own; resnet18: 224]",
)
@click.option(
    "--views", default="plain", show_default=True, help="Views of each image to cache, such as plain,mirror,zoom."
)
@click.option(
    "--layers",
    default="last",
    show_default=True,
    help="Layers to cache: last is what the classifier gets; of others, such as last,layer3, the mean over space.",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="float32",
    show_default=True,
    help="Of the network; bfloat16 where this machine gains from it, as far as it is true (cosine of at least 0.9999).",
)
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    default="auto",
    show_default=True,
    help="What runs the network; auto takes openvino where it is installed and exact.",
)
@click.option(
    "--batch-size", type=click.IntRange(1, MAX_BATCH), default=64, show_default=True, help="Images at a time."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps …")
@click.option(
    "--store", type=click.Path(path_type=Path), default=None, help="Where to.  [default: data/features/<request>.h5]"
)
@click.option("--overwrite", is_flag=True, help="Replace a store that holds something else.")
@cluster_options
@click.option("--ship-images", is_flag=True, help="Bring the images to workers that do not see them.")
def features(
    store: Path | None,
    engine: str,
    batch_size: int,
    device: str,
    overwrite: bool,
    list_left_out: bool,
    ray: str | None,
    cpus_per_worker: int | None,
    gpus_per_worker: float | None,
    ship_images: bool,
    **asked: Any,
) -> None:
    """Make a feature store, or say that it is up to date. Prints its path.

    An interrupted extraction goes on where it stopped when the same command is given again.
    """
    cluster = asked_for(ray, cpus_per_worker, gpus_per_worker)
    if ship_images and cluster is None:
        raise UserError("--ship-images does nothing without --ray: leave it out, or give it")
    wanted = request(**asked)
    store = store or wanted.default_store()
    found = store_at(store, overwrite)
    if found is not None and is_up_to_date(found, wanted.as_json()):
        clear_up(found)
        click.echo(f"up to date: {store}", err=True)
    else:
        from extract.features import make_features

        _, line = make_features(
            wanted,
            store,
            engine=engine,
            batch_size=batch_size,
            device=device,
            overwrite=overwrite,
            list_left_out=list_left_out,
            cluster=cluster,
            ship_images=ship_images,
        )
        click.echo(line or store_status(store)[1], err=True)
    click.echo(os.fsencode(store))


@main.command()
@click.argument("store", type=click.Path(path_type=Path))
def status(store: Path) -> None:
    """Say in a word what a file is, such as complete or damaged.

    It is one of complete, partial, damaged, foreign, older, newer, unreadable, missing.

    Exit code 0 for complete, 2 for a damaged or older file, 1 for the others.

    Reads the header only; `verify` reads every byte.
    """
    word, detail = store_status(store)
    click.echo(f"{word}: {detail}")
    raise SystemExit({"complete": 0, "damaged": 2, "older": 2}.get(word, 1))


@main.command()
@click.argument("store", type=click.Path(path_type=Path))
def info(store: Path) -> None:
    """Print what a store holds and where it comes from, as JSON."""
    opened = FeatureStore.open(store)
    arrays = {name: f"{place.dtype} {list(place.shape)}" for name, place in opened.places.items()}
    header = {key: value for key, value in opened.header.items() if key != "blocks"}
    click.echo(json.dumps({"path": str(store), "arrays": arrays, **header}, indent=2, ensure_ascii=False))


@main.command()
@click.argument("store", type=click.Path(path_type=Path))
def verify(store: Path) -> None:
    """Compare every byte of a store with the digests in its header."""
    opened = FeatureStore.open(store)
    opened.verify()
    blocks = sum(map(len, opened.header["blocks"].values()))
    click.echo(f"sound: {store}, {blocks} blocks, identity {opened.identity_sha256[:16]}")


@main.command()
@click.argument("store", type=click.Path(path_type=Path))
def names(store: Path) -> None:
    """Print which file is which row, as CSV: row, split, class, file."""
    opened = FeatureStore.open(store)
    for text in _name_lines(opened):
        click.echo(text.encode("utf-8", "surrogateescape"), nl=False)


@main.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
def export(store: Path, out: Path, overwrite: bool) -> None:
    """Write a store as a file that other programs read.

    OUT ends in .npz, .parquet or .safetensors. It holds the features of all views, labels, splits, file names and
    class names.
    """
    from extract.export import export_store

    export_store(FeatureStore.open(store), out, overwrite)
    click.echo(os.fsencode(out))


def _name_lines(store: FeatureStore) -> Iterator[str]:
    yield "row,split,class,file\n"
    n = len(store.labels)
    for start in range(0, n, ROWS):
        rows, text = range(start, min(start + ROWS, n)), io.StringIO()
        files = store.names(rows)
        csv.writer(text, lineterminator="\n").writerows(
            (row, SPLITS[store.split[row]], store.class_names[store.labels[row]], file)
            for row, file in zip(rows, files, strict=True)
        )
        yield text.getvalue()
