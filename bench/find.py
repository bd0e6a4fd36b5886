"""`python -m bench.find STORE …`: find beside other ways, in one go. Writes find.json, and prints tables.

STORE: feature stores of labelled photographs, or of CIFAR-100 (with super-classes and a test split), by any backbones.
cleanlab is an extra: `pip install '.[bench]'`.
"""

import re
import resource
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click
import numpy as np

import find
from bench.audits import DRAWS, SIZES, Arrays, Row, foreign_pictures, measure_folders, wrong_labels
from bench.find_tables import PEERS, tables
from bench.report import fill_page, read_report, report_options
from bench.timing import CPU, in_own_process
from common.files import readable_json, write_text
from common.machine import hardware, versions
from common.store import FeatureStore
from find.oddities import Judge, judge_alone, make_judge
from train.checkpoint import load_checkpoint, load_head
from train.sets import split_validation

PARTS = ("foreign", "labels", "folders", "growth")
ALONE, OTHER_CLASSES = "find.odd, the folder alone", "find.odd, a reference of other classes"
GROWTH = 20_000, 80_000, 320_000  # images
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
    metavar="STORE",
    help="Foreign photographs, by one of the backbones.",
)
@click.option(
    "--without",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Names of images, one a line: a STORE that has them is measured once more, without them.",
)
@click.option("--run", "runs", type=click.Path(path_type=Path), multiple=True, help="Heads trained on the last STORE.")
@click.option("--only", multiple=True, type=click.Choice(PARTS), help="These parts; others stay.  [default: all]")
@report_options("bench/find.json")  # fmt: skip
def main(
    stores: tuple[Path, ...], foreign_paths: tuple[Path, ...], without: Path | None, runs: tuple[Path, ...],
    only: tuple[str, ...], out: Path, readme: Path | None,
) -> None:  # fmt: skip
    """Measure foreign pictures, wrong labels, folders of one class, and how time and memory grow."""
    report = read_report(out) if out.is_file() else {}
    if readme:
        fill_page(readme, "find", tables(report))
        return
    if not stores:
        raise click.UsageError("give STORE, or --readme")
    opened = [FeatureStore.open(store) for store in stores]
    foreign = {_backbone_of(store): strangers_of(store) for store in map(FeatureStore.open, foreign_paths)}
    here = {"hardware": hardware(CPU), "versions": versions() | {name: _version(name) for name in PEERS}}
    for part in only or PARTS:
        started = time.perf_counter()
        rows: list[Row] = []
        if part == "growth":
            rows += [in_own_process(measure_growth, n) for n in GROWTH]
        for store in opened if part != "growth" else ():
            click.echo(f"{part}, {store.path.name} …", err=True)
            rows += measure_store(part, store, opened, foreign.get(_backbone_of(store)), without, runs)
        seconds = round(time.perf_counter() - started)
        report[part] = {"draws": DRAWS, "rows": rows, "seconds": seconds, **here}
        write_text(out, readable_json(report))
    click.echo(tables(report))


def measure_store(
    part: str, store: FeatureStore, opened: Sequence[FeatureStore], strangers: np.ndarray | None, without: Path | None,
    runs: Sequence[Path],
) -> Iterator[Row]:  # fmt: skip
    """What a part measures on a store; and once more, where it has images that are named in a file.

    opened: all stores. strangers (m, D): foreign pictures, None without any. without: the file. runs: of heads.
    """
    superclass = store.header["class_superclass"]  # of photographs empty
    subsets = {_name_of(store): set[int]()}
    if named := _rows_named_in(without, store):
        subsets[f"{_name_of(store)}, tidied"] = named
    for subset, left_out in subsets.items():
        images = images_of(store, "test" if superclass else None, left_out)
        rows: Iterable[Row] = ()
        if part == "labels":
            rows = in_labels(images, superclass)
        elif part == "folders":
            rows = in_cifar(store, images, runs) if superclass else in_photographs(store, images, opened, strangers)
        elif strangers is not None and not superclass:
            rows = foreign_pictures(*images, strangers)
        for row in rows:
            yield {"set": subset, "backbone": _backbone_of(store), **row}


def in_labels(images: Arrays, superclass: Sequence[int]) -> Iterator[Row]:
    """Wrong labels of any class, and of the same super-class where there are some."""
    groups = {"any class": np.zeros(images[1].max() + 1, int)}
    if superclass:
        groups["same super-class"] = np.array(superclass)
    for to, group in groups.items():
        for row in wrong_labels(*images, group):
            yield {"to": to, **row}


def in_photographs(
    store: FeatureStore, images: Arrays, opened: Sequence[FeatureStore], strangers: np.ndarray | None
) -> Iterator[Row]:
    """Folders of photographs, alone and with each other set of photographs as a reference of other classes."""
    references = {
        f"find.odd, {_name_of(other)} as reference": images_of(other)
        for other in opened
        if other is not store and _backbone_of(other) == _backbone_of(store) and not other.header["class_superclass"]
    }
    for size in SIZES:
        judges = {ALONE: judge_alone} | {way: judge_by(images, size) for way, images in references.items()}
        for row in measure_folders(images, strangers, size, judges):
            yield {"size": size, **row}


def in_cifar(store: FeatureStore, images: Arrays, runs: Sequence[Path], size: int = 100) -> Iterator[Row]:
    """Folders of CIFAR-100, alone, with a reference, with heads, and with every other class as a reference."""
    (x, labels), (known, of_known) = images, images_of(store, "train")
    judges = {ALONE: judge_alone, "find.odd, a reference store": judge_by((known, of_known), size)}
    judges |= {f"find.odd, {run.name}": judge_by_head(run, store, size) for run in runs}
    rows = measure_folders(images, None, size, judges)
    judges = {OTHER_CLASSES: judge_by((known[of_known % 2 == 0], of_known[of_known % 2 == 0]), size)}
    of_half = measure_folders((x[labels % 2 == 1], labels[labels % 2 == 1]), None, size, judges)
    for row in [*rows, *(row for row in of_half if row["way"] == OTHER_CLASSES)]:
        yield {"size": size, **row}


def judge_by(reference: Arrays, size: int) -> Judge:
    """`find.odd` with a reference, for folders of so many images."""
    return make_judge(None, reference, None, np.empty((size, reference[0].shape[1])), 0)[1]


def judge_by_head(run: Path, store: FeatureStore, size: int) -> Judge:
    """`find.odd` with the head of a run, whose validation images say what scores mean."""
    checkpoint = run / "checkpoint.pt"
    data = load_checkpoint(checkpoint).config.data
    rows, labels = store.rows_of("train"), np.array(store.labels)
    _, kept = split_validation(rows, labels[rows], data.val_fraction, data.set_size, data.split_seed)
    held_out = store.features[0][kept].astype(np.float32), labels[kept]
    return make_judge(load_head(checkpoint), None, held_out, np.empty((size, store.feature_dim)), 0)[1]


def _name_of(store: FeatureStore) -> str:
    return store.path.stem.split("-")[0]


def _backbone_of(store: FeatureStore) -> str:
    return store.identity["backbone"]["name"]


def images_of(store: FeatureStore, split: str | None = None, left_out: Collection[int] = ()) -> Arrays:
    """Features (n, D) of view 0 and labels (n,), of a split or of all, some rows left out."""
    rows = np.setdiff1d(store.rows_of(split) if split else np.arange(len(store.labels)), list(left_out))
    return store.features[0][rows].astype(np.float32), np.array(store.labels)[rows]


def _rows_named_in(file: Path | None, store: FeatureStore) -> set[int]:
    names = set(file.read_text(encoding="utf-8").splitlines()) if file else set()
    return {row for row, name in enumerate(store.names(range(len(store.labels)))) if name in names}


def strangers_of(store: FeatureStore) -> np.ndarray:
    """The features (m, D) of pictures whose name fits none of the sets."""
    names = store.names(range(len(store.labels)))
    kept = [i for i, name in enumerate(names) if not FITTING.search(Path(name).stem.lower())]
    return store.features[0][kept].astype(np.float32)


def measure_growth(n: int, classes: int = 100, dim: int = 512) -> Row:
    """Time and memory of an audit of n made-up images, in a process that does nothing else."""
    generator = np.random.default_rng(0)
    labels = np.arange(n) % classes
    features = generator.normal(size=(n, dim)).astype(np.float32)
    features += generator.normal(size=(classes, dim)).astype(np.float32)[labels]
    started = time.perf_counter()
    find.audit(features, labels)
    seconds, kilobytes = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"n": n, "seconds": round(seconds, 1), "gigabytes": round(kilobytes / 1e6, 2)}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
