import ast
import configparser
import subprocess
from pathlib import Path

import pytest
from fabricate import python

ROOT = Path(__file__).parents[1]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
PACKAGES = SETUP["options"]["packages"].split()
# What each package may import of this repository; bench stands on top, and tests import everything
MAY_IMPORT = {
    "common": {"common"},
    "extract": {"common", "extract"},
    "train": {"common", "train"},
    "find": {"common", "train", "find"},
    "bench": {"common", "extract", "train", "find", "bench"},
}
OURS = {*MAY_IMPORT, "tests", *(path.stem for path in (ROOT / "tests").glob("*.py"))}
HOUSES = [name for name in MAY_IMPORT if (ROOT / name / "__init__.py").is_file()]


def modules(package):
    return sorted((ROOT / package).rglob("*.py"))


def imported(file):
    """The top-level names that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]


def test_every_package_but_the_benchmark_is_installed_from_this_project(tmp_path):
    code = f"import importlib; print(*(importlib.import_module(name).__file__ for name in {PACKAGES}), sep='\\n')"
    result = python("-c", code, cwd=tmp_path)  # where it fails, install the project: make does
    assert result.stdout.split() == [str(ROOT.joinpath(*name.split("."), "__init__.py")) for name in PACKAGES]
    found = [file.parent for house in HOUSES for file in (ROOT / house).rglob("__init__.py")]
    names = {".".join(folder.relative_to(ROOT).parts) for folder in found}
    assert set(PACKAGES) == {name for name in names if name.partition(".")[0] != "bench"}


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import set_anomaly; set_anomaly.main(['--help'], standalone_mode=False)", "torch sklearn scipy matplotlib"),
        ("from extract.cli import main; main(['features', '--help'], standalone_mode=False)", "torch h5py sklearn"),
        ("import train.cli, extract.cli", "torch h5py sklearn matplotlib"),
        ("import find.page, find.review, find.output", "torch h5py sklearn"),
        ("import train.config", "torch train.methods."),
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(code, heavy):
    modules = python("-c", f"{code}; import sys; print(*sys.modules)").stdout.splitlines()[-1].split()
    assert {"click", "msgspec"} & set(modules)
    assert [name for name in modules if name.startswith(tuple(heavy.split()))] == []


def test_one_command_is_installed_with_its_licence_and_templates():
    scripts = SETUP["options.entry_points"]["console_scripts"].split("\n")
    assert [line for line in scripts if line] == ["set-anomaly = set_anomaly:main"]
    assert (SETUP["options"]["py_modules"], SETUP["options.package_data"]["find"]) == ("set_anomaly", "templates/*")
    templates = {file.name for file in (ROOT / "find/templates").iterdir()}
    assert templates == {"page.html.j2", "page.css", "page.js", "marks.js"}
    assert f"## [{SETUP['metadata']['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert SETUP["metadata"]["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License\n")


def test_nothing_large_and_no_data_is_tracked():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True).stdout
    files = [ROOT / name for name in listed.split("\0") if name]
    assert [file for file in files if file.exists() and file.stat().st_size > 1 << 20] == []
    tracked = [file for file in files if file.is_relative_to(ROOT / "data") or file.is_relative_to(ROOT / "runs")]
    assert tracked in ([], [ROOT / "data/README.md"])


@pytest.mark.parametrize("house", HOUSES)
def test_no_import_goes_upward_and_no_module_is_longer_than_350_lines(house):
    upward = {str(file): sorted(OURS.intersection(imported(file)) - MAY_IMPORT[house]) for file in modules(house)}
    assert {file: names for file, names in upward.items() if names} == {}
    lengths = {str(file): len(file.read_text(encoding="utf-8").splitlines()) for file in modules(house)}
    assert {file: lines for file, lines in lengths.items() if lines > 350} == {}
