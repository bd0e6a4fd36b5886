"""The sections of the benchmark: each does the same work in several ways, in turns."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from bench.extraction import extraction
from bench.peers import TutorialSets
from bench.photographs import photographs
from bench.timing import Work, measured
from bench.training import BATCH, growth, task_of, training
from common.store import FeatureStore
from common.synthetic import make_large_store, make_store
from train.sets import training_batches

ROWS = 2560


def sampling(folder: Path, rounds: int) -> dict[str, Any]:
    """Sets a second of index work alone, an epoch of CIFAR-100's size, one thread."""
    labels = np.repeat(np.arange(100), 450)
    task = task_of(folder / "sampling.h5", 45_000, classes=100, feature_dim=1)
    peer = TutorialSets(torch.zeros(len(labels), 1), labels, 10)
    generator = np.random.default_rng(0)

    def tutorial() -> int:
        return len([peer[index] for index in range(1000)])

    cases = {
        "tutorial: one set at a time": tutorial,
        "this project": lambda: sum(map(len, training_batches(task.train, 10, BATCH, generator))),
    }
    return {"unit": "sets/s", **measured(cases, rounds)}


def rows(folder: Path, rounds: int) -> dict[str, Any]:
    """Rows a second, 2,560 at a time, unsorted and repeated, of 60,000 × 512 float32."""
    task = task_of(folder / "rows.h5", 50_000, classes=100)
    store = FeatureStore.open(folder / "rows.h5")
    memory = task.features[0].clone()
    place = store.places["features"]
    mapped = np.memmap(store.path, place.dtype, "r", place.offset, place.shape)[0]
    file = h5py.File(store.path)
    index = np.random.default_rng(0).integers(len(memory), size=(100, BATCH, ROWS // BATCH))

    def h5py_rows() -> int:
        for chosen in index[:2]:
            unique, back = np.unique(chosen, return_inverse=True)
            file["features"][0, unique][back]
        return 2 * ROWS

    def each(gather: Callable[[np.ndarray], Any]) -> Work:
        def work() -> int:
            for chosen in index:
                gather(chosen)
            return index.size

        return work

    cases = {
        "tensor in memory": each(lambda chosen: memory[torch.from_numpy(chosen)]),
        "this project, mapped": each(task.gather),
        "np.memmap": each(lambda chosen: torch.from_numpy(mapped[chosen])),
        "h5py, sorted unique rows": h5py_rows,
    }
    found = measured(cases, rounds)
    file.close()
    return {"unit": "rows/s", **found}


def start_up(folder: Path, rounds: int) -> dict[str, Any]:
    """Runs a second, each a process of its own: the inverse is its time. The first step is that of a short run."""
    store = make_store(folder / "start.h5", classes=4, train=100, feature_dim=512).path
    first_step = (
        "import train.loop as loop, time, sys; step = loop.train_step\n"
        "def first(*a): step(*a); raise SystemExit\n"
        "loop.train_step = first\n"
        f"from train.cli import main; main(['fit', '--store', {str(store)!r}, '--run', sys.argv[1]])"
    )
    commands = {
        "python -m extract --help": ["-m", "extract", "--help"],
        "python -m train fit --help": ["-m", "train", "fit", "--help"],
        "import torch": ["-c", "import torch"],
        "python -m train fit, to the first step": ["-c", first_step, str(folder / "start-run")],
    }

    def run(arguments: list[str]) -> Work:
        def work() -> int:
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
            return 1

        return work

    cases = {name: run(arguments) for name, arguments in commands.items()}
    cases["opening a store"] = lambda: len([FeatureStore.open(store) for _ in range(20)])
    return {"unit": "runs/s", **measured(cases, rounds)}


def memory(folder: Path, rounds: int) -> dict[str, Any]:
    """Training from 2,000,000 × 512 half-precision rows (2 GB) beside 60,000: sets a second, and the memory taken."""
    cases, peaks = {}, {}
    for n in (60_000, 2_000_000):
        path = folder / f"memory{n}.h5"
        make_large_store(path, n)
        result = json.loads(
            subprocess.run(
                [sys.executable, "-m", "bench.resident", str(path), str(rounds * 16)],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        cases[f"N = {n:,}"] = result["rate"]
        peaks[f"N = {n:,}"] = {key: result[key] for key in result if key != "rate"}
        path.unlink()
    return {"unit": "sets/s", "rates": cases, "left_out": {}, "memory": peaks}


SECTIONS: dict[str, Callable[..., dict[str, Any]]] = {
    function.__name__: function
    for function in (extraction, photographs, training, sampling, rows, growth, start_up, memory)
}
