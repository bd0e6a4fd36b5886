"""The list of methods: name → the module and class, imported when it is asked for.

A new method is a file beside this one and a line here; see docs/extending.md.
"""

import inspect
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from train.config import Config
    from train.methods.base import Method

METHODS = {
    "random": "train.methods.random:Random",
    "dummy": "train.methods.dummy:Dummy",
    "centroid": "train.methods.centroid:Centroid",
    "knn": "train.methods.knn:NearestNeighbours",
    "mahalanobis": "train.methods.mahalanobis:Mahalanobis",
    "plda": "train.methods.plda:PLDA",
    "normalised_plda": "train.methods.normalised_plda:NormalisedPLDA",
    "mlp": "train.methods.mlp:FlatMLP",
    "shared_mlp": "train.methods.shared_mlp:SharedMLP",
    "deepsets": "train.methods.deepsets:DeepSets",
    "set_transformer": "train.methods.set_transformer:SetTransformer",
    "deep_plda": "train.methods.deep_plda:DeepPLDA",
    "posterior": "train.methods.posterior:ClassPosterior",
    "transformer": "train.methods.transformer:AnomalyTransformer",
    "posterior_transformer": "train.methods.posterior_transformer:PosteriorTransformer",
}


def method_class(name: str) -> type["Method"]:
    """The class of a method, from its name in the config."""
    return pkgutil.resolve_name(METHODS[name])


def parameters_of(name: str) -> tuple[str, ...]:
    """The names of the parameters of a method's constructor: what it is made of, and so which settings it has."""
    return tuple(inspect.signature(method_class(name)).parameters)


def depends_on_seed(name: str) -> bool:
    """Whether a method's result changes with `training.seed`: it is trained, or it draws from a generator."""
    return method_class(name).settings == "head" or "seed" in parameters_of(name)


def build_method(config: "Config", input_dim: int, classes: int = 0) -> "Method":
    """The method of a config, initialised from `training.seed`, on the CPU; not fitted.

    It is for features of `input_dim`; `classes`, the number of training classes, matters to methods that know classes.
    The state of torch's generators is left as it was.
    """
    import torch

    cls, seed = method_class(config.method), config.training.seed
    known = vars(getattr(config, cls.settings)) | {"input_dim": input_dim, "classes": classes, "seed": seed}
    known["set_size"] = config.data.set_size
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return cls(**{name: known[name] for name in parameters_of(config.method)})
