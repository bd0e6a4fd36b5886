import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from fabricate import make_findings

from common.errors import UserError
from find import move
from find.move import put, undo

NAMES = ["a/1.png", "a/ü ' \n2.png", "b/1.png", os.fsdecode(b"b/\xff.png")]


def images(root: Path) -> list[Path]:
    for number, name in enumerate(NAMES):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes([number]) * 100)
    (root / "b/stays.png").write_bytes(b"stays")
    return [root / name for name in NAMES]


def tree(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != ".lock")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.mark.parametrize("copy", [False, True])
def test_what_is_put_elsewhere_comes_back(tmp_path, copy):
    files = images(tmp_path / "in")
    before = tree(tmp_path / "in")
    record = put(files, tmp_path / "in", tmp_path / "out", copy=copy)
    assert {name: content for name, content in tree(tmp_path / "out").items() if "moves" not in name} == {
        name: before[name] for name in NAMES
    }
    assert tree(tmp_path / "in") == (before if copy else {"b/stays.png": b"stays"})
    undone = undo(record)
    assert (undone.restored, undone.left) == (4, [])
    assert tree(tmp_path / "in") == before
    assert list(tree(tmp_path / "out")) == ["moves-001.jsonl.undone"]
    assert not (tmp_path / "out/a").exists()


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("step", range(1, 45, 2))
def test_killed_at_any_step_of_putting_and_of_undoing_nothing_is_lost(tmp_path, monkeypatch, copy, step):
    files = images(tmp_path / "in")
    before = tree(tmp_path / "in")
    with pytest.raises(Killed) if kill_at(monkeypatch, step) else pytest.raises(()):
        put(files, tmp_path / "in", tmp_path / "out", copy=copy)
        raise Killed  # it was done before this step
    monkeypatch.undo()
    everywhere = [*tree(tmp_path / "in").values(), *tree(tmp_path / "out").values()]
    assert all(content in everywhere for content in before.values())
    records = list((tmp_path / "out").glob("moves-*.jsonl"))
    if not records:
        assert tree(tmp_path / "in") == before
        return
    kill_at(monkeypatch, step)
    with pytest.raises(Killed):
        undo(records[0])
        raise Killed
    monkeypatch.undo()
    if records[0].exists():
        assert undo(records[0]).left == []
    assert tree(tmp_path / "in") == before
    assert list(tree(tmp_path / "out")) == ["moves-001.jsonl.undone"]


class Killed(BaseException):
    """A process that ends here and now."""


def kill_at(monkeypatch, step: int) -> bool:
    """Make the `step`-th change of a file or a folder the last thing that happens: it raises instead."""
    left = [step]

    def counting(real):
        def call(*arguments, **options):
            left[0] -= 1
            if not left[0]:
                raise Killed
            return real(*arguments, **options)

        return call

    for owner, name in [(Path, "replace"), (Path, "unlink"), (Path, "mkdir"), (Path, "rename"), (Path, "rmdir")]:
        monkeypatch.setattr(owner, name, counting(getattr(owner, name)))
    monkeypatch.setattr(move.os, "open", counting(os.open))
    monkeypatch.setattr(move.shutil, "copy2", counting(move.shutil.copy2))
    return True


def test_another_file_system(tmp_path, monkeypatch):
    files = images(tmp_path / "in")
    before = tree(tmp_path / "in")
    real = Path.replace

    def replace(self, target):
        if not self.name.endswith(".partial") and self.suffix == ".png":
            raise OSError(move.errno.EXDEV, "another device")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    record = put(files, tmp_path / "in", tmp_path / "out")
    assert tree(tmp_path / "in") == {"b/stays.png": b"stays"}
    assert undo(record).left == []
    assert tree(tmp_path / "in") == before


def test_nothing_is_overwritten_and_nothing_is_touched_before_all_is_sure(tmp_path):
    files = images(tmp_path / "in")
    taken = tmp_path / "out/b/1.png"
    taken.parent.mkdir(parents=True)
    taken.write_bytes(b"mine")
    before = tree(tmp_path)
    with pytest.raises(UserError, match="is there already"):
        put(files, tmp_path / "in", tmp_path / "out")
    assert tree(tmp_path) == before


def test_a_place_that_is_taken_meanwhile_is_not_overwritten(tmp_path, monkeypatch):
    files = images(tmp_path / "in")
    before = tree(tmp_path / "in")
    late = tmp_path / "out" / NAMES[2]
    real = Path.replace

    def replace(self, target):
        late.parent.mkdir(parents=True, exist_ok=True)
        late.write_bytes(b"mine")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(UserError, match=r"moves-001.jsonl undoes what was done"):
        put(files, tmp_path / "in", tmp_path / "out")
    monkeypatch.undo()
    assert late.read_bytes() == b"mine"
    assert len(undo(tmp_path / "out/moves-001.jsonl").left) == 1
    assert tree(tmp_path / "in") == before


def test_undo_leaves_alone_what_changed_meanwhile(tmp_path):
    files = images(tmp_path / "in")
    record = put(files, tmp_path / "in", tmp_path / "out")
    files[0].write_bytes(b"a new one")
    (tmp_path / "out/b/1.png").unlink()
    undone = undo(record)
    assert undone.restored == 2
    assert len(undone.left) == 2
    assert files[0].read_bytes() == b"a new one"
    assert (tmp_path / "out/a/1.png").read_bytes() == bytes(100)
    assert record.exists(), "it can be undone again"


def test_undo_of_copies_leaves_a_copy_that_is_the_last_one(tmp_path):
    files = images(tmp_path / "in")
    record = put(files, tmp_path / "in", tmp_path / "out", copy=True)
    files[0].unlink()
    assert len(undo(record).left) == 1
    assert (tmp_path / "out/a/1.png").exists()


@pytest.mark.parametrize("target, rule", [("in", "inside"), ("in/a/odd", "inside")])
def test_the_target_is_outside_the_images(tmp_path, target, rule):
    with pytest.raises(UserError, match=rule):
        put(images(tmp_path / "in"), tmp_path / "in", tmp_path / target)


def test_files_that_cannot_be_moved(tmp_path):
    files = images(tmp_path / "in")
    (tmp_path / "in/link.png").symlink_to(files[0])
    for file, rule in [("link.png", "symbolic link"), ("gone.png", "no file"), ("../x.png", "not below")]:
        (tmp_path / "x.png").touch()
        path = tmp_path / "x.png" if file.startswith("..") else tmp_path / "in" / file
        with pytest.raises(UserError, match=rule):
            put([path], tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert put([], tmp_path / "in", tmp_path / "out") is None


def test_the_flagged_ones_are_moved_and_a_command_brings_them_back(tmp_path):
    images(tmp_path / "in")
    before = tree(tmp_path / "in")
    findings = make_findings(NAMES, flagged=2, root=tmp_path / "in")
    record = move.put_flagged(findings, tmp_path / "out")
    assert set(before) - set(tree(tmp_path / "in")) == set(NAMES[:2])
    (tmp_path / "in" / NAMES[1]).write_bytes(b"another")
    result = CliRunner().invoke(move.undo_command, [str(record)])
    assert result.exit_code == 2
    assert "1 image(s) are as before" in result.output
    assert "1 could not be brought back" in result.output
    (tmp_path / "in" / NAMES[1]).unlink()
    assert CliRunner().invoke(move.undo_command, [str(record)]).exit_code == 0
    assert tree(tmp_path / "in") == before
    assert move.put_flagged(make_findings(NAMES, root=tmp_path / "in"), tmp_path / "out") is None
    with pytest.raises(UserError, match="folder of images"):
        move.put_flagged(make_findings(NAMES), tmp_path / "out")


def test_what_lies_in_the_target_stays(tmp_path):
    """Hidden files with names like temporary ones are somebody's all the same."""
    theirs = tmp_path / "out/.photo.123.jpg"
    theirs.parent.mkdir()
    theirs.write_bytes(b"theirs")
    undo(put(images(tmp_path / "in"), tmp_path / "in", tmp_path / "out"))
    assert theirs.read_bytes() == b"theirs"
    assert {file.name for file in (tmp_path / "out").iterdir()} == {".photo.123.jpg", "moves-001.jsonl.undone"}


def test_a_second_move_has_its_own_record(tmp_path):
    files = images(tmp_path / "in")
    first = put(files[:1], tmp_path / "in", tmp_path / "out")
    second = put(files[1:], tmp_path / "in", tmp_path / "out")
    assert (first.name, second.name) == ("moves-001.jsonl", "moves-002.jsonl")


@pytest.mark.parametrize("text", ["", "{}", "[]", "no json", json.dumps({"format": move.FORMAT, "version": 2})])
def test_what_is_not_a_record(tmp_path, text):
    (tmp_path / "x").write_text(text)
    with pytest.raises(UserError, match="not a record"):
        undo(tmp_path / "x")
    with pytest.raises(UserError, match="cannot read"):
        undo(tmp_path / "missing")
