"""Intervals of measured proportions."""

import math

Z_95 = 1.959963984540054  # the normal quantile of a two-sided 95 % interval


def wilson_interval(successes: float, n: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson, 1927).

    By hand: scores that are tied give a part of a success, and scipy and statsmodels want whole ones.

    >>> [round(bound, 4) for bound in wilson_interval(90, 100)]
    [0.8256, 0.9448]
    """
    rate, z2 = successes / n, Z_95**2
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
