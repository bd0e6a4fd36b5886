"""The sections of the benchmark: each does the same work in several ways, in turns."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.peers import TutorialSets, onnx_runtime, tutorial_extraction, tutorial_training
from bench.timing import interleaved
from common.store import FeatureStore
from common.store_writer import write_store
from extract.backbones import load_backbone
from extract.engines import OpenVinoEngine, TorchEngine, available, bfloat16, float32
from extract.pipeline import Extraction, all_images, computed
from extract.preprocessing import Preprocessing
from extract.sources import load_source
from tests.fabricate import make_header, make_images, make_store
from train.config import Config, DataConfig, HeadConfig, TrainingConfig
from train.loop import build_optimizer, predict, train_step
from train.methods import build_method
from train.sets import training_batches
from train.task import Task, prepare

CPU = torch.device("cpu")
IMAGES = 128
STEPS = 6
BATCH = 256
ROWS = 2560

Section = dict[str, Any]
Work = Callable[[], float]


def extraction(folder: Path, rounds: int, weights: str) -> Section:
    """Images a second, from PNG files of 32 × 32 pixels to features, of a ResNet18 at 224 pixels.

    `roof`: as many images as a product of 2048² matrices does floating-point operations in the same time.
    """
    root = make_images(folder / "images", classes=2, train=IMAGES // 2, size=32)
    backbone = load_backbone("resnet18", weights, 0, 224)
    source, preprocessing = load_source("imagefolder", root), Preprocessing()
    with FlopCounterMode(display=False) as counter:
        backbone.features(torch.zeros(1, 3, 224, 224))
    flops = counter.get_total_flops()
    low = list(zip(range(3), bfloat16(backbone), strict=False))
    arithmetics = [float32(backbone), low[0][1], low[2][1]]
    engines: dict[str, Any] = {f"torch {a.name}": TorchEngine(a, CPU) for a in arithmetics}
    if "openvino" in available(CPU):
        engines |= {f"openvino {a.name}": OpenVinoEngine(a, 224) for a in arithmetics}
    images = all_images(source)[:IMAGES]

    def ours(engine: Any) -> Work:
        job = Extraction(source, backbone, preprocessing, "float32", {}, 32, CPU)
        return lambda: sum(len(batch["thumbnails"]) for _, batch in computed(job, engine, images, range(0, IMAGES, 32)))

    cases: dict[str, Work] = {
        "tutorial: PIL, DataLoader, torch float32": tutorial_extraction(root / "train", _contiguous(backbone.module))
    }
    cases |= {name: ours(engine) for name, engine in engines.items()}
    try:
        preprocessed = preprocessing([image(i) for image, i in images])[0]
        cases["ONNX Runtime float32, images preprocessed"] = onnx_runtime(backbone.module, preprocessed, folder)
    except ImportError:
        pass
    cases |= {f"roof: product in {name}": _product(dtype, flops) for name, dtype in _PRECISIONS.items()}
    return {"unit": "images/s", "gflop_per_image": flops / 1e9, "rates": _rates(cases, rounds)}


def training(folder: Path, rounds: int) -> Section:
    """Sets a second of training steps: gather, forward, backward, clip, AdamW. Batch 256, the plain head."""
    task = _task(folder / "training.h5", 6_000)
    flops = 3 * _forward_flops(task)  # the backward pass does each product twice
    features, labels = _flat(task)
    cases: dict[str, Work] = {
        "tutorial: Dataset, DataLoader, TransformerEncoder float32": tutorial_training(features, labels, BATCH, STEPS)
    }
    cases |= {f"this project, {name}": _steps(task, name) for name in _PRECISIONS}
    cases |= {f"roof: product in {name}": _product(dtype, flops) for name, dtype in _PRECISIONS.items()}
    rates = _rates(cases, rounds)
    model = build_method(Config(), task.feature_dim)
    rates |= _rates({"evaluation, float32": lambda: len(predict(model, task, task.test, 1000))}, rounds)
    return {"unit": "sets/s", "gflop_per_set": flops / 1e9, "rates": rates}


def sampling(folder: Path, rounds: int) -> Section:
    """Sets a second of index work alone, an epoch of CIFAR-100's size, one thread."""
    labels = np.repeat(np.arange(100), 450)
    task = _task(folder / "sampling.h5", 45_000, classes=100, feature_dim=1)
    peer = TutorialSets(torch.zeros(len(labels), 1), labels, 10)
    generator = np.random.default_rng(0)

    def tutorial() -> int:
        return len([peer[index] for index in range(1000)])

    cases = {
        "tutorial: one set at a time": tutorial,
        "this project": lambda: sum(map(len, training_batches(task.train, 10, BATCH, generator))),
    }
    return {"unit": "sets/s", "rates": _rates(cases, rounds)}


def rows(folder: Path, rounds: int) -> Section:
    """Rows a second, 2,560 at a time, unsorted and repeated, of 60,000 × 512 float32."""
    task = _task(folder / "rows.h5", 50_000, classes=100)
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
    rates = _rates(cases, rounds)
    file.close()
    return {"unit": "rows/s", "rates": rates}


def growth(folder: Path, rounds: int) -> Section:
    """Sets a second of bfloat16 training steps as images N, set size S, batch B, feature_dim D and layers grow."""
    cases = {"N = 1,500, S = 10, B = 256, D = 512, 4 layers": _steps(_task(folder / "plain.h5", 1_500))}
    for n in (15_000, 150_000):
        cases[f"N = {n:,}"] = _steps(_task(folder / f"n{n}.h5", n))
    for size in (5, 20, 50):
        cases[f"S = {size}"] = _steps(_task(folder / "s.h5", 3_000, set_size=size))
    for batch_size in (64, 1024):
        cases[f"B = {batch_size}"] = _steps(_task(folder / "b.h5", 3_000), batch_size=batch_size)
    for feature_dim in (128, 2048):
        cases[f"D = {feature_dim}"] = _steps(_task(folder / f"d{feature_dim}.h5", 1_500, feature_dim=feature_dim))
    for layers in (1, 8):
        cases[f"{layers} layers"] = _steps(_task(folder / "plain.h5", 1_500), layers=layers)
    return {"unit": "sets/s", "rates": _rates(cases, rounds)}


def start_up(folder: Path, rounds: int) -> Section:
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

    rates = _rates({name: run(arguments) for name, arguments in commands.items()}, rounds)
    opening = {"opening a store": lambda: len([FeatureStore.open(store) for _ in range(20)])}
    return {"unit": "runs/s", "rates": rates | _rates(opening, rounds)}


def memory(folder: Path, rounds: int) -> Section:
    """Training from 2,000,000 × 512 half-precision rows (2 GB) beside 60,000: sets a second, and the memory taken."""
    cases, peaks = {}, {}
    for n in (60_000, 2_000_000):
        path = folder / f"memory{n}.h5"
        _large_store(path, n)
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
    return {"unit": "sets/s", "rates": cases, "memory": peaks}


_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def _rates(cases: Mapping[str, Work], rounds: int) -> dict[str, Any]:
    return {name: asdict(rate) for name, rate in interleaved(cases, rounds).items()}


def _product(dtype: torch.dtype, flops: float) -> Work:
    a = torch.randn(2048, 2048).to(dtype)

    def work() -> float:
        for _ in range(8):
            a @ a
        return 8 * 2 * 2048**3 / flops

    return work


def _task(path: Path, n: int, classes: int = 10, feature_dim: int = 512, set_size: int = 10) -> Task:
    """A task on a store of about `n` images of noise."""
    if not path.exists():
        make_store(path, classes=classes, train=n // classes, test=60, feature_dim=feature_dim, thumbnails=False)
    return prepare(FeatureStore.open(path), DataConfig(set_size=set_size))


def _flat(task: Task) -> tuple[torch.Tensor, np.ndarray]:
    """Features (n, D) and labels (n,) of the training images, in memory."""
    return task.features[0][task.train.rows].clone(), np.repeat(task.train.classes, task.train.counts)


def _steps(task: Task, precision: str = "bfloat16", batch_size: int = BATCH, layers: int = 4) -> Work:
    """Training steps on fresh sets, at least as many sets as `STEPS` full batches have."""
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
        while done < STEPS * BATCH:
            for batch in training_batches(task.train, task.set_size, batch_size, generator):
                if len(batch) < batch_size:
                    break
                train_step(model, optimizer, task.inputs(batch, generator), 1e-4, config)
                done += len(batch)
                if done >= STEPS * BATCH:
                    break
        return done

    return work


def _forward_flops(task: Task) -> float:
    """Floating-point operations of matrix products on one set."""
    model = build_method(Config(), task.feature_dim).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, task.set_size, task.feature_dim))
    return counter.get_total_flops()


def _contiguous(module: torch.nn.Module) -> torch.nn.Module:
    return copy.deepcopy(module).to(memory_format=torch.contiguous_format)


def _large_store(path: Path, n: int) -> None:
    """A store of n × 512 half-precision rows, made without holding them."""
    raw = path.with_suffix(".raw")
    features = np.memmap(raw, "<f2", "w+", shape=(1, n, 512))
    generator = np.random.default_rng(0)
    some = generator.normal(size=(20_000, 512)).astype("<f2")
    for start in range(0, n, len(some)):
        features[0, start : start + len(some)] = some
    labels = np.arange(n) % 100
    split = np.zeros(n, np.uint8)
    split[-10_000:] = 1
    arrays = {
        "features": features,
        "labels": labels,
        "image_index": np.arange(n),
        "split": split,
        "image_sha256": np.zeros((n, 32), np.uint8),
    }
    write_store(path, make_header(100, 512, precision="bfloat16"), arrays)
    raw.unlink()
