"""Rates of several ways to do the same work, measured in turns, so that a noisy machine is noisy for all of them.

Beside them the roof: how fast this machine multiplies matrices. Nothing that multiplies as many can be much faster.
"""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from common.machine import fast_bfloat16

CPU = torch.device("cpu")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
NOT_FASTER = "bfloat16 is not faster than float32 on this machine"
LONGEST = 60  # seconds for all rounds of a case

Work = Callable[[], float]  # does some units of work, and returns how many
Cases = dict[str, Work | str]  # by the name of a way; a text says why it is left out


def measure_cases(cases: Mapping[str, Work | str], rounds: int) -> dict[str, Any]:
    """Time each case once a round, round after round → the "rates" in units a second, and what was "left_out" and why.

    The first round is unmeasured: it warms up, and a case that would take more than a minute after it is left out.

    >>> found = measure_cases({"a": lambda: 1, "b": "not installed"}, rounds=3)
    >>> sorted(found["rates"]["a"]), found["left_out"]
    (['high', 'low', 'median', 'rounds'], {'b': 'not installed'})
    """
    rates: dict[str, list[float]] = {}
    left_out = {}
    for name, work in cases.items():
        if isinstance(work, str):
            left_out[name] = work
        elif (seconds := _time(work)[1]) * rounds > LONGEST:
            left_out[name] = f"{rounds} rounds would take {seconds * rounds:.0f} s, as one of {seconds:.0f} s shows"
        else:
            rates[name] = []
    for _ in range(rounds):
        for name, measured in rates.items():
            units, seconds = _time(cases[name])
            measured.append(units / seconds)
    return {"rates": {name: _summarise(measured) for name, measured in rates.items()}, "left_out": left_out}


def _time(work: Any) -> tuple[float, float]:
    started = time.perf_counter()
    return work(), time.perf_counter() - started


def _summarise(rates: list[float]) -> dict[str, float]:
    return {"median": statistics.median(rates), "low": min(rates), "high": max(rates), "rounds": len(rates)}


def in_own_process(function: Callable, *arguments: Any) -> Any:
    """Call a function in a new process: it finds no threads, workers or caches that another measurement left."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def is_fast(precision: str) -> bool:
    """Whether a precision is worth measuring: a machine that only emulates it is slower with it."""
    return precision == "float32" or fast_bfloat16(CPU)


def make_roofs(flops: float) -> Cases:
    """Make a case for each precision, its unit of work being `flops` operations."""
    return {
        f"roof: product in {name}": _multiply(dtype, flops) if is_fast(name) else NOT_FASTER
        for name, dtype in PRECISIONS.items()
    }


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
