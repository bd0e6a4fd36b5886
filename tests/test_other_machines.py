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
ASKED_FOR_BFLOAT16 = """
import torch
from common.machine import choose_arithmetic, fast_bfloat16
from extract.engines import available, gains_from_bfloat16
cpu = torch.device("cpu")
assert not fast_bfloat16(cpu)
assert choose_arithmetic("auto", cpu) == choose_arithmetic("bfloat16", cpu) == "float32"
assert not any(gains_from_bfloat16(kind, cpu) for kind in available(cpu))
"""
TESTS = "\nimport pytest, sys; sys.exit(pytest.main(sys.argv[1:]))"
# Before anything else is imported, as on a machine where `pip install openvino` was never said
WITHOUT_OPENVINO = "import sys; sys.modules['openvino'] = None"
MARKED = "\n@pytest.mark.processor"
AFFECTED = sorted(str(path) for path in ROOT.glob("tests/test_*.py") if MARKED in path.read_text(encoding="utf-8"))


def run(code, *arguments, **limits):
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | limits
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


def test_where_bfloat16_is_emulated_nothing_computes_in_it_and_the_affected_tests_pass():
    run(ASKED_FOR_BFLOAT16 + TESTS, "-m", "processor", *AFFECTED, **WITHOUT_BFLOAT16)


@pytest.mark.parametrize("tests", ["", pytest.param(TESTS, marks=pytest.mark.slow)], ids=["asked", "tested"])
def test_so_it_is_on_an_old_processor(tests):
    run(ASKED_FOR_BFLOAT16 + tests, "-m", "processor", *AFFECTED, **OLD)


def test_extraction_passes_without_openvino():
    about_torch = "tests/test_engines.py::test_the_parts_of_any_network_make_up_the_whole"
    passed = run(WITHOUT_OPENVINO + TESTS, "-rs", "tests/test_engines.py", "--deselect", about_torch)
    assert "openvino is not installed" in passed
