"""A machine that has everything checks the others, too: the tests that depend on it, in processes that have less.

The variables take instructions away from oneDNN (torch's bfloat16 products), ATen, MKL and OpenVINO. A machine without
AVX2 knows nothing of most of them, and passes all the more.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WITHOUT_BFLOAT16 = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OV_CPU_MAX_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
OLD = WITHOUT_BFLOAT16 | {"ATEN_CPU_CAPABILITY": "default"}
AFFECTED = ["tests/test_engines.py", "tests/test_machine.py", "tests/test_loop.py"]
# Before anything else is imported, as on a machine where `pip install openvino` was never said
WITHOUT_OPENVINO = "import sys; sys.modules['openvino'] = None; import pytest; sys.exit(pytest.main(sys.argv[1:]))"
ASKED_FOR_BFLOAT16 = """
import sys, torch
from common.machine import choose_arithmetic, fast_bfloat16
from extract.engines import available, gains_from_bfloat16
cpu = torch.device("cpu")
assert not fast_bfloat16(cpu)
assert choose_arithmetic("auto", cpu) == choose_arithmetic("bfloat16", cpu) == "float32"
assert not any(gains_from_bfloat16(kind, cpu) for kind in available(cpu))
"""


def run(*arguments, limits, code=0):
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | limits
    result = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == code, result.stdout[-3000:] + result.stderr[-3000:]
    return result


@pytest.mark.parametrize("limits", [WITHOUT_BFLOAT16, OLD], ids=["avx2", "old"])
def test_where_bfloat16_is_emulated_nothing_computes_in_it(limits):
    run("-c", ASKED_FOR_BFLOAT16, limits=limits)


@pytest.mark.parametrize("limits", [WITHOUT_BFLOAT16, pytest.param(OLD, marks=pytest.mark.slow)], ids=["avx2", "old"])
def test_the_affected_tests_pass_without_bfloat16(limits):
    run("-m", "pytest", "-q", *AFFECTED, limits=limits)


def test_extraction_passes_without_openvino():
    passed = run("-c", WITHOUT_OPENVINO, "-rs", "tests/test_engines.py", limits={})
    assert "openvino is not installed" in passed.stdout
