"""`python -m tests.measure_cluster`: rows a second that one driver takes from workers that compute nothing. Needs Ray.

They go into journal and file: 5 KB of disk a row. So fast is the whole cluster at most, whatever its workers are.
"""

import resource
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import torch

from common.cluster import Cluster, connected
from common.images import Files
from common.machine import versions
from extract import pipeline, ray_pool
from extract.backbones import Backbone
from extract.batches import Extraction
from extract.preprocessing import Preprocessing
from extract.sources import ImageSource


@click.command()
@click.option("--rows", default=200_000, show_default=True)
@click.option("--batch-size", default=64, show_default=True)
@click.option("--cpus-per-worker", default=1, show_default=True)
def main(rows: int, batch_size: int, cpus_per_worker: int) -> None:
    """Measure the pace of a driver, and its memory."""
    ray_pool.Worker = Zeros
    ray_pool.digests_seen = lambda source: {}
    zeros, names = np.zeros(rows, np.int64), [f"train/{row:05d}" for row in range(rows)]
    source = ImageSource(
        "zeros", ["zero"], zeros, zeros, lambda row: np.zeros((32, 32, 3), np.uint8), names, files=Files(Path("/"))
    )
    network = Backbone("zeros", torch.nn.Identity(), {"last": 512}, "none", "0" * 64)
    job = Extraction(source, network, Preprocessing(), "float32", {}, batch_size, torch.device("cpu"), "torch")
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder, connected(Cluster("local")) as ray:
        pool = ray_pool.Pool(ray, job, Cluster("local", cpus_per_worker, 0.0))
        pool.begin({})
        writer = pipeline._writer(job, Path(folder) / "s.h5", pool.environment)
        started = time.monotonic()
        pipeline._fill(writer, pool, source)
        seconds = time.monotonic() - started
        assert not writer.missing()
        pool.close()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    click.echo(f"{rows:,} rows in {seconds:.0f} s: {rows / seconds:,.0f} rows/s, driver at most {memory:.0f} MB")


class Zeros:
    """A worker that computes nothing: what `extract.ray_worker.Worker` is to the driver."""

    def __init__(self, job, files):
        pass

    def hello(self, *_) -> str:
        return ""

    def choose(self, *_):
        return {"engine": "zeros", "fidelity": {}, "device": "cpu", "versions": versions()}, []

    def prepare(self, *_) -> tuple[str, str]:
        return "", ""

    def compute(self, start, names, shipped):
        n = len(names)
        features, digests = np.zeros((1, n, 512), np.float32), np.ones((n, 32), np.uint8)
        thumbnails = np.zeros((n, 32, 32, 3), np.uint8)
        return {"features": features, "image_sha256": digests, "thumbnails": thumbnails}, {}


if __name__ == "__main__":
    main()
