import csv
import errno
import os
from pathlib import Path
from typing import Any

import pytest
from fabricate import fails_with, make_findings, make_pictures, refuses
from PIL import Image

from common.files import OUTPUT_MARK
from find import copying
from find.copying import RECORD, copy_flagged

NAMES = ["a/1.png", "a/ü ' \n2.png", "b/1.png", os.fsdecode(b"b/\xff.png")]


@pytest.fixture
def digests(tmp_path):
    store = make_pictures(tmp_path / "s.h5", tmp_path / "in", NAMES)
    for number, name in enumerate(NAMES):
        os.utime(tmp_path / "in" / name, (0, number))
    return store.image_sha256


@pytest.fixture
def root(digests, tmp_path):
    return tmp_path / "in"


def copy(root: Path, target: Path, digests: Any) -> list[str]:
    return copy_flagged(make_findings(NAMES, flagged=4).flagged, root, target, digests)


def content(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def copies(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in content(folder).items() if name not in (RECORD, OUTPUT_MARK)}


def record(folder: Path) -> list[tuple[str, str]]:
    with (folder / RECORD).open(encoding="utf-8", newline="") as file:
        return [(line["path"], line["copied"]) for line in csv.DictReader(file)]


@pytest.mark.parametrize("there", [False, True])
def test_copies_are_the_files_and_are_recorded(root, digests, tmp_path, there):
    before = content(root)
    if there:
        (tmp_path / "out").mkdir()
    assert copy(root, tmp_path / "out", digests) == []
    assert content(root) == copies(tmp_path / "out") == before
    assert (tmp_path / "out" / NAMES[2]).stat().st_mtime == 2
    visible = ["a/1.png", "a/ü ' \n2.png", "b/1.png", r"b/\udcff.png"]
    assert record(tmp_path / "out") == [(name, "yes") for name in visible]
    assert not (tmp_path / "out/.copying").exists()
    refuses("holds copies already: give --copy-to a new", copy, root, tmp_path / "out", digests)


def test_what_cannot_be_copied_is_named_and_the_others_are_copied(root, digests, tmp_path):
    (root / NAMES[0]).unlink()
    Image.new("RGB", (4, 4), "white").save(root / NAMES[1], "png")
    (root / NAMES[2]).rename(tmp_path / "x.png")
    (root / NAMES[2]).symlink_to(tmp_path / "x.png")
    assert copy(root, tmp_path / "out", digests) == [
        "a/1.png is not there any more",
        "a/ü ' \n2.png is not the picture that was judged: it has changed since extraction",
        "b/1.png is a link, or lies behind one",
    ]
    assert list(copies(tmp_path / "out")) == [NAMES[3]]
    assert [copied for _, copied in record(tmp_path / "out")] == ["no", "no", "no", "yes"]


def test_files_that_are_none_and_folders_that_are_links(root, digests, tmp_path):
    for name, make in ((NAMES[0], os.mkfifo), (NAMES[1], Path.touch), (NAMES[2], Path.unlink)):
        (root / name).unlink()
        make(root / name) if make is not Path.unlink else (root / name).mkdir()
    left = copy(root, tmp_path / "out", digests)
    first, second, third = (line.rsplit("png ")[1] for line in left)
    assert (first, second) == (third, "cannot be read (cannot identify image file)")
    assert third == "is no regular file"
    (root / "a").rename(tmp_path / "real")
    (root / "a").symlink_to(tmp_path / "real")
    assert "behind one" in copy(root, tmp_path / "second", digests)[0]


def test_the_target_is_new_or_empty_no_link_and_outside_the_images(root, digests, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    (tmp_path / "file").touch()
    rules = {"full": "not ours", "link": "is a link", "file": "is a file", "in/a/x": "lies inside"}
    for target, rule in rules.items():
        refuses(rule, copy, root, tmp_path / target, digests)
    assert content(tmp_path / "full") == {"mine": b""}
    assert not list((tmp_path / "empty").iterdir())


def test_nothing_is_written_through_a_link_or_over_a_file_that_came_meanwhile(root, digests, tmp_path, monkeypatch):
    real = copying.claim_folder

    def claim(target):
        real(target)
        (tmp_path / "elsewhere").mkdir()
        (target / "a").symlink_to(tmp_path / "elsewhere")
        (target / "b").mkdir()
        (target / NAMES[2]).write_bytes(b"mine")

    monkeypatch.setattr(copying, "claim_folder", claim)
    left = copy(root, tmp_path / "out", digests)
    assert ["through a link" in line for line in left] == [True, True, False]
    assert "finds its place taken" in left[2]
    assert (tmp_path / "out" / NAMES[2]).read_bytes() == b"mine"
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_copy_that_was_stopped_is_finished_by_the_same_command(root, digests, tmp_path, monkeypatch):
    calls = iter([lambda path: None] * 2 + [fails_with(errno.ENOSPC)] * 9)
    monkeypatch.setattr(copying, "flush_to_disk", lambda path: next(calls)(path))
    full = "no space left for .*out: free some and run .*; 2 of 4 flagged images are copied"
    refuses(full, copy, root, tmp_path / "out", digests)
    assert len(copies(tmp_path / "out")) == 2
    monkeypatch.undo()
    assert copy(root, tmp_path / "out", digests) == []
    assert copies(tmp_path / "out") == content(root)


def test_a_file_system_without_hard_links(root, digests, tmp_path, monkeypatch):
    monkeypatch.setattr(copying.os, "link", fails_with(errno.EPERM))
    assert copy(root, tmp_path / "out", digests) == []
    assert copies(tmp_path / "out") == content(root)
