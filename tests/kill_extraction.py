"""Kill an extraction, at random moments and at system calls, and see what the next command makes of what is left.

`python -m tests.kill_extraction --count 300` counts.
"""

import shutil
import signal
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import torch

import extract.pipeline  # noqa: F401
from common.errors import UserError
from common.store import FeatureStore
from common.synthetic import make_images
from extract.cli import main as extract_main
from tests.victims import LAST, Counts, Victim, calls_of, report

OPTIONS = ["--weights", "random", "--image-size", "32", "--batch-size", "4", "--engine", "torch"]


@click.command()
@click.option("--count", default=300, show_default=True, help="Kills.")
@click.option("--seed", default=0, show_default=True)
def main(count: int, seed: int) -> None:
    """Kill extractions; count what was left, and what the next command made of it."""
    torch.set_num_threads(1)
    generator = np.random.default_rng(seed)
    counts = Counts()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        root, place, trace = make_images(base / "images", classes=2, train=12, test=10), base / "stores", base / "trace"
        store = place / "s.h5"
        place.mkdir()

        def start() -> Victim:
            command = ["features", "--dataset", "imagefolder", "--root", root, "--store", store, *OPTIONS]
            return Victim(extract_main, command, base / "log")

        started = time.monotonic()
        if (first := start()).finish() != 0:
            raise UserError(f"it does not work without a kill: {first.said}")
        seconds, expected, calls = time.monotonic() - started, store.read_bytes(), []
        if shutil.which("strace"):
            store.unlink()
            process = start()
            process.strike(trace)
            process.finish()
            calls = calls_of(trace)
        click.echo(f"one run: {seconds:.1f} s, {len(calls)} system calls")
        kills = 0
        while kills < count:
            shutil.rmtree(place)
            place.mkdir()
            for _ in range(int(generator.integers(1, 4))):
                process, at_a_call = start(), bool(calls and kills % 2)
                if at_a_call:
                    some = calls if kills % 4 == 1 else calls[-LAST:]
                    process.strike(trace, *some[int(generator.integers(len(some)))])
                    code = process.finish()
                else:
                    code = process.finish(float(generator.uniform(0, 1.1 * seconds)))
                killed = code == -signal.SIGKILL
                kills += killed
                how = "system call" if at_a_call else "random time"
                counts[f"{how}: " + ("killed" if killed else f"ended before, exit code {code}")] += 1
                if store.exists():
                    FeatureStore.open(store).verify()
                    counts["after a kill: complete" if killed else "without one: complete"] += 1
                elif killed:
                    counts["after a kill: not there"] += 1
            click.echo(f"{kills} of {count} kills", err=True)
            counts[f"next command: exit code {start().finish()}"] += 1
            left = sorted(path.name for path in place.iterdir())
            same = store.exists() and store.read_bytes() == expected
            counts["next command: " + ("same bytes" if same else "OTHER BYTES")] += 1
            counts["next command: " + ("no leftovers" if left == ["s.h5"] else f"LEFTOVERS {left}")] += 1
    report(counts)


if __name__ == "__main__":
    main()
