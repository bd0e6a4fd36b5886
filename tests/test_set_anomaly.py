import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import fabricate
import pytest

from common.synthetic import make_images, make_store
from find.findings import Findings
from set_anomaly import VERBS, main

SMALL = ["--weights", "random", "--image-size", "32", "--engine", "torch"]


call = partial(fabricate.call, main)


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_answers(verb):
    assert f" {verb} " in call(verb, "--help").stdout


def test_the_help_is_whole_and_a_mistake_gets_one_sentence(tmp_path):
    _, text = call("--help").stdout.split("Commands:")
    assert all(verb in text for verb in VERBS)
    assert "..." not in text
    assert call("audti", "x", code=2).stderr == 'Error: unknown command "audti": did you mean "audit"?\n'
    assert str(tmp_path / "nowhere") in call("odd", tmp_path / "nowhere", code=2).stderr


def test_the_shell_completes_a_verb_and_its_options_as_the_options_say():
    assert "_SET_ANOMALY_COMPLETE=bash_source" in (Path(__file__).parents[1] / "docs/options.md").read_text()
    for words, number, expected in (("set-anomaly exp", 1, "export"), ("set-anomaly fit --tens", 2, "--tensorboard")):
        environment = {"COMP_WORDS": words, "COMP_CWORD": str(number), "_SET_ANOMALY_COMPLETE": "bash_complete"}
        assert call(prog_name="set-anomaly", env=environment).stdout == f"plain,{expected}\n"


def test_pictures_get_a_store_that_is_used_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make_images(tmp_path / "images", classes=3, train=12, test=4)
    first = call("audit", "images", *SMALL)
    assert (tmp_path / first.stdout.splitlines()[-1]).is_file()
    (store,) = (tmp_path / "cache/set-anomaly").glob("*.h5")
    assert str(store) in first.stderr
    before = store.stat().st_mtime_ns
    assert call("audit", "images", *SMALL).stdout == first.stdout
    assert store.stat().st_mtime_ns == before
    call("audit", store, "--root", "images")
    next((tmp_path / "images").rglob("*.png")).unlink()
    call("audit", "images", *SMALL)
    assert [store] == list((tmp_path / "cache/set-anomaly").glob("*.h5"))
    assert store.stat().st_mtime_ns != before


@pytest.mark.parametrize("verb", ["audit", "odd"])
def test_a_data_set_of_hugging_face_is_taken_as_a_folder_is(verb, datasets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_images(tmp_path / "images", classes=3, train=12, test=4)
    files = sorted(str(file) for file in (tmp_path / "images").rglob("*.png"))
    types = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["class0", "class1", "class2"])}
    columns = {"image": files, "label": [Path(file).parent.name for file in files]}
    datasets.Dataset.from_dict(columns, features=datasets.Features(types)).save_to_disk("saved")
    command = [verb, "hf:saved", "--cache", "here", "--out", "page", "--label-column", "label", *SMALL]
    call(*command)
    assert Findings.read("page").counts["images"] == len(files)
    assert Path("page/index.html").is_file()
    (store,) = Path("here").glob("*.h5")
    before = store.stat().st_mtime_ns
    call(*command)
    assert store.stat().st_mtime_ns == before, "its features are made once"


def test_open_shows_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = []
    monkeypatch.setattr("click.launch", shown.append)
    make_images(tmp_path / "images", classes=2, train=12, test=4)
    call("odd", "images", "--open", "--cache", tmp_path / "here", "--out", tmp_path / "page", *SMALL)
    assert shown == [(tmp_path / "page/index.html").as_uri()]


def test_a_single_picture(tmp_path):
    (tmp_path / "a.JPG").write_bytes(b"")
    assert "a.JPG is one picture: give a folder" in call("odd", tmp_path / "a.JPG", code=2).stderr


def test_pictures_that_are_not_there(tmp_path):
    said = call("odd", tmp_path / "nowhere", code=2).stderr
    assert said == f"Error: there is nothing at {tmp_path / 'nowhere'}: check the path of the pictures\n"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--out", "theirs"], "theirs holds files that are not ours"),
        (["--out", "theirs/a.txt"], "theirs/a.txt is a file: give a folder"),
        (["--out", "theirs/a.txt/page"], "theirs/a.txt is a file, and must be a folder"),
        (["--list", "theirs"], "theirs is no regular file"),
        (["--reviewed", "none.csv"], "cannot read the reviews none.csv"),
        (["--copy-to", "images/copies"], "images/copies lies inside the images"),
    ],
)
@pytest.mark.parametrize("verb", ["audit", "odd"])
def test_where_nothing_can_be_written_no_features_are_made(verb, options, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_images(tmp_path / "images", classes=2, train=4, test=2)
    Path("theirs").mkdir()
    Path("theirs/a.txt").touch()
    assert sentence in call(verb, "images", "--cache", "here", *options, *SMALL, code=2).stderr
    assert not Path("here").exists()


@pytest.mark.parametrize("end", [">&- 2>&-", "2>/dev/full"])
def test_what_cannot_be_said_does_not_end_the_work(tmp_path, end):
    make_store(tmp_path / "s.h5")
    command = f"{sys.executable} -m set_anomaly odd s.h5 --out page {end}"
    root = str(Path(__file__).parents[1])
    result = subprocess.run(command, shell=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": root}, timeout=60)
    assert result.returncode == 0
    assert (tmp_path / "page/index.html").is_file()
