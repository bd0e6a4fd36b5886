import errno
import os
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from fabricate import flip_bit, refuses

from common.errors import UserError
from common.files import exclusive
from common.store import FeatureStore
from common.store_partial import FILE, JOURNAL, PLAN, PartialStore, clear_up, partial_folder, read_plan, read_progress
from common.store_writer import name_arrays, places_of, write_store
from common.synthetic import make_header

N, DIM, BATCH = 18, 3, 5
FEATURES = np.random.default_rng(0).normal(size=(2, N, DIM)).astype("<f4")
DIGESTS = np.random.default_rng(1).integers(256, size=(N, 32), dtype=np.uint8)
LAYOUT = {"features": ("<f4", FEATURES.shape), "image_sha256": ("|u1", DIGESTS.shape)}
HEADER = make_header(1, DIM, 2)
WHOLE = {
    "labels": np.zeros(N, "<i8"),
    "image_index": np.arange(N, dtype="<i8"),
    "split": np.zeros(N, "u1"),
    **name_arrays([f"{row}.png" for row in range(N)]),
}


def writer(path, source="", **plan):
    return PartialStore(path, {"n": N, "batch_size": BATCH, **plan}, LAYOUT, source)


def write(w, start):
    rows = slice(start, start + BATCH)
    w.write(start, {"features": FEATURES[:, rows], "image_sha256": DIGESTS[rows]})


def written(w):
    for start in w.missing():
        write(w, start)
    return w


def complete(w):
    return written(w).finish(HEADER, WHOLE)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "s.h5"


@pytest.fixture
def expected(tmp_path):
    return complete(writer(tmp_path / "whole.h5")).path.read_bytes()


def test_going_on_gives_the_same_bytes(path, expected):
    write(writer(path), 5)
    resumed = writer(path)
    assert resumed.discarded is None
    assert resumed.done == {5: 10}
    assert resumed.missing() == [0, 10, 15]
    assert read_progress(path) == (5, N)
    assert complete(resumed).path.read_bytes() == expected
    assert read_progress(path) is None


def test_a_store_is_not_finished_while_a_batch_is_missing(path):
    w = writer(path)
    write(w, 0)
    with pytest.raises(ValueError, match="3 are missing"):
        w.finish(HEADER, WHOLE)
    assert not path.exists()


def test_another_plan_begins_anew_and_says_what_differs(path):
    write(writer(path, weights="some"), 0)
    w = writer(path, weights="others")
    assert (w.done, w.discarded) == ({}, "had another weights")


def test_another_source_keeps_the_batches_whose_images_are_the_same(path, expected):
    first = writer(path, source="before")
    for start in (0, 5, 15):
        write(first, start)
    moved = writer(path, source="after")
    assert moved.source_changed
    assert moved.done == {0: 5, 5: 10, 15: 18}
    asked = []

    def same(start, digests):
        asked.append(start)
        assert (digests == DIGESTS[start : start + BATCH]).all()
        return start != 5

    moved.keep_unchanged(same)
    assert asked == [0, 5, 15]
    assert moved.done == {0: 5, 15: 18}
    again = writer(path, source="after")
    assert not again.source_changed
    assert again.done == {0: 5, 15: 18}
    assert complete(again).path.read_bytes() == expected


def edit(file: Path, change):
    file.write_bytes(change(file.read_bytes()))


DAMAGE = {
    "the journal was cut off": lambda f: os.truncate(f / JOURNAL, 70),
    "the journal is long": lambda f: edit(f / JOURNAL, lambda content: content + b"more"),
    "a byte of the journal changed": lambda f: flip_bit(f / JOURNAL, 3),
    "the journal notes what is not written": lambda f: edit(f / JOURNAL, lambda content: content[:96] + b"x" * 32),
    "the journal is missing": lambda f: (f / JOURNAL).unlink(),
    "a byte of an array changed": lambda f: flip_bit(f / FILE, places_of(LAYOUT)["features"].offset + 3),
    "the file is missing": lambda f: (f / FILE).unlink(),
    "the file is short": lambda f: os.truncate(f / FILE, 10),
    "the file is long": lambda f: os.truncate(f / FILE, 10**6),
    "the file is a folder": lambda f: ((f / FILE).unlink(), (f / FILE).mkdir()),
    "the plan is missing": lambda f: (f / PLAN).unlink(),
    "the plan is empty": lambda f: (f / PLAN).write_text(""),
    "the plan is a list": lambda f: (f / PLAN).write_text('[1, {"n": 18}, {}]'),
    "the plan is a number": lambda f: (f / PLAN).write_text("5"),
    "the plan is deep": lambda f: (f / PLAN).write_text("[" * 100_000),
    "a byte of the plan changed": lambda f: edit(f / PLAN, lambda text: text.replace(b'"n":18', b'"n":17')),
    "something else is there": lambda f: (f / "else").write_text(""),
}

UNUSABLE = ("the file is missing", "the file is short", "the file is a folder")


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_partial_folder_loses_no_more_than_what_is_damaged(path, expected, damage):
    first = writer(path)
    for start in (0, 5, 10):
        write(first, start)
    DAMAGE[damage](partial_folder(path))
    read_progress(path)
    read_plan(path)
    resumed = writer(path)
    if damage.startswith(("the plan", "a byte of the plan")) or damage in UNUSABLE:
        assert "damaged" in resumed.discarded
        assert resumed.done == {}
    else:
        assert resumed.discarded is None
        lost = 3 if damage == "the journal is missing" else 1
        assert len(resumed.done) >= 3 - lost
    assert complete(resumed).path.read_bytes() == expected
    FeatureStore.open(path).verify()


def test_finishing_copies_nothing_that_is_there(path, expected):
    w = written(writer(path))
    there = (partial_folder(path) / FILE).stat().st_ino
    assert w.finish(HEADER, WHOLE).path.stat().st_ino == there
    write_store(path, HEADER, dict(reversed({"features": FEATURES, "image_sha256": DIGESTS, **WHOLE}.items())))
    assert path.read_bytes() == expected  # which way it was written cannot be told


def test_rows_that_are_left_out_make_the_store_of_the_others(path, monkeypatch):
    monkeypatch.setattr("common.store_partial.ROWS", 4)
    w = written(writer(path))
    rows = np.delete(np.arange(N), [2, 17])
    some = {name: array[rows] for name, array in WHOLE.items() if not name.startswith("name_")}
    some |= name_arrays([f"{row}.png" for row in rows])
    found = w.finish(HEADER, some, rows).path.read_bytes()
    write_store(path, HEADER, {"features": FEATURES[:, rows], "image_sha256": DIGESTS[rows], **some})
    assert path.read_bytes() == found
    assert list(partial_folder(path).iterdir()) == []


def test_what_the_disk_does_not_give_back_is_not_put_in_place(path, expected):
    w = written(writer(path))
    flip_bit(partial_folder(path) / FILE, places_of(LAYOUT)["image_sha256"].offset + 6 * 32)
    refuses("images 5 to 9, read back from the disk", w.finish, HEADER, WHOLE)
    assert not path.exists()
    assert complete(writer(path)).path.read_bytes() == expected


def test_a_partial_folder_that_is_a_file_and_too_small_a_disk_are_noticed_before_the_work(path, monkeypatch):
    partial_folder(path).write_text("")
    refuses("cannot write", writer, path)
    partial_folder(path).unlink()
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(100))
    refuses(r"no space for .*s\.h5", writer, path)


WRITES = [
    "common.store_partial.reserve",
    "common.store_partial.write_all",
    "common.store_writer.write_all",
    "os.fsync",
    "pathlib.Path.open",
    "pathlib.Path.replace",
    "pathlib.Path.mkdir",
    "pathlib.Path.write_bytes",
]


def failing(monkeypatch, number, which):
    """Let the call number `which` of all that write fail, after it did half its work; count them."""
    calls = []

    def wrap(name):
        module, _, function = name.rpartition(".")
        owner = Path if module == "pathlib.Path" else __import__(module, fromlist=["x"])
        real = getattr(owner, function)

        def call(*arguments, **options):
            calls.append(name)
            if len(calls) == which:
                if function == "write_all":
                    file, data = arguments
                    file.write(memoryview(np.frombuffer(data, np.uint8))[: len(memoryview(data).cast("B")) // 2])
                raise OSError(number, os.strerror(number))
            return real(*arguments, **options)

        monkeypatch.setattr(owner, function, call)

    for name in WRITES:
        wrap(name)
    return calls


def in_batches(path):
    with exclusive(partial_folder(path), "busy", path):
        complete(writer(path))


def at_once(path):
    write_store(path, HEADER, {"features": FEATURES, "image_sha256": DIGESTS, **WHOLE})


@pytest.mark.parametrize(("number", "old"), [(errno.ENOSPC, False), (errno.EIO, True)])
@pytest.mark.parametrize(("write", "least"), [(in_batches, 20), (at_once, 4)])
def test_an_error_at_any_write_loses_nothing(path, expected, monkeypatch, number, old, write, least):
    which, failures = 1, 0
    while True:
        shutil.rmtree(path.parent)
        path.parent.mkdir()
        if old:
            path.write_bytes(expected[:-1] + b"!")  # whatever: nobody looks at it
        before = path.read_bytes() if old else None
        with monkeypatch.context() as patch:
            calls = failing(patch, number, which)
            try:
                write(path)
                if len(calls) < which:
                    break
            except UserError as error:
                failures += 1
                assert path.name in error.message
                assert (path.read_bytes() if path.exists() else None) in (before, expected)
                if write is at_once:
                    assert [file.name for file in path.parent.iterdir()] == ["s.h5"] * path.exists()
        write(path)
        assert path.read_bytes() == expected
        assert [file.name for file in path.parent.iterdir()] == ["s.h5"]
        which += 1
    assert failures > least


def test_what_a_kill_in_the_last_moment_left_is_cleared_up(path):
    header = {**HEADER, "provenance": {"request": {"asked": 1, "fingerprint": "f"}}}
    w = written(writer(path, source="f", request={"asked": 1}))
    left = {file.name: file.read_bytes() for file in partial_folder(path).iterdir()}
    store = w.finish(header, WHOLE)
    for name, content in left.items():
        (partial_folder(path) / name).write_bytes(content)
    (path.parent / ".s.12345-01234567.h5").write_text("")
    clear_up(store)
    assert [file.name for file in path.parent.iterdir()] == ["s.h5"]


def test_what_is_under_way_to_replace_a_store_by_something_else_is_not_cleared_up(path):
    complete(writer(path))
    write(writer(path, request={"asked": 2}), 0)
    clear_up(FeatureStore.open(path))
    assert read_progress(path) == (5, N)
    with exclusive(partial_folder(path), "busy"):
        clear_up(FeatureStore.open(path))
    assert read_progress(path) == (5, N)


def test_a_journal_without_a_plan_is_left_by_a_kill_and_cleared_up(path):
    store = complete(writer(path))
    (partial_folder(path)).mkdir(exist_ok=True)
    (partial_folder(path) / JOURNAL).write_text("")
    clear_up(store)
    assert [file.name for file in path.parent.iterdir()] == ["s.h5"]
