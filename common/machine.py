"""Facts about this machine: its devices, whether bfloat16 is fast, the hardware, and the libraries' versions."""

import functools
import importlib.metadata
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError

LIBRARIES = ("torch", "torchvision", "numpy", "h5py", "pillow")
FAST = 1.2  # times the pace of float32: what bfloat16 must reach to be worth its rounding
HOPELESS = 0.3  # times the pace of float32 in a small product: no larger product is tried then
ROWS = 64, 512, 2560  # of the matrices that are multiplied; 2560 is a training step: 256 sets of ten
TRIAL = 0.1  # seconds


def choose_device(name: str) -> torch.device:
    """The device of this name; "auto" takes the GPU if there is one. Raises UserError if the device is missing."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=name).tolist()  # meta has no values to give
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).split("\n", 1)[0]
        raise UserError(f'there is no device "{name}" here ({reason}): use cpu or auto') from error
    return torch.device(name)


def choose_arithmetic(precision: str, device: torch.device) -> str:
    """The arithmetic of products on a device, "float32" or "bfloat16", for a precision that may also be "auto".

    It is bfloat16 only where that was not ruled out and is really faster.
    """
    return "bfloat16" if precision != "float32" and fast_bfloat16(device) else "float32"


@functools.cache
def fast_bfloat16(device: torch.device) -> bool:
    """Whether torch multiplies bfloat16 matrices clearly faster than float32 ones on a device.

    Measured, once a process, in well under a second: a processor without such instructions emulates them, 10 to 25
    times slower than float32, and neither a name nor a flag tells for sure. So small products come first.
    """
    threads, gain = torch.get_num_threads(), 0.0
    torch.set_num_threads(1)  # what several threads take depends on who else is at work on the machine
    try:
        for rows in ROWS:
            gain = _bfloat16_gain(device, rows)
            if gain < HOPELESS:
                break
    except (RuntimeError, TypeError):  # a device that does not know bfloat16 at all
        return False
    finally:
        torch.set_num_threads(threads)
    return gain >= FAST


def _bfloat16_gain(device: torch.device, rows: int) -> float:
    """The speed of a matrix product in bfloat16 over that in float32; as in autocast, the left side is converted.

    The two are measured in turn, and the best time of each is used: other work on the machine can only slow them.
    """
    on_cpu = device.type == "cpu"
    now = time.thread_time if on_cpu else time.perf_counter
    repeats = 1 if on_cpu else 20  # a single product on a GPU takes less time than its start
    left, right = torch.ones(rows, 512, device=device), torch.ones(512, 512, device=device)
    kinds = {dtype: right.to(dtype) for dtype in (torch.float32, torch.bfloat16)}
    seconds = dict.fromkeys(kinds, float("inf"))
    start, turns = time.perf_counter(), 0
    while turns < 6 or time.perf_counter() - start < TRIAL:
        for dtype, converted in kinds.items():
            started = now()
            for _ in range(repeats):
                product = left.to(dtype) @ converted
            product[0, 0].item()  # waits for the device
            if turns:  # the first one warms up
                seconds[dtype] = min(seconds[dtype], now() - started)
        turns += 1
    return seconds[torch.float32] / seconds[torch.bfloat16]


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that the results depend on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in LIBRARIES}


def hardware(device: torch.device) -> dict[str, Any]:
    """The processor, the threads that torch uses, and the accelerator if the work was done on one."""
    facts: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device.type,
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def cpu_flags() -> list[str]:
    """The instruction sets of the processor that matter for matrix products."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.is_file() else set()
    return [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8") if flag in flags]


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
