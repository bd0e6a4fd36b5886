"""What a cluster costs and gains on this machine, for `docs/scale.md`. Needs Ray.

`python -m tests.measure_cluster speed --root IMAGES --weights FILE`: images a second, of one process and of workers.
`python -m tests.measure_cluster ceiling --rows 1000000`: rows a second that one driver takes from workers that compute
nothing, into journal and file; what is written is given back to the disk at once, so that any number fits.
"""

import ctypes
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import click
import numpy as np

ROW = {"features": 512 * 4, "image_sha256": 32, "thumbnails": 32 * 32 * 3}  # bytes
PUNCH_HOLE = 0x03  # and keep the size


@click.group()
def main() -> None:
    """Measure."""


@main.command()
@click.option("--root", type=click.Path(path_type=Path), required=True)
@click.option("--weights", type=click.Path(path_type=Path), required=True)
@click.option("--engine", default="torch", show_default=True)
@click.option("--precision", default="float32", show_default=True)
@click.option("--rounds", default=1, show_default=True)
@click.option("--ways", default="one core,one thread,two threads,two processes,two workers", show_default=True)
def speed(root: Path, weights: Path, engine: str, precision: str, rounds: int, ways: str) -> None:
    """One process on one core, with one thread, with two; two at once that know nothing of each other; two workers.

    Two processes at once are what this machine can do for two workers.
    """
    made = [sys.executable, "-m", "extract", "features", "--dataset", "imagefolder", "--root", str(root)]
    made += ["--weights", str(weights), "--engine", engine, "--precision", precision]
    known = {
        "one core": ([["taskset", "-c", "0", *made]], "1"),
        "one thread": ([made], "1"),
        "two threads": ([made], "2"),
        "two processes": ([["taskset", "-c", core, *made] for core in "01"], "1"),
        "two workers": ([[*made, "--ray", "local"]], "1"),
    }
    rates: dict[str, list[float]] = {way: [] for way in ways.split(",")}
    for _ in range(rounds):
        for way, found in rates.items():
            with tempfile.TemporaryDirectory() as folder:
                said, digests = _extract(*known[way], Path(folder))
            found.append(sum(float(rate) for rate in re.findall(r"images in .*?\((\d+)/s\)", said)))
            chosen = re.findall(r"engine: ([^,(\n]*)", said)[0].strip()
            click.echo(f"{way:13} {found[-1]:6.0f} images/s, {chosen}, SHA-256 {', '.join(digests)}", err=True)
    best = {way: max(found) for way, found in rates.items()}
    for way, rate in best.items():
        click.echo(f"{way:13} {rate:6.0f} images/s; two workers: {best.get('two workers', 0) / rate:.2f} ×")


def _extract(commands: list[list[str]], threads: str, folder: Path) -> tuple[str, list[str]]:
    """Run commands side by side; what they said, and the digests of their stores."""
    environment = os.environ | {"OMP_NUM_THREADS": threads}
    stores = [folder / f"{number}.h5" for number in range(len(commands))]
    processes = [
        subprocess.Popen([*command, "--store", str(store)], env=environment, stderr=subprocess.PIPE, text=True)
        for command, store in zip(commands, stores, strict=True)
    ]
    said = "".join(process.communicate()[1] for process in processes)
    assert not any(process.returncode for process in processes), said
    return said, [hashlib.sha256(store.read_bytes()).hexdigest()[:12] for store in stores]


@main.command()
@click.option("--rows", default=1_000_000, show_default=True)
@click.option("--batch-size", default=64, show_default=True)
@click.option("--cpus-per-worker", default=1, show_default=True)
def ceiling(rows: int, batch_size: int, cpus_per_worker: int) -> None:
    """Rows a second through a driver, and its memory."""
    import torch

    from common import store_partial
    from common.cluster import Cluster, connected
    from common.images import Files
    from extract import cluster, pipeline
    from extract.backbones import Backbone
    from extract.network import Extraction
    from extract.preprocessing import Preprocessing
    from extract.reading import Unreadable, names_of
    from extract.sources import ImageSource, Split

    store_partial.reserve = lambda file, size: os.truncate(file, size)
    store_partial.StoreWriter._require_space = lambda self, needed: None
    cluster.Worker = Zeros
    cluster.digests_seen = lambda source: {}
    none = Split(np.zeros(0, np.int64), lambda i: np.zeros((32, 32, 3), np.uint8))
    all_ = Split(np.zeros(rows, np.int64), none.image)
    source = ImageSource("zeros", ["zero"], {"train": all_, "test": none}, files=Files(Path("/")))
    network = Backbone("zeros", torch.nn.Identity(), {"last": 512}, "none", "0" * 64)
    job = Extraction(source, network, Preprocessing(), "float32", {}, batch_size, torch.device("cpu"), "torch")
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder, connected(Cluster("local")) as ray:
        pool = cluster.Pool(ray, job, Cluster("local", cpus_per_worker, 0.0), False)
        pool.begin({})
        writer = pipeline._writer(job, Path(folder) / "s.h5", pool.environment)
        unreadable = Unreadable(names_of(source), lambda line: None)
        watch = Watch(writer, rows)
        pipeline._fill(writer, pool, unreadable)
        watch.stop()
        assert not writer.missing()
        pool.close()


@main.command()
@click.option("--rows", default=1_000_000, show_default=True)
def memory(rows: int) -> None:
    """The memory of a driver for each row: while it hands out, and at most, when it finishes the store."""
    import resource

    from extract.identity import identity_of
    from extract.pipeline import _whole
    from extract.preprocessing import Preprocessing
    from extract.reading import names_of
    from extract.sources import ImageSource, make_splits

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    before = peak()
    names = [f"train/n{row % 1000:08d}/n{row % 1000:08d}_{row:08d}.JPEG" for row in range(rows)]
    is_test = np.arange(rows) % 20 == 0
    splits = make_splits(np.arange(rows) % 1000, is_test, lambda i: np.zeros((1, 1, 3)), names)
    source = ImageSource("many", [f"n{label}" for label in range(1000)], splits)
    listed = names_of(source)
    click.echo(f"handing out: {(peak() - before) / rows:.0f} bytes a row, names of {len(listed[0])}")
    whole = _whole(source)
    from types import SimpleNamespace

    network = SimpleNamespace(layers={"last": 512}, name="", feature_dim=512, weights_sha256="", random_seed=None)
    digests = np.zeros((rows, 32), np.uint8)
    identity_of(source, network, Preprocessing(), "float32", digests)
    size = sum(array.nbytes for array in whole.values())
    click.echo(f"finishing: {(peak() - before) / rows:.0f} bytes a row, of them {size / rows:.0f} in arrays")


@main.command()
def costs() -> None:
    """What one core takes for a digest, and for a photograph of 500 × 375 pixels."""
    import io

    import torch
    from PIL import Image

    from common.images import read_image
    from extract.preprocessing import Preprocessing

    torch.set_num_threads(1)
    block, started = bytes(4 << 20), time.perf_counter()
    for _ in range(64):
        hashlib.sha256(block)
    click.echo(f"SHA-256: {64 * len(block) / 1e9 / (time.perf_counter() - started):.2f} GB/s")
    noise = np.random.default_rng(0).normal(size=(375, 500, 3)).cumsum(0).cumsum(1)
    pixels = (255 * (noise - noise.min()) / np.ptp(noise)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    preprocessing, started = Preprocessing(), time.perf_counter()
    for _ in range(50):
        preprocessing([read_image(Path("a.jpg"), data=file.getvalue())])
    seconds = (time.perf_counter() - started) / 50
    click.echo(f"a photograph of {len(file.getvalue()) / 1000:.0f} KB, decoded and resized: {1000 * seconds:.1f} ms")


@main.command()
@click.option("--core", default=35.0, show_default=True, help="Images a second of one core.")
@click.option("--driver", default=30_000.0, show_default=True, help="Rows a second of one driver.")
@click.option("--held", default=150.0, show_default=True, help="Bytes of memory a row while it hands out.")
@click.option("--peak", default=385.0, show_default=True, help="Bytes of memory a row when it finishes.")
@click.option("--photo", default=110.0, show_default=True, help="KB of a photograph that is brought to a worker.")
@click.option("--sha", default=1.0, show_default=True, help="GB a second under a digest.")
def table(core: float, driver: float, held: float, peak: float, photo: float, sha: float) -> None:
    """The arithmetic for 60 thousand to 5 billion images, from what was measured."""
    from common.store_format import MAX_HEADER
    from common.store_header import BLOCK_BYTES

    row = sum(ROW.values()) + 64 + 1  # labels, indices, offsets, names of 39 bytes; split
    click.echo("| | " + " | ".join(("60 thousand", "1.28 million", "100 million", "5 billion")) + " |")
    click.echo("|---|---:|---:|---:|---:|")
    for what, of_images in {
        "compute, core-hours": lambda n: f"{n / core / 3600:,.1f}",
        "cores that one driver keeps busy": lambda n: f"{driver / core:,.0f}",
        "at least, with one driver": lambda n: _time(n / driver),
        "disk, GB": lambda n: f"{n * row / 1e9:,.1f}",
        "disk in bfloat16, GB": lambda n: f"{n * (row - 1024) / 1e9:,.1f}",
        "network to the driver at its pace, MB/s": lambda n: f"{driver * sum(ROW.values()) / 1e6:,.0f}",
        "images brought by --ship-images, GB": lambda n: f"{n * photo / 1e6:,.0f}",
        "driver's memory while it hands out, GB": lambda n: f"{n * held / 1e9:,.1f}",
        "driver's memory when it finishes, GB": lambda n: f"{n * peak / 1e9:,.1f}",
        "finishing, three readings under a digest": lambda n: _time(3 * n * row / 1e9 / sha),
        "header, MB": lambda n: f"{n * row / BLOCK_BYTES * 67 / 1e6:,.1f}",
    }.items():
        click.echo(f"| {what} | " + " | ".join(of_images(n) for n in (60_000, 1_280_000, 10**8, 5 * 10**9)) + " |")
    click.echo(f"the header's limit: {MAX_HEADER / 67 * BLOCK_BYTES / row / 1e9:.1f} billion images")


def _time(seconds: float) -> str:
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.1f} s"


class Zeros:
    """A worker that computes nothing: what `extract.worker.Worker` is to the driver."""

    def __init__(self, job, files):
        from extract.worker import Made

        self._made = Made

    def hello(self, *_) -> str:
        return ""

    def choose(self, *_):
        from common.machine import versions

        return {"engine": "zeros", "fidelity": {}, "device": "cpu", "versions": versions()}, []

    def prepare(self, terms) -> tuple[str, str]:
        return "", ""

    def compute(self, order):
        n = len(order.names)
        features, digests = np.zeros((1, n, 512), np.float32), np.ones((n, 32), np.uint8)
        thumbnails = np.zeros((n, 32, 32, 3), np.uint8)
        batch = {"features": features, "image_sha256": digests, "thumbnails": thumbnails}
        return self._made(order.start, batch, {})


class Watch(threading.Thread):
    """Says the memory of this process now and then, and gives back to the disk what is written."""

    def __init__(self, writer, rows: int):
        super().__init__(daemon=True)
        self._writer, self._rows, self._end = writer, rows, threading.Event()
        self._began, self._said = time.monotonic(), 0
        self.start()

    def run(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        while not self._end.wait(1):
            done = int(self._writer._digests.any(1).sum()) * self._writer._content["plan"]["batch_size"]
            for name, place in self._writer._places.items():
                size = ctypes.c_long(max(0, done - 50_000) * ROW[name])
                libc.fallocate(self._writer._file.fileno(), PUNCH_HOLE, ctypes.c_long(place.offset), size)
            if done >= self._said:
                self._say(done)
                self._said = done + self._rows // 10

    def _say(self, done: int) -> None:
        memory = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
        own = int(memory["RssAnon"].split()[0]) / 1024
        room = os.statvfs("/dev/shm")
        shared = (room.f_blocks - room.f_bfree) * room.f_frsize / 1e6
        seconds = time.monotonic() - self._began
        click.echo(f"{done:12,} rows, {seconds:5.0f} s: driver {own:.0f} MB, object store {shared:.0f} MB", err=True)

    def stop(self) -> None:
        """Say it a last time."""
        self._end.set()
        self.join()
        self._say(self._rows)


if __name__ == "__main__":
    main()
