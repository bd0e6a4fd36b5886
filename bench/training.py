"""Training steps, the sampling of sets and the reading of rows, beside the ways of others."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from bench.peers import TutorialSets, train_plainly
from bench.timing import NOT_FASTER, PRECISIONS, Cases, Work, count_flops, is_fast, make_roofs, measure_cases
from common.store import FeatureStore
from common.synthetic import make_store
from train.config import Config, DataConfig, TrainingConfig
from train.loop import build_optimizer, predict, train_step
from train.methods.base import build_method
from train.sets import Sampling, draw_batches
from train.task import Task, prepare

STEPS = 6
BATCH = 256
ROWS = 2560
SAMPLING = Sampling(set_size=10, batch_size=BATCH)


def measure_training(folder: Path, rounds: int) -> dict[str, Any]:
    """Sets a second of training steps: gather, forward, backward, clip, AdamW. Batch 256, the plain head.

    `roof`: as many sets as a product of 2048² matrices does floating-point operations in the same time.
    """
    task = make_task(folder / "training.h5", 6_000)
    model = build_method(Config(), task.feature_dim)
    one = torch.zeros(1, task.set_size, task.feature_dim)
    flops = 3 * count_flops(lambda: model.eval()(one))  # the backward pass does each product twice
    features, labels = task.features[0][0][task.train.rows].clone(), np.repeat(task.train.classes, task.train.counts)
    cases: Cases = {
        "tutorial: Dataset, DataLoader, TransformerEncoder float32": train_plainly(features, labels, BATCH, STEPS),
        **{f"this project, {name}": _train_steps(task, name) if is_fast(name) else NOT_FASTER for name in PRECISIONS},
        **make_roofs(flops),
        "evaluation, float32": lambda: len(predict(model, task, task.test, 1000)),
    }
    return {"unit": "sets/s", "gflop_per_set": flops / 1e9, **measure_cases(cases, rounds)}


def measure_sampling(folder: Path, rounds: int) -> dict[str, Any]:
    """Sets a second of index work alone, an epoch of CIFAR-100's size, one thread."""
    labels = np.repeat(np.arange(100), 450)
    task = make_task(folder / "sampling.h5", 45_000, classes=100, feature_dim=1)
    peer = TutorialSets(torch.zeros(len(labels), 1), labels, 10)
    generator = np.random.default_rng(0)
    cases: Cases = {
        "tutorial: one set at a time": lambda: len([peer[index] for index in range(1000)]),
        "this project": lambda: sum(map(len, draw_batches(task.train, SAMPLING, generator))),
    }
    return {"unit": "sets/s", **measure_cases(cases, rounds)}


def measure_rows(folder: Path, rounds: int) -> dict[str, Any]:
    """Rows a second, 2,560 at a time, unsorted and repeated, of 60,000 × 512 float32."""
    task = make_task(folder / "rows.h5", 50_000, classes=100)
    store = FeatureStore.open(folder / "rows.h5")
    memory = task.features[0][0].clone()
    place = store.places["features"]
    mapped = np.memmap(store.path, place.dtype, "r", place.offset, place.shape)[0]
    index = np.random.default_rng(0).integers(len(memory), size=(100, BATCH, ROWS // BATCH))

    def h5py_rows() -> int:
        for chosen in index[:2]:
            unique, back = np.unique(chosen, return_inverse=True)
            file["features"][0, unique][back]
        return 2 * ROWS

    def for_each(gather: Callable[[np.ndarray], Any]) -> Work:
        def work() -> int:
            for chosen in index:
                gather(chosen)
            return index.size

        return work

    cases: Cases = {
        "tensor in memory": for_each(lambda chosen: memory[torch.from_numpy(chosen)]),
        "this project, mapped": for_each(task.gather),
        "np.memmap": for_each(lambda chosen: torch.from_numpy(mapped[chosen])),
        "h5py, sorted unique rows": h5py_rows,
    }
    with h5py.File(store.path) as file:
        return {"unit": "rows/s", **measure_cases(cases, rounds)}


def make_task(path: Path, n: int, classes: int = 10, feature_dim: int = 512) -> Task:
    """Make a task on a store of about `n` images of noise."""
    make_store(path, classes=classes, train=n // classes, test=60, feature_dim=feature_dim, thumbnails=False)
    return prepare(FeatureStore.open(path), DataConfig())


def _train_steps(task: Task, precision: Any) -> Work:
    """Make a case of training steps on fresh sets."""
    settings = TrainingConfig(precision=precision, batch_size=BATCH)
    model = build_method(Config(training=settings), task.feature_dim)
    model.seed_dropout(torch.Generator().manual_seed(0))
    optimizer = build_optimizer(model, settings)
    generator = np.random.default_rng(0)

    def work() -> int:
        model.train()
        for batch in itertools.islice(draw_batches(task.train, SAMPLING, generator), STEPS):
            train_step(model, optimizer, task.inputs(batch, generator), 1e-4, settings)
        return STEPS * BATCH

    return work
