import errno
import subprocess
from pathlib import Path

import pytest
from fabricate import python

from common.errors import LISTED, is_scarce, refusal_of, unknown_name

GIGABYTE = 1 << 30


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "out of memory"),
        (OSError(errno.ENOMEM, "x"), "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), "out of memory"),
        (RuntimeError("can't start new thread"), "out of memory"),
        (ImportError("libx.so: failed to map segment from shared object"), "out of memory"),
        (ValueError("array is too big; `arr.size * arr.dtype.itemsize` is"), "out of memory"),
        (OSError(errno.EMFILE, "x"), "too many open files"),
        (ImportError("/x.so: cannot open shared object file: Too many open files"), "too many open files"),
        (OSError(errno.ENAMETOOLONG, "x", "n" * 300), "file name too long"),
        (ValueError("embedded null byte"), "NUL"),
        (PermissionError(errno.EACCES, "x", "/a/b"), "cannot use /a/b (permission denied)"),
        (OSError(errno.ENOSPC, "x"), "cannot read or write (no space left on device)"),
    ],
)
def test_what_the_system_refuses_is_one_short_sentence(error, words):
    sentence = refusal_of(error)
    assert words in sentence
    assert "\n" not in sentence
    assert len(sentence) < 250


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), ValueError("x"), BrokenPipeError(32, "x"), KeyError()]
)
def test_what_is_a_mistake_in_the_code_stays_a_traceback(error):
    assert refusal_of(error) == ""
    assert not is_scarce(error)


@pytest.mark.parametrize("stage", ["train", "extract", "find"])
def test_a_stage_whose_imports_are_refused_ends_in_a_sentence(stage):
    code = (
        "import builtins, errno, sys; from common.command_line import run_stage; real = builtins.__import__\n"
        "def refuse(name, *rest):\n"
        f"    if name.startswith('{stage}.'): raise ImportError('x.so: failed to map segment from shared object')\n"
        "    return real(name, *rest)\n"
        "builtins.__import__ = refuse; import importlib; importlib.import_module = lambda name: refuse(name)\n"
        f"run_stage('{stage}')"
    )
    said = python("-c", code, code=2).stderr
    assert (said.count("\n"), said.startswith("Error: out of memory")) == (1, True)


def test_a_full_device_behind_the_output_is_a_sentence():
    with Path("/dev/full").open("w") as full:
        said = python("-m", "train", "--help", code=2, capture_output=False, stdout=full, stderr=subprocess.PIPE).stderr
    assert said.startswith("Error: cannot read or write (no space left on device)")
    assert said.count("\n") == 1


def test_an_unknown_name_among_thousands_is_answered_by_some_that_are_similar():
    known = [f"vit_{number}" for number in range(5000)] + ["resnet18"]
    assert unknown_name("model", "resnet81", known).message == 'unknown model "resnet81": did you mean "resnet18"?'
    for name in ("virtual", "ßß"):
        message = unknown_name("model", name, known).message
        assert "choose one of 5,001, such as " in message
        assert len(message) < 150
    few = [str(number) for number in range(LISTED)]
    assert unknown_name("model", "x", few).message.endswith(", ".join(sorted(few)))
