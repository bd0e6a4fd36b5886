"""The methods, each in a file of its own; `train.registry` lists them."""

import torch
from msgspec.structs import asdict

from train.config import Config
from train.methods.base import Method
from train.registry import list_parameters, load_method_class


def build_method(config: Config, input_dim: int, classes: int = 0) -> Method:
    """The method of a config, initialised from `training.seed`, on the CPU; not fitted.

    input_dim: D of the features.
    classes: number of training classes, for methods that know classes.
    The state of torch's generators is left as it was.
    """
    cls, seed = load_method_class(config.method), config.training.seed
    arguments = asdict(getattr(config, cls.settings)) | {"input_dim": input_dim, "classes": classes, "seed": seed}
    arguments["set_size"] = config.data.set_size
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return cls(**{name: arguments[name] for name in list_parameters(config.method)})
