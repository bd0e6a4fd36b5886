"""Distance to the set's mean: the first thing to try, without any training."""

from torch import Tensor
from torch.nn import functional

from train.methods.base import Method


class Centroid(Method):
    """The distance of each item from the mean of its set, or of the other items.

    metric: "l2", or "cosine" (1 - cosine between the item and the mean of the items' directions).
    leave_one_out: the mean of the others, so that an item does not vouch for itself. It changes no ranking by L2,
    which it multiplies by S / (S - 1).
    """

    settings = "distance"

    def __init__(self, input_dim: int, metric: str, leave_one_out: bool, standardise: bool):
        super().__init__(input_dim, standardise)
        self.metric, self.leave_one_out = metric, leave_one_out

    def compare(self, encoded: Tensor) -> Tensor:
        return measure_distance(encoded, self.metric, self.leave_one_out)


def measure_distance(x: Tensor, metric: str, leave_one_out: bool = True) -> Tensor:
    """The distance of each item of x (B, S, D) from the mean of its set, or of the other items → (B, S)."""
    if metric == "cosine":
        x = functional.normalize(x, dim=-1)
    total = x.sum(1, keepdim=True)
    centre = (total - x) / (x.shape[1] - 1) if leave_one_out else total / x.shape[1]
    if metric == "cosine":
        return 1 - functional.cosine_similarity(x, centre, dim=-1)
    return (x - centre).norm(dim=-1)
