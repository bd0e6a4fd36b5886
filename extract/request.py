"""What was asked for, and whether a store has it. Imports nothing heavy: "up to date" is said at once."""

import contextlib
import importlib.metadata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.store import (
    DamagedStore,
    FeatureStore,
    ForeignStore,
    MissingStore,
    NewerStore,
    OlderStore,
    UnreadableStore,
)
from common.store import identity_digest as digest
from common.store_partial import read_progress
from extract.sources import Reading, reading_request, source_kind

IMAGE_SIZES = {"resnet18": 224}  # known without asking the model, so that "up to date" is said without torch


@dataclass(frozen=True)
class Request:
    """What the user asked for: fixes the features, once the images and the weights are what they are.

    image_size: None for the model's own. reading: how people's own files are read.
    """

    dataset: str
    root: Path
    backbone: str
    weights: str
    weights_seed: int
    image_size: int | None
    views: str
    layers: str
    precision: str
    reading: Reading = field(default_factory=Reading)

    def as_json(self) -> dict[str, Any]:
        """As recorded in the store, with a cheap fingerprint of the images and the digest of the weights file."""
        said = {} if self.layers == "last" else {"layers": self.layers}
        return {
            "dataset": self.dataset,
            "fingerprint": source_kind(self.dataset).fingerprint(self.root),
            "backbone": self.backbone,
            "weights": self._weights(),
            "image_size": self.image_size,
            "views": self.views,
            "precision": self.precision,
            **said,
            **reading_request(self.dataset, self.reading),
        }

    def default_store(self) -> Path:
        """A readable file name, one for each request."""
        parts = [self.dataset, self.backbone.replace(":", "-"), self._weights().split(":")[-1][:8]]
        if source_kind(self.dataset).own_files:
            parts.insert(1, self.root.resolve().stem.replace(":", "-"))
        if self.image_size is not None:
            parts.append(str(self.image_size))
        parts += filter(None, (self.reading.image_column, self.reading.label_column))
        if self.reading.test_fraction is not None:
            parts.append(f"test{self.reading.test_fraction:g}")
        if self.views != "plain":
            parts.append(self.views.replace(",", "+"))
        if self.layers != "last":
            parts.append(self.layers.replace(",", "+"))
        if self.reading.decode != Reading.decode:
            parts.append(self.reading.decode)
        if self.precision != "float32":
            parts.append(self.precision)
        return Path("data/features") / ("-".join(parts) + ".h5")

    def _weights(self) -> str:
        from common.files import sha256_file

        if self.weights in ("torchvision", "pretrained"):
            library = self.backbone.rpartition(":")[0] or "torchvision"
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                return "imagenet:" + importlib.metadata.version(library)
            return "imagenet:"
        if self.weights == "random":
            return f"random:random{self.weights_seed}"
        if not Path(self.weights).is_file():
            raise UserError(
                f"there are no weights at {self.weights}: give --weights (make: WEIGHTS=) a state dict file"
            )
        return "sha256:" + sha256_file(Path(self.weights))


def request(
    dataset: str,
    root: Path | None,
    backbone: str = "resnet18",
    image_size: int | None = None,
    views: str = "plain",
    layers: str = "last",
    on_error: str = Reading.on_error,
    test_fraction: float | None = None,
    max_pixels: int = Reading.max_pixels,
    decode: str = Reading.decode,
    image_column: str | None = None,
    label_column: str | None = None,
    weights: str = "torchvision",
    weights_seed: int = 0,
    precision: str = "float32",
) -> Request:
    """The request that these options make. Raises UserError where it lacks the root that its data set needs.

    dataset: of `SOURCES`; "hf:PLACE" stands for "hf" and the root PLACE.
    """
    if dataset.startswith("hf:"):
        if root is not None:
            raise UserError(f"--dataset {dataset} says where the images are: leave --root (make: ROOT=) out")
        dataset, root = "hf", Path(dataset[3:]) if dataset[3:] else None
    if source_kind(dataset).own_files and root is None:
        raise UserError(f"--dataset {dataset} needs --root (make: ROOT=), the folder or the file with your images")
    return Request(
        dataset,
        root or Path("data"),
        backbone,
        weights,
        weights_seed,
        image_size or IMAGE_SIZES.get(backbone),
        views.replace(" ", ""),
        layers.replace(" ", ""),
        precision,
        Reading(on_error, test_fraction, max_pixels, decode, image_column=image_column, label_column=label_column),
    )


def store_at(path: Path, overwrite: bool) -> FeatureStore | None:
    """The store at a path, None where there is none, or what is there may be overwritten and is no sound store.

    Raises UserError for a file that is something else, unless `overwrite`, and for one that cannot be read.
    """
    try:
        return FeatureStore.open(path)
    except MissingStore:
        return None
    except (DamagedStore, OlderStore) as error:
        if overwrite:
            return None
        raise UserError(f"{error.message} (--overwrite replaces it)") from error
    except (ForeignStore, NewerStore) as error:
        if overwrite and path.is_file():
            return None
        raise UserError(f"{error.message}, or choose another --store: this file is not touched") from error


def is_up_to_date(store: FeatureStore, wanted: dict[str, Any]) -> bool:
    """True if a store was made from an equal request.

    The request includes the sizes and times of the files, so nothing needs to be decoded.
    """
    return store.header["provenance"]["request"] == wanted


def require_identity(store: FeatureStore, wanted: dict[str, Any], image_sha256: np.ndarray) -> None:
    """Raise UserError, which says what differs, unless a store has this identity.

    image_sha256: the digests (N, 32) of the images of `wanted`.
    """
    found = store.identity
    if digest(found) == digest(wanted):
        return
    different = [key for key in wanted if found.get(key) != wanted[key]]
    if different == ["data_set"]:
        raise UserError(
            f"the images are not those of {store.path} ({_changes(store, image_sha256)}): give --overwrite to extract "
            "them all again, or another --store to keep both"
        )
    raise UserError(
        f"{store.path} holds features of something else (other {', '.join(different)}): "
        "choose another --store (--overwrite would replace these)"
    )


def _changes(store: FeatureStore, image_sha256: np.ndarray) -> str:
    """Say how many images are new, and how many are gone, by their pixels."""
    then, now = (np.ascontiguousarray(digests).view("V32").ravel() for digests in (store.image_sha256, image_sha256))
    new, gone = len(np.setdiff1d(now, then)), len(np.setdiff1d(then, now))
    if len(then) == len(now) and not new and not gone:
        return "other names, order, labels or split of the same images"
    return f"{len(then):,} then, {len(now):,} now: {new:,} new, {gone:,} gone"


def store_status(path: Path) -> tuple[str, str]:
    """One word for what is at a path, and a sentence."""
    try:
        opened = FeatureStore.open(path)
    except MissingStore as error:
        progress = read_progress(path)
        if progress is None:
            return "missing", error.message
        return "partial", f"{progress[0]:,} of {progress[1]:,} images; run the same extraction again to go on"
    except DamagedStore as error:
        return "damaged", error.message
    except ForeignStore as error:
        return "foreign", error.message
    except OlderStore as error:
        return "older", error.message
    except NewerStore as error:
        return "newer", error.message
    except UnreadableStore as error:
        return "unreadable", error.message
    views, n, feature_dim = opened.places["features"].shape
    return "complete", f"{n:,} images × {views} view(s) × {feature_dim}, identity {opened.identity_sha256[:16]}"
