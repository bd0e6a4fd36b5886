"""Rates of several ways to do the same work, measured in turns, so that a noisy machine is noisy for all of them."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

LONGEST = 60  # seconds for all rounds of a case

Work = Callable[[], float]


@dataclass(frozen=True)
class Rate:
    """Units of work a second: the median of `rounds` measurements, the lowest and the highest."""

    median: float
    low: float
    high: float
    rounds: int


def interleaved(cases: Mapping[str, Work], rounds: int) -> tuple[dict[str, Rate], dict[str, str]]:
    """Time each case once a round, round after round → the rates, and the reasons why some were left out.

    The first round is unmeasured: it warms up, and a case that would take more than a minute after it is left out. A
    case returns the units that it did.

    >>> rates, left_out = interleaved({"a": lambda: 1, "b": lambda: 2}, rounds=3)
    >>> sorted(rates), rates["a"].rounds, left_out
    (['a', 'b'], 3, {})
    """
    found: dict[str, list[float]] = {}
    left_out = {}
    for name, work in cases.items():
        seconds = _timed(work)[1]
        if seconds * rounds > LONGEST:
            left_out[name] = f"{rounds} rounds would take {seconds * rounds:.0f} s, as one of {seconds:.0f} s shows"
        else:
            found[name] = []
    for _ in range(rounds):
        for name, seen in found.items():
            units, seconds = _timed(cases[name])
            seen.append(units / seconds)
    return {
        name: Rate(statistics.median(seen), min(seen), max(seen), len(seen)) for name, seen in found.items()
    }, left_out


def measured(cases: Mapping[str, Work], rounds: int, left_out: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The part of a section's report that `interleaved` gives, and what was left out before."""
    rates, too_slow = interleaved(cases, rounds)
    return {"rates": {name: asdict(rate) for name, rate in rates.items()}, "left_out": {**(left_out or {}), **too_slow}}


def _timed(work: Work) -> tuple[float, float]:
    started = time.perf_counter()
    return work(), time.perf_counter() - started
