"""From images to features, beside the ways of others."""

import contextlib
import copy
from pathlib import Path
from typing import Any

import torch

from bench.peers import make_onnx_runtime, make_tutorial_extraction
from bench.timing import CPU, Work, count_flops, make_roofs, measure_cases
from common.progress import say
from common.synthetic import make_images
from extract.backbones import Backbone, load_backbone
from extract.batches import Extraction, LocalNetwork, Unreadable
from extract.engines import Engine, NotHere, available, bfloat16, build_engine, float32
from extract.preprocessing import Preprocessing
from extract.progress import Stopwatch
from extract.sources import load_source

IMAGES = 128


def extraction(job: Extraction, engine: Engine, n: int) -> Work:
    """The first `n` images of a job through an engine, in this process."""

    def work() -> int:
        unreadable = Unreadable(job.source.names, say)
        with contextlib.closing(LocalNetwork(job, engine, {})) as network:
            batches = network.batches(range(0, n, job.batch_size), unreadable, Stopwatch())
            return sum(len(batch["thumbnails"]) for _, batch in batches)

    return work


def measure_extraction(folder: Path, rounds: int, weights: str) -> dict[str, Any]:
    """Images a second, from PNG files of 32 × 32 pixels to features, of a ResNet18 at 224 pixels.

    `roof`: as many images as a product of 2048² matrices does floating-point operations in the same time.
    """
    root = make_images(folder / "images", classes=2, train=IMAGES // 2, size=32)
    backbone = load_backbone("resnet18", weights, 0, 224)
    source, preprocessing = load_source("imagefolder", root), Preprocessing()
    flops = count_flops(lambda: backbone.features(torch.zeros(1, 3, 224, 224)))
    engines, left_out = _build_engines(backbone)

    def ours(engine: Engine) -> Work:
        job = Extraction(source, backbone, preprocessing, "float32", {}, 32, CPU)
        return extraction(job, engine, IMAGES)

    module = copy.deepcopy(backbone.module).to(memory_format=torch.contiguous_format)
    cases: dict[str, Work] = {
        "tutorial: PIL, DataLoader, torch float32": make_tutorial_extraction(root / "train", module),
        **{name: ours(engine) for name, engine in engines.items()},
    }
    try:
        preprocessed = preprocessing([source.image(row) for row in range(IMAGES)])[0]
        cases["ONNX Runtime float32, images preprocessed"] = make_onnx_runtime(backbone.module, preprocessed, folder)
    except ImportError as error:
        left_out["ONNX Runtime float32, images preprocessed"] = str(error)
    roof, without = make_roofs(flops)
    found = measure_cases(cases | roof, rounds, left_out | without)
    return {"unit": "images/s", "gflop_per_image": flops / 1e9, **found}


def _build_engines(backbone: Backbone) -> tuple[dict[str, Engine], dict[str, str]]:
    """Build the engines that this machine has, by name, and say why it has not the others."""
    low = list(zip(range(3), bfloat16(backbone), strict=False))
    arithmetics = [float32(backbone), low[0][1], low[2][1]]
    engines, left_out = {}, {}
    for kind in sorted(available(CPU), reverse=True):  # torch first
        for arithmetic in arithmetics:
            try:
                engines[f"{kind} {arithmetic.name}"] = build_engine(kind, arithmetic, CPU, 224)
            except NotHere as error:
                left_out[f"{kind} {arithmetic.name}"] = str(error)
    return engines, left_out
