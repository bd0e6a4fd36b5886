"""Kill training again and again, at random and at system-call boundaries, and see whether anything is lost.

`python -m tests.kill_training --kills 100` counts. Each run folder is killed a few times and then completed by the same
command: its weights and metrics must be those of a run that nobody killed, and nothing else may be left in the folder.
System-call boundaries need strace: the process gets SIGKILL at its K-th write, fsync, rename, …
"""

import collections
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import click
import torch

import train.fit
from common.command_line import stoppable
from common.synthetic import make_store
from train.cli import main as train

EPOCHS, CHAIN, LIMIT = 12, 4, 10.0
LAST = 30  # system calls, in which a run is completed: half of the kills at calls strike there
TINY = ["method=shared_mlp", "head.hidden=4", f"training.epochs={EPOCHS}", "training.batch_size=64"]
CALLS = ("write", "fsync", "rename", "openat", "unlink", "mkdir", "flock", "close", "rmdir")
FILES = {"config.toml", "metrics.jsonl", "checkpoint.pt", "report.json", "DONE", "curves.png", "mistakes.png"}


class Child:
    """`python -m train …` in a process of its own, forked from this one, which has imported all: that saves seconds."""

    def __init__(self, arguments: list[str], said: Path):
        self.said, (waits, self._gate) = said, os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid:
            os.close(waits)
            return
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        os.dup2(2, 1)
        code: object = 99
        try:
            with stoppable():
                os.read(waits, 1)
                train(arguments)
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code if isinstance(code, int) else 0)

    def go(self) -> None:
        os.write(self._gate, b"!")
        os.close(self._gate)

    def traced(self, *options: str) -> subprocess.Popen:
        """strace, attached."""
        tracer = subprocess.Popen(["strace", "-f", "-qq", *options, "-p", str(self.pid)], stderr=subprocess.DEVNULL)
        while "TracerPid:\t0\n" in Path(f"/proc/{self.pid}/status").read_text():
            time.sleep(0.005)
        return tracer

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)  # not waited for yet, so the number is still its own

    def end(self) -> tuple[int, str]:
        """The exit code (-9 for SIGKILL), and what it said."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return code, self.said.read_text(errors="replace")


class Campaign:
    """One store, the run that nobody killed, and the counts."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.random = folder, random.Random(seed)
        self.store = make_store(folder / "s.h5").path
        self.counts: collections.Counter[str] = collections.Counter()
        started = time.monotonic()
        self.complete(folder / "whole")
        self.seconds = time.monotonic() - started
        self.sound = result_of(folder / "whole")
        self.boundaries = self.events() if shutil.which("strace") else []

    def start(self, run: Path) -> "Child":
        """A process that is ready to train, and waits."""
        settings = [part for setting in TINY for part in ("--set", setting)]
        return Child(["fit", "--store", str(self.store), "--run", str(run), *settings], self.folder / "said")

    def complete(self, run: Path) -> None:
        child = self.start(run)
        child.go()
        code, said = child.end()
        self.look(said)
        if code:
            self.counts["LOST: the same command does not go on"] += 1
            click.echo(said, err=True)

    def look(self, text: str) -> None:
        if "Traceback" in text or "Exception ignored" in text:
            self.counts["TRACEBACK"] += 1
            click.echo(text, err=True)

    def events(self) -> list[tuple[str, int]]:
        """(system call, its number among its like) of the main thread while it trains."""
        log, numbers, events = self.folder / "trace", collections.Counter[str](), []
        child = self.start(self.folder / "traced")
        tracer = child.traced("-o", str(log), "-e", f"trace={','.join(CALLS)}")
        child.go()
        child.end()
        tracer.wait()
        for line in log.read_text(errors="replace").splitlines():
            found = re.match(rf"{child.pid} +(\w+)\(", line)
            if found:
                numbers[found[1]] += 1
                events.append((found[1], numbers[found[1]]))
        return events

    def stop(self, run: Path, way: str) -> None:
        """Run the command and end it in some `way`: at random by a signal, or at a system call by SIGKILL."""
        child = self.start(run)
        if way == "system call":
            some = self.boundaries if self.random.random() < 0.5 else self.boundaries[-LAST:]
            call, number = self.random.choice(some)
            tracer = child.traced("-o", "/dev/null", "-e", f"inject={call}:signal=KILL:when={number}")
            child.go()
            code, said = child.end()
            tracer.wait()
            self.counts[f"{way}: {'killed' if code else 'completed before'}"] += 1
            self.look(said)
            return
        child.go()
        time.sleep(self.random.uniform(0, self.seconds))
        sent = time.monotonic()
        child.signal(signal.Signals[way])
        code, said = child.end()
        self.counts["HANG"] += time.monotonic() - sent > LIMIT
        self.look(said)
        wanted = {"SIGKILL": -9, "SIGINT": 130, "SIGTERM": 143}[way]
        if code == 0:
            self.counts[f"{way}: completed before"] += 1
        elif code == wanted and (way == "SIGKILL" or said.count("run the same command again") == 1):
            self.counts[f"{way}: exit {code}"] += 1
        else:
            self.counts[f"WRONG END by {way}: {code}"] += 1
            click.echo(said, err=True)

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
    for what, count in sorted(campaign.counts.items()):
        click.echo(f"{count:6}  {what}")
    sys.exit(any(count for what, count in campaign.counts.items() if what.split()[0].strip(":").isupper()))


if __name__ == "__main__":
    main()
