"""The command line of stage 3. Heavy imports wait inside the commands, so that --help answers at once."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from common.command_line import CommandLine
from common.errors import UserError
from common.store import FeatureStore

if TYPE_CHECKING:
    import numpy as np


class FindCommandLine(CommandLine):
    again = "the same command starts anew"  # nothing is kept of a find that is stopped


@click.group(cls=FindCommandLine, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Stage 3: find the odd image in a folder, and wrong labels in a data set."""


def _shared(command: Callable) -> Callable:
    """The options of both commands."""
    path = click.Path(path_type=Path)
    for option in (
        click.option("--out", type=path, help="The folder of the page and its files.  [default: runs/find-<store>]"),
        click.option("--root", type=path, help="Where the images are, as --root of the extraction."),
        click.option("--rate", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.1,
                     show_default=True, help="The share of false finds that the flagged ones may have."),
        click.option("--reviewed", type=path, help="Marks of an earlier page, a CSV file: they are honoured."),
        click.option("--copy-to", type=path, help="Copy flagged images there: a new or an empty folder."),
        click.option("--list", "list_to", type=path, help="Write the paths of flagged images there; - to print them."),
        click.option("-0", "--null", is_flag=True, help="End each path of --list with NUL, for xargs -0."),
        click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of all that is drawn."),
    ):  # fmt: skip
        command = option(command)
    return command


@main.command()
@click.argument("store_path", type=click.Path(path_type=Path), metavar="STORE")
@click.option("--run", "run_path", type=click.Path(path_type=Path), help="The run folder of a trained head.")
@click.option("--reference", type=click.Path(path_type=Path), help="A store of labelled images, same backbone.")
@_shared
def odd(
    store_path: Path, run_path: Path | None, reference: Path | None, seed: int, rate: float, **options: Any
) -> None:
    """Find the images of STORE that do not belong to the others.

    Classes in it are ignored. Prints the page's path last.

    With the head of a run, with a reference store, with both, or with nothing but the images themselves.
    """
    from find.oddities import odd as find_odd
    from find.output import Output

    store = _open(store_path)
    output = Output(store=store, **options)
    named = _names(store)
    head, held_out = _head(run_path, store, reference)
    given = None if reference is None or head is not None else _labelled(_comparable(reference, store))
    found = find_odd(
        _features(store), head=head, reference=given, held_out=held_out, rate=rate, seed=seed,
        digests=store.image_sha256, settings=_settings(store, run_path, reference), **named,
    )  # fmt: skip
    output.write(found, **named)


@main.command()
@click.argument("store_path", type=click.Path(path_type=Path), metavar="STORE")
@_shared
def audit(store_path: Path, seed: int, rate: float, **options: Any) -> None:
    """Find wrong labels in STORE, images of no class, and copies.

    Prints the page's path last.
    """
    from find.auditing import audit as find_wrong
    from find.output import Output

    store = _open(store_path)
    output = Output(store=store, **options)
    named = _names(store)
    found = find_wrong(
        _features(store), store.labels, class_names=store.class_names, rate=rate, seed=seed,
        digests=store.image_sha256, settings=_settings(store, None, None), **named,
    )  # fmt: skip
    output.write(found, own=[store.class_names[label] for label in store.labels], **named)


def _open(path: Path) -> FeatureStore:
    store = FeatureStore.open(path)
    store.verify(("features", "labels", "split", "image_sha256"))
    return store


def _features(store: FeatureStore) -> "np.ndarray":
    """The mean over the views (N, D) float32."""
    return store.features.mean(0, dtype="float32")


def _names(store: FeatureStore) -> dict[str, Any]:
    from common.store import SPLITS

    splits = [SPLITS[number] for number in store.split]
    paths = store.names(range(len(splits))) or [f"{s}/{i}" for s, i in zip(splits, store.image_index, strict=True)]
    return {"paths": paths, "splits": splits}


def _labelled(store: FeatureStore, rows: Any = slice(None)) -> Any:
    return store.features[:, rows].mean(0, dtype="float32"), store.labels[rows]


def _comparable(path: Path, store: FeatureStore) -> FeatureStore:
    """Open a reference store. Raises UserError where its features are of another kind than those of `store`."""
    reference = _open(path)
    for part, name in (("backbone", "backbone"), ("weights", "set of weights")):
        if reference.identity[part] != store.identity[part]:
            raise UserError(
                f"{path} was made with another {name} than {store.path}: extract one of them again, both must agree"
            )
    size = [each.identity["preprocessing"].get("image_size") for each in (reference, store)]
    if size[0] != size[1]:
        raise UserError(f"{path} was made at {size[0]} pixels, {store.path} at {size[1]}: both must agree")
    return reference


def _head(run_path: Path | None, store: FeatureStore, reference: Path | None) -> tuple[Any, Any]:
    """The head of a run, and labelled images to learn from what its scores say: those of its store's test split."""
    if run_path is None:
        return None, None
    from train.checkpoint import load_checkpoint, load_head

    checkpoint = run_path / "checkpoint.pt"
    head = load_head(checkpoint)
    if head.input_dim != store.feature_dim:
        raise UserError(
            f"the head of {run_path} is for features of {head.input_dim} dimensions, {store.path} has "
            f"{store.feature_dim}: extract with the backbone and layers that the head was trained with"
        )
    trained_on = load_checkpoint(checkpoint)["store_identity"]
    path = reference or _store_of(run_path)
    if path is None or not path.is_file():
        raise UserError(
            f"the store that {run_path} was trained on is not at {path}: give it by --reference, "
            "folders made of it tell what a score means"
        )
    given = _comparable(path, store)
    if reference is None and given.identity_sha256 != trained_on:
        raise UserError(f"{path} is no longer the store that {run_path} was trained on: give one by --reference")
    tested = given.rows_of("test")
    return head, _labelled(given, tested if len(tested) else slice(None))


def _store_of(run_path: Path) -> Path | None:
    import json

    try:
        return Path(json.loads((run_path / "report.json").read_text(encoding="utf-8"))["store"]["path"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _settings(store: FeatureStore, run: Path | None, reference: Path | None) -> dict[str, Any]:
    from common.machine import versions

    return {
        "store": str(store.path),
        "store_identity": store.identity_sha256,
        "run": None if run is None else str(run),
        "reference": None if reference is None else str(reference),
        "versions": versions(),
    }
