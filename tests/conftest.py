"""Fixtures that tests of more than one module use."""

from pathlib import Path

import pytest

from common.synthetic import make_images
from extract.backbones import Backbone, load_backbone


@pytest.fixture(scope="session")
def resnet() -> Backbone:
    """A ResNet18 with random weights, for images of 32 × 32."""
    return load_backbone("resnet18", "random", 0, 32)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of 66 small images of three classes."""
    return make_images(tmp_path / "images")
