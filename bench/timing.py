"""Rates of several ways to do the same work, measured in turns, so that a noisy machine is noisy for all of them.

Beside them the roof: how fast this machine multiplies matrices. Nothing that multiplies as many can be much faster.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from common.machine import fast_bfloat16

CPU = torch.device("cpu")
NOT_FASTER = "bfloat16 is not faster than float32 on this machine"
LONGEST = 60  # seconds for all rounds of a case

Work = Callable[[], float]


@dataclass(frozen=True)
class Rate:
    """Units of work a second: the median of `rounds` measurements, the lowest and the highest."""

    median: float
    low: float
    high: float
    rounds: int


def time_in_turns(cases: Mapping[str, Work], rounds: int) -> tuple[dict[str, Rate], dict[str, str]]:
    """Time each case once a round, round after round → the rates, and the reasons why some were left out.

    The first round is unmeasured: it warms up, and a case that would take more than a minute after it is left out. A
    case returns the units that it did.

    >>> rates, left_out = time_in_turns({"a": lambda: 1, "b": lambda: 2}, rounds=3)
    >>> sorted(rates), rates["a"].rounds, left_out
    (['a', 'b'], 3, {})
    """
    found: dict[str, list[float]] = {}
    left_out = {}
    for name, work in cases.items():
        seconds = _time(work)[1]
        if seconds * rounds > LONGEST:
            left_out[name] = f"{rounds} rounds would take {seconds * rounds:.0f} s, as one of {seconds:.0f} s shows"
        else:
            found[name] = []
    for _ in range(rounds):
        for name, seen in found.items():
            units, seconds = _time(cases[name])
            seen.append(units / seconds)
    return {
        name: Rate(statistics.median(seen), min(seen), max(seen), len(seen)) for name, seen in found.items()
    }, left_out


def measure_cases(cases: Mapping[str, Work], rounds: int, left_out: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return a section's rates, by `time_in_turns`, and what was left out, before that or by it."""
    rates, too_slow = time_in_turns(cases, rounds)
    return {"rates": {name: asdict(rate) for name, rate in rates.items()}, "left_out": {**(left_out or {}), **too_slow}}


def _time(work: Work) -> tuple[float, float]:
    started = time.perf_counter()
    return work(), time.perf_counter() - started


def find_precisions() -> tuple[dict[str, torch.dtype], str]:
    """Return what is worth measuring here, by name; and why bfloat16 is not, or ""."""
    known = {"float32": torch.float32}
    return (known | {"bfloat16": torch.bfloat16}, "") if fast_bfloat16(CPU) else (known, NOT_FASTER)


def make_roofs(flops: float) -> tuple[dict[str, Work], dict[str, str]]:
    """Make a case for each precision, its unit of work being `flops` operations, and say what is left out."""
    known, reason = find_precisions()
    cases = {f"roof: product in {name}": _multiply(dtype, flops) for name, dtype in known.items()}
    return cases, {"roof: product in bfloat16": reason} if reason else {}


def count_flops(work: Callable[[], Any]) -> float:
    """Count the floating-point operations of the matrix products and convolutions in some work of torch."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        work()
    return counter.get_total_flops()


def _multiply(dtype: torch.dtype, flops: float) -> Work:
    a = torch.ones(2048, 2048, dtype=dtype)

    def work() -> float:
        for _ in range(8):
            a @ a
        return 8 * 2 * 2048**3 / flops

    return work
