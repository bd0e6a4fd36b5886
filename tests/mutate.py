"""Mutated stores, weights, checkpoints and run folders: what extraction, training and finding make of them.

`python -m tests.mutate stores --count 10000` counts. Whatever is damaged must be refused, or be as it was. What is
sealed again after it was edited must be refused, or obey the schema.
"""

import hashlib
import io
import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import matplotlib.figure
import numpy as np
import torch
from click.testing import CliRunner
from torch import nn

from common.errors import UserError
from common.store import FeatureStore
from common.store_header import ArrayPlace
from common.synthetic import make_store
from extract.weights import load_weights
from find.cli import main as find
from tests.damage import edited, flipped, judge, mutated, resealed
from tests.fabricate import killed_after_two_epochs, result_of
from tests.victims import Counts, report
from train.checkpoint import load_checkpoint, seal
from train.config import Config
from train.fit import fit
from train.log.runs import load_run
from train.run_folder import RunFolder

Mutations = Iterator[tuple[str, Callable[[], bool | str]]]  # kinds of damage, and what tries what was damaged
CONFIG = Config.load(None, ["method=shared_mlp", "head.hidden=4", "training.epochs=3", "training.batch_size=64"])
OTHER = Config.load(None, ["method=shared_mlp", "head.hidden=4", "training.epochs=3", "training.seed=1"])
DECLARED = ("config.toml", "metrics.jsonl", "checkpoint.pt", "report.json", "DONE", "curves.png")
WAYS = ("gone", "of another run", "half", "empty", "a folder", "bytes", "bytes", "bytes")
ODD = [None, 0, -1, 1.5, float("nan"), 2**70, "", "é", [], {}, torch.ones(1), torch.ones(2, 2).to_sparse(), b"x"]


def stores(folder: Path, generator: np.random.Generator) -> Mutations:
    """Stores; a fifth of them are sealed again, and whatever is accepted of these obeys the schema."""
    path, store = folder / "mutated.h5", make_store(folder / "s.h5", classes=2, train=4, test=3)
    content, expected = store.path.read_bytes(), _content_of(store.path)
    for number in itertools.count():
        if number % 5 == 4:
            part = "header" if generator.random() < 0.7 else "facts"
            kind, damaged = "sealed again", resealed(content, **{part: lambda value: edited(value, generator)})
        elif number % 5 == 3:
            kind, damaged = flipped(content, store.places, generator)
        else:
            kind, damaged = mutated(content, generator)
        path.write_bytes(damaged)

        def act(verify: bool = number % 2 == 0, kind: str = kind) -> bool | str:
            if verify:
                FeatureStore.open(path).verify()
            return _content_of(path) == expected or (kind == "sealed again" and "fits the schema")

        yield kind, act


def _content_of(path: Path) -> dict[str, Any]:
    """All that a store says to whoever uses it."""
    store = FeatureStore.open(path)
    n = store.places["features"].shape[1]
    arrays = {name: hashlib.sha256(store.array(name).tobytes()).hexdigest() for name in store.places}
    return {"header": store.header, "shapes": str(store.places), "names": store.names(range(n)), **arrays}


def weights(folder: Path, generator: np.random.Generator) -> Mutations:
    """Torch's zip files of weights. They are a few KB, so that half of all flips strike the zip file's own bytes."""
    path = folder / "w.pth"

    def network() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 16, 3))

    expected = network().state_dict()
    torch.save(expected, path)
    content = path.read_bytes()
    whole = {"the file": ArrayPlace("|u1", (len(content),), 0)}

    def act() -> bool:
        module = network()
        load_weights(module, "net", path)
        return all(torch.equal(value, expected[key]) for key, value in module.state_dict().items())

    for number in itertools.count():
        kind, damaged = mutated(content, generator) if number % 2 else flipped(content, whole, generator)
        path.write_bytes(damaged)
        yield kind, act


class Runs:
    """A store, a finished run, one that was killed, and one of another seed."""

    def __init__(self, folder: Path):
        self.store = make_store(folder / "s.h5")
        self.finished, self.begun, self.other = (folder / name for name in ("finished", "begun", "other"))
        _fit(self.store, self.finished)
        _fit(self.store, self.other, OTHER)
        with killed_after_two_epochs():
            _fit(self.store, self.begun)
        self.sound = result_of(self.finished)

    def completes(self, run: Path, store: FeatureStore | None = None) -> bool:
        """Whether the command that began a run makes the sound result of it."""
        _fit(store or self.store, run)
        return result_of(run) == self.sound


def _fit(store: FeatureStore, run: Path, config: Config = CONFIG) -> None:
    fit(config, store, run, lambda line: None)


def checkpoints(folder: Path, generator: np.random.Generator) -> Mutations:
    """Checkpoints of an unfinished run; a quarter of them are edited and sealed again."""
    runs, path = Runs(folder), folder / "checkpoint.pt"
    original = runs.begun / "checkpoint.pt"
    before = str(load_checkpoint(original))

    def near(value: Any) -> list[Any]:
        """Tensors that are almost this one."""
        if not isinstance(value, torch.Tensor):
            return []
        return [value.double(), value.flatten()[:1], value.new_zeros(3, 3), value.to("meta"), value[None]]

    def goes_on() -> str:
        """Whoever seals may say what he likes, but it must be refused, or training must go on with it."""
        run = Path(shutil.copytree(runs.begun, folder / "sealed"))
        try:
            shutil.copy(path, run / "checkpoint.pt")
            _fit(runs.store, run)
        finally:
            shutil.rmtree(run)
        return "goes on"

    for number in itertools.count():
        if number % 4 == 3:
            buffer = io.BytesIO()
            torch.save(edited(torch.load(original, weights_only=True), generator, ODD, near), buffer)
            path.write_bytes(seal(buffer.getvalue()))
            yield "edited and sealed again", goes_on
        else:
            kind, damaged = mutated(original.read_bytes(), generator)
            path.write_bytes(damaged)
            yield kind, lambda: str(load_checkpoint(path)) == before


def folders(folder: Path, generator: np.random.Generator) -> Mutations:
    """Run folders in which one or two files are damaged: the command that began them is given, or they are compared."""
    runs = Runs(folder)
    while True:
        original = runs.finished if generator.random() < 0.5 else runs.begun
        run = Path(shutil.copytree(original, folder / "damaged"))
        names = [name for name in DECLARED if (run / name).is_file()]
        for _ in range(1 + int(generator.random() < 0.3)):
            way = str(generator.choice(WAYS))
            _damage(run / str(generator.choice(names)), way, runs.other, generator)
        yield f"{original.name}, {way}", lambda: runs.completes(run)  # noqa: B023
        if RunFolder(run).is_done:
            yield f"compare, {original.name}, {way}", lambda: bool(load_run(run)) and result_of(run) == runs.sound  # noqa: B023
        shutil.rmtree(run)


def _damage(path: Path, way: str, other: Path, generator: np.random.Generator) -> None:
    content = path.read_bytes() if path.is_file() else b""
    if path.is_file():
        path.unlink()
    if way == "of another run" and (other / path.name).is_file():
        shutil.copy(other / path.name, path)
    elif way == "a folder":
        path.mkdir(exist_ok=True)
    elif way in ("half", "empty", "bytes") and not path.is_dir():
        cut = content[: len(content) // 2] if way == "half" else b""
        path.write_bytes(mutated(content, generator)[1] if way == "bytes" and content else cut)


def trained(folder: Path, generator: np.random.Generator) -> Mutations:
    """Stores with a flipped bit in an array, from which is trained; every third time a run that is begun goes on."""
    runs, path, run = Runs(folder), folder / "damaged.h5", folder / "run"

    def act() -> bool | str:
        try:
            return runs.completes(run, FeatureStore.open(path))
        except UserError:
            if (run / "DONE").exists() and result_of(run) != runs.sound:
                return "ACCEPTED: a report of a damaged store is sealed"
            raise

    for number in itertools.count():
        what, damaged = flipped(runs.store.path.read_bytes(), runs.store.places, generator)
        path.write_bytes(damaged)
        if number % 3 == 0:
            shutil.copytree(runs.begun, run)
        yield what, act
        shutil.rmtree(run, ignore_errors=True)


def finds(folder: Path, generator: np.random.Generator) -> Mutations:
    """Stores with a flipped bit in an array, audited."""
    path, out, store = folder / "audited.h5", folder / "audit", make_store(folder / "s.h5")

    def audit() -> dict[str, bytes]:
        """What an audit of the store writes. Raises UserError with what the command says where it refuses."""
        shutil.rmtree(out, ignore_errors=True)
        result = CliRunner().invoke(find, ["audit", str(path), "--out", str(out)])
        if result.exit_code == UserError.exit_code:
            raise UserError(result.output)
        if result.exit_code:
            raise RuntimeError(result.output) from result.exception
        return {name: (out / name).read_bytes() for name in ("findings.csv", "findings.json", "index.html")}

    shutil.copy(store.path, path)
    expected = audit()
    while True:
        what, damaged = flipped(store.path.read_bytes(), store.places, generator)
        path.write_bytes(damaged)
        yield what, lambda: audit() == expected


KINDS = {kind.__name__: kind for kind in (stores, weights, checkpoints, folders, trained, finds)}


@click.command()
@click.argument("kind", type=click.Choice(list(KINDS)))
@click.option("--count", default=1000, show_default=True, help="Mutations.")
@click.option("--seed", default=0, show_default=True)
def main(kind: str, count: int, seed: int) -> None:
    """Mutate files of one kind, and count what is made of them."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    matplotlib.figure.Figure.savefig = lambda _, file, **options: file.write(b"a picture")  # type: ignore[method-assign]
    counts = Counts()
    with tempfile.TemporaryDirectory() as folder:
        for what, act in itertools.islice(KINDS[kind](Path(folder), np.random.default_rng(seed)), count):
            counts[f"{judge(what, act)}: {what}"] += 1
    report(counts)


if __name__ == "__main__":
    main()
