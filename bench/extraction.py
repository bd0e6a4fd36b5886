"""From images to features, beside the ways of others."""

import contextlib
import itertools
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bench.peers import extract_plainly, with_opencv, with_pil, with_simplejpeg, with_torchvision
from bench.timing import CPU, Cases, Work, count_flops, make_roofs, measure_cases
from common.synthetic import make_images
from extract.backbones import Backbone, load_backbone
from extract.batches import Extraction, LocalNetwork, Stopwatch, read_sample
from extract.engines import Engine, NotHere, available, bfloat16, build_engine, float32
from extract.preprocessing import Preprocessing
from extract.sources import Reading, load_source

IMAGES = 128
PHOTOGRAPHS = {"12 megapixels": (3024, 4032, 48), "500 × 375": (375, 500, 128), "32 × 32": (32, 32, 256)}  # H, W, n
DISTINCT = 8
DECODERS = {  # by name: the module that must be installed, and the way
    "PIL": ("PIL", with_pil),
    "torchvision's decoder": ("torchvision", with_torchvision),
    "simplejpeg, scaled": ("simplejpeg", with_simplejpeg),
    "OpenCV, full size": ("cv2", with_opencv),
}


def extraction(job: Extraction, engine: Engine, n: int) -> Work:
    """The first `n` images of a job through an engine, in this process."""

    def work() -> int:
        with contextlib.closing(LocalNetwork(job, engine, {})) as network:
            batches = network.batches(range(0, n, job.batch_size), Stopwatch())
            return sum(len(arrays["thumbnails"]) for _, arrays, _ in batches if arrays is not None)

    return work


def measure_extraction(folder: Path, rounds: int, weights: str) -> dict[str, Any]:
    """Images a second, from PNG files of 32 × 32 pixels to features, of a ResNet18 at 224 pixels.

    `roof`: as many images as a product of 2048² matrices does floating-point operations in the same time.
    """
    root = make_images(folder / "images", classes=2, train=IMAGES // 2, size=32)
    backbone = load_backbone("resnet18", weights, 0, 224)
    flops = count_flops(lambda: backbone.features(torch.zeros(1, 3, 224, 224)))
    job = Extraction(load_source("imagefolder", root), backbone, Preprocessing(), "float32", {}, 32, CPU)
    plain_loop = extract_plainly(root / "train", backbone.module, batch_size=64)
    cases: Cases = {"tutorial: PIL, DataLoader, torch float32": plain_loop}
    for name, engine in build_engines(backbone).items():
        cases[name] = engine if isinstance(engine, str) else extraction(job, engine, IMAGES)
    return {"unit": "images/s", "gflop_per_image": flops / 1e9, **measure_cases(cases | make_roofs(flops), rounds)}


def build_engines(backbone: Backbone) -> dict[str, Engine | str]:
    """Build the engines that this machine has, by name; a text says why it has not one of the others."""
    low = list(itertools.islice(bfloat16(backbone), 3))
    engines: dict[str, Engine | str] = {}
    for kind in sorted(available(CPU), reverse=True):  # torch first
        for arithmetic in [float32(backbone), low[0], low[2]]:
            try:
                engines[f"{kind} {arithmetic.name}"] = build_engine(kind, arithmetic, CPU, 224)
            except NotHere as error:
                engines[f"{kind} {arithmetic.name}"] = str(error)
    return engines


def measure_photographs(folder: Path, rounds: int, weights: str) -> dict[str, Any]:
    """Images a second from JPEG files (32 × 32: PNG) to features of a ResNet18 at 224 pixels.

    "process": start included, `python -m extract features` beside the plain loop; else in a process that is warm.
    """
    backbone, preprocessing = load_backbone("resnet18", weights, 0, 224), Preprocessing()
    rates: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for size, (height, width, n) in PHOTOGRAPHS.items():
        root, store = folder / size.replace(" ", ""), folder / "store.h5"
        make_photographs(root, height, width, n)
        source = load_source("folder", root, Reading(least_side=preprocessing.least_side()))
        cases: Cases = {}
        for name, (module, decode) in DECODERS.items():
            if decode is with_pil or height > 32:  # the others read JPEG alone
                here = find_spec(module) is not None
                cases[f"plain loop: {name}"] = (
                    extract_plainly(root, backbone.module, decode) if here else f"{module} is not installed"
                )
        for precision in ("float32", "bfloat16"):
            job = Extraction(source, backbone, preprocessing, precision, {}, 32, CPU)
            sample = read_sample(source, preprocessing)
            assert sample is not None
            engine, _ = job.choice.choose(sample)
            if engine.precision != precision:
                cases[f"this project, {precision}"] = "no bfloat16 engine was both faster and accurate"
                continue
            cases[f"this project, {engine.name}"] = extraction(job, engine, n)
            options = ["--root", root, "--weights", weights, "--store", store, "--overwrite", "--precision", precision]
            ours = ["extract", "features", "--dataset", "folder", *map(str, options)]
            cases[f"process: this project, {precision}"] = _process(ours, n, store)
        cases["process: plain loop, PIL"] = _process(["bench.peers", str(root), weights], n)
        found = measure_cases(cases, rounds)
        rates |= {f"{size}, {way}": rate for way, rate in found["rates"].items()}
        left_out |= {f"{size}, {way}": reason for way, reason in found["left_out"].items()}
    return {"unit": "images/s", "rates": rates, "left_out": left_out}


def make_photographs(root: Path, height: int, width: int, n: int) -> None:
    """Write `n` files, `DISTINCT` pictures with detail of every size, as photographs have it."""
    root.mkdir()
    generator = np.random.default_rng(0)
    for number in range(DISTINCT):
        pixels = np.full((height, width, 3), 128.0, np.float32)
        for octave in range(2, 12):
            cells = min(2**octave, height), min(2**octave * width // height, width)
            noise = generator.normal(0, 60 / 2 ** (octave / 2), (*cells, 3)).astype(np.float32)
            for channel in range(3):
                coarse = Image.fromarray(noise[..., channel])
                pixels[..., channel] += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
        picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        first = root / f"{number:04d}.{'png' if height == 32 else 'jpg'}"
        picture.save(first, quality=90)  # which PNG does not know, and ignores
        for same in range(number + DISTINCT, n, DISTINCT):
            shutil.copy(first, root / f"{same:04d}{first.suffix}")


def _process(arguments: list[str], n: int, made: Path | None = None) -> Work:
    """A process of Python that reads `n` images, and makes this file anew."""

    def work() -> int:
        if made is not None:
            made.unlink(missing_ok=True)
        subprocess.run([sys.executable, "-m", *arguments], check=True, capture_output=True)
        return n

    return work
