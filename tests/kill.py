"""Stop extractions, trainings and finds again and again, and see what the same command makes of what is left.

`python -m tests.kill training --kills 300` kills at random times and, where strace is, at system calls; `--stops` sends
SIGINT and SIGTERM; `--errors` lets system calls that write fail. What the same command makes in the end must be as if
nothing had been. The images of a find are not judged: what is tried is what happens to its page, tables and copies.
"""

import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

import extract.pipeline  # noqa: F401
import find.auditing
import find.cli
import find.output
import train.fit  # noqa: F401
from common.errors import UserError
from common.store import FeatureStore
from common.synthetic import make_images, make_store
from extract.cli import main as extract_main
from tests.fabricate import make_findings, make_pictures, result_of
from tests.victims import Counts, Victim, calls_of, report
from train.cli import main as train_main

SLACK = 10.0  # seconds in which a command that is stopped ends
LAST = 40  # system calls, in which work is put in place and cleared up after: half of the kills at calls
WRITING = {"openat", "write", "fsync", "rename", "link", "mkdir"}
ERRORS = ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EIO", "ENAMETOOLONG")
# For each way to stop a command, its exit code, and what it then says once
ENDS = {
    "SIGKILL": (-signal.SIGKILL, None),
    "SIGINT": (130, "the same command"),
    "SIGTERM": (143, "the same command"),
    "system call": (-signal.SIGKILL, None),
    "write error": (UserError.exit_code, "Error: "),
}


class Campaign:
    """A command that writes into the folder `out`, what it makes undisturbed, and the counts."""

    main: Callable
    chain = 1  # so many stops at most before the command may complete

    def __init__(self, base: Path, seed: int):
        self.base, self.out, self.trace = base, base / "out", base / "trace"
        self.generator, self.counts = np.random.default_rng(seed), Counts()
        self.command = self.prepare()
        self.out.mkdir()
        started, whole = time.monotonic(), self.start()
        if whole.finish() != 0:
            raise UserError(f"it does not work without a kill: {whole.said}")
        self.seconds, self.expected, self.calls = time.monotonic() - started, self.result(), []
        if shutil.which("strace"):
            self.clear()
            traced = self.start()
            traced.strike(self.trace)
            traced.finish()
            self.calls = calls_of(self.trace, str(self.out))
        click.echo(f"one run: {self.seconds:.1f} s, {len(self.calls)} system calls on what it writes")

    def prepare(self) -> list[Any]:
        """Make what the command needs, and give its arguments."""
        raise NotImplementedError

    def result(self) -> dict[str, Any]:
        """What is to be equal in equal results, by the names of the files."""
        return tree(self.out)

    def look(self, victim: Victim, code: int) -> str:
        """What is wrong after a command that ended so, in capitals."""
        return ""

    def is_equal(self, victim: Victim, found: dict[str, Any]) -> bool:
        """Whether this is the result of an undisturbed command."""
        return found == self.expected

    def start(self) -> Victim:
        return Victim(type(self).main, self.command, self.base / "log")

    def clear(self) -> None:
        shutil.rmtree(self.out)
        self.out.mkdir()

    def run(self, ways: list[str]) -> None:
        """Stop the command in these ways, in chains of random lengths, and complete it after each chain."""
        self.generator.shuffle(ways)
        while ways:
            self.clear()
            for _ in range(min(len(ways), int(self.generator.integers(1, self.chain + 1)))):
                self.stop(ways.pop())
            self.complete()
            click.echo(f"{len(ways)} stops to go", err=True)

    def stop(self, way: str) -> None:
        """Stop the command in some way, at a random moment."""
        victim, seconds, expected, sentence = self.start(), 0.0, *ENDS[way]
        if way.startswith("SIG"):
            seconds, started = float(self.generator.uniform(0, 1.1 * self.seconds)), time.monotonic()
            code = victim.finish(seconds, signal.Signals[way])
            self.counts[f"{way}: HANG"] += time.monotonic() - started > seconds + SLACK
        else:
            victim.strike(self.trace, *self.choose(way))
            code = victim.finish()
        struck = code == expected
        self.counts[f"{way}: {f'exit code {code}' if code else 'completed before'}"] += 1
        self.counts[f"{way}: WRONG END {victim.said[-300:]}"] += code != 0 and not struck
        if struck and sentence:
            self.counts[f"{way}: NO SENTENCE {victim.said[-300:]}"] += victim.said.count(sentence) != 1
        self.count_wrong(way, victim, code)

    def choose(self, way: str) -> tuple[str, int, str]:
        """A system call, its number among its like, and what happens at it."""
        if way == "write error":
            some = [call for call in self.calls if call[0] in WRITING]
            fault = f"error={self.generator.choice(ERRORS)}"
        else:
            some = self.calls[-LAST:] if self.generator.random() < 0.5 else self.calls
            fault = "signal=SIGKILL"
        return *some[int(self.generator.integers(len(some)))], fault

    def complete(self) -> None:
        """Give the same command, and compare what it makes."""
        way, victim = "the same command", self.start()
        code = victim.finish()
        self.count_wrong(way, victim, code)
        found = self.result()
        if self.is_equal(victim, found):
            self.counts[f"{way}: as if nobody had stopped it, exit code {code}"] += 1
        else:
            other = sorted(x for x in {*found, *self.expected} if found.get(x) != self.expected.get(x))
            self.counts[f"{way}: LOST OR LEFT {other}, exit code {code}: {victim.said[-300:]}"] += 1

    def count_wrong(self, way: str, victim: Victim, code: int) -> None:
        if "Traceback" in victim.said or "Exception ignored" in victim.said:
            self.counts[f"{way}: TRACEBACK {victim.said[-600:]}"] += 1
        if wrong := self.look(victim, code):
            self.counts[f"{way}: {wrong}"] += 1


class Extraction(Campaign):
    """An extraction of small images. What a kill leaves is no store, or a sound one."""

    main, chain = extract_main, 3

    def prepare(self) -> list[Any]:
        root = make_images(self.base / "images", classes=2, train=12, test=10)
        options = ["--weights", "random", "--image-size", "32", "--batch-size", "4", "--engine", "torch"]
        return ["features", "--dataset", "imagefolder", "--root", root, "--store", self.out / "s.h5", *options]

    def look(self, victim: Victim, code: int) -> str:
        try:
            if (self.out / "s.h5").exists():
                FeatureStore.open(self.out / "s.h5").verify()
        except UserError as error:
            return f"HALF WRITTEN: {error.message}"
        return ""


class Training(Campaign):
    """A training of twelve epochs, whose weights and metrics count."""

    main, chain = train_main, 4

    def prepare(self) -> list[Any]:
        store = make_store(self.base / "s.h5").path
        settings = ("method=shared_mlp", "head.hidden=4", "training.epochs=12", "training.batch_size=64")
        return ["fit", "--store", store, "--run", self.out, *(part for each in settings for part in ("--set", each))]

    def result(self) -> dict[str, Any]:
        names = dict.fromkeys((path.name for path in self.out.iterdir()), "")
        return names | ({"what was learnt": result_of(self.out)} if "DONE" in names else {})


class Find(Campaign):
    """An audit with a page, copies and a list. At any moment the images are as they were, and each file is whole."""

    main = find.cli.main
    names = tuple(f"{folder}/{i}.png" for folder in ("cat", "dog") for i in range(4))

    def prepare(self) -> list[Any]:
        """Pictures, their store, and an audit that flags the first half without looking."""
        make_pictures(self.base / "s.h5", self.base / "in", self.names)
        result = make_findings(self.names, flagged=len(self.names) // 2)
        find.auditing.audit = lambda *_, **__: result
        self.images = tree(self.base / "in")
        places = {"--out": "page", "--copy-to": "copies", "--list": "list"}
        options = [part for option, name in places.items() for part in (option, self.out / name)]
        return ["audit", self.base / "s.h5", "--root", self.base / "in", *options]

    def look(self, victim: Victim, code: int) -> str:
        if tree(self.base / "in") != self.images:
            return "LOST: an image is not as it was"
        now = tree(self.out)
        if code == 0 and now != self.expected:
            return "FALSELY ACCEPTED"
        other = [name for name, data in now.items() if name in self.expected and data != self.expected[name]]
        refused = "could not be copied" in victim.said or "holds copies already" in victim.said
        if refused and other == ["copies/copied.csv"]:  # the record says so, too
            return ""
        return f"HALF WRITTEN {other}" if other else ""

    def is_equal(self, victim: Victim, found: dict[str, Any]) -> bool:
        """Copies that are complete are not made again: what was only begun beside them is not completed either."""
        return found == self.expected or ("holds copies already" in victim.said and set(found) <= set(self.expected))


def tree(folder: Path) -> dict[str, bytes]:
    """The contents of all files below a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@click.command()
@click.argument("what", type=click.Choice(["extraction", "training", "find"]))
@click.option("--kills", default=300, show_default=True, help="By SIGKILL; half of them at system calls.")
@click.option("--stops", default=20, show_default=True, help="By SIGINT and by SIGTERM, each so many.")
@click.option("--errors", default=100, show_default=True, help="Write errors.")
@click.option("--seed", default=0, show_default=True)
def main(what: str, kills: int, stops: int, errors: int, seed: int) -> None:
    """Stop a command, and count what was left and what the same command made of it."""
    torch.set_num_threads(1)
    kind = {"extraction": Extraction, "training": Training, "find": Find}[what]
    with tempfile.TemporaryDirectory() as folder:
        campaign = kind(Path(folder), seed)
        at_calls = kills // 2 if campaign.calls else 0
        ways = ["system call"] * at_calls + ["SIGKILL"] * (kills - at_calls) + ["SIGINT", "SIGTERM"] * stops
        campaign.run(ways + ["write error"] * (errors if campaign.calls else 0))
    report(campaign.counts)


if __name__ == "__main__":
    main()
