"""The README tells the truth: its commands run, its files exist, its numbers come from the reports beside it."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bench.find import tables
from bench.report import make_speed_table
from common.markdown import fill_blocks
from common.synthetic import make_images

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.splitlines() if line]
PYTHON = [line for line in COMMANDS if line.startswith("python -m")]
MAKE = [line for line in COMMANDS if line.startswith("make")]


def test_there_are_commands_and_nothing_but_known_ones():
    assert PYTHON
    assert MAKE
    known = ("make", "python -m", "git clone", "cd ")
    assert [line for line in COMMANDS if not line.startswith(known)] == []


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


def test_the_python_commands_run_one_after_the_other(tmp_path):
    make_images(tmp_path / "path/to/images", classes=3, train=30, test=12)
    for line in PYTHON:
        command = shlex.split(line.partition("#")[0])
        command[0] = sys.executable
        if command[2:4] == ["extract", "features"]:  # ImageNet's weights are not here, and 224 pixels take long
            command += ["--weights", "random", "--image-size", "32"]
        if command[2:4] == ["train", "fit"]:
            command += ["--set", "training.epochs=1"]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, f"{line}\n{result.stderr}"


def test_the_python_example_runs(tmp_path):
    make_images(tmp_path / "path/to/images", classes=3, train=30, test=12)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    # ImageNet's weights are not here, and 224 pixels and 50 epochs take long
    code = code.replace('"images.h5")', '"images.h5", weights="random", image_size=32)')
    code = code.replace("Config()", 'Config.load(None, ["training.epochs=1"])') + "\nassert scores.shape == (1, 10)"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_the_speeds_are_those_of_the_benchmark():
    report = json.loads((ROOT / "bench/report.json").read_text())
    made = make_speed_table(report)
    assert fill_blocks(README, "measured", {"speed": made}.get) == README, "`make log` writes the table"
    assert made in README


def test_the_tables_of_find_are_those_of_its_benchmark():
    text = (ROOT / "docs/find.md").read_text()
    made = tables(json.loads((ROOT / "bench/find.json").read_text()))
    assert fill_blocks(text, "measured", {"find": made}.get) == text, "`make log` writes the tables"
    assert made in text
