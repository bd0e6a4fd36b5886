"""The command line of stage 1. Heavy imports wait inside the commands, so that --help answers at once."""

import csv
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from common.cluster import asked_for, cluster_options
from common.command_line import CommandLine
from common.store import SPLITS, FeatureStore
from extract.features import Request, find_or_make, store_status

ROWS = 10_000  # printed at a time
STORE = click.Path(path_type=Path)


def request_options(command: Callable) -> Callable:
    """The options of a command that makes a Request, with the defaults of its fields."""
    for name, about in reversed(Request.options().items()):
        default, flag = getattr(Request, name), about["type"] is bool
        how = {"is_flag": True} if flag else {"type": about["type"], "show_default": default is not None}
        command = click.option(f"--{name.replace('_', '-')}", default=default, help=about["help"], **how)(command)
    return command


@click.group(cls=CommandLine, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Stage 1: run a frozen backbone over the images once and keep the vectors in a feature store."""


@main.command()
@request_options
@click.option("--store", type=STORE, help="Where to.  [default: data/features/<request>.h5]")
@cluster_options
def features(
    store: Path | None,
    ray: str | None,
    cpus_per_worker: int | None,
    gpus_per_worker: float | None,
    **options: Any,
) -> None:
    """Make a feature store, or say that it is up to date. Prints its path.

    Give the same command again to resume an interrupted extraction.
    """
    request = Request(cluster=asked_for(ray, cpus_per_worker, gpus_per_worker), **options)
    store = store or request.default_store()
    find_or_make(request, store)
    click.echo(os.fsencode(store))


@main.command()
@click.argument("store", type=STORE)
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
@click.argument("store", type=STORE)
def info(store: Path) -> None:
    """Print what a store holds and where it comes from, as JSON."""
    opened = FeatureStore.open(store)
    arrays = {name: f"{place.dtype} {list(place.shape)}" for name, place in opened.places.items()}
    header = {key: value for key, value in opened.header.items() if key != "blocks"}
    click.echo(json.dumps({"path": str(store), "arrays": arrays, **header}, indent=2, ensure_ascii=False))


@main.command()
@click.argument("store", type=STORE)
def verify(store: Path) -> None:
    """Compare every byte of a store with the digests in its header."""
    opened = FeatureStore.open(store)
    opened.verify()
    blocks = sum(map(len, opened.header["blocks"].values()))
    click.echo(f"sound: {store}, {blocks} blocks, identity {opened.identity_sha256[:16]}")


@main.command()
@click.argument("store", type=STORE)
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
