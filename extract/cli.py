"""The command line of stage 1. Heavy imports wait inside the commands, so that --help answers at once."""

import importlib.metadata
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from common.command_line import CommandLine
from common.errors import UserError
from common.store import DamagedStore, FeatureStore, ForeignStore, NewerStore, identity_digest

SOURCES = ("cifar100", "cifar10", "imagefolder", "digits")
PRECISIONS = ("float32", "bfloat16")
ENGINES = ("auto", "torch", "openvino")


@dataclass(frozen=True)
class Request:
    """What the user asked for: fixes the features, once the images and the weights are what they are."""

    dataset: str
    root: Path
    backbone: str
    weights: str
    weights_seed: int
    image_size: int
    views: str
    layers: str
    precision: str

    def as_json(self) -> dict[str, Any]:
        """As recorded in the store, with a cheap fingerprint of the images and the digest of the weights file."""
        from extract.sources import fingerprint

        said = {} if self.layers == "last" else {"layers": self.layers}
        return {
            "dataset": self.dataset,
            "fingerprint": fingerprint(self.dataset, self.root),
            "backbone": self.backbone,
            "weights": self._weights(),
            "image_size": self.image_size,
            "views": self.views,
            "precision": self.precision,
            **said,
        }

    def default_store(self) -> Path:
        """A readable file name, one for each request."""
        parts = [self.dataset, self.backbone, self._weights().split(":")[-1][:8], str(self.image_size)]
        if self.dataset == "imagefolder":
            parts.insert(1, self.root.resolve().name)
        if self.views != "plain":
            parts.append(self.views.replace(",", "+"))
        if self.layers != "last":
            parts.append(self.layers.replace(",", "+"))
        if self.precision != "float32":
            parts.append(self.precision)
        return Path("data/features") / ("-".join(parts) + ".h5")

    def _weights(self) -> str:
        from common.files import sha256_file

        if self.weights == "torchvision":
            return "imagenet:" + importlib.metadata.version("torchvision")
        if self.weights == "random":
            return f"random:random{self.weights_seed}"
        if not Path(self.weights).is_file():
            raise UserError(
                f"there are no weights at {self.weights}: give --weights (make: WEIGHTS=) a state dict file"
            )
        return "sha256:" + sha256_file(Path(self.weights))


@click.group(cls=CommandLine, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Stage 1: run a frozen backbone over the images once and keep the vectors in a feature store."""


@main.command()
@click.option("--dataset", type=click.Choice(SOURCES), default="cifar100", show_default=True, help="Image source.")
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    default=None,
    help="imagefolder: the folder with train/ and test/; CIFAR: where the archive is kept.  [default: data]",
)
@click.option("--backbone", default="resnet18", show_default=True, help="A classification model of torchvision.")
@click.option(
    "--weights",
    default="torchvision",
    show_default=True,
    help='"torchvision" (ImageNet), "random", or the path of a state dict.',
)
@click.option("--weights-seed", default=0, show_default=True, help='The seed of "random" weights.')
@click.option(
    "--image-size", type=click.IntRange(8, 4096), default=224, show_default=True, help="Pixels, after resize."
)
@click.option(
    "--views", default="plain", show_default=True, help="Views of each image to cache, such as plain,mirror,zoom."
)
@click.option(
    "--layers",
    default="last",
    show_default=True,
    help="Layers to cache: last is what the classifier gets; of others, such as last,layer3, the mean over space.",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="float32",
    show_default=True,
    help="Of the network; bfloat16 as far as it is true to float32 (cosine of at least 0.9999).",
)
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    default="auto",
    show_default=True,
    help="What runs the network; auto measures which is the fastest.",
)
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True, help="Images at a time.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps …")
@click.option(
    "--store", type=click.Path(path_type=Path), default=None, help="Where to.  [default: data/features/<request>.h5]"
)
@click.option("--overwrite", is_flag=True, help="Replace a store that holds something else.")
def features(store: Path | None, engine: str, batch_size: int, device: str, overwrite: bool, **asked: Any) -> None:
    """Make a feature store, or say that it is up to date. Prints its path.

    An interrupted extraction goes on where it stopped when the same command is given again.
    """
    request = _request(**asked)
    store = store or request.default_store()
    wanted = request.as_json()
    if _is_up_to_date(store, wanted, overwrite):
        click.echo(f"up to date: {store}", err=True)
    else:
        _extract(request, wanted, store, engine, batch_size, device, overwrite)
    click.echo(store)


@main.command()
@click.argument("store", type=click.Path(path_type=Path))
def status(store: Path) -> None:
    """Say what a file is: complete, partial, damaged, foreign, newer or missing. Exit code 0 for complete, else 1.

    Reads the header only; `verify` reads every byte.
    """
    word, detail = store_status(store)
    click.echo(f"{word}: {detail}")
    raise SystemExit(word != "complete")


@main.command()
@click.argument("store", type=click.Path(path_type=Path))
def info(store: Path) -> None:
    """Print what a store holds and where it comes from, as JSON."""
    opened = FeatureStore.open(store)
    arrays = {name: f"{place.dtype} {list(place.shape)}" for name, place in opened.places.items()}
    header = {key: value for key, value in opened.header.items() if key != "blocks"}
    click.echo(json.dumps({"path": str(store), "arrays": arrays, **header}, indent=2, ensure_ascii=False))


@main.command()
@click.argument("store", type=click.Path(path_type=Path))
def verify(store: Path) -> None:
    """Read every byte of a store and compare it with the digests in its header."""
    opened = FeatureStore.open(store)
    opened.verify()
    blocks = sum(map(len, opened.header["blocks"].values()))
    click.echo(f"sound: {store}, {blocks} blocks, identity {opened.identity_sha256[:16]}")


def store_status(store: Path) -> tuple[str, str]:
    """One word for what is at a path, and a sentence."""
    from common.store_partial import read_progress

    try:
        opened = FeatureStore.open(store)
    except DamagedStore as error:
        return "damaged", error.message
    except ForeignStore as error:
        return "foreign", error.message
    except NewerStore as error:
        return "newer", error.message
    except UserError as error:
        progress = read_progress(store)
        if progress is None:
            return "missing", error.message
        return "partial", f"{progress[0]:,} of {progress[1]:,} images; run the same extraction again to go on"
    views, n, feature_dim = opened.places["features"].shape
    return "complete", f"{n:,} images × {views} view(s) × {feature_dim}, identity {opened.identity_sha256[:16]}"


def _request(dataset: str, root: Path | None, views: str, layers: str, **asked: Any) -> Request:
    if dataset == "imagefolder" and root is None:
        raise UserError("--dataset imagefolder needs --root (make: ROOT=), a folder with train/ and test/")
    return Request(dataset, root or Path("data"), views=views.replace(" ", ""), layers=layers.replace(" ", ""), **asked)


def _is_up_to_date(store: Path, wanted: dict[str, Any], overwrite: bool) -> bool:
    if not store.exists():
        return False
    try:
        found = FeatureStore.open(store).header["provenance"]["request"]
    except (DamagedStore, ForeignStore, NewerStore) as error:
        if overwrite:
            return False
        raise UserError(f"{error.message}; or give --overwrite to replace it") from error
    return found == wanted


def _extract(
    request: Request, wanted: dict[str, Any], store: Path, engine: str, batch_size: int, device: str, overwrite: bool
) -> None:
    from extract.backbones import load_backbone, parse_layers
    from extract.preprocessing import Preprocessing, parse_views

    views, layers = parse_views(request.views), parse_layers(request.layers)
    from common.machine import choose_device
    from extract.pipeline import Extraction
    from extract.sources import load_source

    chosen = choose_device(device)
    backbone = load_backbone(request.backbone, request.weights, request.weights_seed, request.image_size, layers)
    source = load_source(request.dataset, request.root)
    # A data set that was downloaded a moment ago has its fingerprint only now
    extraction = Extraction(
        source,
        backbone,
        Preprocessing(request.image_size, views),
        request.precision,
        request.as_json(),
        batch_size,
        chosen,
        engine,
    )
    if backbone.random_seed is not None:
        click.echo(
            f"{backbone.name} has RANDOM weights (seed {backbone.random_seed}): its features show that the "
            "pipeline works, not what a trained network can do",
            err=True,
        )
    if store.exists() and not overwrite:
        _require_identity(store, extraction.identity_of_pixels())
        click.echo(f"up to date: {store} (files changed their names or times, their pixels are the same)", err=True)
        return
    made = extraction.run(store)
    click.echo(store_status(made.path)[1], err=True)


def _require_identity(store: Path, wanted: dict[str, Any]) -> None:
    found = FeatureStore.open(store).identity
    if identity_digest(found) == identity_digest(wanted):
        return
    different = [key for key in wanted if found.get(key) != wanted[key]]
    raise UserError(
        f"{store} holds features of something else (other {', '.join(different)}): "
        "choose another --store, or give --overwrite to replace it"
    )
