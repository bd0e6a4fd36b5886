"""From photographs to features, beside the loops that anyone would write."""

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.io import decode_jpeg
from torchvision.transforms import v2

from bench.extraction import extraction
from bench.timing import CPU, Work, measure_cases
from extract.backbones import load_backbone
from extract.batches import SAMPLE, Extraction, read_sample
from extract.engines import EngineChoice
from extract.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from extract.sources import Reading, load_source

SIZES = {"12 megapixels": (3024, 4032, 48), "500 × 375": (375, 500, 128), "32 × 32": (32, 32, 256)}  # H, W, images
DISTINCT = 8
BATCH = 32


def photographs(folder: Path, rounds: int, weights: str) -> dict[str, Any]:
    """Images a second from JPEG files (32 × 32: PNG) to features of a ResNet18 at 224 pixels.

    "process": start included, `python -m extract features` beside the plain loop; else in a process that is warm.
    """
    backbone, preprocessing = load_backbone("resnet18", weights, 0, 224), Preprocessing()
    module = backbone.module.to(memory_format=torch.contiguous_format)
    rates: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    sizes: dict[str, float] = {}
    for name, (height, width, n) in SIZES.items():
        root = folder / name.replace(" ", "")
        sizes[name] = make_photographs(root, height, width, n)
        reading = Reading(least_side=preprocessing.least_side())
        source = load_source("folder", root, reading)
        cases = {f"plain loop: {way}": plain_loop(root, module, decode) for way, decode in decoders(height).items()}
        for precision in ("float32", "bfloat16"):
            sample = read_sample(source, preprocessing, SAMPLE)
            assert sample is not None
            engine, _ = EngineChoice(backbone, precision, CPU, 224).choose(sample)
            if engine.precision != precision:
                left_out[f"{name}, this project, {precision}"] = "no bfloat16 engine was both faster and accurate"
                continue
            job = Extraction(source, backbone, preprocessing, precision, {}, BATCH, CPU)
            cases[f"this project, {engine.name}"] = extraction(job, engine, n)
            command = ["extract", "features", "--dataset", "folder", "--root", str(root), "--weights", weights]
            store = ["--store", str(folder / "store.h5"), "--overwrite", "--precision", precision]
            cases[f"process: this project, {precision}"] = _process([*command, *store], n, folder / "store.h5")
        cases["process: plain loop, PIL"] = _process(["bench.photographs", str(root), weights], n)
        found = measure_cases(cases, rounds)
        rates |= {f"{name}, {way}": rate for way, rate in found["rates"].items()}
        left_out |= {f"{name}, {way}": reason for way, reason in found["left_out"].items()}
    return {"unit": "images/s", "rates": rates, "left_out": left_out, "megabytes_per_file": sizes}


def make_photographs(root: Path, height: int, width: int, n: int) -> float:
    """Write `n` files, `DISTINCT` pictures with detail of every size as photographs have it; returns their mean MB."""
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
        for copy in range(number + DISTINCT, n, DISTINCT):
            shutil.copy(first, root / f"{copy:04d}{first.suffix}")
    return round(sum(file.stat().st_size for file in root.iterdir()) / n / 1e6, 3)


def decoders(height: int) -> dict[str, Callable[[Path], Any]]:
    """The ways to decode a file that are installed here: path → a PIL image, or a tensor (3, H, W)."""
    ways: dict[str, Callable[[Path], Any]] = {"PIL": lambda path: Image.open(path).convert("RGB")}
    if height == 32:
        return ways
    ways["torchvision's decoder"] = lambda path: decode_jpeg(torch.frombuffer(path.read_bytes(), dtype=torch.uint8))
    if importlib.util.find_spec("simplejpeg"):
        import simplejpeg

        ways["simplejpeg, scaled"] = lambda path: _channels_first(
            simplejpeg.decode_jpeg(path.read_bytes(), min_height=756, min_width=756, min_factor=1)
        )
    if importlib.util.find_spec("cv2"):
        import cv2

        ways["OpenCV, full size"] = lambda path: _channels_first(cv2.imread(str(path))[..., ::-1])
    return ways


def _channels_first(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)


class Pictures(Dataset):
    """The files of a folder, decoded and transformed as torchvision's recipes do it."""

    def __init__(self, root: Path, decode: Callable[[Path], Any]):
        self.files, self.decode = sorted(root.iterdir()), decode
        resize = [v2.Resize(224, antialias=True), v2.CenterCrop(224)]
        scale = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
        self.transform = v2.Compose(resize + scale)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(self.decode(self.files[index]))


def plain_loop(root: Path, module: nn.Module, decode: Callable[[Path], Any]) -> Work:
    """A DataLoader with two workers, torchvision's network in float32."""

    @torch.inference_mode()
    def work() -> int:
        loader = DataLoader(Pictures(root, decode), batch_size=BATCH, num_workers=2)
        return len(torch.cat([module(batch).flatten(1) for batch in loader]))

    return work


def _process(arguments: list[str], n: int, made: Path | None = None) -> Work:
    def work() -> int:
        if made is not None:
            made.unlink(missing_ok=True)
        subprocess.run([sys.executable, "-m", *arguments], check=True, capture_output=True)
        return n

    return work


if __name__ == "__main__":
    images, weights = sys.argv[1:]
    plain_loop(Path(images), load_backbone("resnet18", weights, 0, 224).module, decoders(32)["PIL"])()
