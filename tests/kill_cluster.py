"""Extract on clusters of nodes on this machine; kill nodes, and the driver, at random moments; compare every byte.

`python -m tests.kill_cluster --count 10` counts. Needs Ray.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np

from common.cluster import SETTINGS
from common.store_partial import read_progress
from common.synthetic import make_images
from tests.victims import Counts, report

OPTIONS = ["--weights", "random", "--image-size", "32", "--batch-size", "8", "--engine", "torch"]
LIMIT = 600  # seconds
NODE = {"num_cpus": 1, "object_store_memory": 100 << 20}


@contextlib.contextmanager
def nodes(number: int) -> Iterator[Any]:
    """A cluster whose head computes nothing, and so many nodes of one CPU."""
    from ray.cluster_utils import Cluster

    os.environ.update(SETTINGS)
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0, "include_dashboard": False})
    try:
        for i in range(number):
            cluster.add_node(**NODE, node_name=f"node{i}")
        yield cluster
    finally:
        cluster.shutdown()


def command(root: Path, store: Path, address: str = "") -> list[str]:
    """The command that makes the store, on a cluster or in one process."""
    made = [sys.executable, "-m", "extract", "features", "--dataset", "imagefolder", "--root", str(root)]
    return [*made, "--store", str(store), *OPTIONS, *(["--ray", address] if address else [])]


def begin(arguments: list[str], log: Path) -> subprocess.Popen:
    """Start a command whose output goes to a log."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with log.open("w") as file:
        return subprocess.Popen(arguments, stdout=file, stderr=file, env=environment)


def rows_of(store: Path) -> int:
    """How many rows of an unfinished store are kept."""
    return (read_progress(store) or (0, 0))[0]


def wait_for_rows(store: Path, rows: int, process: subprocess.Popen) -> None:
    """Wait until so many rows are written, or the process has ended."""
    deadline = time.monotonic() + LIMIT
    while process.poll() is None and rows_of(store) < rows and time.monotonic() < deadline:
        time.sleep(0.02)


def count_workers(seconds: float) -> int:
    """How many processes of workers there are, as soon as there are none, or after so many seconds."""
    deadline = time.monotonic() + seconds
    while (workers := sum(name.startswith(b"ray::Worker") for name in _processes())) and time.monotonic() < deadline:
        time.sleep(0.2)
    return workers


def _processes() -> Iterator[bytes]:
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield file.read_bytes()


class Campaign:
    """The images, the bytes that are expected, and what was counted."""

    def __init__(self, base: Path, images: int, seed: int):
        self.root = make_images(base / "images", classes=4, train=images * 3 // 16, test=images // 16, size=16)
        self.rows = sum(1 for _ in self.root.rglob("*.png"))
        self.store, self.log, self.generator = base / "s.h5", base / "log", np.random.default_rng(seed)
        self.counts, self.begun = Counts(), time.monotonic()
        assert self.begin().wait(LIMIT) == 0, self.log.read_text()
        self.expected = self.store.read_bytes()
        self.store.unlink()

    def begin(self, cluster: Any = None) -> subprocess.Popen:
        """Start the extraction, on a cluster or in one process."""
        return begin(command(self.root, self.store, cluster.address if cluster else ""), self.log)

    def begin_and_wait(self, cluster: Any) -> subprocess.Popen:
        """Start the extraction on a cluster, and wait for a random moment of the work."""
        process = self.begin(cluster)
        wait_for_rows(self.store, int(self.generator.integers(1, self.rows * 3 // 4)), process)
        return process

    def say(self, line: str) -> None:
        click.echo(f"{time.monotonic() - self.begun:6.0f} s  {line}", err=True)

    def compare(self, what: str) -> None:
        """Count whether the store is the one that a single process makes, and remove it."""
        same = self.store.is_file() and self.store.read_bytes() == self.expected
        self.counts[f"{what}: " + ("same bytes" if same else "OTHER BYTES")] += 1
        left = [path.name for path in self.store.parent.iterdir() if path.name.startswith(f".{self.store.stem}.")]
        self.counts[f"{what}: " + (f"LEFTOVERS {left}" if left else "no leftovers")] += 1
        if not same:
            self.say(self.log.read_text()[-2000:])
        self.store.unlink(missing_ok=True)

    def undisturbed(self, cluster: Any, number: int) -> None:
        """Extract on a cluster."""
        self.begin(cluster).wait(LIMIT)
        self.compare(f"{number} nodes")
        self.say(next(line for line in self.log.read_text().splitlines() if " images in " in line))

    def kill_a_node(self, cluster: Any) -> None:
        """Kill one node at a random moment of the work, and add another when the work is done."""
        process = self.begin_and_wait(cluster)
        busy = process.poll() is None
        node = list(cluster.worker_nodes)[int(self.generator.integers(len(cluster.worker_nodes)))]
        cluster.remove_node(node, allow_graceful=False)
        code = process.wait(LIMIT)
        told = "the loss was told" if "is made again" in self.log.read_text() else "its batches were done"
        self.counts[f"a node killed: {'at work' if busy else 'BEFORE OR AFTER'}, exit code {code}"] += 1
        self.counts[f"a node killed: {told}"] += 1
        self.compare("a node killed")
        cluster.add_node(**NODE)

    def kill_the_driver(self, cluster: Any, on_cluster: bool) -> None:
        """Kill the driver at a random moment, then give the same command, on the cluster or off it."""
        process = self.begin_and_wait(cluster)
        self.say(f"killed with {rows_of(self.store)} of {self.rows} rows kept")
        process.kill()
        process.wait(LIMIT)
        what = f"the driver killed, resumed {'on the cluster' if on_cluster else 'in one process'}"
        self.begin(cluster if on_cluster else None).wait(LIMIT)
        self.counts[f"{what}: {'went on' if 'resuming' in self.log.read_text() else 'BEGAN ANEW'}"] += 1
        self.compare(what)

    def stop_the_driver(self, cluster: Any) -> None:
        """Ctrl-C, and count the workers that are left."""
        process = self.begin(cluster)
        wait_for_rows(self.store, 16, process)
        process.send_signal(signal.SIGINT)
        code = process.wait(LIMIT)
        self.counts[f"Ctrl-C: exit code {code}, {'WORKERS LEFT' if count_workers(20) else 'no worker left'}"] += 1
        self.begin(cluster).wait(LIMIT)
        self.compare("Ctrl-C")


@click.command()
@click.option("--count", default=10, show_default=True, help="Kills of each kind.")
@click.option("--images", default=800, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(count: int, images: int, seed: int) -> None:
    """Kill nodes and drivers; count what became of the stores."""
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(Path(folder), images, seed)
        with nodes(2) as cluster:
            campaign.undisturbed(cluster, 2)
            for number in range(count):
                campaign.kill_the_driver(cluster, on_cluster=number % 2 == 0)
            campaign.stop_the_driver(cluster)
        with nodes(4) as cluster:
            campaign.undisturbed(cluster, 4)
            for number in range(count):
                campaign.kill_a_node(cluster)
                campaign.say(f"{number + 1} of {count} nodes killed")
    report(campaign.counts)


if __name__ == "__main__":
    main()
