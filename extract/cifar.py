"""CIFAR-10 and CIFAR-100 through torchvision (Krizhevsky, *Learning Multiple Layers of Features*, 2009).

And the super-classes of CIFAR-100, which are known by the names of its classes.
"""

import contextlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from extract.folders import stamps_digest
from extract.sources import ImageSource, Reading

CIFAR100_SUPERCLASSES = {
    "aquatic mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food containers": "bottle bowl can cup plate",
    "fruit and vegetables": "apple mushroom orange pear sweet_pepper",
    "household electrical devices": "clock keyboard lamp telephone television",
    "household furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large carnivores": "bear leopard lion tiger wolf",
    "large man-made outdoor things": "bridge castle house road skyscraper",
    "large natural outdoor scenes": "cloud forest mountain plain sea",
    "large omnivores and herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium-sized mammals": "fox porcupine possum raccoon skunk",
    "non-insect invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles 1": "bicycle bus motorcycle pickup_truck train",
    "vehicles 2": "lawn_mower rocket streetcar tank tractor",
}


class CIFAR100:
    """The source "cifar100": fetched into the root, unless it is there."""

    own_files = False
    data_set, folder = "CIFAR100", "cifar-100-python"

    def open(self, root: Path, reading: Reading) -> ImageSource:
        parts = _open(self.data_set, root)
        images = np.concatenate([part.data for part in parts])
        labels = np.concatenate([part.targets for part in parts])
        is_test = np.repeat([False, True], [len(part.data) for part in parts])
        return ImageSource(self.data_set.lower(), list(parts[0].classes), labels, is_test, images.__getitem__)

    def fingerprint(self, root: Path) -> str:
        return stamps_digest(root / self.folder)


class CIFAR10(CIFAR100):
    """The source "cifar10"."""

    data_set, folder = "CIFAR10", "cifar-10-batches-py"


def _open(name: str, root: Path) -> tuple[Any, Any]:
    """The train and the test data set of torchvision, downloaded into `root` and checked against their MD5 once.

    Raises UserError naming the URL, the MD5 and the place for the archive when it cannot be downloaded.
    """
    import torchvision  # here, because `--help` must not wait for it

    data_set = getattr(torchvision.datasets, name)
    by_hand = (
        f"get {data_set.url} (MD5 {data_set.tgz_md5}) by hand, "
        f"put it at {root / data_set.filename}, and run the same command again"
    )
    try:
        root.mkdir(parents=True, exist_ok=True)
        # torchvision reports on stdout, where the path of the store is to stand alone
        with contextlib.redirect_stdout(sys.stderr):
            return data_set(root, train=True, download=True), data_set(root, train=False)
    except (OSError, RuntimeError, EOFError) as error:  # urllib's errors are OSErrors
        raise UserError(f"{name.lower()} is not in {root} and cannot be downloaded ({error}): {by_hand}") from error


def superclasses_of(class_names: list[str]) -> tuple[list[str], list[int]]:
    """The super-class names and the super-class of each class, both empty unless these are CIFAR-100's classes."""
    names = list(CIFAR100_SUPERCLASSES)
    of_class = {
        fine: number for number, classes in enumerate(CIFAR100_SUPERCLASSES.values()) for fine in classes.split()
    }
    if set(class_names) != set(of_class):
        return [], []
    return names, [of_class[name] for name in class_names]
