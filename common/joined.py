"""Several feature stores of the same images, side by side: each image has the features of all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.files import canonical_json, sha256_text
from common.progress import say as tell
from common.store import SPLITS, FeatureStore


@dataclass(frozen=True)
class JoinedStore(FeatureStore):
    """What `FeatureStore` is to train and find, made of several. Nothing is written, and the features stay mapped.

    An image is known by the digest of its pixels; where several images have one digest, by its name, too, else by
    `image_index`. Images are those that all stores have, in the order of the first store. Views are the first ones
    that all stores have. All else is that of the first store: path, header, labels, names and thumbnails.

    parts: the stores. rows_in: (n,) int64 of each, where its row of each image is.
    """

    parts: tuple[FeatureStore, ...]
    rows_in: tuple[np.ndarray, ...]

    @classmethod
    def join(cls, paths: Sequence[Path | str], say: Callable[[str], object] = tell) -> "JoinedStore":
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
        rows_in = tuple(partner[common] for partner in partners)
        joined = cls(first.path, first.header, first.places, first.stamp, stores, rows_in)
        joined._report(say)
        return joined

    def __reduce__(self):
        return JoinedStore, (self.path, self.header, self.places, self.stamp, self.parts, self.rows_in)

    @property
    def stores(self) -> tuple[FeatureStore, ...]:
        """The stores."""
        return self.parts

    @property
    def stem(self) -> str:
        """The names of the files, without their suffixes."""
        return "+".join(store.path.stem for store in self.parts)

    @property
    def identity_sha256(self) -> str:
        """The digest of the identities of all, in their order."""
        return sha256_text(canonical_json([store.identity_sha256 for store in self.parts]))

    @property
    def feature_dim(self) -> int:
        """The sum of the dimensions of the stores."""
        return sum(store.feature_dim for store in self.parts)

    @property
    def views(self) -> list[str]:
        """The name of each view that is used."""
        return self.parts[0].views[: min(len(store.views) for store in self.parts)]

    def array(self, name: str) -> np.ndarray:
        """An array of the first store with the rows of these images; mapped where it lost no image."""
        if name == "features":
            raise ValueError("each of the joined stores has features of its own: use `stores`")
        array = self.parts[0].array(name)
        return array if len(self.rows_in[0]) == len(array) else array[self.rows_in[0]]

    def names(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """The file of each of these images, as `FeatureStore.names`."""
        return self.parts[0].names(self.rows_in[0][rows])

    def rows(self, name: str, rows: np.ndarray) -> np.ndarray:
        """A copy of the rows of an array of the first store that belong to these images."""
        return self.parts[0].rows(name, self.rows_in[0][rows])

    def rows_by_store(self, rows: np.ndarray) -> list[np.ndarray]:
        """Where each store has these images."""
        return [rows_in[rows] for rows_in in self.rows_in]

    def mean_views(self, rows: np.ndarray | slice = slice(None), views: int | None = None) -> np.ndarray:
        """The mean over the first views, default all, of these images' features side by side, (n, D) float32."""
        parts, views = zip(self.parts, self.rows_in, strict=True), views or len(self.views)
        return np.concatenate([store.mean_views(rows_in[rows], views) for store, rows_in in parts], 1)

    def verify(self, names: Sequence[str] | None = None, look: Callable[[str, bytes], None] = lambda *_: None) -> None:
        """As `FeatureStore.verify`, of all stores."""
        for store in self.parts:
            store.verify(names, look)

    def release(self) -> None:
        """As `FeatureStore.release`, of all stores."""
        for store in self.parts:
            store.release()

    def _report(self, say: Callable[[str], object]) -> None:
        kept = len(self.rows_in[0])
        if any(kept < len(store.labels) for store in self.parts):
            lost = (f"{len(store.labels) - kept:,} of {len(store.labels):,} in {store.path}" for store in self.parts)
            say(f"{kept:,} images are in all stores; left out, since another store lacks them: {', '.join(lost)}")
        if any(store.views != self.views for store in self.parts):
            views = "; ".join(f"{','.join(store.views)} in {store.path}" for store in self.parts)
            say(f"the stores have other views ({views}): used are the first {len(self.views)} of each")


def open_stores(paths: Sequence[Path | str], say: Callable[[str], object] = tell) -> FeatureStore:
    """Open one store, or several side by side."""
    return FeatureStore.open(paths[0]) if len(paths) == 1 else JoinedStore.join(paths, say)


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
        row_of = dict(zip(key(other, lone[1], theirs), lone[1].tolist(), strict=True))
        partner[lone[0]] = [row_of.get(image, -1) for image in key(first, lone[0], ours)]
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
            values = [
                store.class_names[store.labels[i]] if what == "class" else SPLITS[store.split[i]]
                for store, i in ((first, row), (other, partner[row]))
            ]
            raise UserError(
                f"{first.path} and {other.path} disagree on the {what} of {len(differ):,} of {len(rows):,} images, "
                f'such as {first.names([row])[0]} ("{values[0]}" and "{values[1]}"): extract one of them again'
            )
