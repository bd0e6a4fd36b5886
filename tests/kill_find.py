"""Kill finds, and let what they write fail, and see what is left and what the same command makes of it.

`python -m tests.kill_find --count 300` tries so many kills and as many write errors. The images are not judged: what is
tried is what happens to the page, its tables, the list and the copies. Needs strace.
"""

import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

import find.auditing
import find.cli
import find.output
from common.errors import UserError
from common.images import pixel_digest, read_image
from common.store_writer import name_arrays, write_store
from common.synthetic import make_header
from find.findings import Finding, Findings, Threshold, summarise
from find.findings import Image as ImageOfStore
from tests.victims import Counts, Victim, calls_of, report

ERRORS = ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EIO", "ENAMETOOLONG")
WRITING = {"openat", "write", "fsync", "rename", "link", "mkdir"}
NAMES = [f"{folder}/{i}.png" for folder in ("cat", "dog") for i in range(4)]


def start(base: Path) -> Victim:
    """A find that is about to begin."""
    out = base / "out"
    options = ["--out", out / "page", "--copy-to", out / "copies", "--list", out / "list", "--root", base / "in"]
    return Victim(find.cli.main, ["audit", base / "s.h5", *options], base / "log")


def prepare(base: Path) -> None:
    """Images, their store, and an audit that flags the first half without looking."""
    for number, name in enumerate(NAMES):
        (base / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (number, 0, 0)).save(base / "in" / name)
    n, names = len(NAMES), ["cat", "dog"]
    header = make_header(2, 8)
    header["class_names"] = header["identity"]["data_set"]["class_names"] = names
    arrays = {
        "features": np.random.default_rng(0).normal(size=(1, n, 8)).astype("<f4"),
        "labels": np.repeat([0, 1], n // 2),
        "image_index": np.arange(n),
        "split": np.zeros(n, np.uint8),
        "image_sha256": np.stack([np.frombuffer(pixel_digest(read_image(base / "in" / x)), np.uint8) for x in NAMES]),
        **name_arrays(NAMES),
    }
    write_store(base / "s.h5", header, arrays)
    typical = dict.fromkeys(names, tuple(ImageOfStore(i, NAMES[i]) for i in range(4)))
    answer = {"split": "train", "question": "foreign", "own": names[0], "probability": 0.9}
    found = [Finding(row=i, path=NAMES[i], q=i / n, flagged=i / n <= 0.4, **answer) for i in range(n)]
    candidates = Findings(
        mode="audit",
        findings=tuple(found),
        class_names=tuple(names),
        typical=typical,
        counts={"images": n},
        thresholds={"foreign": Threshold(0.4)},
    )
    result = summarise(candidates)
    find.auditing.audit = lambda *_, **__: result


def tree(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def look(base: Path, code: int, log: str, expected: dict[str, bytes], images: dict[str, bytes]) -> list[str]:
    """What is wrong after a find that ended so, in capitals."""
    now, wrong = tree(base / "out"), []
    if tree(base / "in") != images:
        wrong.append("LOST: an image is not as it was")
    refused = "could not be copied" in log  # which the record of the copies says, too
    different = [name for name, data in now.items() if name in expected and data != expected[name]]
    if different and not (refused and different == ["copies/copied.csv"]):
        wrong.append(f"HALF-WRITTEN {different}")
    if code == 0 and now != expected:
        wrong.append("FALSELY ACCEPTED")
    if "Traceback" in log or "Exception ignored" in log or code == 70:
        wrong.append(f"TRACEBACK {log[-600:]}")
    if code not in (0, 2, -signal.SIGKILL):
        wrong.append(f"EXIT CODE {code}")
    if code == 2 and not [line for line in log.splitlines() if line.startswith("Error: ")]:
        wrong.append("NO SENTENCE")
    return wrong


@click.command()
@click.option("--count", default=300, show_default=True, help="Kills, and as many write errors.")
@click.option("--seed", default=0, show_default=True)
def main(count: int, seed: int) -> None:
    """Kill finds and let their writing fail; count what was left, and what the next command made of it."""
    generator = np.random.default_rng(seed)
    counts = Counts()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        prepare(base)
        images, started = tree(base / "in"), time.monotonic()
        process = start(base)
        process.strike(base / "trace")
        if process.finish() != 0:
            raise UserError(f"it does not work without a fault: {process.said}")
        expected, seconds = tree(base / "out"), time.monotonic() - started
        calls = calls_of(base / "trace", f"{base}/out")
        click.echo(f"one run: {seconds:.1f} s, {len(calls)} system calls on what is written")
        for kind in ("kill", "write error"):
            tried = 0
            while tried < count:
                shutil.rmtree(base / "out")
                (base / "out").mkdir()
                tried += try_one(base, kind, calls, generator, counts, expected, images)
            click.echo(f"{tried} × {kind}", err=True)
    report(counts)


def try_one(
    base: Path,
    kind: str,
    calls: list[tuple[str, int]],
    generator: Any,
    counts: Counts,
    expected: dict[str, bytes],
    images: dict[str, bytes],
) -> bool:
    """One fault and the same command after it; whether the fault struck."""
    some = calls if kind == "kill" else [call for call in calls if call[0] in WRITING]
    call, number = some[int(generator.integers(len(some)))]
    fault = "signal=SIGKILL" if kind == "kill" else f"error={ERRORS[int(generator.integers(len(ERRORS)))]}"
    process = start(base)
    process.strike(base / "trace", call, number, fault)
    code = process.finish(60)
    trace = (base / "trace").read_text(errors="replace")
    struck = code == -signal.SIGKILL if kind == "kill" else "(INJECTED)" in trace
    if not struck:
        return False
    counts[f"{kind}: tried"] += 1
    counts[f"{kind}: exit code {code}"] += 1
    for wrong in look(base, code, process.said, expected, images):
        counts[f"{kind}, {call}: {wrong}"] += 1
    process = start(base)
    code = process.finish(60)
    text, now = process.said, tree(base / "out")
    complete = "holds copies already" in text
    counts[
        f"{kind}, the same command again: {'refused, the copies are complete' if complete else f'exit code {code}'}"
    ] += 1
    if now != expected and not (complete and set(now) <= set(expected)):
        counts[
            f"{kind}, {call}, the same command again: LEFTOVERS {sorted(set(now) ^ set(expected))} {text[-300:]}"
        ] += 1
    return True


if __name__ == "__main__":
    main()
