"""The roof: how fast this machine multiplies matrices. Nothing that multiplies as many can be much faster."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.timing import Work
from common.machine import fast_bfloat16

CPU = torch.device("cpu")
NOT_FASTER = "bfloat16 is not faster than float32 on this machine"


def precisions() -> tuple[dict[str, torch.dtype], str]:
    """What is worth measuring here, by name; and why bfloat16 is not, or nothing."""
    known = {"float32": torch.float32}
    return (known | {"bfloat16": torch.bfloat16}, "") if fast_bfloat16(CPU) else (known, NOT_FASTER)


def roofs(flops: float) -> tuple[dict[str, Work], dict[str, str]]:
    """A case for each precision that does units of so many floating-point operations, and what is left out."""
    known, reason = precisions()
    cases = {f"roof: product in {name}": _product(dtype, flops) for name, dtype in known.items()}
    return cases, {"roof: product in bfloat16": reason} if reason else {}


def flops_of(work: Callable[[], Any]) -> float:
    """Floating-point operations of the matrix products and convolutions in some work of torch."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        work()
    return counter.get_total_flops()


def _product(dtype: torch.dtype, flops: float) -> Work:
    a = torch.ones(2048, 2048, dtype=dtype)

    def work() -> float:
        for _ in range(8):
            a @ a
        return 8 * 2 * 2048**3 / flops

    return work
