"""Fixtures that tests of more than one module use."""

import os
from pathlib import Path
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # tests run side by side: threads of one would wait for those of another
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from common.store import FeatureStore
from common.synthetic import make_images, make_store
from extract.backbones import Backbone, load_backbone


@pytest.fixture(scope="session")
def resnet() -> Backbone:
    """A ResNet18 with random weights, for images of 32 × 32."""
    return load_backbone("resnet18", "random", 0, 32)


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The library of Hugging Face, with a cache of its own."""
    library = pytest.importorskip("datasets", reason="Hugging Face datasets is missing: pip install '.[hf]'")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", str(tmp_path / "hf-cache"))
    return library


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of 66 small images of three classes."""
    return make_images(tmp_path / "images")


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """A store of four classes with 30 training images and 15 test images each."""
    return make_store(tmp_path / "s.h5")
