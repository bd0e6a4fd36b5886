"""Training steps, beside the tutorial's, and as everything grows."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.peers import tutorial_training
from bench.products import CPU, flops_of, precisions, roofs
from bench.timing import Work, measured
from common.machine import choose_arithmetic
from common.store import FeatureStore
from common.synthetic import make_store
from train.config import Config, DataConfig, HeadConfig, TrainingConfig
from train.loop import build_optimizer, predict, train_step
from train.methods import build_method
from train.sets import training_batches
from train.task import Task, prepare

STEPS = 6
BATCH = 256


def training(folder: Path, rounds: int) -> dict[str, Any]:
    """Sets a second of training steps: gather, forward, backward, clip, AdamW. Batch 256, the plain head.

    `roof`: as many sets as a product of 2048² matrices does floating-point operations in the same time.
    """
    task = task_of(folder / "training.h5", 6_000)
    model = build_method(Config(), task.feature_dim)
    one = torch.zeros(1, task.set_size, task.feature_dim)
    flops = 3 * flops_of(lambda: model.eval()(one))  # the backward pass does each product twice
    features, labels = task.features[0][task.train.rows].clone(), np.repeat(task.train.classes, task.train.counts)
    known, reason = precisions()
    roof, left_out = roofs(flops)
    if reason:
        left_out["this project, bfloat16"] = reason
    cases: dict[str, Work] = {
        "tutorial: Dataset, DataLoader, TransformerEncoder float32": tutorial_training(features, labels, BATCH, STEPS),
        **{f"this project, {name}": _steps(task, name) for name in known},
        **roof,
        "evaluation, float32": lambda: len(predict(model, task, task.test, 1000)),
    }
    return {"unit": "sets/s", "gflop_per_set": flops / 1e9, **measured(cases, rounds, left_out)}


def growth(folder: Path, rounds: int) -> dict[str, Any]:
    """Sets a second of training steps, in the fastest arithmetic here.

    Images N, set size S, batch B, feature_dim D and layers grow.
    """
    few = functools.partial(_steps, steps=3)
    cases = {"N = 1,500, S = 10, B = 256, D = 512, 4 layers": few(task_of(folder / "plain.h5", 1_500))}
    for n in (15_000, 150_000):
        cases[f"N = {n:,}"] = few(task_of(folder / f"n{n}.h5", n))
    for size in (5, 20, 50):
        cases[f"S = {size}"] = few(task_of(folder / "s.h5", 3_000, set_size=size))
    for batch_size in (64, 1024):
        cases[f"B = {batch_size}"] = few(task_of(folder / "b.h5", 3_000), batch_size=batch_size)
    for feature_dim in (128, 2048):
        cases[f"D = {feature_dim}"] = few(task_of(folder / f"d{feature_dim}.h5", 1_500, feature_dim=feature_dim))
    for layers in (1, 8):
        cases[f"{layers} layers"] = few(task_of(folder / "plain.h5", 1_500), layers=layers)
    return {"unit": "sets/s", "arithmetic": choose_arithmetic("auto", CPU), **measured(cases, rounds)}


def task_of(path: Path, n: int, classes: int = 10, feature_dim: int = 512, set_size: int = 10) -> Task:
    """A task on a store of about `n` images of noise."""
    if not path.exists():
        make_store(path, classes=classes, train=n // classes, test=60, feature_dim=feature_dim, thumbnails=False)
    return prepare(FeatureStore.open(path), DataConfig(set_size=set_size))


def _steps(task: Task, precision: Any = "auto", batch_size: int = BATCH, layers: int = 4, steps: int = STEPS) -> Work:
    """Training steps on fresh sets, at least as many sets as `steps` full batches of 256 have."""
    config = Config(
        data=DataConfig(set_size=task.set_size),
        head=HeadConfig(layers=layers),
        training=TrainingConfig(precision=precision, batch_size=batch_size),
    )
    model = build_method(config, task.feature_dim)
    model.seed_dropout(torch.Generator().manual_seed(0))
    optimizer = build_optimizer(model, config)
    generator = np.random.default_rng(0)

    def work() -> int:
        model.train()
        done = 0
        while done < steps * BATCH:
            for batch in training_batches(task.train, task.set_size, batch_size, generator):
                if len(batch) < batch_size:
                    break
                train_step(model, optimizer, task.inputs(batch, generator), 1e-4, config)
                done += len(batch)
                if done >= steps * BATCH:
                    break
        return done

    return work
