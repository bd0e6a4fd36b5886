import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_each_package_is_the_one_of_this_project(tmp_path):
    code = "import common, extract, train; print(*(m.__file__ for m in (common, extract, train)), sep='\\n')"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, "install the project (make does): " + result.stderr
    assert result.stdout.split() == [str(ROOT / name / "__init__.py") for name in ("common", "extract", "train")]


def test_the_console_scripts_answer(tmp_path):
    for name in ("set-anomaly-extract", "set-anomaly-train"):
        script = Path(sys.executable).with_name(name)
        result = subprocess.run([script, "--help"], cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0
        assert "Commands:" in result.stdout


def test_nothing_large_and_no_data_is_tracked():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True).stdout
    files = [ROOT / name for name in listed.split("\0") if name]
    assert [file for file in files if file.exists() and file.stat().st_size > 1 << 20] == []
    tracked = [file for file in files if file.is_relative_to(ROOT / "data") or file.is_relative_to(ROOT / "runs")]
    assert tracked in ([], [ROOT / "data/README.md"])


def test_the_stages_do_not_import_each_other():
    for package, forbidden in (("common", ("extract", "train")), ("extract", ("train",)), ("train", ("extract",))):
        for file in (ROOT / package).rglob("*.py"):
            for line in file.read_text().splitlines():
                words = line.split()
                if words[:1] in (["from"], ["import"]):
                    assert words[1].partition(".")[0] not in forbidden, f"{file}: {line}"
