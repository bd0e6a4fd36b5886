"""Fabricated feature stores and image folders, for tests and the benchmark."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from common.store import SPLITS, FeatureStore
from common.store_writer import name_arrays, write_store


def make_store(
    path: Path,
    *,
    classes: int = 4,
    train: int = 30,
    test: int = 15,
    feature_dim: int = 16,
    views: int = 1,
    seed: int = 0,
    spread: float = 0.3,
    dtype: str = "<f4",
    thumbnails: bool = True,
    class_superclass: Sequence[int] = (),
    layers: Sequence[tuple[str, int]] = (),
) -> FeatureStore:
    """A store of `train` and `test` images a class, whose features lie around one random centre a class.

    class_superclass: the super-class of each class, where there are some. layers: names and dimensions that sum to
    `feature_dim`, where it is made of several.
    """
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(classes, feature_dim))
    labels = np.concatenate([np.repeat(np.arange(classes), n) for n in (train, test)])
    n = len(labels)
    features = centres[labels] + spread * generator.normal(size=(views, n, feature_dim))
    arrays = {
        "features": features.astype(dtype),
        "labels": labels,
        "image_index": np.concatenate([np.arange(classes * train), np.arange(classes * test)]),
        "split": np.repeat(np.arange(2, dtype=np.uint8), [classes * train, classes * test]),
        "image_sha256": generator.integers(256, size=(n, 32), dtype=np.uint8),
    }
    files = [f"{SPLITS[split]}/{row:05d}.png" for row, split in enumerate(arrays["split"])]
    arrays |= name_arrays(files)
    if thumbnails:
        arrays["thumbnails"] = generator.integers(256, size=(n, 32, 32, 3), dtype=np.uint8)
    header = make_header(classes, feature_dim, views, seed, "bfloat16" if dtype == "<f2" else "float32")
    if class_superclass:
        header["superclass_names"] = [f"super{number}" for number in range(max(class_superclass) + 1)]
        header["class_superclass"] = list(class_superclass)
    if layers:
        header["identity"]["backbone"]["layers"] = [list(layer) for layer in layers]
    write_store(path, header, arrays)
    return FeatureStore.open(path)


def make_header(classes: int, feature_dim: int, views: int = 1, seed: int = 0, precision: str = "float32") -> dict:
    """The header of a store of noise."""
    names = [f"class{label}" for label in range(classes)]
    identity = {
        "data_set": {"pixels": {"train": str(seed), "test": ""}, "labels": {}, "class_names": names},
        "backbone": {"name": "resnet18", "feature_dim": feature_dim},
        "weights": {"sha256": "0" * 64, "random_seed": None},
        "preprocessing": {"views": ["plain", "mirror", "third"][:views]},
        "precision": precision,
    }
    return {
        "identity": identity,
        "class_names": names,
        "superclass_names": [],
        "class_superclass": [],
        "provenance": {"request": {}},
    }


def make_images(
    root: Path, *, classes: int = 3, train: int = 12, test: int = 10, size: int = 16, seed: int = 0
) -> Path:
    """An image folder: `train/` and `test/` with folders class0 … of noisy PNGs."""
    generator = np.random.default_rng(seed)
    for split, n in (("train", train), ("test", test)):
        for label in range(classes):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(n):
                pixels = generator.integers(256, size=(size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i:03d}.png")
    return root
