"""The command line of stage 3. Heavy imports wait inside the commands, so that --help answers at once."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from common.command_line import CommandLine, Real
from common.errors import UserError
from common.joined import open_stores
from common.store import FeatureStore

if TYPE_CHECKING:
    from find.output import Output


class FindCommandLine(CommandLine):
    again = "the same command starts anew"  # nothing is kept of a find that is stopped


@click.group(cls=FindCommandLine, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Stage 3: find the odd image in a folder, and wrong labels in a data set."""


def _shared(command: Callable) -> Callable:
    """The options of both commands."""
    path = click.Path(path_type=Path)
    for option in (
        click.argument("store_path", type=path, metavar="STORE"),
        click.option("--beside", type=path, multiple=True,
                     help="A store of the same images, whose features are put beside those of STORE."),
        click.option("--out", type=path, help="The folder of the page and its files.  [default: runs/find-<store>]"),
        click.option("--root", type=path, help="Where the images are, as --root of the extraction."),
        click.option("--rate", type=Real(0, 1, min_open=True, max_open=True), default=0.1,
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
@click.option("--run", "run_path", type=click.Path(path_type=Path), help="The run folder of a trained head.")
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    multiple=True,
    help="A store of labelled images, same backbone; with --beside one for each store, in their order.",
)
@_shared
def odd(
    store_path: Path, beside: tuple[Path, ...], run_path: Path | None, reference: tuple[Path, ...], seed: int,
    rate: float, **options: Any,
) -> None:  # fmt: skip
    """Find the images of STORE that do not belong to the others.

    Classes in it are ignored. With the head of a run, with a reference store, with both, or with nothing but the images
    themselves. Prints the page's path last.
    """
    from find.oddities import odd as find_odd

    store, output = _start([store_path, *beside], **options)
    head, held_out = _head(run_path, store, reference)
    labelled = None if not reference or head is not None else _labelled(_comparable(reference, store))
    findings = find_odd(**_images(store), head=head, reference=labelled, held_out=held_out, rate=rate, seed=seed)
    output.write(findings, store, _settings(store, run_path, reference))


@main.command()
@_shared
def audit(store_path: Path, beside: tuple[Path, ...], seed: int, rate: float, **options: Any) -> None:
    """Find wrong labels in STORE, images of no class, and copies. Prints the page's path last."""
    from find.auditing import audit as find_wrong

    store, output = _start([store_path, *beside], **options)
    labels = {"labels": store.labels, "class_names": store.class_names}
    findings = find_wrong(**_images(store), **labels, rate=rate, seed=seed)
    output.write(findings, store, _settings(store))


def _start(paths: Sequence[Path], out: Path | None, **options: Any) -> tuple[FeatureStore, "Output"]:
    """Check where to write to, then open the stores."""
    from find.output import Output

    output = Output(out=out or Path("runs") / f"find-{'+'.join(path.stem for path in paths)}", **options)
    return _open(paths), output


def _images(store: FeatureStore) -> dict[str, Any]:
    """What `find` is told of the images of a store."""
    from find.output import paths_and_splits

    paths, splits = paths_and_splits(store)
    return {"features": store.mean_views(), "paths": paths, "splits": splits, "digests": store.image_sha256}


def _open(paths: Sequence[Path]) -> FeatureStore:
    store = open_stores(paths)
    store.verify(("features", "labels", "split", "image_sha256"))
    return store


def _labelled(store: FeatureStore, rows: Any = slice(None)) -> Any:
    return store.mean_views(rows), store.labels[rows]


def _comparable(paths: Sequence[Path], store: FeatureStore) -> FeatureStore:
    """Open reference stores. Raises UserError where their features are of another kind than those of `store`."""
    if len(paths) != len(store.stores):
        judged = ", ".join(str(part.path) for part in store.stores)
        raise UserError(
            f"{', '.join(map(str, paths))} cannot be compared with {judged}: of each store with --beside, and of no "
            "other, a reference is needed, made by the same backbone, in the same order"
        )
    reference = _open(paths)
    for one, other in zip(reference.stores, store.stores, strict=True):
        for part, name in (("backbone", "backbone"), ("weights", "set of weights")):
            if one.identity[part] != other.identity[part]:
                raise UserError(f"{one.path} was made with another {name} than {other.path}: extract one of them again")
        sizes = [each.identity["preprocessing"].get("image_size") for each in (one, other)]
        if sizes[0] != sizes[1]:
            raise UserError(f"{one.path} was made at {sizes[0]} pixels, {other.path} at {sizes[1]}: both must agree")
    return reference


def _head(run_path: Path | None, store: FeatureStore, reference: Sequence[Path]) -> tuple[Any, Any]:
    """The head of a run, and labelled images to learn from what its scores say: those of its store's test split."""
    if run_path is None:
        return None, None
    from train.checkpoint import load_checkpoint, load_head

    checkpoint = run_path / "checkpoint.pt"
    head = load_head(checkpoint)
    if head.input_dim != store.feature_dim:
        raise UserError(
            f"the head of {run_path} is for features of {head.input_dim} dimensions, {store.path} has "
            f"{store.feature_dim}: extract with the backbone and layers that the head was trained with, and give "
            "stores that it saw side by side by --beside"
        )
    paths = reference or _stores_of(run_path)
    missing = [path for path in paths if not path.is_file()]
    if missing or not paths:
        where = f"at {missing[0]}" if missing else "known"
        raise UserError(
            f"the store that {run_path} was trained on is not {where}: give it by --reference, "
            "folders made of it tell what a score means"
        )
    trained_on = _comparable(paths, store)
    if not reference and trained_on.identity_sha256 != load_checkpoint(checkpoint).store_identity:
        raise UserError(
            f"{trained_on.path} is no longer the store that {run_path} was trained on: give one by --reference"
        )
    tested = trained_on.rows_of("test")
    return head, _labelled(trained_on, tested if len(tested) else slice(None))


def _stores_of(run_path: Path) -> list[Path]:
    """Where the stores of a run were; empty where its report does not say it."""
    from train.report.schema import read_report

    try:
        return [Path(part.path) for part in read_report(run_path / "report.json").store.parts]
    except UserError:
        return []


def _settings(store: FeatureStore, run: Path | None = None, reference: Sequence[Path] = ()) -> dict[str, Any]:
    from common.machine import versions

    return {
        "store": " + ".join(str(part.path) for part in store.stores),
        "store_identity": store.identity_sha256,
        "run": None if run is None else str(run),
        "reference": " + ".join(map(str, reference)) or None,
        "versions": versions(),
    }
