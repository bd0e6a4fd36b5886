"""Errors of the system itself, at every call by which a store is finished: nothing is half-written, nothing is lost."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common.store import FeatureStore
from common.synthetic import make_store

CODE = """
import sys
from pathlib import Path
from common.errors import UserError
from common.synthetic import make_store
try:
    make_store(Path(sys.argv[1]), seed=1, classes=2, train=3, test=2)
except UserError as error:
    sys.exit(f"sentence: {error.message}")
"""
CALLS = ("write", "pwrite64", "writev", "fsync", "fdatasync", "rename", "ftruncate")


def run(path: Path, log: Path, call: str = "", error: str = "", which: int = 0) -> subprocess.CompletedProcess:
    inject = ["-e", f"inject={call}:error={error}:when={which}"] if call else []
    command = ["strace", "-f", "-o", str(log), "-e", f"trace={','.join(CALLS)}", *inject]
    command += [sys.executable, "-c", CODE, str(path)]
    return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace injects the errors, and is not here")
@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("old", [False, True])
def test_an_error_of_the_system_at_any_call_of_the_finish_loses_nothing(tmp_path, error, old):
    path, log = tmp_path / "stores/s.h5", tmp_path / "log"
    path.parent.mkdir()
    if (plain := run(path, log)).returncode:
        pytest.skip(f"strace does not work here: {plain.stderr.strip()[-200:]}")
    expected = path.read_bytes()
    calls = re.findall(r"^\d+ +(\w+)\(", log.read_text(), re.MULTILINE)
    assert calls.count("write") > 10
    assert calls.count("rename") == 1
    path.unlink()
    before = make_store(path).path.read_bytes() if old else None
    for name in sorted(set(calls)):
        for which in range(1, calls.count(name) + 1):
            result = run(path, log, name, error, which)
            found = path.read_bytes() if path.exists() else None
            if result.returncode == 0:  # it struck what is not the store's: the flush of the folder
                assert found == expected
                path.unlink()
                if old:
                    path.write_bytes(before)
                continue
            assert result.returncode == 1
            assert result.stderr.startswith("sentence: "), (name, which, result.stderr)
            assert found == before
            assert [file.name for file in path.parent.iterdir()] == (["s.h5"] if old else [])
    if old:
        FeatureStore.open(path).verify()
