"""What a method's attention looks at."""

import numpy as np
import torch

from train.methods.base import Method, device_of
from train.report.schema import Attention
from train.task import Task

ATTENTION_SETS = 1000


def measure_attention(model: Method, task: Task) -> Attention | None:
    """How much of their attention the inliers give to the anomaly: the mean by layer and head, beside 1/S.

    Over at most 1,000 of the test sets, evenly spaced, in view 0. None of a method without attention.
    """
    some = np.linspace(0, len(task.test) - 1, min(ATTENTION_SETS, len(task.test))).astype(int)
    sets = task.test[some]
    with torch.inference_mode():
        maps = model.attention_maps(task.gather(sets.rows).to(device_of(model)))  # (layers, B, heads, query, key)
    if maps is None:
        return None
    maps = maps.cpu()
    target = torch.from_numpy(sets.target)
    to_anomaly = maps.gather(-1, target.reshape(1, -1, 1, 1, 1).expand(*maps.shape[:-1], 1)).squeeze(-1)
    is_inlier = torch.arange(task.set_size) != target[:, None]
    mass = (to_anomaly * is_inlier[:, None]).sum((1, 3)) / is_inlier.sum()
    return Attention(len(sets), 1 / task.set_size, mass.double().numpy().round(4).tolist())
