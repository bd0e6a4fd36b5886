"""Damaged checkpoints, run folders and stores: what training and finding make of them.

`python -m tests.mutate_runs --checkpoints 2000 --folders 300 --stores 300 --finds 300` counts. A damaged
checkpoint must be refused, or hold what it held; a damaged folder or store must be refused, or end as the run or the
audit of what nobody damaged.
"""

import contextlib
import io
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import matplotlib.figure
import numpy as np
import torch
from click.testing import CliRunner

from common.errors import UserError
from common.store import FeatureStore
from common.synthetic import make_store
from find.cli import main as find
from tests.kill_training import result_of
from tests.mutate import edited, flipped, judge, mutated
from tests.victims import Counts, report
from train.checkpoint import load_checkpoint, load_state, require_fitting, seal
from train.config import Config
from train.fit import fit
from train.log.runs import load_run
from train.run_folder import RunFolder

CONFIG = Config.load(None, ["method=shared_mlp", "head.hidden=4", "training.epochs=3", "training.batch_size=64"])
OTHER = Config.load(None, ["method=shared_mlp", "head.hidden=4", "training.epochs=3", "training.seed=1"])
DECLARED = ("config.toml", "metrics.jsonl", "checkpoint.pt", "report.json", "DONE", "curves.png")


class Killed(BaseException):
    """The end of an unfinished run."""


def quiet(_: str) -> None:
    """Say nothing."""


ODD = [None, 0, -1, 1.5, float("nan"), 2**70, "", "é", [], {}, torch.ones(1), torch.ones(2, 2).to_sparse(), b"x"]


def near(value: Any) -> list[Any]:
    """Tensors that are almost this one."""
    if not isinstance(value, torch.Tensor):
        return []
    return [value.double(), value.flatten()[:1], value.new_zeros(3, 3), value.to("meta"), value[None]]


class Campaign:
    """The sound runs, and the counts."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.generator = folder, np.random.default_rng(seed)
        self.counts = Counts()
        self.store = make_store(folder / "s.h5")
        self.finished, self.begun, self.other = folder / "finished", folder / "begun", folder / "other"
        fit(CONFIG, self.store, self.finished, quiet)
        fit(OTHER, self.store, self.other, quiet)
        with contextlib.suppress(Killed):
            fit(CONFIG, self.store, self.begun, self._kill)
        self.sound = result_of(self.finished)
        self.found: dict[str, bytes] = {}

    def _kill(self, line: str) -> None:
        if line.startswith("epoch   2"):
            raise Killed

    def judge(self, what: str, act: Callable[[], bool]) -> None:
        """Count what `act` came to: it says whether all is as it was."""
        verdict = judge(what, lambda: "as if undamaged" if act() else "ACCEPTED")
        self.counts[f"{verdict}: {what}"] += 1

    def checkpoint(self, number: int) -> None:
        """Damage the checkpoint of an unfinished run; or edit its content and seal it again."""
        path = self.folder / "mutated/checkpoint.pt"
        path.parent.mkdir(exist_ok=True)
        original = self.begun / "checkpoint.pt"
        if number % 4 == 3:
            content = edited(load_checkpoint(original), self.generator, ODD, near)
            buffer = io.BytesIO()
            torch.save(content, buffer)
            path.write_bytes(seal(buffer.getvalue()))
            self.judge("checkpoint, edited and sealed again", lambda: self._goes_on(path))
            return
        kind, damaged = mutated(original.read_bytes(), self.generator)
        path.write_bytes(damaged)
        before = str(load_checkpoint(original))
        self.judge(f"checkpoint, {kind}", lambda: str(load_checkpoint(path)) == before)

    def _goes_on(self, path: Path) -> bool:
        """Whoever seals may say what he likes, but it must be refused, or training must go on with it."""
        progress = load_state(path, CONFIG, self.store.identity_sha256)
        require_fitting(path, progress, CONFIG, 16, 4)
        run = Path(shutil.copytree(self.begun, self.folder / "sealed"))
        try:
            shutil.copy(path, run / "checkpoint.pt")
            fit(CONFIG, self.store, run, quiet)
        finally:
            shutil.rmtree(run)
        return True

    def damaged_folder(self) -> None:
        """Damage one or two files of a run, and give the command that began it, or compare."""
        kinds = {"finished": self.finished, "begun": self.begun}
        kind = str(self.generator.choice(list(kinds)))
        run = Path(shutil.copytree(kinds[kind], self.folder / "damaged"))
        ways = ["gone", "of another run", "half", "empty", "a folder", "bytes", "bytes", "bytes"]
        names = [name for name in DECLARED if (run / name).is_file()]
        for _ in range(1 + int(self.generator.random() < 0.3)):
            name, way = str(self.generator.choice(names)), str(self.generator.choice(ways))
            self._damage(run / name, way)
        self.judge(f"run, {kind}, {way}", lambda: self._completes(run))
        if RunFolder(run).is_done:
            self.judge(f"compare, {kind}, {way}", lambda: bool(load_run(run)) and result_of(run) == self.sound)
        shutil.rmtree(run)

    def damaged_store(self, number: int) -> None:
        """Flip a bit in an array of the store, and train from it; every third time a run that is begun goes on."""
        path, run = self.folder / "damaged.h5", self.folder / "from_damaged"
        what, damaged = flipped(self.store.path.read_bytes(), self.store.places, self.generator)
        path.write_bytes(damaged)
        if number % 3 == 0:
            shutil.copytree(self.begun, run)
        self.judge(f"store, {what}", lambda: self._completes(run, FeatureStore.open(path)))
        if (run / "DONE").exists() and result_of(run) != self.sound:
            self.counts["ACCEPTED: a report of a damaged store is sealed"] += 1
        shutil.rmtree(run, ignore_errors=True)

    def damaged_find(self) -> None:
        """Flip a bit in an array of the store, and audit it."""
        if not self.found:
            self.found = self._finds(self.store.path.read_bytes())
        what, damaged = flipped(self.store.path.read_bytes(), self.store.places, self.generator)
        self.judge(f"find, {what}", lambda: self._finds(damaged) == self.found)

    def _finds(self, content: bytes) -> dict[str, bytes]:
        """What an audit of such a store writes. Raises UserError with what the command says where it refuses."""
        path, out = self.folder / "audited.h5", self.folder / "audit"
        path.write_bytes(content)
        shutil.rmtree(out, ignore_errors=True)
        result = CliRunner().invoke(find, ["audit", str(path), "--out", str(out)])
        if result.exit_code == UserError.exit_code:
            raise UserError(result.output)
        if result.exit_code:
            raise RuntimeError(result.output) from result.exception
        return {name: (out / name).read_bytes() for name in ("findings.csv", "findings.json", "index.html")}

    def _damage(self, path: Path, way: str) -> None:
        content = path.read_bytes() if path.is_file() else b""
        path.unlink() if path.is_file() else None
        if way == "of another run" and (self.other / path.name).is_file():
            shutil.copy(self.other / path.name, path)
        elif way == "a folder":
            path.mkdir(exist_ok=True)
        elif way in ("half", "empty", "bytes") and not path.is_dir():
            cut = content[: len(content) // 2] if way == "half" else b""
            path.write_bytes(mutated(content, self.generator)[1] if way == "bytes" and content else cut)

    def _completes(self, run: Path, store: FeatureStore | None = None) -> bool:
        fit(CONFIG, store or self.store, run, quiet)
        return result_of(run) == self.sound


@click.command()
@click.option("--checkpoints", default=2000, show_default=True, help="Mutated checkpoints of unfinished runs.")
@click.option("--folders", default=300, show_default=True, help="Damaged run folders.")
@click.option("--stores", default=300, show_default=True, help="Stores with a flipped bit in an array.")
@click.option("--finds", default=300, show_default=True, help="Stores with a flipped bit in an array, audited.")
@click.option("--seed", default=0, show_default=True)
def main(checkpoints: int, folders: int, stores: int, finds: int, seed: int) -> None:
    """Damage checkpoints, run folders and stores, and count what is made of them."""
    torch.set_num_threads(1)
    matplotlib.figure.Figure.savefig = lambda _, file, **options: file.write(b"a picture")  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(Path(folder), seed)
        for number in range(checkpoints):
            campaign.checkpoint(number)
        for _ in range(folders):
            campaign.damaged_folder()
        for number in range(stores):
            campaign.damaged_store(number)
        for _ in range(finds):
            campaign.damaged_find()
    report(campaign.counts)


if __name__ == "__main__":
    main()
