"""Where a result was made: the device, the hardware, and the versions of the libraries."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UserError

if TYPE_CHECKING:
    import torch

LIBRARIES = ("torch", "torchvision", "numpy", "h5py", "pillow")


def choose_device(name: str) -> "torch.device":
    """The device of a name; "auto" takes the accelerator where there is one. Raises UserError where it is missing."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).split("\n", 1)[0]
        raise UserError(f'there is no device "{name}" here ({reason}): use cpu or auto') from error
    return torch.device(name)


def versions() -> dict[str, str]:
    """The version of Python and of each library that has a part in the numbers."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in LIBRARIES}


def hardware(device: "torch.device") -> dict[str, Any]:
    """The processor, the threads that torch uses, and the accelerator if the work was done on one."""
    import torch

    found: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device.type,
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def cpu_flags() -> list[str]:
    """What the processor has of the instruction sets that decide over the speed of matrix products."""
    cpuinfo = Path("/proc/cpuinfo")
    found = set(cpuinfo.read_text().split()) if cpuinfo.is_file() else set()
    return [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8") if flag in found]


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
