"""The learning rate over the steps of a training."""

import math


def learning_rate_factor(step: int, warmup_steps: int, total_steps: int) -> float:
    """The part of the highest learning rate at `step` = 1 … total: linear warm-up from 0, then a cosine down to 0.

    >>> [round(learning_rate_factor(step, 2, 6), 2) for step in (1, 2, 4, 6)]
    [0.5, 1.0, 0.5, 0.0]
    """
    if step <= warmup_steps:
        return step / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps)))
