"""What features are: two stores of one identity are interchangeable, whatever their paths and times."""

import hashlib
import itertools
from typing import Any

import numpy as np

from common.store import SPLITS
from common.store_header import labels_digest
from extract.backbones import Backbone
from extract.preprocessing import Preprocessing
from extract.sources import ImageSource


def identity_of(
    source: ImageSource, backbone: Backbone, preprocessing: Preprocessing, precision: str, image_sha256: np.ndarray
) -> dict[str, Any]:
    """The identity of the features of images with these pixel digests (N, 32), train before test."""
    layers = {} if len(backbone.layers) == 1 else {"layers": list(backbone.layers.items())}
    return {
        "data_set": {
            "pixels": split_digests(source, image_sha256),
            "labels": {name: labels_digest(source.splits[name].labels) for name in SPLITS},
            "class_names": source.class_names,
        },
        # Left out where it is the default, so that the digest of older stores does not change
        "backbone": {"name": backbone.name, "feature_dim": backbone.feature_dim, **layers},
        "weights": {"sha256": backbone.weights_sha256, "random_seed": backbone.random_seed},
        "preprocessing": preprocessing.as_json(),
        "precision": precision,
    }


def split_digests(source: ImageSource, image_sha256: np.ndarray) -> dict[str, str]:
    """Per split, the SHA-256 over its images' digests (N, 32), in their order."""
    stops = list(itertools.accumulate(len(source.splits[name].labels) for name in SPLITS))
    ranges = zip(SPLITS, [0, *stops[:-1]], stops, strict=True)
    return {name: hashlib.sha256(image_sha256[a:b].tobytes()).hexdigest() for name, a, b in ranges}
