"""Everything that can be chosen about a training run; nothing is chosen anywhere else."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from common import config
from common.errors import UserError, unknown_name
from train.registry import METHODS, method_class, parameters_of

DEVICES = ("auto", "cpu", "cuda", "mps")
METRICS = ("l2", "cosine")
RECOMMENDED = Path(__file__).with_name("recommended.toml")  # the config of `train fit` without one
PLAN = "plan"  # the table of a config file that belongs to `train.log.plan`


@dataclass(frozen=True)
class DataConfig:
    """Which images become which sets.

    classes: names of the classes to use; empty: all of the store.
    class_limit: use only this many of them, drawn by `split_seed`; 0: all. More classes contain fewer.
    unseen_classes: this many of them, drawn by `split_seed`, are in the test sets alone; 0: the classes of training are
    those of the test.
    set_size: S, images in a set: S - 1 inliers and one anomaly.
    val_fraction: part of each class's training images that is held out for validation.
    split_seed: chooses which images these are, apart from `training.seed`, so that runs share their split.
    views: "first" uses view 0 of the store; "all" draws one per image in training, averages in evaluation.
    layers: "last" uses what the backbone's classifier gets; "all" also the other layers that the store has.
    shuffle_labels: the control experiment: labels permuted among the images, so only chance can be learnt.
    """

    classes: tuple[str, ...] = ()
    class_limit: int = 0
    unseen_classes: int = 0
    set_size: int = 10
    val_fraction: float = 0.1
    split_seed: int = 0
    views: str = "first"
    layers: str = "last"
    shuffle_labels: bool = False

    def __post_init__(self) -> None:
        repeated = sorted({name for name in self.classes if self.classes.count(name) > 1})
        _require(not repeated, "data.classes", "distinct names", f"{', '.join(repeated)} more than once")
        _require(len(self.classes) != 1, "data.classes", "at least 2 names, or none for all", "1")
        for name in ("class_limit", "unseen_classes"):
            value = getattr(self, name)
            _require(value == 0 or value >= 2, f"data.{name}", "0, or at least 2", value)
        # In a set of two, either image may be the anomaly.
        _at_least(3, "data.set_size", self.set_size)
        _require(0 < self.val_fraction < 1, "data.val_fraction", "between 0 and 1", self.val_fraction)
        _at_least(0, "data.split_seed", self.split_seed)
        _one_of(("first", "all"), "data.views", self.views)
        _one_of(("last", "all"), "data.layers", self.layers)


@dataclass(frozen=True)
class HeadConfig:
    """The learned methods; their input dimension is no choice, it comes from the store.

    width: dimension of the tokens, after the first linear layer.
    layers: number of encoder layers; 0: no attention.
    heads: attention heads in each layer; they share the width evenly.
    feed_forward: hidden dimension of each layer's feed-forward part.
    dropout: probability of dropping an activation in training.
    standardise: scale each dimension of the features by the mean and deviation of the training images.
    hidden: hidden units of mlp, shared_mlp, posterior and deep_plda.
    inducing: learned points through which set_transformer attends.
    members: networks of posterior_transformer that look at each image, side by side.
    bayes: posterior_transformer starts from Bayes' rule and adds to it; else it has to find it.
    """

    width: int = 256
    layers: int = 4
    heads: int = 4
    feed_forward: int = 512
    dropout: float = 0.1
    standardise: bool = False
    hidden: int = 1024
    inducing: int = 4
    members: int = 1
    bayes: bool = True

    def __post_init__(self) -> None:
        _at_least(0, "head.layers", self.layers)
        for name in ("width", "heads", "feed_forward", "hidden", "inducing", "members"):
            _at_least(1, f"head.{name}", getattr(self, name))
        divisible = self.width % self.heads == 0
        _require(divisible, "head.width", f"a multiple of head.heads ({self.heads})", self.width)
        _require(0 <= self.dropout < 1, "head.dropout", "at least 0 and less than 1", self.dropout)


@dataclass(frozen=True)
class DistanceConfig:
    """The distances of centroid and knn.

    metric: "l2" or "cosine".
    leave_one_out: centroid measures from the mean of the other items, not of all.
    neighbours: k of knn, within the set.
    standardise: as in `HeadConfig`.
    """

    metric: str = "cosine"
    leave_one_out: bool = True
    neighbours: int = 3
    standardise: bool = False

    def __post_init__(self) -> None:
        _one_of(METRICS, "distance.metric", self.metric)
        _at_least(1, "distance.neighbours", self.neighbours)


@dataclass(frozen=True)
class TrainingConfig:
    """How the head is trained.

    seed: of the initial weights, the training sets and dropout.
    epochs: passes in which every training image is the anomaly once.
    batch_size: sets in a step.
    images_per_class: 0: the inliers of a set are any training images. Else the sets of a batch share its images, of
    which there are groups of so many of a class, or S - 1 where that is more; `batch_size` then is the number of
    images, too.
    set_loss, class_loss: weights of the cross-entropy over the positions of sets, and over the classes of images; the
    latter for methods that know classes.
    label_smoothing: of the classes.
    hard_pairs: part of the training sets whose anomaly is sure to be of the set's super-class, where that has others.
    without_anomaly: part of the training sets whose anomaly is one more inlier, where the class has one to spare; the
    target then is "none", a logit 0 beside those of the positions.
    mixed_classes: mixtures of two classes that join each batch as classes of their own (`train.mixing`); with
    images_per_class.
    learning_rate: the highest one, reached after warm-up; a cosine takes it down to 0 at the last step.
    weight_decay: of AdamW.
    warmup_epochs: epochs, or a part of one, in which the learning rate rises linearly from 0.
    gradient_clip: largest norm of the gradient; a longer one is scaled down to it.
    precision: of the forward pass in training: "float32"; "bfloat16" by autocast, where this machine has it; "auto",
    bfloat16 where it is really faster than float32. The history and the report say what was used.
    evaluation_batch_size: sets in a step of evaluation.
    device: "auto" (the best there is), "cpu", "cuda", "cuda:1", "mps".
    """

    seed: int = 0
    epochs: int = 50
    batch_size: int = 256
    images_per_class: int = 0
    set_loss: float = 1.0
    class_loss: float = 0.0
    label_smoothing: float = 0.0
    hard_pairs: float = 0.0
    without_anomaly: float = 0.0
    mixed_classes: int = 0
    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    warmup_epochs: float = 2.0
    gradient_clip: float = 1.0
    precision: str = "auto"
    evaluation_batch_size: int = 1000
    device: str = "auto"

    def __post_init__(self) -> None:
        _at_least(0, "training.seed", self.seed)
        for name in ("epochs", "batch_size", "evaluation_batch_size"):
            _at_least(1, f"training.{name}", getattr(self, name))
        for name in ("learning_rate", "gradient_clip"):
            value = getattr(self, name)
            _require(0 < value < math.inf, f"training.{name}", "more than 0 and finite", value)
        for name in ("images_per_class", "mixed_classes"):
            _at_least(0, f"training.{name}", getattr(self, name))
        _require(0 <= self.label_smoothing < 1, "training.label_smoothing", "in [0, 1)", self.label_smoothing)
        for name in ("hard_pairs", "without_anomaly"):
            value = getattr(self, name)
            _require(0 <= value < 1, f"training.{name}", "in [0, 1)", value)
        for name in ("weight_decay", "warmup_epochs", "set_loss", "class_loss"):
            value = getattr(self, name)
            _require(0 <= value < math.inf, f"training.{name}", "at least 0 and finite", value)
        if self.mixed_classes:
            _require(self.images_per_class > 0, "training.images_per_class", "above 0 with training.mixed_classes", 0)
            for name in ("hard_pairs", "without_anomaly"):
                value = getattr(self, name)
                _require(value == 0, f"training.{name}", "0 with training.mixed_classes", value)
        _one_of(("auto", "float32", "bfloat16"), "training.precision", self.precision)
        kind, colon, number = self.device.partition(":")
        known = kind in DEVICES and (not colon or (kind == "cuda" and number.isdecimal()))
        _require(known, "training.device", f"one of {', '.join(DEVICES)}, cuda:<number>", f'"{self.device}"')


@dataclass(frozen=True)
class Config:
    """All of a run: its method, data and training. `head` is for the learned methods, `distance` for the others."""

    method: str = "transformer"
    data: DataConfig = field(default_factory=DataConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    distance: DistanceConfig = field(default_factory=DistanceConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise unknown_name("method", self.method, METHODS)

    @classmethod
    def load(cls, path: Path | None, overrides: Sequence[str] = ()) -> "Config":
        """The config of a TOML file (None: the defaults), changed by `section.key=value` overrides.

        The plan of a phase's file is not part of it. Raises UserError for a setting that does nothing for the method,
        unless it is the file's and serves the file's own method.
        """
        made = config.load(cls, path, overrides, ignore=[PLAN])
        written = config.override_keys(overrides)
        content = {} if path is None else config.read(path)
        recorded = path is not None and path.with_name("checkpoint.pt").exists()  # a run's own config has every key
        if PLAN not in content and not recorded:
            own = replace(made, method=content.get("method", cls.method))
            written |= {key for key in idle(own) if key.partition(".")[2] in content.get(key.partition(".")[0], ())}
        require_effective(made, written)
        return made


def idle(settings: Config) -> dict[str, Any]:
    """The settings that do nothing for the method of a config and are not at their defaults, with their values."""
    cls, parameters, training = method_class(settings.method), parameters_of(settings.method), settings.training
    used = {f"{cls.settings}.{name}" for name in parameters}
    used |= {"method", "training.seed", "training.device", "training.evaluation_batch_size"}
    if cls.settings == "head":  # trained by gradients
        used |= {f"training.{name}" for name in vars(training)}
        if "classes" not in parameters:
            used -= {"training.class_loss", "training.label_smoothing"}
        if not training.class_loss:
            used -= {"training.label_smoothing"}
        if not training.set_loss:
            used -= {"training.hard_pairs", "training.mixed_classes", "training.without_anomaly"}
    defaults, values = config.flat(Config()), config.flat(settings)
    unused = [key for key in values if key not in used and not key.startswith("data.")]
    return {key: values[key] for key in unused if values[key] != defaults[key]}


def require_effective(settings: Config, written: Iterable[str]) -> None:
    """Raise UserError where one of the keys that were `written` does nothing, or where nothing can be learnt."""
    method, training = settings.method, settings.training
    for key, value in idle(settings).items():
        if key in written:
            raise UserError(f'{key}={value} does nothing for the method "{method}" with these settings: leave it out')
    if method_class(method).settings == "head" and not training.set_loss:
        _require(
            bool(training.class_loss) and "classes" in parameters_of(method),
            "training.set_loss",
            f'more than 0 where there is no loss on classes ("{method}", training.class_loss={training.class_loss})',
            training.set_loss,
        )


def classes_from(text: str) -> tuple[str, ...]:
    """Class names, either separated by commas or one a line in the text file that `text` is the path of.

    In a file, blank lines and what follows a # are ignored.

    >>> classes_from("apple, bear")
    ('apple', 'bear')
    """
    path = Path(text)
    try:
        is_file = path.is_file()
    except OSError:  # many names are longer than a file's name may be
        is_file = False
    if not is_file:
        if path.suffix == ".txt" or "/" in text:
            raise UserError(f"no file {text}: give a file with one class a line, or names separated by commas")
        return tuple(name.strip() for name in text.split(",") if name.strip())
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the class names in {path}: {error}") from error
    names = tuple(name for line in lines if (name := line.partition("#")[0].strip()))
    if not names:
        raise UserError(f"{path} names no class: write one a line")
    return names


def _require(holds: bool, key: str, rule: str, value: Any) -> None:
    if not holds:
        raise UserError(f"{key} must be {rule}, got {value}")


def _at_least(least: int, key: str, value: int) -> None:
    _require(value >= least, key, f"at least {least}", value)


def _one_of(choices: Sequence[str], key: str, value: str) -> None:
    _require(value in choices, key, f"one of {', '.join(choices)}", f'"{value}"')
