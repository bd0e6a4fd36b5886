"""`python -m bench.resident STORE STEPS`: train a few steps and print, as JSON, how fast and in how much memory."""

import itertools
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from bench.timing import Rate
from common.store import FeatureStore
from train.config import Config, DataConfig, TrainingConfig
from train.loop import RELEASE_EVERY, build_optimizer, train_step
from train.methods import build_method
from train.sets import training_batches
from train.task import prepare


def main(path: str, steps: int) -> None:
    """Measure `steps` steps of the plain head, in the fastest arithmetic here."""
    config = Config(training=TrainingConfig(precision="auto"))
    model = build_method(config, 512)
    model.seed_dropout(torch.Generator().manual_seed(0))
    optimizer = build_optimizer(model, config)
    before = resident_mb("RssAnon")
    started = time.perf_counter()
    task = prepare(FeatureStore.open(path), DataConfig())
    generator = np.random.default_rng(0)
    batches = training_batches(task.train, 10, 256, generator)
    rates, first, peak, mapped = [], 0.0, 0, 0
    model.train()
    for number, batch in enumerate(itertools.islice(batches, steps)):
        begun = time.perf_counter()
        train_step(model, optimizer, task.inputs(batch, generator), 1e-4, config)
        rates.append(len(batch) / (time.perf_counter() - begun))
        first = first or time.perf_counter() - started
        peak, mapped = max(peak, resident_mb("RssAnon")), max(mapped, resident_mb("RssFile"))
        if number % RELEASE_EVERY == 0:
            task.store.release()
    rate = Rate(float(np.median(rates)), min(rates), max(rates), len(rates))
    result = {"rate": asdict(rate), "store_mb": round(Path(path).stat().st_size / 1e6), "own_before_mb": before}
    print(
        json.dumps({**result, "own_peak_mb": peak, "mapped_peak_mb": mapped, "seconds_to_first_step": round(first, 2)})
    )


def resident_mb(kind: str) -> int:
    """The resident set of this process: "RssAnon", its own memory, or "RssFile", pages of files that it maps.

    Those belong to the system's cache, which may bring in a whole large page for one row, and takes them back at will.
    """
    status = Path("/proc/self/status").read_text()
    return round(int(status.partition(f"{kind}:")[2].split()[0]) / 1e3)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
