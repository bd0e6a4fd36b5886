"""From a feature store to the sets of one experiment: classes, splits, fixed evaluation sets, and their features."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError, unknown_name
from common.store import FeatureStore
from train.config import DataConfig
from train.sets import ClassIndex, Sets, draw_evaluation_sets, pair_within, split_validation

EVALUATION_SEEDS = {"val": 1, "test": 2, "hard": 3}
ROWS_AT_A_TIME = 1 << 16
NO_CLASS = -1  # the label of images that the loss on classes leaves out


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The input of a training step: a batch of B sets, with each of their n images once.

    features: (n, D) float32, each image in one view. labels: (n,) int64, the index of the class among the training
    classes, or `NO_CLASS`. items: (B, S) int64, the row in `features` of each item of the sets. target: (B,) int64, S
    where a set has no anomaly. rows: (n,) int64, the rows of the images in the store.
    """

    features: Tensor
    labels: Tensor
    items: Tensor
    target: Tensor
    rows: Tensor

    def to(self, device: torch.device) -> "Inputs":
        """Return the inputs on a device."""
        return Inputs(**{name: tensor.to(device) for name, tensor in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a method is trained and measured on.

    store: one feature store, or several joined ones; `rows` of sets are its images.
    features: (V, N, D) float32 or float16 of each of the joined stores, mapped. Elsewhere D is the sum over the stores.
    train, val_images, test_images: images by class.
    val, test: the fixed evaluation sets, every image once the anomaly. hard: the same of test images, set and anomaly
    being of one super-class; None where no classes share one.
    class_names: by label. superclass: (labels,) int64 by label, or None.
    """

    store: FeatureStore
    features: tuple[Tensor, ...]
    train: ClassIndex
    val_images: ClassIndex
    test_images: ClassIndex
    val: Sets
    test: Sets
    hard: Sets | None
    class_names: list[str]
    superclass: np.ndarray | None
    set_size: int

    @property
    def feature_dim(self) -> int:
        """D."""
        return sum(features.shape[2] for features in self.features)

    @property
    def views(self) -> int:
        """V."""
        return len(self.features[0])

    @property
    def train_labels(self) -> np.ndarray:
        """The class (n,) of each training image, 0 … C - 1, in the order of `train.rows`."""
        return np.repeat(np.arange(len(self.train.classes)), self.train.counts)

    def read_train(self, part: slice) -> np.ndarray:
        """Features (m, D) float64 of some of `train.rows`, in view 0."""
        return self.gather(self.train.rows[None, part])[0].double().numpy()

    def gather(self, rows: np.ndarray, views: np.ndarray | int = 0) -> Tensor:
        """Features of `rows` (B, S) in one view, or in the view of each item (B, S) → (B, S, D) float32."""
        parts = []
        for features, rows_in in zip(self.features, self.store.rows_by_store(rows), strict=True):
            index = torch.from_numpy(rows_in + np.int64(features.shape[1]) * views)
            part = features.flatten(0, 1).index_select(0, index.reshape(-1))
            parts.append(part.reshape(*rows.shape, -1).float())
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def inputs(self, sets: Sets, generator: np.random.Generator) -> Inputs:
        """The inputs of training sets; the view of each image is drawn."""
        rows, first, items = np.unique(sets.rows, return_index=True, return_inverse=True)
        is_anomaly = np.arange(sets.rows.shape[1]) == sets.target[:, None]
        labels = np.where(is_anomaly, sets.anomaly_label[:, None], sets.set_label[:, None]).ravel()[first]
        return Inputs(
            features=self.gather(rows, generator.integers(self.views, size=len(rows))),
            labels=torch.from_numpy(np.searchsorted(self.train.classes, labels)),
            items=torch.from_numpy(items.reshape(sets.rows.shape)),
            target=torch.from_numpy(sets.target),
            rows=torch.from_numpy(rows),
        )

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (D,) float32 of the training images over all views; 1 where nothing varies."""
        mean, std = zip(*map(_measure, self.features, self.store.rows_by_store(self.train.rows)), strict=True)
        return torch.cat(mean), torch.cat(std)


def prepare(store: FeatureStore, config: DataConfig) -> Task:
    """Make the task of a config from a store, whose bytes are verified first.

    Raises UserError for an unknown class, too few classes or images for sets of this size, and a damaged or non-finite
    store.
    """
    for part in store.stores:
        part.verify(("features", "split", "labels", "image_sha256"), partial(_require_finite, part))
    labels = np.array(store.labels)
    train_rows, test_rows = store.rows_of("train"), store.rows_of("test")
    if config.shuffle_labels:
        generator = np.random.default_rng(config.split_seed)
        for rows in (train_rows, test_rows):
            labels[rows] = generator.permutation(labels[rows])
    seen, tested = _class_labels(store, config)
    train_rows = train_rows[np.isin(labels[train_rows], seen)]
    test_rows = test_rows[np.isin(labels[test_rows], tested)]
    for split, rows, classes in (("train", train_rows, seen), ("test", test_rows, tested)):
        if len(lacking := np.setdiff1d(classes, labels[rows])):
            raise UserError(
                f'{store.path} has no image of class "{store.class_names[lacking[0]]}" in its {split} split: add '
                "images and extract again, or name the classes to use by data.classes"
            )
    train_rows, val_rows = split_validation(
        train_rows, labels[train_rows], config.val_fraction, config.set_size, config.split_seed, store.class_names
    )
    train, val, test = (
        ClassIndex.build(rows, labels[rows], store.class_names) for rows in (train_rows, val_rows, test_rows)
    )
    superclass = np.array(store.header["class_superclass"]) if store.header["class_superclass"] else None
    pairs = None if superclass is None else pair_within(superclass[test.classes])
    hard = pairs is not None and pairs.any() and not config.shuffle_labels
    views = len(store.views) if config.views == "all" else 1
    return Task(
        store=store,
        features=tuple(
            torch.from_numpy(part.features[:views])[:, :, : None if config.layers == "all" else part.layers["last"]]
            for part in store.stores
        ),
        train=train,
        val_images=val,
        test_images=test,
        val=draw_evaluation_sets(val, config.set_size, EVALUATION_SEEDS["val"]),
        test=draw_evaluation_sets(test, config.set_size, EVALUATION_SEEDS["test"]),
        hard=draw_evaluation_sets(test, config.set_size, EVALUATION_SEEDS["hard"], pairs) if hard else None,
        class_names=store.class_names,
        superclass=superclass,
        set_size=config.set_size,
    )


def _class_labels(store: FeatureStore, config: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """The labels of the classes to train on, and of those to test on."""
    if len(store.class_names) < 2:
        raise UserError(
            f'{store.path} has one class, "{store.class_names[0]}", and training needs two or more: extract images '
            "with labels, by --dataset imagefolder or csv"
        )
    for name in config.classes:
        if name not in store.class_names:
            raise unknown_name(f"class of {store.path}", name, store.class_names)
    labels = np.array([store.class_names.index(name) for name in config.classes or store.class_names])
    needed = max(config.class_limit, config.unseen_classes + 2 if config.unseen_classes else 0)
    available = min(len(labels), config.class_limit or len(labels))
    if available < needed:
        raise UserError(
            f"there are {len(labels)} classes, data.class_limit={config.class_limit} with "
            f"data.unseen_classes={config.unseen_classes} needs {needed}: lower them"
        )
    drawn = np.random.default_rng(config.split_seed).permutation(labels)[: config.class_limit or None]
    unseen = config.unseen_classes
    return (drawn[unseen:], drawn[:unseen]) if unseen else (drawn, drawn)


def _measure(features: Tensor, train_rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (D,) float32 of rows of features (V, N, D) over all views; 1 where nothing varies."""
    count, total, squares = 0, torch.zeros(features.shape[2]).double(), torch.zeros(features.shape[2]).double()
    for view in features:
        for rows in torch.from_numpy(train_rows).split(ROWS_AT_A_TIME):
            part = view[rows].double()
            count, total, squares = count + len(part), total + part.sum(0), squares + part.square().sum(0)
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt()
    return mean.float(), std.where(std > 1e-6, 1.0).float()


def _require_finite(store: FeatureStore, name: str, block: bytes) -> None:
    if name == "features" and not np.isfinite(np.frombuffer(block, store.places[name].dtype)).all():
        raise UserError(f"{store.path}: /features has values that are not finite; extract it again")
