"""Kill training again and again, at random and at system-call boundaries, and see whether anything is lost.

`python -m tests.kill_training --kills 100` counts. Each run folder is killed a few times and then completed by the same
command: its weights and metrics must be those of a run that nobody killed, and nothing else may be left in the folder.
"""

import json
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path

import click
import torch

import train.fit
from common.synthetic import make_store
from tests.victims import LAST, Counts, Victim, calls_of, report
from train.cli import main as train

EPOCHS, CHAIN, LIMIT = 12, 4, 10.0
TINY = ["method=shared_mlp", "head.hidden=4", f"training.epochs={EPOCHS}", "training.batch_size=64"]
FILES = {"config.toml", "metrics.jsonl", "checkpoint.pt", "report.json", "DONE", "curves.png", "mistakes.png"}


class Campaign:
    """One store, the run that nobody killed, and the counts."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.random = folder, random.Random(seed)
        self.store = make_store(folder / "s.h5").path
        self.counts = Counts()
        started = time.monotonic()
        self.complete(folder / "whole")
        self.seconds = time.monotonic() - started
        self.sound = result_of(folder / "whole")
        self.boundaries = self.events() if shutil.which("strace") else []

    def start(self, run: Path) -> Victim:
        """A process that is ready to train, and waits."""
        settings = [part for setting in TINY for part in ("--set", setting)]
        return Victim(train, ["fit", "--store", self.store, "--run", run, *settings], self.folder / "said")

    def complete(self, run: Path) -> None:
        process = self.start(run)
        code = process.finish()
        self.look(process.said)
        if code:
            self.counts["LOST: the same command does not go on"] += 1
            click.echo(process.said, err=True)

    def look(self, text: str) -> None:
        if "Traceback" in text or "Exception ignored" in text:
            self.counts["TRACEBACK"] += 1
            click.echo(text, err=True)

    def events(self) -> list[tuple[str, int]]:
        """(system call, its number among its like in its thread) of a training."""
        process = self.start(self.folder / "traced")
        process.strike(self.folder / "trace")
        process.finish()
        return calls_of(self.folder / "trace")

    def stop(self, run: Path, way: str) -> None:
        """Run the command and end it in some `way`: at random by a signal, or at a system call by SIGKILL."""
        process = self.start(run)
        if way == "system call":
            some = self.boundaries if self.random.random() < 0.5 else self.boundaries[-LAST:]
            process.strike(self.folder / "trace", *self.random.choice(some))
            code = process.finish()
            self.counts[f"{way}: {'killed' if code else 'completed before'}"] += 1
            self.look(process.said)
            return
        seconds, started = self.random.uniform(0, self.seconds), time.monotonic()
        code = process.finish(seconds, signal.Signals[way])
        self.counts["HANG"] += time.monotonic() - started > seconds + LIMIT
        self.look(process.said)
        wanted = {"SIGKILL": -9, "SIGINT": 130, "SIGTERM": 143}[way]
        if code == 0:
            self.counts[f"{way}: completed before"] += 1
        elif code == wanted and (way == "SIGKILL" or process.said.count("run the same command again") == 1):
            self.counts[f"{way}: exit {code}"] += 1
        else:
            self.counts[f"WRONG END by {way}: {code}"] += 1
            click.echo(process.said, err=True)

    def judge(self, run: Path) -> None:
        if result_of(run) != self.sound:
            self.counts["LOST: other weights or metrics"] += 1
        if {path.name for path in run.iterdir()} != FILES:
            self.counts["LEFTOVERS"] += 1
            click.echo(str(sorted(path.name for path in run.iterdir())), err=True)
        self.counts["runs completed, equal to the one that was not killed"] += result_of(run) == self.sound


def result_of(run: Path) -> str:
    """What has to be equal in equal runs."""
    content = torch.load(run / "checkpoint.pt", weights_only=True)
    report = json.loads((run / "report.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timeless = [[{k: v for k, v in r.items() if "seconds" not in k} for r in h] for h in (lines, content["history"])]
    head = {name: value.tolist() for name, value in content["head"].items()}
    return json.dumps([timeless, head, report["test"], report["val"], report["without_twins"], content["config"]])


@click.command()
@click.option("--kills", default=100, show_default=True, help="By SIGKILL; half of them at system calls.")
@click.option("--stops", default=20, show_default=True, help="By SIGINT and by SIGTERM, each so many besides.")
@click.option("--seed", default=0, show_default=True)
def main(kills: int, stops: int, seed: int) -> None:
    """Kill training and count what is lost."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(Path(folder), seed)
        at_calls = kills // 2 if campaign.boundaries else 0
        ways = ["system call"] * at_calls + ["SIGKILL"] * (kills - at_calls) + ["SIGINT", "SIGTERM"] * stops
        campaign.random.shuffle(ways)
        for number in range(0, len(ways), CHAIN):
            run = Path(folder) / f"run{number}"
            for way in ways[number : number + CHAIN]:
                campaign.stop(run, way)
            campaign.complete(run)
            campaign.judge(run)
    report(campaign.counts)


if __name__ == "__main__":
    main()
