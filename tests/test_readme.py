"""The README tells the truth: its commands run, its files exist, its numbers come from the reports beside it."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from fabricate import call, python
from torch.utils.data import DataLoader

import bench.cost
from bench.find import tables
from bench.report import make_table
from common.markdown import fill_blocks
from common.synthetic import make_images, make_store

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ["README.md", "CHANGELOG.md", *(f"docs/{name}.md" for name in ("options", "speed", "design"))]
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.splitlines() if line]
VERBS = [line for line in COMMANDS if line.startswith("set-anomaly")]
MAKE = [line for line in COMMANDS if line.startswith("make")]


def test_the_readme_is_one_screen_of_known_commands():
    lines = README.splitlines()
    assert len(lines) <= 100
    assert len(README.split()) <= 950
    assert [line for line in lines if len(line) > 120] == []
    assert VERBS
    assert MAKE
    assert [line for line in COMMANDS if not line.startswith(("make", "set-anomaly"))] == []


@pytest.mark.parametrize("command", MAKE)
def test_make_knows_its_targets_and_variables(command):
    arguments = shlex.split(command.partition("#")[0])[1:]
    makefile = (ROOT / "Makefile").read_text()
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if equals:
            assert re.search(rf"^{name} \?=", makefile, re.M), f"make does not know {name}="
            if name == "CONFIG":
                assert (ROOT / value).is_file()
        else:
            assert re.search(rf"^{name}:", makefile, re.M), f"make does not know {name}"
    dry_run = subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert dry_run.returncode == 0, dry_run.stderr


def test_the_commands_run_one_after_the_other(tmp_path):
    make_images(tmp_path / "path/to/images", classes=3, train=30, test=12)
    make_images(tmp_path / "path/to/folder", classes=1, train=30, test=12)
    for line in VERBS:
        command = shlex.split(line.partition("#")[0])[1:]
        if command[0] in ("features", "odd", "audit"):  # ImageNet's weights are not here, and 224 pixels take long
            command += ["--weights", "random", "--image-size", "32"]
        if command[0] == "fit":
            command += ["--set", "training.epochs=1"]
        if "--open" in command:  # there may be no browser
            command.remove("--open")
            command += ["--cache", "cache"]
        python("-m", "set_anomaly", *command, cwd=tmp_path)


def test_the_python_example_runs(tmp_path):
    make_images(tmp_path / "path/to/images", classes=3, train=30, test=12)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    # ImageNet's weights are not here, and 224 pixels and 50 epochs take long
    code = code.replace('"images.h5")', '"images.h5", weights="random", image_size=32)')
    code = code.replace("RECOMMENDED)", 'RECOMMENDED, ["training.epochs=1"])') + "\nassert scores.shape == (1, 10)"
    python("-c", code, cwd=tmp_path)


@pytest.mark.parametrize("page", [*PAGES, "experiments/README.md"])
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / page).read_text(encoding="utf-8"))
    here = (ROOT / page).parent
    assert [link for link in links if "://" not in link and not (here / link).exists()] == []


def test_the_tables_are_those_of_their_benchmarks(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    speed = make_table(json.loads(Path("bench/report.json").read_text()), short=True)
    found = tables(json.loads(Path("bench/find.json").read_text()))
    for page, name, made in (("docs/speed.md", "speed", speed), ("docs/find.md", "find", found)):
        text = Path(page).read_text(encoding="utf-8")
        assert fill_blocks(text, "measured", {name: made}.get) == text, "`make log` writes the table"
        assert made in text
    assert "| resnet18 |" in Path("docs/speed.md").read_text(encoding="utf-8"), "the costs of phase 7"
    page = shutil.copy("docs/speed.md", tmp_path)
    assert call(bench.cost.main, "--readme", page).stderr == "", "`make log` writes the table"


def test_a_store_is_a_dataset_of_torch_as_the_options_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = make_store(tmp_path / "images.h5", classes=3, train=8, test=4)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/options.md").read_text(encoding="utf-8"), re.S)
    names: dict = {}
    exec(code, names)
    features, labels = next(iter(DataLoader(names["train"], batch_size=24, shuffle=True)))
    order = np.argsort(features[:, 0].numpy())
    expected = store.features[0, store.rows_of("train")]
    np.testing.assert_array_equal(features.numpy()[order], expected[np.argsort(expected[:, 0])])
    assert np.bincount(labels).tolist() == [8, 8, 8]
