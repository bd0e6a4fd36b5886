"""scikit-learn's bundled scans of digits: 1,797 images, 8×8, grey; every fifth of a class is a test image."""

import importlib.metadata
from pathlib import Path

import numpy as np

from extract.sources import ImageSource, Reading

TEST_EVERY = 5


class Digits:
    """The source "digits": needs no root and no network."""

    own_files = False

    def open(self, root: Path, reading: Reading) -> ImageSource:
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        pixels = np.round(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        rank = np.empty(len(labels), np.int64)  # index of the image within its class
        for label in range(10):
            rank[labels == label] = np.arange(np.sum(labels == label))
        names = [str(digit) for digit in range(10)]
        return ImageSource(
            "digits", names, labels, rank % TEST_EVERY == 0, lambda row: np.repeat(pixels[row][:, :, None], 3, axis=2)
        )

    def fingerprint(self, root: Path) -> str:
        return "scikit-learn " + importlib.metadata.version("scikit-learn")
