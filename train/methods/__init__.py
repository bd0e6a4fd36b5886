"""The methods, each in a file of its own; here is their list. They are imported on demand: no torch here.

A new method is a file beside this one and a line here; see docs/extending.md.
"""

import inspect
import pkgutil
from typing import Any

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


def load_method_class(name: str) -> Any:
    """The class of a method (`train.methods.base.Method`), from its name in the config."""
    return pkgutil.resolve_name(METHODS[name])


def list_parameters(name: str) -> tuple[str, ...]:
    """The names of the parameters of a method's constructor: what it is made of, and so which settings it has."""
    return tuple(inspect.signature(load_method_class(name)).parameters)


def is_trained(name: str) -> bool:
    """Whether a method is trained by gradients; its settings are then in the config's table `head`."""
    return load_method_class(name).settings == "head"


def depends_on_seed(name: str) -> bool:
    """Whether a method's result changes with `training.seed`: it is trained, or it draws from a generator."""
    return is_trained(name) or "seed" in list_parameters(name)
