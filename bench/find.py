"""`python -m bench.find STORE …`: find beside other ways, in one go. Writes find.json, and prints tables.

STORE: feature stores of labelled photographs, or of CIFAR-100 (with super-classes and a test split), by any backbones.
cleanlab is an extra: `pip install '.[bench]'`.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from bench.audits import foreign_pictures, wrong_labels
from bench.find_tables import PEERS, tables
from bench.folders import SIZES, judges_of, measure_folders
from common.errors import UserError
from common.files import readable_json, write_text
from common.machine import hardware, versions
from common.markdown import fill_blocks, report_stale, rewrite
from common.store import FeatureStore
from find.oddities import make_judge
from train.checkpoint import config_of, load_checkpoint, load_head
from train.sets import split_validation

PARTS = ("foreign", "labels", "folders", "growth")
GROWTH = 20_000, 80_000, 320_000
GROWTH_CLASSES, GROWTH_DIM = 100, 512
# Words in the names of foreign pictures that fit sets of flowers or of ants and bees: these are left out
FITTING = re.compile(
    "daisy|sunflower|dandelion|rose|tulip|vase|pot|lady|bee|ant|fly|cicada|cricket|insect|beetle|lacewing|apiary|spider|"
    "ringlet|lycaenid|cockroach|tick|harvestman|tarantula|hay|cardoon|artichoke|rapeseed|greenhouse|fence|hummingbird"
)


@click.command()
@click.argument("stores", nargs=-1, type=click.Path(path_type=Path), metavar="STORE...")
@click.option(
    "--foreign",
    "foreign_paths",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Stores of foreign photographs, one for each backbone.",
)
@click.option(
    "--without",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Names of images, one a line: a STORE that has them is measured once more, without them.",
)
@click.option("--run", "runs", type=click.Path(path_type=Path), multiple=True, help="Heads trained on the last STORE.")
@click.option("--only", multiple=True, type=click.Choice(PARTS), help="These parts; others stay.  [default: all]")
@click.option("--draws", type=click.IntRange(1), default=3, show_default=True, help="Times that all is drawn.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("bench"), show_default=True, help="A folder.")
@click.option("--readme", type=click.Path(path_type=Path), help="Measure nothing: write OUT's report into its table.")
@click.option("--check", is_flag=True, help="With --readme: change nothing, exit code 1 where the table is another.")
def main(
    stores: tuple[Path, ...], foreign_paths: tuple[Path, ...], without: Path | None, runs: tuple[Path, ...],
    only: tuple[str, ...], draws: int, out: Path, readme: Path | None, check: bool,
) -> None:  # fmt: skip
    """Measure foreign pictures, wrong labels, folders of one class, and how time and memory grow."""
    path = out / "find.json"
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if readme:
        made = {"find": tables(report)}
        stale = rewrite(readme, lambda text: fill_blocks(text, "measured", made.get), check)
        report_stale([readme] * stale, check)
        return
    if not stores:
        raise click.UsageError("give STORE, or --readme")
    opened = [FeatureStore.open(store) for store in stores]
    foreign = {backbone_of(store): store for store in map(FeatureStore.open, foreign_paths)}
    for part in only or PARTS:
        started = time.perf_counter()
        rows: list[dict[str, Any]] = []
        for store in opened if part != "growth" else opened[-1:]:
            click.echo(f"{part}, {store.path.name} …", err=True)
            if part == "growth":
                rows += [measure_growth(n) for n in GROWTH]
                continue
            name, strangers = store.path.stem.split("-")[0], foreign.get(backbone_of(store))
            for named, left_out in {name: set(), f"{name}, tidied": _names_in(store, without)}.items():
                if left_out or named == name:
                    measured = measure_part(part, store, left_out, strangers, runs, draws)
                    rows += [{"set": named, "backbone": backbone_of(store), **row} for row in measured]
        seconds = round(time.perf_counter() - started)
        report[part] = {"draws": draws, "rows": rows, "seconds": seconds, **_here()}
        write_text(path, readable_json(report))
    click.echo(tables(report))


def measure_part(
    part: str, store: FeatureStore, left_out: set[int], foreign: FeatureStore | None, runs: Sequence[Path], draws: int
) -> list[dict[str, Any]]:
    """What one part says of one store, some of its rows left out."""
    superclass = store.header["class_superclass"]
    photos = not superclass
    x, labels = images_of(store, None if photos else "test", left_out)
    strangers = None if foreign is None else strangers_of(foreign)
    if part == "foreign":
        return list(foreign_pictures(x, labels, strangers, draws)) if photos and strangers is not None else []
    if part == "labels":
        anywhere = np.zeros(labels.max() + 1, int)
        rows = [{"to": "any class", **row} for row in wrong_labels(x, labels, anywhere, draws)]
        if not photos:
            found = wrong_labels(x, labels, np.array(superclass), draws)
            rows += [{"to": "same super-class", **row} for row in found]
        return rows
    rows = []
    for size in SIZES if photos else (100,):
        reference = None if photos else images_of(store, "train")
        judges = judges_of(reference, size, x.shape[1])
        for run in runs if not photos else ():
            judges[f"find.odd, {run.name}"] = judge_of_run(store, run, size)
        measured = measure_folders((x, labels), strangers if photos else None, size, draws, judges)
        rows += [{"size": size, **row} for row in measured]
    return rows


def judge_of_run(store: FeatureStore, run: Path, size: int) -> Any:
    """`find.odd` with the head of a run; what its scores say is learnt on its own validation images."""
    checkpoint = run / "checkpoint.pt"
    data = config_of(load_checkpoint(checkpoint), checkpoint).data
    rows, labels = store.rows_of("train"), np.array(store.labels)
    _, kept = split_validation(rows, labels[rows], data.val_fraction, data.set_size, data.split_seed)
    held_out = store.features[0][kept].astype(np.float32), labels[kept]
    return make_judge(load_head(checkpoint), None, held_out, np.empty((size, store.feature_dim)), 0)[1]


def backbone_of(store: FeatureStore) -> str:
    """The name of the backbone that made a store."""
    backbone = store.identity["backbone"]
    return str(backbone.get("name", backbone) if isinstance(backbone, dict) else backbone)


def images_of(store: FeatureStore, split: str | None, left_out: Collection[int] = ()) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, D) of view 0 and labels (n,), of a split or of all, some rows left out."""
    rows = np.setdiff1d(store.rows_of(split) if split else np.arange(len(store.labels)), list(left_out))
    return store.features[0][rows].astype(np.float32), np.array(store.labels)[rows]


def _names_in(store: FeatureStore, without: Path | None) -> set[int]:
    """The rows of a store whose names are in a file."""
    names = set(without.read_text(encoding="utf-8").splitlines()) if without else set()
    return {row for row, name in enumerate(store.names(range(len(store.labels))) or []) if name in names}


def strangers_of(store: FeatureStore) -> np.ndarray:
    """The features (m, D) of pictures whose name fits none of the sets. Raises UserError where there are no names."""
    names = store.names(range(len(store.labels)))
    if names is None:
        raise UserError(f"{store.path} has no names of its images: extract it again")
    kept = [i for i, name in enumerate(names) if not FITTING.search(Path(name).stem.lower())]
    return store.features[0][kept].astype(np.float32)


def measure_growth(n: int) -> dict[str, Any]:
    """Time and memory of an audit of n made-up images of 100 classes, in a process of its own."""
    code = (
        "import resource, sys, time, numpy as np, find\n"
        f"n, c, d, g = {n}, {GROWTH_CLASSES}, {GROWTH_DIM}, np.random.default_rng(0)\n"
        "y = np.arange(n) % c\n"
        "x = g.normal(size=(n, d)).astype(np.float32); x += g.normal(size=(c, d)).astype(np.float32)[y]\n"
        "t = time.perf_counter(); find.audit(x, y)\n"
        "print(time.perf_counter() - t, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, kilobytes = map(float, done.stdout.split())
    return {"n": n, "seconds": round(seconds, 1), "gigabytes": round(kilobytes / 1e6, 2)}


def _here() -> dict[str, Any]:
    """Where it was measured, with what."""
    return {
        "hardware": hardware(torch.device("cpu")),
        "versions": versions() | {name: _version(name) for name in PEERS},
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
