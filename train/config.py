"""All settings of a training run."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct
from msgspec.structs import replace

from common.errors import UserError, unknown_name
from common.schema import flatten, from_dict, override_keys, read_toml
from train.methods import METHODS, is_trained, list_parameters, load_method_class

RECOMMENDED = Path(__file__).with_name("recommended.toml")  # the config of `train fit` without one
PLAN = "plan"  # the table of a config file that belongs to `train.log.plan`

LARGEST = sys.float_info.max

Seed = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Number = Annotated[int, Meta(ge=0, le=1_000_000)]  # 0 means: not at all, or no limit
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Width = Annotated[int, Meta(ge=1, le=16_384)]  # beyond, one layer takes gigabytes
Part = Annotated[float, Meta(ge=0, lt=1)]
Weight = Annotated[float, Meta(ge=0, le=LARGEST, description="at least 0 and finite")]
Positive = Annotated[float, Meta(gt=0, le=LARGEST, description="more than 0 and finite")]
Device = Annotated[
    str, Meta(pattern=r"^(auto|cpu|mps|cuda(:\d{1,3})?)$", description="one of auto, cpu, cuda, mps, cuda:<number>")
]


def _require(holds: bool, key: str, rule: str, value: Any) -> None:
    if not holds:
        raise UserError(f"{key} must be {rule}, got {value}")


class DataConfig(Struct, frozen=True, kw_only=True):
    """Which images become which sets."""

    classes: tuple[str, ...] = ()  # names of the classes to use; empty: all of the store
    class_limit: Number = 0  # number of classes to draw from these; 0: all. A higher limit adds classes to a lower one
    unseen_classes: Number = 0  # number of classes to draw for the test sets; training has the others. 0: both have all
    set_size: Annotated[int, Meta(ge=3, le=10_000)] = 10  # S, one of which is the anomaly; of two, both could be it
    val_fraction: Annotated[float, Meta(gt=0, lt=1)] = 0.1  # fraction of each class's training images for validation
    split_seed: Seed = 0  # draws the classes and the validation images, independently of `training.seed`
    views: Literal["first", "all"] = "first"  # "all": training draws one per image, evaluation averages them
    layers: Literal["last", "all"] = "last"  # "last": the input of the backbone's classifier; "all": all of the store
    shuffle_labels: bool = False  # permute the labels: a control experiment, which must end at chance

    def __post_init__(self) -> None:
        repeated = sorted({name for name in self.classes if self.classes.count(name) > 1})
        _require(not repeated, "data.classes", "distinct names", f"{', '.join(repeated)} more than once")
        _require(len(self.classes) != 1, "data.classes", "at least 2 names, or none for all", "1")
        for name in ("class_limit", "unseen_classes"):
            _require(getattr(self, name) != 1, f"data.{name}", "0, or at least 2", 1)


class HeadConfig(Struct, frozen=True, kw_only=True):
    """The methods that are trained by gradients. Their input dimension comes from the store."""

    width: Width = 256  # dimension of the tokens, after the first linear layer; a multiple of `heads`
    layers: Annotated[int, Meta(ge=0, le=1_000)] = 4  # encoder layers; 0: no attention
    heads: Width = 4  # attention heads in each layer
    feed_forward: Width = 512  # hidden dimension of each layer's feed-forward part
    dropout: Part = 0.1  # probability of dropping an activation in training
    standardise: bool = False  # scale each dimension of the features by mean and deviation of the training images
    hidden: Width = 1024  # hidden units of mlp, shared_mlp, posterior and deep_plda
    inducing: Width = 4  # learned points through which set_transformer attends
    members: Annotated[int, Meta(ge=1, le=1_000)] = 1  # number of class networks of posterior_transformer
    bayes: bool = True  # posterior_transformer adds its scores to Bayes' rule; false: it has no such rule

    def __post_init__(self) -> None:
        divisible = self.width % self.heads == 0
        _require(divisible, "head.width", f"a multiple of head.heads ({self.heads})", self.width)


class DistanceConfig(Struct, frozen=True, kw_only=True):
    """The methods that are not trained by gradients."""

    metric: Literal["l2", "cosine"] = "cosine"
    leave_one_out: bool = True  # centroid: distance to the mean of the other items; false: to that of all items
    neighbours: Count = 3  # k of knn, within the set
    standardise: bool = False  # as in `HeadConfig`
    between_shrinkage: Part = 0.0  # normalised_plda: how far λ is drawn towards its mean; helps with classes never seen


class TrainingConfig(Struct, frozen=True, kw_only=True):
    """How the head is trained."""

    seed: Seed = 0  # of the initial weights, the training sets and dropout
    epochs: Count = 50  # passes over the training images: in each, every image is the anomaly once
    batch_size: Count = 256  # sets per step
    # 0: inliers are drawn from all training images. Else each batch has groups of this many images of a class (S - 1 if
    # that is more), all its sets are drawn from them, and `batch_size` is also the number of its images.
    images_per_class: Number = 0
    set_loss: Weight = 1.0  # weight of the cross-entropy over the positions of sets
    class_loss: Weight = 0.0  # weight of the cross-entropy over the classes of images, for methods that know classes
    label_smoothing: Part = 0.0  # of `class_loss`
    hard_pairs: Part = 0.0  # fraction of the training sets whose anomaly is of their super-class, if that has others
    # Fraction of the training sets in which one more inlier replaces the anomaly, if the class has enough images. The
    # target of these sets is "none", one more logit, which is always 0.
    without_anomaly: Part = 0.0
    mixed_classes: Number = 0  # mixtures of two classes to add to each batch (`train.mixing`); needs images_per_class
    learning_rate: Positive = 5e-4  # the highest one, after the warm-up; then it falls to 0 as a cosine
    weight_decay: Weight = 0.01  # of AdamW
    warmup_epochs: Weight = 2.0  # epochs, or a part of one, in which the learning rate rises linearly from 0
    gradient_clip: Positive = 1.0  # largest norm of the gradient; a longer one is scaled down to it
    # Of the forward pass in training. "bfloat16" and "auto" compute in bfloat16 only where that is faster than float32
    # on this machine. The history and the report have what was used.
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    evaluation_batch_size: Count = 1000  # sets per step of evaluation
    device: Device = "auto"  # "auto": a GPU if there is one

    def __post_init__(self) -> None:
        if self.mixed_classes:
            _require(self.images_per_class > 0, "training.images_per_class", "above 0 with training.mixed_classes", 0)
            for name in ("hard_pairs", "without_anomaly"):
                value = getattr(self, name)
                _require(value == 0, f"training.{name}", "0 with training.mixed_classes", value)


class Config(Struct, frozen=True):
    """All settings of a run. The method uses one of `head` and `distance`."""

    method: str = "transformer"
    data: DataConfig = DataConfig()
    head: HeadConfig = HeadConfig()
    distance: DistanceConfig = DistanceConfig()
    training: TrainingConfig = TrainingConfig()

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise unknown_name("method", self.method, METHODS)

    @classmethod
    def load(cls, path: Path | str | None, overrides: Sequence[str] = ()) -> "Config":
        """Read the config of a TOML file (None: the defaults), changed by `section.key=value` overrides.

        The plan of a phase's file is not part of it. Raises UserError for a setting that the method does not use.
        Exceptions: a setting of the file that was used by the file's method, when `--set method=` replaced it; and the
        settings of a file that has all of them, as a run folder's config.toml.
        """
        content = {} if path is None else read_toml(path)
        is_phase = content.pop(PLAN, None) is not None
        config = from_dict(cls, content, str(path), overrides)
        written = override_keys(overrides)
        in_file = {f"{table}.{key}" for table, keys in content.items() if table != "method" for key in keys}
        if not is_phase and in_file < flatten(config).keys() - {"method"}:  # a phase's settings serve some of its runs
            written |= in_file & set(find_unused(replace(config, method=content.get("method", "transformer"))))
        require_effective(config, written)
        return config


def find_unused(config: Config) -> dict[str, Any]:
    """Return the settings, with their values, that the method does not use and that are not at their defaults."""
    parameters, training = list_parameters(config.method), config.training
    used = {f"{load_method_class(config.method).settings}.{name}" for name in parameters}
    used |= {"method", "training.seed", "training.device", "training.evaluation_batch_size"}
    if is_trained(config.method):
        used |= {f"training.{name}" for name in training.__struct_fields__}
        if "classes" not in parameters:
            used -= {"training.class_loss", "training.label_smoothing"}
        if not training.class_loss:
            used -= {"training.label_smoothing"}
        if not training.set_loss:
            used -= {"training.hard_pairs", "training.mixed_classes", "training.without_anomaly"}
    defaults, values = flatten(Config()), flatten(config)
    unused = [key for key in values if key not in used and not key.startswith("data.")]
    return {key: values[key] for key in unused if values[key] != defaults[key]}


def require_effective(config: Config, written: Iterable[str]) -> None:
    """Raise UserError where one of the keys that were `written` does nothing, or where nothing can be learnt."""
    method, training = config.method, config.training
    for key, value in find_unused(config).items():
        if key in written:
            raise UserError(f'{key}={value} does nothing for the method "{method}" with these settings: leave it out')
    if is_trained(method) and not training.set_loss:
        rule = f'more than 0 where there is no loss on classes ("{method}", training.class_loss={training.class_loss})'
        learns_classes = bool(training.class_loss) and "classes" in list_parameters(method)
        _require(learns_classes, "training.set_loss", rule, training.set_loss)
