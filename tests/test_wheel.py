"""The wheel holds all that the command needs: it is built, installed in a new environment, and used elsewhere."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.test_packaging import PACKAGES, SETUP

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow
BIN = "Scripts" if os.name == "nt" else "bin"


def run(*command, cwd, code=0):
    """What a command prints, in an environment that does not know the checkout."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    result = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == code, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the tracked files, since a build leaves files beside them."""
    for module in ("pip", "setuptools"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed here, and nothing is downloaded: no wheel can be built")
    folder = tmp_path_factory.mktemp("build")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    if not listed:
        pytest.skip("this is no git checkout: which files are of the project is not known")
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    built = subprocess.run([*build, "--wheel-dir", folder, folder / "source"], capture_output=True, text=True)
    if "invalid command 'bdist_wheel'" in built.stderr:
        pytest.skip("this setuptools makes no wheels without the package wheel: install setuptools 70.1 or newer")
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder of the programs of a new environment with the wheel, and with the packages of this one."""
    environment = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=wheel.parent)
    programs = environment / BIN
    (packages,) = environment.glob("Lib/site-packages" if os.name == "nt" else "lib/python*/site-packages")
    # A path in a .pth file is searched, but not its own .pth files: the editable install of this one stays unknown
    (packages / "present.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", programs / "python", "install", "--no-deps", "--no-index"]
    run(*pip, "--quiet", wheel, cwd=wheel.parent)
    return programs


def test_the_wheel_holds_the_packages_and_their_data_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    tops = {name.partition("/")[0] for name in names}
    assert tops == {name.partition(".")[0] for name in PACKAGES} | {"set_anomaly.py"}
    data = {str(path.relative_to(ROOT).as_posix()) for path in (ROOT / "find/templates").iterdir()}
    assert {name for name in names if not name.endswith(".py")} == data | {"train/recommended.toml"}
    code = {path.relative_to(ROOT).as_posix() for top in tops for path in (ROOT / top).rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == code | {"set_anomaly.py"}


def test_the_installed_command_works_outside_of_the_checkout(installed, tmp_path):
    def call(*arguments):
        return run(installed / "set-anomaly", *arguments, cwd=tmp_path)

    where = run(installed / "python", "-c", "import find, set_anomaly; print(set_anomaly.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)
    assert call("--version") == f"set-anomaly, version {SETUP['metadata']['version']}\n"
    small = ["--dataset", "digits", "--weights", "random", "--image-size", "32", "--engine", "torch"]
    assert call("features", *small, "--store", "digits.h5") == "digits.h5\n"
    assert json.loads(call("info", "digits.h5"))["arrays"]["features"] == "<f4 [1, 1797, 512]"
    assert call("verify", "digits.h5").startswith("sound: digits.h5")
    call("fit", "--store", "digits.h5", "--run", "run", "--set", "training.epochs=1")
    assert (tmp_path / "run/DONE").is_file()
    for verb in ("audit", "odd"):
        page = call(verb, "digits.h5", "--out", verb).splitlines()[-1]
        assert "</html>" in (tmp_path / page).read_text(encoding="utf-8")
