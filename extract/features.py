"""From a request to its feature store: the one that is there, or a new one.

Nothing heavy is imported at the top, so that "up to date" is answered at once.
"""

import contextlib
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.types import convert_type

from common.cluster import Cluster
from common.errors import UserError, one_line
from common.files import sha256_file
from common.images import RULE, printable
from common.progress import say
from common.store import DamagedStore, FeatureStore, ForeignStore, MissingStore, NewerStore, OlderStore, StoreError
from common.store_partial import clear_up, read_progress
from extract.sources import SOURCES, Reading, left_out_line, load_source, option, source_kind

if TYPE_CHECKING:
    from extract.batches import Extraction

IMAGE_SIZES = {"resnet18": 224}  # known without loading the model and torch
# Options of a Reading that decide over the pixels and the rows
SETTINGS = ("test_fraction", "on_error", "decode", "image_column", "label_column")


@dataclass(frozen=True, kw_only=True)
class Request(Reading):
    """The options of `python -m extract features`: how files are read, what fixes the features, how to make them.

    dataset: "hf:PLACE" stands for "hf" and the root PLACE. root: None for a data set that is fetched, which is kept in
    data/. image_size: None for the model's own. cluster: where the network is to be at work, None for this process.
    Raises UserError for a value that an option does not allow, where the root that the data set needs is missing, and
    for --ship-images without a cluster.
    """

    dataset: str = option("cifar100", str, f"Image source: {', '.join(SOURCES)}:….")
    root: Path | None = option(  # noqa: RUF009 (a field)
        None,
        click.Path(path_type=Path),
        "imagefolder, folder: the folder; csv: the file; CIFAR: where the archive is kept.  [default: data]",
    )
    list_left_out: bool = option(False, bool, "Name every file that is left out, and why.")
    backbone: str = option("resnet18", str, "A classification model of torchvision, or timm:<name>.")
    weights: str = option(
        "torchvision",
        str,
        '"torchvision" or "pretrained" (the published ones), "random", or the path of a state dict.',
    )
    weights_seed: int = option(0, click.IntRange(0, (1 << 63) - 1), 'The seed of "random" weights.')
    image_size: int | None = option(
        None, click.IntRange(8, 4096), "Pixels, after resize.  [default: the model's own; resnet18: 224]"
    )
    views: str = option("plain", str, "Views of each image to cache, such as plain,mirror,zoom.")
    layers: str = option(
        "last",
        str,
        "Layers to cache: last is what the classifier gets; of others, such as last,layer3, the mean over space.",
    )
    precision: str = option(
        "float32",
        click.Choice(["float32", "bfloat16"]),
        "Of the network; bfloat16 where this machine gains from it, as far as it is true (cosine of at least 0.9999).",
    )
    engine: str = option(
        "auto",
        click.Choice(["auto", "torch", "openvino"]),
        "What runs the network; auto takes openvino where it is installed and exact.",
    )
    batch_size: int = option(64, click.IntRange(1, 1 << 20), "Images at a time.")
    device: str = option("auto", str, "auto, cpu, cuda, cuda:1, mps …")
    overwrite: bool = option(False, bool, "Replace a store that holds something else.")
    ship_images: bool = option(False, bool, "Bring the images to workers that do not see them.")
    cluster: Cluster | None = None

    @classmethod
    def options(cls) -> dict[str, Mapping[str, Any]]:
        """What `option` said of each field, in the order of --help."""
        every = {each.name: each.metadata for each in fields(cls) if each.metadata}
        return {name: every[name] for name in dict.fromkeys(["dataset", "root", *every])}

    def __post_init__(self) -> None:
        for name, about in self.options().items():
            if (value := getattr(self, name)) != getattr(Request, name):
                try:  # as its text on the command line
                    object.__setattr__(self, name, convert_type(about["type"]).convert(str(value), None, None))
                except click.BadParameter as error:
                    raise UserError(f"--{name.replace('_', '-')}: {error.message.rstrip('.')}") from error
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

    def as_json(self) -> dict[str, Any]:
        """As recorded in the store, with a cheap fingerprint of the images and the digest of the weights file.

        Raises UserError for an option that does nothing for this data set, and for a file of weights that is not there.
        """
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
            **self._reading(),
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

    def _reading(self) -> dict[str, Any]:
        """How files are read: the rule of decoding, and what is not the default."""
        changed = {name: getattr(self, name) for name in SETTINGS if getattr(self, name) != getattr(Reading, name)}
        if self.dataset != "hf" and (self.image_column or self.label_column):
            raise UserError(
                f"--image-column and --label-column do nothing for {self.dataset}: leave them out, or give hf:…"
            )
        if source_kind(self.dataset).own_files:
            return {"decoding": RULE, **changed}
        if changed or self.max_pixels != Reading.max_pixels:
            raise UserError(
                f"--on-error, --test-fraction, --max-pixels and --decode do nothing for {self.dataset}: leave them "
                "out, or give your own images with --dataset imagefolder, folder or csv"
            )
        return {}


def features(root: Path | str, store: Path | str, dataset: str = "imagefolder", **options: Any) -> FeatureStore:
    """The feature store of the images at `root`, made at `store` now, or the one that is there for the same request.

    options: those of `Request`, such as backbone="resnet50" or on_error="skip". Raises UserError as `find_or_make`.
    """
    return find_or_make(Request(dataset=dataset, root=Path(root), **options), Path(store))


def find_or_make(request: Request, target: Path) -> FeatureStore:
    """The store of a request at `target`, made now if need be; a line says what was done.

    Raises UserError for bad input, when `target` holds features of something else and must not be overwritten, and as
    `extract.pipeline` does.
    """
    store = store_at(target, request.overwrite)
    # A request has the sizes and times of the files, so nothing needs to be decoded
    if store is not None and store.header["provenance"]["request"] == request.as_json():
        clear_up(store)
        say(f"up to date: {target}")
        return store
    from extract import pipeline  # here and below, because torch takes seconds to start

    job = _load(request)
    if store is not None and not request.overwrite:
        return pipeline.renew(job, store)
    store = pipeline.extract(job, target)
    say(f"{target}: {store_status(target)[1]}")
    return store


def _load(request: Request) -> "Extraction":
    """The job of a request: its images, its network, and how to compute. What was decided about them is said."""
    import torch

    from common.machine import choose_device
    from extract.backbones import load_backbone, parse_layers, preprocessing_of
    from extract.batches import Extraction
    from extract.preprocessing import parse_views

    views, layers, cluster = parse_views(request.views), parse_layers(request.layers), request.cluster
    if cluster is None:
        device = choose_device(request.device)
    else:
        cluster = cluster.for_device(request.device)
        device = torch.device("cpu" if request.device == "cpu" else "cuda")
    backbone = load_backbone(request.backbone, request.weights, request.weights_seed, request.image_size, layers)
    preprocessing = preprocessing_of(request.backbone, request.image_size, views)
    request = replace(request, least_side=preprocessing.least_side())
    source = load_source(request.dataset, request.folder, request)
    for name, reason in source.left_out if request.list_left_out else ():
        say(one_line(f"left out: {printable(name)}: {reason}"))
    for line in [*source.notes, left_out_line(source.left_out) if source.left_out else "", backbone.note]:
        if line:
            say(line)
    if backbone.random_seed is not None:
        say(
            f"{backbone.name} has RANDOM weights (seed {backbone.random_seed}): its features show that the "
            "pipeline works, not what a trained network can do"
        )
    return Extraction(
        source=source,
        backbone=backbone,
        preprocessing=preprocessing,
        precision=request.precision,
        request=request.as_json(),  # a data set that was downloaded a moment ago has its fingerprint only now
        batch_size=request.batch_size,
        device=device,
        engine=request.engine,
        on_error=request.on_error,
        cluster=cluster,
        ship_images=request.ship_images,
    )


def store_at(path: Path, overwrite: bool) -> FeatureStore | None:
    """The store at a path; None where there is none, or no sound one and it may be overwritten.

    Raises UserError for any other file, and for one that cannot be read.
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


def store_status(path: Path) -> tuple[str, str]:
    """One word for what is at a path, and a sentence."""
    try:
        opened = FeatureStore.open(path)
    except StoreError as error:
        progress = read_progress(path) if isinstance(error, MissingStore) else None
        if progress is None:
            return error.word, error.message
        return "partial", f"{progress[0]:,} of {progress[1]:,} images; run the same command again to resume"
    views, n, feature_dim = opened.places["features"].shape
    return "complete", f"{n:,} images × {views} view(s) × {feature_dim}, identity {opened.identity_sha256[:16]}"
