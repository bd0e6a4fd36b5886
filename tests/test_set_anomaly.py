import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from common.synthetic import make_images, make_store
from find.findings import Findings
from set_anomaly import VERBS, main

SMALL = ["--weights", "random", "--image-size", "32", "--engine", "torch"]


def call(*arguments):
    return CliRunner().invoke(main, [str(each) for each in arguments])


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_answers(verb):
    result = call(verb, "--help")
    assert result.exit_code == 0
    assert f" {verb} " in result.stdout


def test_no_line_of_the_help_is_cut_off():
    _, text = call("--help").stdout.split("Commands:")
    assert all(verb in text for verb in VERBS)
    assert "..." not in text


def test_the_shell_completes_a_verb_and_its_options_as_the_options_say():
    assert "_SET_ANOMALY_COMPLETE=bash_source" in (Path(__file__).parents[1] / "docs/options.md").read_text()
    for words, number, expected in (("set-anomaly exp", 1, "export"), ("set-anomaly fit --tens", 2, "--tensorboard")):
        environment = {
            "_SET_ANOMALY_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(number),
        }
        result = CliRunner().invoke(main, [], prog_name="set-anomaly", env=environment)
        assert result.stdout == f"plain,{expected}\n"


def test_an_unknown_verb_gets_one_sentence():
    result = call("audti", "x")
    assert result.exit_code == 2
    assert result.stderr == 'Error: unknown command "audti": did you mean "audit"?\n'


def test_help_imports_nothing_heavy():
    code = "import sys, set_anomaly; set_anomaly.main(['--help'], standalone_mode=False); print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "audit " in result.stdout
    assert not {"torch", "sklearn", "scipy", "matplotlib"} & set(result.stdout.split())


def test_pictures_get_a_store_that_is_used_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make_images(tmp_path / "images", classes=3, train=12, test=4)
    first = call("audit", "images", *SMALL)
    assert first.exit_code == 0, first.stderr
    page = first.stdout.splitlines()[-1]
    assert (tmp_path / page).is_file()
    (store,) = (tmp_path / "cache/set-anomaly").glob("*.h5")
    assert str(store) in first.stderr
    before = store.stat().st_mtime_ns
    assert call("audit", "images", *SMALL).stdout == first.stdout
    assert store.stat().st_mtime_ns == before
    assert call("audit", store, "--root", "images").exit_code == 0
    next((tmp_path / "images").rglob("*.png")).unlink()
    assert call("audit", "images", *SMALL).exit_code == 0
    assert [store] == list((tmp_path / "cache/set-anomaly").glob("*.h5"))
    assert store.stat().st_mtime_ns != before


@pytest.mark.parametrize("verb", ["audit", "odd"])
def test_a_data_set_of_hugging_face_is_taken_as_a_folder_is(verb, tmp_path, monkeypatch):
    library = pytest.importorskip("datasets", reason="Hugging Face datasets is missing: pip install '.[hf]'")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", str(tmp_path / "hf-cache"))
    monkeypatch.chdir(tmp_path)
    make_images(tmp_path / "images", classes=3, train=12, test=4)
    files = sorted(str(file) for file in (tmp_path / "images").rglob("*.png"))
    types = {"image": library.Image(), "label": library.ClassLabel(names=["class0", "class1", "class2"])}
    columns = {"image": files, "label": [Path(file).parent.name for file in files]}
    library.Dataset.from_dict(columns, features=library.Features(types)).save_to_disk("saved")
    command = [verb, "hf:saved", "--cache", "here", "--out", "page", "--label-column", "label", *SMALL]
    first = call(*command)
    assert first.exit_code == 0, first.stderr
    assert Findings.read("page").counts["images"] == len(files)
    assert Path("page/index.html").is_file()
    (store,) = Path("here").glob("*.h5")
    before = store.stat().st_mtime_ns
    assert call(*command).exit_code == 0
    assert store.stat().st_mtime_ns == before, "its features are made once"


def test_open_shows_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = []
    monkeypatch.setattr("click.launch", shown.append)
    make_images(tmp_path / "images", classes=2, train=12, test=4)
    result = call("odd", "images", "--open", "--cache", tmp_path / "here", "--out", tmp_path / "page", *SMALL)
    assert result.exit_code == 0, result.stderr
    assert shown == [(tmp_path / "page/index.html").as_uri()]


def test_a_single_picture(tmp_path):
    (tmp_path / "a.JPG").write_bytes(b"")
    result = call("odd", tmp_path / "a.JPG")
    assert (result.exit_code, "a.JPG is one picture: give a folder" in result.stderr) == (2, True)


def test_pictures_that_are_not_there(tmp_path):
    result = call("odd", tmp_path / "nowhere")
    assert result.exit_code == 2
    assert "Traceback" not in result.stderr
    assert result.stderr == f"Error: there is nothing at {tmp_path / 'nowhere'}: check the path of the pictures\n"


@pytest.mark.parametrize("end", [">&- 2>&-", "2>/dev/full"])
def test_what_cannot_be_said_does_not_end_the_work(tmp_path, end):
    make_store(tmp_path / "s.h5")
    command = f"{sys.executable} -m set_anomaly odd s.h5 --out page {end}"
    root = str(Path(__file__).parents[1])
    result = subprocess.run(command, shell=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": root}, timeout=60)
    assert result.returncode == 0
    assert (tmp_path / "page/index.html").is_file()
