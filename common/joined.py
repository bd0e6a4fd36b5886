"""Several feature stores of the same images, side by side: each image has the features of all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.files import canonical_json, sha256_text
from common.progress import say as tell
from common.store import SPLITS, ArrayPlace, FeatureStore


@dataclass(frozen=True)
class JoinedStore:
    """What `FeatureStore` is to train and find, made of several. Nothing is written, and the features stay mapped.

    An image is known by the digest of its pixels; where several images have one digest, by its name, too, else by
    `image_index`. Images are those that all stores have, in the order of the first store, whose labels, names and
    thumbnails are used. Views are the first ones that all stores have.

    rows_in: (n,) int64 of each store, where its row of each image is.
    """

    stores: tuple[FeatureStore, ...]
    rows_in: tuple[np.ndarray, ...]

    @classmethod
    def open(cls, paths: Sequence[Path | str], say: Callable[[str], object] = tell) -> "JoinedStore":
        """Open stores, and match their images; `say` gets a sentence for images and for views that are left out.

        Raises UserError where two stores have no image in common, hold the same features, or disagree on the class or
        the split of an image; and as `FeatureStore.open`.
        """
        first, *others = stores = tuple(map(FeatureStore.open, paths))
        partners = [np.arange(len(first.labels))]
        for number, other in enumerate(others, 1):
            if any(other.identity == store.identity for store in stores[:number]):
                raise UserError(f"{other.path} is given twice, or is a copy: give stores of different backbones")
            partner = _match(first, other)
            if not (partner >= 0).any():
                raise UserError(
                    f"{first.path} and {other.path} have no image in common: extract both from the same images, with "
                    "the same --decode and, for large pictures, the same --image-size"
                )
            _require_agreement(first, other, partner)
            partners.append(partner)
        common = np.logical_and.reduce([partner >= 0 for partner in partners])
        if not common.any():
            raise UserError(f"{', '.join(map(str, paths))} have no image in common: extract all from the same images")
        joined = cls(stores, tuple(partner[common] for partner in partners))
        joined._report(say)
        return joined

    @property
    def path(self) -> Path:
        """The file of the first store, for messages on labels and images."""
        return self.stores[0].path

    @property
    def stem(self) -> str:
        """The names of the files, without their suffixes."""
        return "+".join(store.path.stem for store in self.stores)

    @property
    def header(self) -> dict[str, Any]:
        """That of the first store."""
        return self.stores[0].header

    @property
    def places(self) -> dict[str, ArrayPlace]:
        """Those of the first store."""
        return self.stores[0].places

    @property
    def identity_sha256(self) -> str:
        """The digest of the identities of all, in their order."""
        return sha256_text(canonical_json([store.identity_sha256 for store in self.stores]))

    @property
    def class_names(self) -> list[str]:
        """The name of each label."""
        return self.stores[0].class_names

    @property
    def feature_dim(self) -> int:
        """The sum of the dimensions of the stores."""
        return sum(store.feature_dim for store in self.stores)

    @property
    def views(self) -> list[str]:
        """The name of each view that is used."""
        return self.stores[0].views[: min(len(store.views) for store in self.stores)]

    @cached_property
    def labels(self) -> np.ndarray:
        """The labels (n,) int64."""
        return self._of_first(self.stores[0].labels)

    @cached_property
    def split(self) -> np.ndarray:
        """The split (n,) uint8 of each image, an index into `SPLITS`."""
        return self._of_first(self.stores[0].split)

    @cached_property
    def image_index(self) -> np.ndarray:
        """The index (n,) int64 of each image in its split of the source."""
        return self._of_first(self.stores[0].image_index)

    @cached_property
    def image_sha256(self) -> np.ndarray:
        """The digest (n, 32) uint8 of each decoded image."""
        return self._of_first(self.stores[0].image_sha256)

    @cached_property
    def thumbnails(self) -> np.ndarray | None:
        """Small pictures (n, H, W, 3) uint8, or None where the first store has none; mapped where it lost no image."""
        pictures = self.stores[0].thumbnails
        return None if pictures is None else self._of_first(pictures)

    def rows_of(self, split: str) -> np.ndarray:
        """The images (n,) int64 of a split, ascending."""
        return np.flatnonzero(self.split == SPLITS.index(split))

    def names(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """The file of each of these images, as `FeatureStore.names`."""
        return self.stores[0].names(self.rows_in[0][rows])

    def rows(self, name: str, rows: np.ndarray) -> np.ndarray:
        """A copy of the rows of an array of the first store that belong to these images."""
        return self.stores[0].rows(name, self.rows_in[0][rows])

    def rows_by_store(self, rows: np.ndarray) -> list[np.ndarray]:
        """Where each store has these images."""
        return [rows_in[rows] for rows_in in self.rows_in]

    def mean_views(self, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """The mean over the views of the features of these images, side by side, (n, D) float32."""
        parts = zip(self.stores, self.rows_in, strict=True)
        return np.concatenate([store.mean_views(rows_in[rows], len(self.views)) for store, rows_in in parts], 1)

    def verify(self, names: Sequence[str] | None = None) -> None:
        """Verify these arrays of all stores."""
        for store in self.stores:
            store.verify(names)

    def release(self) -> None:
        """As `FeatureStore.release`, of all stores."""
        for store in self.stores:
            store.release()

    def _of_first(self, array: np.ndarray) -> np.ndarray:
        return array if len(self.rows_in[0]) == len(array) else array[self.rows_in[0]]

    def _report(self, say: Callable[[str], object]) -> None:
        kept = len(self.rows_in[0])
        if any(kept < len(store.labels) for store in self.stores):
            lost = (f"{len(store.labels) - kept:,} of {len(store.labels):,} in {store.path}" for store in self.stores)
            say(f"{kept:,} images are in all stores; left out, since another store lacks them: {', '.join(lost)}")
        if any(store.views != self.views for store in self.stores):
            views = "; ".join(f"{','.join(store.views)} in {store.path}" for store in self.stores)
            say(f"the stores have other views ({views}): used are the first {len(self.views)} of each")


AnyStore = FeatureStore | JoinedStore


def open_stores(paths: Sequence[Path | str], say: Callable[[str], object] = tell) -> AnyStore:
    """Open one store, or several side by side."""
    return FeatureStore.open(paths[0]) if len(paths) == 1 else JoinedStore.open(paths, say)


def _match(first: FeatureStore, other: FeatureStore) -> np.ndarray:
    """The row (N,) in `other` of each image of `first`; -1 where it has none."""
    digests = [np.ascontiguousarray(store.image_sha256).view("V32").ravel() for store in (first, other)]
    _, numbers = np.unique(np.concatenate(digests), return_inverse=True)
    ours, theirs = np.split(numbers, [len(digests[0])])
    place = np.full(numbers.max() + 1, -1)
    place[theirs] = np.arange(len(theirs))
    repeated = (np.bincount(ours, minlength=len(place)) > 1) | (np.bincount(theirs, minlength=len(place)) > 1)
    partner = np.where(repeated[ours], -1, place[ours])
    lone = [np.flatnonzero(repeated[ours]), np.flatnonzero(repeated[theirs])]
    for key in (_by_name, _by_index):
        found = dict(zip(key(other, lone[1], theirs), lone[1].tolist(), strict=True))
        partner[lone[0]] = [found.get(each, -1) for each in key(first, lone[0], ours)]
        lone = [lone[0][partner[lone[0]] < 0], np.setdiff1d(lone[1], partner)]
    return partner


def _by_name(store: FeatureStore, rows: np.ndarray, numbers: np.ndarray) -> list[tuple]:
    return list(zip(numbers[rows].tolist(), store.names(rows), strict=True))


def _by_index(store: FeatureStore, rows: np.ndarray, numbers: np.ndarray) -> list[tuple]:
    return list(zip(*(array[rows].tolist() for array in (numbers, store.split, store.image_index)), strict=True))


def _require_agreement(first: FeatureStore, other: FeatureStore, partner: np.ndarray) -> None:
    """Raise UserError unless the images that both have are of the same class and split."""
    rows = np.flatnonzero(partner >= 0)
    labels = np.array(
        [first.class_names.index(name) if name in first.class_names else -1 for name in other.class_names]
    )
    classes = first.labels[rows], labels[other.labels[partner[rows]]]
    splits = first.split[rows], other.split[partner[rows]]
    for what, (ours, theirs) in (("class", classes), ("split", splits)):
        differ = rows[ours != theirs]
        if len(differ):
            row = differ[0]
            said = [
                store.class_names[store.labels[i]] if what == "class" else SPLITS[store.split[i]]
                for store, i in ((first, row), (other, partner[row]))
            ]
            raise UserError(
                f"{first.path} and {other.path} disagree on the {what} of {len(differ):,} of {len(rows):,} images, "
                f'such as {first.names([row])[0]} ("{said[0]}" and "{said[1]}"): extract one of them again'
            )
