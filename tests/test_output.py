"""What the command line writes, where, in which order, and what it says where it cannot."""

import errno
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from fabricate import call, make_findings, make_pictures, python

import find.auditing
from common.files import OUTPUT_MARK
from find import page
from find.cli import main

NAMES = ["cat/0.png", "cat/1.png", "dog/ 2.png", "dog/3.png"]
WRITTEN = {OUTPUT_MARK, "findings.csv", "findings.json", "index.html", "pictures"}


@pytest.fixture
def root(tmp_path):
    return tmp_path / "in"


@pytest.fixture
def store(root, tmp_path, monkeypatch):
    """A store of four images; an audit that flags the first two without looking."""
    make_pictures(tmp_path / "s.h5", root, NAMES)
    monkeypatch.setattr(find.auditing, "audit", lambda *_, **__: make_findings(NAMES[:3], flagged=2))
    monkeypatch.chdir(tmp_path)
    return Path("s.h5")


run = partial(call, main, "audit", "s.h5")


def test_the_page_and_its_tables_are_written_and_the_page_is_printed(store, root):
    assert run("--root", root).stdout == "runs/find-s/index.html\n"
    assert {file.name for file in Path("runs/find-s").iterdir()} == WRITTEN
    assert Path("runs", OUTPUT_MARK).exists(), "below a folder of pictures it is no input"
    run("--root", root)  # again, over what it wrote


@pytest.mark.parametrize("name", ["index.html", "findings.csv", "photo.jpg"])
def test_the_folder_of_somebody_is_refused_before_anything_is_written(store, monkeypatch, name):
    monkeypatch.setattr(find.auditing, "audit", None)
    Path("theirs").mkdir()
    Path("theirs", name).write_text("mine")
    assert "theirs holds files that are not ours" in run("--out", "theirs", code=2).output
    assert [(file.name, file.read_text()) for file in Path("theirs").iterdir()] == [(name, "mine")]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--root", "nowhere"], "there is no folder nowhere: give --root the folder of the images"),
        (["--root", "s.h5x"], "there is no folder s.h5x"),
        (["--copy-to", "out"], "it is not known where the images are: give --root"),
        (["--null"], "--null does nothing without --list"),
        (["--list", "/dev/null"], "/dev/null is no regular file: give --list a file, or -"),
        (["--out", "s.h5"], "s.h5 is a file: give a folder"),
        (["--out", "s.h5/page"], "cannot write s.h5/page: s.h5 is a file, and must be a folder"),
        (["--list", "s.h5/list.txt"], "s.h5 is a file, and must be a folder"),
        (["--reviewed", "nothing.csv"], "cannot read the reviews nothing.csv"),
        (["--root", "in", "--copy-to", "in/x"], "in/x lies inside the images of "),
        (["--move-to", "x"], "No such option"),
        *(([option, "x" * 300], "(file name too long)") for option in ("--root", "--out", "--reviewed", "--list")),
        (["--root", "in", "--copy-to", "x" * 300], "(file name too long)"),
    ],
)
def test_what_cannot_be_is_said_before_the_images_are_judged(store, monkeypatch, options, sentence):
    monkeypatch.setattr(find.auditing, "audit", None)
    assert sentence in " ".join(run(*options, code=2).output.split())
    assert not Path("runs").exists()


def test_a_read_only_folder_is_said_before_the_images_are_judged(store, monkeypatch):
    monkeypatch.setattr(find.auditing, "audit", None)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    assert "cannot write new/page: " in (output := run("--out", "new/page", code=2).output)
    assert " is read-only; choose another path" in output


def test_the_root_of_a_table_is_its_folder(store, root):
    Path("in/table.csv").touch()
    run("--root", "in/table.csv")
    assert f'"root": "{root}"' in Path("runs/find-s/findings.json").read_text()


def test_flagged_paths_are_listed_for_other_programs_with_nul_where_there_is_a_line_break(store, root, monkeypatch):
    first, second = (str(root / name).encode() for name in NAMES[:2])
    result = run("--root", "in", "--list", "-")
    assert result.stdout_bytes == first + b"\n" + second + b"\n"
    assert "index.html" in result.stderr
    run("--list", "list.txt", "-0")
    assert Path("list.txt").read_bytes() == b"cat/0.png\0cat/1.png\0"
    monkeypatch.setattr(find.auditing, "audit", lambda *_, **__: make_findings(["cat/0\n.png"], flagged=1))
    assert "1 flagged paths have a line break in them: give --null" in run("--list", "-", code=2).output
    assert run("--list", "-", "-0").stdout_bytes == b"cat/0\n.png\0"


def test_marks_are_honoured_and_those_of_no_image_are_counted(store, root):
    Path("marks.csv").write_text("path;review\ndog/3.png;wrong\ncat/0.png;keep\nx.png;keep\n")
    result = run("--root", root, "--reviewed", "marks.csv", "--list", "-")
    assert "1 marks match no image: x.png" in result.stderr
    assert result.stdout.split("\n")[:2] == [str(root / "dog/3.png"), str(root / "cat/1.png")]


def test_copies_are_made_of_what_is_flagged_and_what_could_not_be_is_named(store, root, monkeypatch):
    (root / NAMES[0]).unlink()
    result = run("--root", root, "--copy-to", "copies", code=2)
    assert "1 of 2 flagged images could not be copied to copies: cat/0.png is not there any more" in result.output
    assert Path("copies", NAMES[1]).read_bytes() == (root / NAMES[1]).read_bytes()
    assert "runs/find-s/index.html" in result.stdout
    monkeypatch.setattr(find.auditing, "audit", lambda *_, **__: make_findings(NAMES))
    assert "nothing is copied" in run("--root", "in", "--copy-to", "none").stderr
    assert not Path("none").exists()


CODE = """
import sys
sys.path.insert(0, {tests!r})
import find.auditing
from fabricate import make_findings
from find.cli import main
find.auditing.audit = lambda *_, **__: make_findings(["a"], flagged=1)
main(["audit", "s.h5", *sys.argv[1:]])
"""


@pytest.mark.parametrize("options", [[], ["--list", "-"]])
def test_a_full_standard_output_is_said(store, options):
    with Path("/dev/full").open("wb") as full:
        streams = {"stdout": full, "stderr": subprocess.PIPE, "capture_output": False}
        said = python("-c", CODE.format(tests=str(Path(__file__).parent)), *options, code=2, **streams).stderr
    *_, last = said.splitlines()
    assert last.startswith("Error: no space left for the standard output: ")
    assert last.endswith("; the page is complete: runs/find-s/index.html")
    assert "Exception ignored" not in said


def test_an_error_says_what_is_complete(store, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(page, "make_pictures", fail)
    output = run(code=2).output
    assert "Error: no space left for runs/find-s/pictures/" in output
    assert output.endswith("; runs/find-s/findings.json and findings.csv are complete\n")


def test_a_find_that_is_stopped_starts_anew(store):
    code = CODE.replace("import find.auditing\n", "import find.auditing, os, signal, time\n").replace(
        'lambda *_, **__: make_findings(["a"], flagged=1)', "lambda *_, **__: os.kill(os.getpid(), 2) or time.sleep(9)"
    )
    said = python("-c", code.format(tests=str(Path(__file__).parent)), code=130).stderr
    assert said == "\nstopped: the same command starts anew\n"


@pytest.mark.skipif(os.name != "posix", reason="kills")
def test_what_a_killed_find_left_is_gone_after_the_same_command(store):
    folder = Path("runs/find-s")
    run()
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    names = ["findings.{}.json", "findings.{}.csv", "index.{}.html"]
    names += [f"pictures/{each.name}/0.{{}}.png" for each in (folder / "pictures").iterdir()]
    left = [folder / name.format(f"{process.pid}-0123abcd") for name in names]
    left = [file.with_name(f".{file.name}") for file in left]
    theirs = folder / ".photo.123.jpg"
    for file in [*left, theirs]:
        file.touch()
    run()
    assert not [file for file in left if file.exists()]
    assert theirs.exists()
    assert {file.name for file in folder.iterdir()} == WRITTEN | {theirs.name}
