"""Kill an extraction, at random moments and at system calls, and see what the next command makes of what is left.

`python -m tests.kill_extraction --count 300` counts. Each victim is forked from a process that has imported everything
and computed nothing, so that a kill strikes the work and not the import.
"""

import collections
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np

from common.errors import UserError
from common.store import FeatureStore

CALLS = "openat,close,write,pwrite64,lseek,fsync,fallocate,ftruncate,rename,link,unlink,mkdir,rmdir,flock"
OPTIONS = ["--weights", "random", "--image-size", "32", "--batch-size", "4", "--engine", "torch"]
LIMIT = 300  # seconds
LAST = 40  # system calls, in which a store is put in place and cleared up after: half of the kills at calls


def start(root: Path, store: Path, log: Path) -> int:
    """Fork a process that stops itself, then extracts; its number."""
    process = os.fork()
    if process:
        os.waitid(os.P_PID, process, os.WSTOPPED)
        return process
    code = 70
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.kill(os.getpid(), signal.SIGSTOP)
        from extract.cli import main

        command = ["features", "--dataset", "imagefolder", "--root", str(root), "--store", str(store), *OPTIONS]
        main(command, standalone_mode=True)
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def finish(process: int, seconds: float = LIMIT) -> int:
    """Let a process run, but not longer than `seconds`; its exit code, negative for a signal."""
    os.kill(process, signal.SIGCONT)
    left, last = seconds, time.monotonic()
    while left > 0:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
        now = time.monotonic()
        left, last = left - min(now - last, 1), now  # a pause of this very process does not count
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def traced(
    process: int, log: Path, call: str = CALLS, number: int = 65535, fault: str = "signal=SIGKILL"
) -> subprocess.Popen:
    """An strace on a stopped process that does `fault` to it, or to a thread of it, at its call `number` of `call`."""
    inject = f"inject={call}:{fault}:when={number}"
    command = ["strace", "-f", "-y", "-o", str(log), "-e", f"trace={CALLS}", "-e", inject, "-p", str(process)]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert tracer.stderr is not None
    line = tracer.stderr.readline()
    if "attached" not in line:
        os.kill(process, signal.SIGKILL)
        raise UserError(f"strace cannot attach here: {line.strip()}")
    return tracer


def calls_of(log: Path, about: str = "") -> list[tuple[str, int]]:
    """Each system call of a trace whose line has `about`: its name, and the how-manieth of it it is in its thread."""
    seen: collections.Counter[tuple[str, str]] = collections.Counter()
    calls = []
    for thread, name, rest in re.findall(r"^(\d+) +(\w+)\((.*)", log.read_text(errors="replace"), re.MULTILINE):
        seen[thread, name] += 1
        if about in rest:
            calls.append((name, seen[thread, name]))
    return calls


@click.command()
@click.option("--count", default=300, show_default=True, help="Kills.")
@click.option("--seed", default=0, show_default=True)
def main(count: int, seed: int) -> None:
    """Kill extractions; count what was left, and what the next command made of it."""
    import torch

    import extract.pipeline  # noqa: F401
    from common.synthetic import make_images

    torch.set_num_threads(1)
    generator = np.random.default_rng(seed)
    counts: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        root, place, log = make_images(base / "images", classes=2, train=12, test=10), base / "stores", base / "log"
        store = place / "s.h5"
        place.mkdir()
        started = time.monotonic()
        if finish(start(root, store, log)) != 0:
            raise UserError(f"it does not work without a kill: {log.read_text()}")
        seconds, expected = time.monotonic() - started, store.read_bytes()
        calls = []
        if shutil.which("strace"):
            shutil.rmtree(place)
            place.mkdir()
            process = start(root, store, log)
            tracer = traced(process, base / "trace")
            finish(process)
            tracer.wait()
            calls = calls_of(base / "trace")
        click.echo(f"one run: {seconds:.1f} s, {len(calls)} system calls")
        kills = 0
        while kills < count:
            shutil.rmtree(place)
            place.mkdir()
            for _ in range(int(generator.integers(1, 4))):
                process, tracer = start(root, store, log), None
                if calls and kills % 2:
                    some = calls if kills % 4 == 1 else calls[-LAST:]
                    tracer = traced(process, base / "trace", *some[int(generator.integers(len(some)))])
                    code = finish(process)
                    tracer.wait()
                else:
                    code = finish(process, float(generator.uniform(0, 1.1 * seconds)))
                how = "system call" if tracer else "random time"
                killed = code == -signal.SIGKILL
                kills += killed
                counts[f"{how}: " + ("killed" if killed else f"ended before, exit code {code}")] += 1
                if store.exists():
                    FeatureStore.open(store).verify()
                    counts["after a kill: complete" if killed else "without one: complete"] += 1
                elif killed:
                    counts["after a kill: not there"] += 1
            click.echo(f"{kills} of {count} kills", err=True)
            code = finish(start(root, store, log))
            counts[f"next command: exit code {code}"] += 1
            left = sorted(path.name for path in place.iterdir())
            same = store.exists() and store.read_bytes() == expected
            counts["next command: " + ("same bytes" if same else "OTHER BYTES")] += 1
            counts["next command: " + ("no leftovers" if left == ["s.h5"] else f"LEFTOVERS {left}")] += 1
    for what, n in sorted(counts.items()):
        click.echo(f"{what:45}{n:6}")
    sys.exit(any(word.isupper() for what in counts for word in what.split()))


if __name__ == "__main__":
    main()
