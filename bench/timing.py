"""Rates of several ways to do the same work, measured in turns, so that a noisy machine is noisy for all of them."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Rate:
    """Units of work a second: the median of `rounds` measurements, the lowest and the highest."""

    median: float
    low: float
    high: float
    rounds: int


def interleaved(cases: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, Rate]:
    """Time each case once a round, round after round, the first one unmeasured. A case returns the units it did.

    >>> rates = interleaved({"a": lambda: 1, "b": lambda: 2}, rounds=3)
    >>> sorted(rates), rates["a"].rounds
    (['a', 'b'], 3)
    """
    found: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name, work in cases.items():
            started = time.perf_counter()
            units = work()
            if number:
                found[name].append(units / (time.perf_counter() - started))
    return {name: Rate(statistics.median(seen), min(seen), max(seen), len(seen)) for name, seen in found.items()}
