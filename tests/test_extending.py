"""docs/extending.md and docs/walk.md are true: what the one says to add works, and what the other names is there."""

import json
import re
from pathlib import Path

import pytest
from fabricate import call

import extract
import train.methods
from common.store import FeatureStore
from common.synthetic import make_store
from extract.backbones import KINDS
from extract.cli import main as extract_main
from extract.sources import SOURCES
from train.cli import main
from train.methods import METHODS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/extending.md").read_text(encoding="utf-8")


def section(name):
    """The file, its path and the line that a section of the document says to add."""
    text = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", TEXT, re.M | re.S)[1]
    path = re.search(r"Its file, `(.*?)`", text)[1]
    content, line = re.findall(r"```python\n(.*?)```", text, re.S)
    return content, Path(path), line


@pytest.fixture
def added(monkeypatch, tmp_path):
    """Add what a section says: its file, in a folder of its own that the package reads too, and its line."""

    def add(name, package, registry):
        content, path, line = section(name)
        (tmp_path / path.name).write_text(content, encoding="utf-8")
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
        ((key, value),) = re.findall(r'"(\w+)": "(\S+)",', line)
        assert value.partition(":")[0] == ".".join(path.with_suffix("").parts)
        monkeypatch.setitem(registry, key, value)
        return key

    return add


def test_a_method_is_one_file_and_one_line(added, tmp_path):
    name = added("A method", train.methods, METHODS)
    run, store = tmp_path / "run", make_store(tmp_path / "s.h5").path
    command = ["fit", "--store", store, "--run", run, "--set", f"method={name}", "--set", "distance.standardise=true"]
    call(main, *command)
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert report["test"]["top1"] > 0.5
    assert report["config"]["method"] == name
    refused = call(main, *command, "--set", "distance.metric=l2", code=2)
    assert f'distance.metric=l2 does nothing for the method "{name}"' in refused.output


def test_a_source_and_a_backbone_kind_are_one_file_and_one_line_each(added, tmp_path):
    source, kind = added("An image source", extract, SOURCES), added("A backbone kind", extract, KINDS)
    store = tmp_path / "s.h5"
    command = ["features", "--dataset", source, "--backbone", f"{kind}:4", "--weights", "random", "--store", store]
    call(extract_main, *command)
    made = FeatureStore.open(store)
    assert made.features.shape == (1, 80, 16)
    assert (made.class_names, made.identity["backbone"]["name"]) == (["square", "frame"], "pooled:4")


def test_the_walk_names_files_and_functions_that_are_there():
    text = (ROOT / "docs/walk.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:common|extract|train|find)/[\w/]+(?:\.py)?)(?:: ([\w.]+))?`", text)
    assert len(named) > 20
    for path, name in named:
        assert (ROOT / path).exists(), path
        if name:
            file = ROOT / path if path.endswith(".py") else ROOT / path / "__init__.py"
            content = file.read_text(encoding="utf-8")
            assert re.search(rf"^ *(def|class) {name.rpartition('.')[2]}\b", content, re.M), f"{path}: {name}"
    assert len(text.splitlines()) < 60, "it is longer than a page"
