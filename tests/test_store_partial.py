import errno
import json
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from common.errors import UserError
from common.store_partial import StoreWriter, partial_folder, read_progress

N, DIM = 20, 3
FEATURES = np.random.default_rng(0).normal(size=(2, N, DIM)).astype("<f4")
DIGESTS = np.random.default_rng(1).integers(256, size=(N, 32), dtype=np.uint8)
LAYOUT = {"features": ("<f4", FEATURES.shape), "image_sha256": ("|u1", DIGESTS.shape)}
HEADER = {"identity": {"preprocessing": {"views": ["plain", "mirror"]}}, "class_names": ["a"]}
WHOLE = {
    "labels": np.zeros(N, "<i8"),
    "image_index": np.arange(N, dtype="<i8"),
    "split": np.zeros(N, "u1"),
}


def writer(path, **plan):
    return StoreWriter(path, {"n": N, **plan}, LAYOUT)


def write(w, start, stop):
    w.write(start, {"features": FEATURES[:, start:stop], "image_sha256": DIGESTS[start:stop]})


def complete(w):
    for start in range(0, N, 5):
        if start not in w.done:
            write(w, start, start + 5)
    return w.finish(HEADER, WHOLE)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "s.h5"


@pytest.fixture
def expected(tmp_path):
    return complete(writer(tmp_path / "whole.h5")).path.read_bytes()


def test_it_writes_what_it_is_given_and_clears_up(path):
    store = complete(writer(path))
    assert (store.features == FEATURES).all()
    store.verify()
    assert [file.name for file in path.parent.iterdir()] == ["s.h5"]


def test_going_on_gives_the_same_bytes(path, expected):
    write(writer(path), 5, 10)
    resumed = writer(path)
    assert resumed.done == {5: 10}
    assert read_progress(path) == (5, N)
    assert complete(resumed).path.read_bytes() == expected
    assert read_progress(path) is None


def test_a_journal_that_was_cut_off_loses_one_range_only(path, expected):
    first = writer(path)
    write(first, 0, 5)
    write(first, 5, 10)
    journal = partial_folder(path) / "journal.jsonl"
    journal.write_text(journal.read_text()[:-20])
    resumed = writer(path)
    assert resumed.done == {0: 5}
    assert complete(resumed).path.read_bytes() == expected


def test_a_range_whose_bytes_changed_is_made_again(path, expected):
    first = writer(path)
    write(first, 0, 5)
    write(first, 5, 10)
    first.array("features")[1, 7, 0] += 1
    resumed = writer(path)
    assert resumed.done == {0: 5}
    assert complete(resumed).path.read_bytes() == expected


def test_another_plan_begins_anew(path):
    write(writer(path), 0, 5)
    assert writer(path, weights="others").done == {}


def test_too_small_a_disk_is_noticed_before_the_work(path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(100))
    with pytest.raises(UserError, match=r"no space for .*s\.h5"):
        writer(path)


@pytest.mark.parametrize("where", ["common.store_writer._reserve", "common.store_writer.canonical_json", "h5py.File"])
def test_a_full_disk_is_an_error_that_leaves_no_store(path, expected, monkeypatch, where):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "no space left on device")

    w = writer(path) if "reserve" not in where else None
    with monkeypatch.context() as patch, pytest.raises(UserError, match="no space left for"):
        patch.setattr(where, full)
        complete(w or writer(path))
    assert not path.exists()
    assert complete(writer(path)).path.read_bytes() == expected


def test_a_disk_that_fills_up_under_hdf5_is_such_an_error_too(path):
    code = f"""
import resource, sys
from pathlib import Path
from fabricate import make_store
from common.errors import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
try:
    make_store(Path({str(path)!r}))
except UserError as error:
    print(error.message)
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert result.stdout.startswith(f"no space left for {path}"), result
    assert list(path.parent.iterdir()) == []


def test_the_plan_is_readable(path):
    writer(path)
    assert json.loads((partial_folder(path) / "plan.json").read_text())[1] == {"n": N}
