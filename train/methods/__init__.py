"""The methods, one file each, behind one contract: `train.methods.base.Method`."""

import torch

from train.config import Config
from train.methods.base import Method
from train.methods.centroid import Centroid
from train.methods.deep_plda import DeepPLDA
from train.methods.deepsets import DeepSets
from train.methods.dummy import Dummy
from train.methods.knn import NearestNeighbours
from train.methods.mahalanobis import Mahalanobis
from train.methods.mlp import FlatMLP
from train.methods.plda import PLDA
from train.methods.posterior import ClassPosterior
from train.methods.random import Random
from train.methods.set_transformer import SetTransformer
from train.methods.shared_mlp import SharedMLP
from train.methods.transformer import AnomalyTransformer

METHODS: dict[str, type[Method]] = {
    "random": Random,
    "dummy": Dummy,
    "centroid": Centroid,
    "knn": NearestNeighbours,
    "mahalanobis": Mahalanobis,
    "plda": PLDA,
    "mlp": FlatMLP,
    "shared_mlp": SharedMLP,
    "deepsets": DeepSets,
    "set_transformer": SetTransformer,
    "deep_plda": DeepPLDA,
    "posterior": ClassPosterior,
    "transformer": AnomalyTransformer,
}


def build_method(config: Config, input_dim: int, classes: int = 0) -> Method:
    """The method of a config, initialised from `training.seed`, on the CPU; not fitted.

    It is for features of `input_dim`; `classes`, the number of training classes, matters to methods that know classes.
    """
    method = METHODS[config.method].from_config(config, input_dim, classes)
    method.initialise(torch.Generator().manual_seed(config.training.seed))
    return method
