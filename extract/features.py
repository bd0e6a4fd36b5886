"""The store of what is asked for: the one that is there, or one made now. Imports nothing heavy.

So "up to date" is said at once; `extract.pipeline` makes what is not there.
"""

import contextlib
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.cluster import Cluster
from common.errors import UserError
from common.files import sha256_file
from common.images import MAX_PIXELS
from common.store import DamagedStore, FeatureStore, ForeignStore, MissingStore, NewerStore, OlderStore, UnreadableStore
from common.store_header import identity_digest
from common.store_partial import clear_up, read_progress
from extract.sources import Reading, reading_request, source_kind

IMAGE_SIZES = {"resnet18": 224}  # known without asking the model, so that "up to date" is said without torch


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options of `python -m extract features`. The first part fixes the features, the second says how to make them.

    dataset: of `SOURCES`; "hf:PLACE" stands for "hf" and the root PLACE. root: None for a data set that is fetched,
    which is kept in data/. image_size: None for the model's own.
    cluster: where the network is to be at work, None for this process. ship_images: its nodes do not see the files.
    Raises UserError where the root that the data set needs is missing, and for --ship-images without a cluster.
    """

    dataset: str = "cifar100"
    root: Path | None = None
    backbone: str = "resnet18"
    weights: str = "torchvision"
    weights_seed: int = 0
    image_size: int | None = None
    views: str = "plain"
    layers: str = "last"
    precision: str = "float32"
    on_error: str = "fail"
    test_fraction: float | None = None
    max_pixels: int = MAX_PIXELS
    decode: str = "scaled"
    image_column: str | None = None
    label_column: str | None = None

    engine: str = "auto"
    batch_size: int = 64
    device: str = "auto"
    overwrite: bool = False
    list_left_out: bool = False
    cluster: Cluster | None = None
    ship_images: bool = False

    def __post_init__(self) -> None:
        if self.dataset.startswith("hf:"):
            if self.root is not None:
                raise UserError(f"--dataset {self.dataset} says where the images are: leave --root (make: ROOT=) out")
            object.__setattr__(self, "root", Path(self.dataset[3:]) if self.dataset[3:] else None)
            object.__setattr__(self, "dataset", "hf")
        if source_kind(self.dataset).own_files and self.root is None:
            raise UserError(
                f"--dataset {self.dataset} needs --root (make: ROOT=), the folder or the file with your images"
            )
        if self.ship_images and self.cluster is None:
            raise UserError("--ship-images does nothing without --ray: leave it out, or give it")

    @property
    def folder(self) -> Path:
        """Where the images are."""
        return self.root or Path("data")

    @property
    def reading(self) -> Reading:
        """How people's own files are read."""
        return Reading(
            self.on_error,
            self.test_fraction,
            self.max_pixels,
            self.decode,
            image_column=self.image_column,
            label_column=self.label_column,
        )

    def as_json(self) -> dict[str, Any]:
        """As recorded in the store, with a cheap fingerprint of the images and the digest of the weights file."""
        layers = self.layers.replace(" ", "")
        return {
            "dataset": self.dataset,
            "fingerprint": source_kind(self.dataset).fingerprint(self.folder),
            "backbone": self.backbone,
            "weights": self._weights(),
            "image_size": self._image_size,
            "views": self.views.replace(" ", ""),
            "precision": self.precision,
            **({} if layers == "last" else {"layers": layers}),
            **reading_request(self.dataset, self.reading),
        }

    def default_store(self) -> Path:
        """A readable file name, one for each request."""
        views, layers = (text.replace(" ", "").replace(",", "+") for text in (self.views, self.layers))
        parts = [
            self.dataset,
            self.folder.resolve().stem.replace(":", "-") if source_kind(self.dataset).own_files else "",
            self.backbone.replace(":", "-"),
            self._weights().split(":")[-1][:8],
            "" if self._image_size is None else str(self._image_size),
            self.image_column or "",
            self.label_column or "",
            "" if self.test_fraction is None else f"test{self.test_fraction:g}",
            "" if views == "plain" else views,
            "" if layers == "last" else layers,
            "" if self.decode == Reading.decode else self.decode,
            "" if self.precision == "float32" else self.precision,
        ]
        return Path("data/features") / ("-".join(filter(None, parts)) + ".h5")

    @property
    def _image_size(self) -> int | None:
        return self.image_size or IMAGE_SIZES.get(self.backbone)

    def _weights(self) -> str:
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


def features(root: Path | str, store: Path | str, dataset: str = "imagefolder", **options: Any) -> FeatureStore:
    """The feature store of the images at `root`, made at `store` now, or the one that is there for the same request.

    options: those of `Request`, such as backbone="resnet50" or on_error="skip". Raises UserError as `find_or_make`.
    """
    return find_or_make(Request(dataset=dataset, root=Path(root), **options), Path(store))[0]


def find_or_make(request: Request, target: Path) -> tuple[FeatureStore, str]:
    """The store of what is asked for at `target`, made now if need be; and a line that says what was done.

    Raises UserError for bad input, when `target` holds features of something else and must not be overwritten, and as
    `extract.pipeline.extract` does.
    """
    store = store_at(target, request.overwrite)
    # A request has the sizes and times of the files, so nothing needs to be decoded
    if store is not None and store.header["provenance"]["request"] == request.as_json():
        clear_up(store)
        return store, f"up to date: {target}"
    from extract.pipeline import make_features  # here, because torch takes seconds to start

    store, line = make_features(request, target, None if request.overwrite else store)
    return store, line or store_status(target)[1]


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


def require_identity(store: FeatureStore, wanted: dict[str, Any], image_sha256: np.ndarray) -> None:
    """Raise UserError, which says what differs, unless a store has this identity.

    image_sha256: the digests (N, 32) of the images of `wanted`.
    """
    if store.identity_sha256 == identity_digest(wanted):
        return
    different = [key for key in wanted if store.identity.get(key) != wanted[key]]
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


WORDS: dict[type[UserError], str] = {
    DamagedStore: "damaged",
    ForeignStore: "foreign",
    OlderStore: "older",
    NewerStore: "newer",
    UnreadableStore: "unreadable",
}


def store_status(path: Path) -> tuple[str, str]:
    """One word for what is at a path, and a sentence."""
    try:
        opened = FeatureStore.open(path)
    except MissingStore as error:
        progress = read_progress(path)
        if progress is None:
            return "missing", error.message
        return "partial", f"{progress[0]:,} of {progress[1]:,} images; run the same command again to resume"
    except tuple(WORDS) as error:
        return WORDS[type(error)], error.message
    views, n, feature_dim = opened.places["features"].shape
    return "complete", f"{n:,} images × {views} view(s) × {feature_dim}, identity {opened.identity_sha256[:16]}"
