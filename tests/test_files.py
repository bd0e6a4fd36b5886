import errno
import hashlib
import json
import os
import subprocess
import sys

import pytest
from fabricate import fails_with, refuses
from hypothesis import given, settings
from hypothesis import strategies as st

from common import files
from common.files import Busy, atomic_path, canonical_json, exclusive, sha256_file, sha256_text, write_text, writing_to

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text('ab [],:{}"\\\n'),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("a[ ]\n"), inner, max_size=4),
    max_leaves=12,
)


def test_a_failed_write_leaves_the_old_content_and_nothing_else(tmp_path):
    target = tmp_path / "a.txt"
    write_text(target, "old")
    with pytest.raises(KeyError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert target.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_folders_are_made_and_content_replaced(tmp_path):
    target = tmp_path / "b/c/a.txt"
    write_text(target, "one")
    write_text(target, "two")
    assert target.read_text() == "two"
    assert sha256_file(target) == sha256_text("two")


def test_equal_values_have_one_text():
    for value in ({"b": 1, "a": [1.5, "ü"]}, {"a": [1.5, "ü"], "b": 1}):
        assert canonical_json(value) == '{"a":[1.5,"ü"],"b":1}'
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json(float("nan"))


@settings(deadline=None)
@given(VALUES)
def test_what_people_read_is_the_same_value_with_a_list_of_numbers_on_one_line(value):
    assert json.loads(files.readable_json(value)) == value
    matrix = {"a": {"b": [[1, 2], [3, 4]], "c": ["x", "y"], "d": [{"e": [5, 6]}], "value": value}}
    lines = [line.strip() for line in files.readable_json(matrix).splitlines()]
    assert {'"b": [ [ 1, 2 ], [ 3, 4 ] ],', '"c": [ "x", "y" ],', '"e": [ 5, 6 ]'} <= set(lines)


def test_a_folder_is_held_by_one_at_a_time(tmp_path):
    with exclusive(tmp_path / "x", "busy"), pytest.raises(Busy, match="busy"), exclusive(tmp_path / "x", "busy"):
        pass
    with exclusive(tmp_path / "x", "busy"):
        (tmp_path / "x/file").write_text("")
    assert names(tmp_path / "x") == ["file"]
    with exclusive(tmp_path / "y", "busy"):
        pass
    assert names(tmp_path) == ["x"]  # nor does an empty folder stay behind


def test_what_the_body_raises_is_neither_another_process_nor_an_error_of_the_target(tmp_path):
    with pytest.raises(BlockingIOError), exclusive(tmp_path / "x", "busy"):
        raise BlockingIOError(errno.EAGAIN, "of something else")
    with pytest.raises(FileNotFoundError), writing_to(tmp_path / "a.txt"):
        (tmp_path / "image.png").read_bytes()


def test_a_killed_process_leaves_no_lock_and_its_temporary_file_is_removed(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from common.files import atomic_path, exclusive\n"
        "folder = Path(sys.argv[1])\n"
        "with exclusive(folder, 'busy'), atomic_path(folder / 'a.pt') as a, atomic_path(folder.parent / 'b.h5') as b:\n"
        "    a.write_text('half'); b.write_text('half'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "x")])
    (tmp_path / ".c.12-01234567.h5").write_text("of another target")
    assert len(names(tmp_path / "x")) == 2
    with exclusive(tmp_path / "x", "busy", tmp_path / "b.h5"):
        assert names(tmp_path / "x") == [".lock"]
    assert names(tmp_path) == [".c.12-01234567.h5"]


def test_the_holder_of_the_lock_removes_temporary_files_and_no_others(tmp_path):
    others = [".git", ".a.pt", ".a.12.pt", ".a.x1.pt", ".a.12-xyz.pt", "a.12-0a1b2c3d.pt", ".x.h5.partial"]
    for name in (".a.12-0a1b2c3d.pt", ".a.b.12-0a1b2c3d.pt", ".a.12-0a1b2c3d", *others):
        (tmp_path / name).write_text("")
    files.remove_leftovers(tmp_path)
    assert names(tmp_path) == sorted(others)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_used(tmp_path, monkeypatch, capsys, number):
    monkeypatch.setattr("fcntl.flock", fails_with(number))
    with exclusive(tmp_path / "x", "busy"):
        write_text(tmp_path / "x/a", "written")
    assert names(tmp_path / "x") == ["a"]
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.ENOSPC, "no space left for .*a.txt: free some"),
        (errno.EDQUOT, "no space"),
        (errno.EIO, "cannot write"),
        (errno.EMFILE, r"a\.txt: too many open files: raise the limit"),
    ],
)
@pytest.mark.parametrize("call", ["pathlib.Path.write_bytes", "os.fsync"])
def test_every_error_of_writing_is_one_sentence_and_the_old_content_stays(tmp_path, monkeypatch, number, hint, call):
    write_text(tmp_path / "a.txt", "old")
    monkeypatch.setattr(call, fails_with(number))
    refuses(hint, write_text, tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_digested_once_as_long_as_it_is_the_same(tmp_path, monkeypatch):
    path = tmp_path / "w.pth"
    path.write_bytes(b"weights")
    expected = hashlib.sha256(b"weights").hexdigest()
    assert sha256_file(path) == expected
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("it was read again"))
        assert sha256_file(path) == expected
    path.write_bytes(b"others!")
    os.utime(path, ns=(1, 1))
    assert sha256_file(path) == hashlib.sha256(b"others!").hexdigest()


@pytest.mark.parametrize("name", [".lock", ".a.12-0a1b2c3d.pt"])
def test_what_a_kill_left_in_a_complete_folder_is_cleared_up_unless_somebody_is_at_work(tmp_path, name):
    (tmp_path / "x").mkdir()
    (tmp_path / "x/file").write_text("")
    files.clear_up_folder(tmp_path / "x")
    with exclusive(tmp_path / "x", "busy"):
        (tmp_path / "x" / name).write_text("")
        files.clear_up_folder(tmp_path / "x")
        assert names(tmp_path / "x") == sorted({".lock", name, "file"})
    (tmp_path / "x" / name).write_text("")
    files.clear_up_folder(tmp_path / "x")
    assert names(tmp_path / "x") == ["file"]


def test_a_file_where_a_folder_must_be_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file/a/b.txt", tmp_path / "file/c.txt"):
        refuses(r"file is a file, and must be a folder; choose another path", write_text, target, "x")
    refuses("file is a file, and must be a folder", exclusive(tmp_path / "file", "busy").__enter__)
