import json
import re
import shutil
from pathlib import Path

import pytest
from fabricate import SMALL_HEAD, call, has_margin
from msgspec import structs
from PIL import Image

from common.synthetic import make_store
from train.cli import main
from train.log.rebuild import collect, rebuild
from train.log.runs import Run, group_runs, load_run
from train.log.tables import BLOCKS
from train.report.schema import Proportion
from train.run_folder import RunFolder

ROOT = Path(__file__).parents[1]
EXPERIMENT_LOG = "experiments/tiny/experiment_log.md"
CONFIG = f"""# A tiny phase.
#
# Expected: seconds.
# Measured: nothing yet
{SMALL_HEAD}
[plan]
seeds = 2
runs = ["head:", "chance: method=random"]
once = ["nearest: method=knn"]
"""
ONLY = {"attention": "head", "failures": "head chance"}
BLOCK = re.compile(r"<!-- generated: (.*?) -->\n(.*?)<!-- end -->", re.S)
LOG = "# Tiny\n\nProse before.\n" + "".join(
    f"\n## {name}\n<!-- generated: {name} {ONLY.get(name, '*')} -->\n<!-- end -->\n" for name in BLOCKS
)
README = "# It\n<!-- generated: summary tiny/nearest tiny/he* -->\nold\n<!-- end -->\nThe end.\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A phase with its log to be, and its finished runs."""
    folder = tmp_path_factory.mktemp("made")
    phase = folder / "experiments/tiny"
    phase.mkdir(parents=True)
    (phase / "config.toml").write_text(CONFIG, encoding="utf-8")
    (phase / "experiment_log.md").write_text(LOG, encoding="utf-8")
    (folder / "README.md").write_text(README, encoding="utf-8")
    (folder / "experiments/README.md").write_text("<!-- generated: timeline tiny/* -->\n<!-- end -->\n")
    options = {"spread": 1.0, "thumbnails": False, "class_superclass": [0, 0, 0, 1, 1, 1]}
    store = make_store(folder / "s.h5", classes=6, train=100, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.report.write._draw", lambda *_: None)
        call(main, "phase", phase / "config.toml", "--store", store.path, "--runs", folder / "runs")
    return folder


@pytest.fixture
def folder(made, tmp_path, monkeypatch):
    """A copy to work on, without charts, which take long."""
    monkeypatch.setattr("train.log.charts.save_figure", lambda *_: None)
    return Path(shutil.copytree(made, tmp_path / "copy"))


@pytest.fixture(scope="module")
def logged(made, tmp_path_factory):
    """The same after `train log`, with charts, and what that said. Not to be changed."""
    folder = Path(shutil.copytree(made, tmp_path_factory.mktemp("logged") / "copy"))
    (folder / "said").write_text(log(folder).stderr)
    return folder


@pytest.fixture
def complete(logged, tmp_path, monkeypatch):
    """A copy of that to work on, without charts."""
    monkeypatch.setattr("train.log.charts.save_figure", lambda *_: None)
    return Path(shutil.copytree(logged, tmp_path / "copy"))


def log(folder, *options, code=0):
    places = {"--runs": "runs", "--experiments": "experiments", "--readme": "README.md"}
    arguments = [part for option, name in places.items() for part in (option, folder / name)]
    return call(main, "log", *arguments, *options, code=code)


def texts(folder):
    return {path: path.read_text(encoding="utf-8") for path in folder.rglob("*") if path.suffix in (".md", ".toml")}


def read(folder, name):
    return (folder / name).read_text(encoding="utf-8")


def change_report(path, change):
    """Change the report of a run, which is then complete again."""
    report = json.loads(path.read_text(encoding="utf-8"))
    change(report)
    path.write_text(json.dumps(report), encoding="utf-8")
    RunFolder(path.parent).mark_done()


def report(folder, name):
    return json.loads(read(folder, f"runs/tiny/{name}/report.json"))


def test_every_block_is_filled_and_the_prose_is_left(logged):
    text = read(logged, EXPERIMENT_LOG)
    blocks = {header.split()[0]: content for header, content in BLOCK.findall(text)}
    assert list(blocks) == list(BLOCKS)
    assert [name for name, content in blocks.items() if len(content) < 40] == []
    assert BLOCK.sub(r"<!-- generated: \1 -->\n<!-- end -->", text) == LOG
    assert (logged / "said").read_text().count("collected: ") == 5
    names = sorted(path.stem for path in (logged / "experiments/tiny/runs").glob("*.json"))
    assert names == ["chance-seed0", "chance-seed1", "head-seed0", "head-seed1", "nearest-seed0"]


def test_the_numbers_are_those_of_the_reports(logged):
    blocks = dict(BLOCK.findall(read(logged, EXPERIMENT_LOG)))
    heads = [report(logged, f"head-seed{seed}") for seed in (0, 1)]
    mean = sum(100 * each["test"]["top1"] for each in heads) / 2
    assert all(f"**{mean:.2f} ± " in blocks[name] for name in ("comparison *", "ranking *", "summary *"))
    nearest = report(logged, "nearest-seed0")
    assert f"**{100 * nearest['hard']['top1']:.2f}**" in blocks["hard *"]
    assert f"| {100 * nearest['beyond']['set_size']['5']['top1']:.2f} |" in blocks["sizes *"]
    assert f"| {nearest['beyond']['anomalies']['2']['auroc_within_sets']:.4f} |" in blocks["anomalies *"]
    assert f"| across super-classes | {heads[0]['failures']['across']['n']} |" in blocks["failures head chance"]
    first, second, n, missed = heads[0]["failures"]["worst_pairs"][0]
    assert f"| {first} | {second} | {n} | {missed} |" in blocks["failures head chance"]
    mass = [each["attention"]["mass_on_anomaly"][0][0] for each in heads]
    assert f"| 1 | {sum(mass) / 2:.3f} |" in blocks["attention head"]
    assert f"| test `{nearest['test']['sets_sha256'][:12]}` | 90 |" in blocks["positions *"]
    assert f"| head | 6 | {2 * heads[0]['train_images']:,} | 2 |" in blocks["summary *"]
    rows = r"^\| (\w+) \| \d \| \*\*([\d.]+).*?\*\* \| *([+-][\d.]+)?"
    first, *changed = re.findall(rows, blocks["ablation *"], re.M)
    assert first[2] == "", "the first row is what the others are compared with"
    assert [name for name, *_ in changed] == [row for row in ("chance", "head", "nearest") if row != first[0]]
    for _, top1, gap in changed:
        assert float(gap) == pytest.approx(float(top1) - float(first[1]), abs=0.011)
    assert "0 test images are pixel for pixel" in blocks["twins *"]
    assert "5 runs" in blocks["timeline *"]
    assert nearest["versions"]["torch"] in blocks["provenance *"]
    seconds = sum(each["train_seconds"] for each in heads) / 2
    assert re.search(rf"\| head \| 2 \|.*\| {seconds:.1f} \|", blocks["pace *"])


def test_charts_are_drawn_beside_the_log(logged):
    charts = {path.name for path in (logged / "experiments/tiny").glob("*.png")}
    assert charts == {"comparison.png", "curves.png", "pace.png", "failures.png"}
    assert set(re.findall(r"!\[.*?\]\((.*?)\)", read(logged, EXPERIMENT_LOG))) == charts
    for name in charts:
        with Image.open(logged / "experiments/tiny" / name) as picture:
            assert len(picture.convert("RGB").getcolors(2**24)) > 10, f"{name} is empty"
        assert has_margin(logged / "experiments/tiny" / name)


def test_the_config_says_what_was_measured_and_still_loads(logged):
    text = read(logged, "experiments/tiny/config.toml")
    assert re.sub(r"^# Measured: .*$", "# Measured: nothing yet", text, flags=re.M) == CONFIG
    mean = sum(100 * report(logged, f"head-seed{seed}")["test"]["top1"] for seed in (0, 1)) / 2
    assert re.search(rf"^# Measured: 5 runs, \d+ min of .*; head {mean:.2f} % test top-1, mean of 2$", text, re.M)


def test_a_readme_may_have_blocks_of_any_phase(logged):
    text = read(logged, "README.md")
    assert re.findall(r"^\| ([\w/]+) \|", text, re.M) == ["method", "tiny/nearest", "tiny/head"], "in their order"
    assert text.startswith("# It\n")
    assert text.endswith("\n<!-- end -->\nThe end.\n")
    assert "old" not in text
    assert "5 runs" in read(logged, "experiments/README.md")


def test_a_second_time_nothing_changes_and_the_check_is_content(folder):
    assert log(folder).stderr.count("rewritten: ") == 4
    before = texts(folder)
    assert log(folder).stderr == ""
    assert log(folder, "--check").stderr == ""
    assert texts(folder) == before


@pytest.mark.parametrize("name", [EXPERIMENT_LOG, "README.md", "experiments/tiny/config.toml"])
def test_a_number_that_was_changed_by_hand_is_noticed_and_left(complete, name):
    path = complete / name
    number = re.search(r"\d\d\.\d\d", path.read_text(encoding="utf-8"))[0]
    path.write_text(path.read_text(encoding="utf-8").replace(number, "99.99"), encoding="utf-8")
    before = texts(complete)
    assert log(complete, "--check", code=1).stderr == f"stale: {path}\n"
    assert texts(complete) == before
    assert log(complete).stderr == f"rewritten: {path}\n"
    assert number in path.read_text(encoding="utf-8")


def test_the_check_needs_the_collected_reports_alone(complete):
    shutil.rmtree(complete / "runs")
    log(complete, "--check")
    (complete / "experiments/tiny/runs/head-seed1.json").unlink()
    assert "stale: " in log(complete, "--check", code=1).stderr


@pytest.mark.parametrize(
    ("block", "sentence"),
    [
        ("rankin *", 'unknown block in {path} "rankin": did you mean "ranking"?'),
        ("ranking head heed", "{path}: no run matches heed: make it with `train phase`, or change the pattern"),
        ("ranking other/*", "{path}: no run matches other/*"),
        ("hard tiny/*", None),
    ],
)
def test_a_block_that_cannot_be_made_is_one_sentence(folder, block, sentence):
    path = folder / EXPERIMENT_LOG
    path.write_text(f"<!-- generated: {block} -->\nas it was\n<!-- end -->\n", encoding="utf-8")
    result = log(folder, code=2 if sentence else 0)
    if sentence:
        assert sentence.format(path=path) in result.output
        assert "as it was" in path.read_text(encoding="utf-8")
    else:
        assert "as it was" not in path.read_text(encoding="utf-8")


def test_a_run_that_is_not_in_the_plan_is_left_out_but_not_one_from_another_store(folder):
    runs = folder / "runs/tiny"
    for name in ("tried-seed0", "nearest-seed7", "begun-seed0", "nearest@other-store-seed0"):
        shutil.copytree(runs / "nearest-seed0", runs / name)
    (runs / "begun-seed0/DONE").unlink()
    lines = log(folder).stderr.splitlines()
    left_out = [line for line in lines if line.startswith("left out: ")]
    assert len(left_out) == 2
    assert f"{runs / 'tried-seed0'}, which is not in the plan of" in "".join(left_out)
    assert len(list((folder / "experiments/tiny/runs").iterdir())) == 6
    assert f"collected: {folder / 'experiments/tiny/runs/nearest@other-store-seed0.json'}" in lines


def test_a_run_of_another_config_than_the_plan_has_now_is_refused(folder):
    path = folder / "experiments/tiny/config.toml"
    path.write_text(CONFIG.replace("epochs = 2", "epochs = 4"), encoding="utf-8")
    result = log(folder, code=2)
    assert f"was made with another config than {path} has for it now, in training.epochs: " in result.output


def test_a_run_in_an_arithmetic_that_the_plan_leaves_open_is_the_one_of_the_plan(folder):
    """Runs of before configs said "auto" are not made again."""
    for path in (folder / "runs/tiny").glob("*/report.json"):
        change_report(path, lambda report: report["config"]["training"].update(precision="bfloat16"))
    assert any("collected" in line for line in collect(folder / "runs", folder / "experiments"))


def test_a_report_that_was_made_again_replaces_the_old_one(complete):
    path = complete / "runs/tiny/nearest-seed0/report.json"
    change_report(path, lambda report: report.update(seconds=report["seconds"] + 60))
    target = complete / "experiments/tiny/runs/nearest-seed0.json"
    assert list(collect(complete / "runs", complete / "experiments")) == [f"collected: {target}"]
    assert target.read_text(encoding="utf-8") == path.read_text(encoding="utf-8")


def test_failures_can_be_told_where_no_two_classes_share_a_superclass(logged):
    run = load_run(logged / "runs/tiny/head-seed0")
    failures = structs.replace(run.report.failures, within_superclass=Proportion(0))  # one class of each: phase 2
    run = Run(run.name, structs.replace(run.report, failures=failures))
    assert f"| across super-classes | {run.report.failures.across.n} |" in BLOCKS["failures"](group_runs([run]))


def test_a_dash_stands_for_what_small_classes_do_not_allow(logged):
    small, large = (load_run(logged / "runs/tiny" / name) for name in ("head-seed0", "nearest-seed0"))
    other_sets = structs.replace(small.report.other_sets, detection=None)
    small = Run(small.name, structs.replace(small.report, other_sets=other_sets))
    _, _, of_small, of_large = BLOCKS["anomalies"](group_runs([small, large])).splitlines()[:4]
    assert of_small.count(" – |") == 6
    assert "–" not in of_large
    assert len(of_small.split("|")) == len(of_large.split("|"))


def test_a_missing_folder_of_logs_is_one_sentence(tmp_path):
    (tmp_path / "experiments/tiny").mkdir(parents=True)
    assert rebuild(tmp_path / "experiments", tmp_path / "README.md") == []
    for options in ([], ["--check"]):
        assert "there is no folder" in log(tmp_path / "nowhere", *options, code=2).stderr
    assert not (tmp_path / "nowhere").exists()


def test_a_readme_that_is_no_text_is_one_sentence(tmp_path):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "README.md").write_bytes(b"caf\xe9")
    assert "README.md is not UTF-8 text" in log(tmp_path, code=2).stderr


def test_the_logs_of_this_project_are_what_their_reports_say_and_every_percentage_is_in_a_block(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert rebuild(Path("experiments"), Path("README.md"), check=True) == []
    typed = {}
    for path in sorted(Path("experiments").glob("*/experiment_log.md")):
        text = path.read_text(encoding="utf-8")
        generated = set(re.findall(r"\d+\.\d+", " ".join(content for _, content in BLOCK.findall(text))))
        named = re.findall(r"(\d+\.\d+) %", BLOCK.sub("", text))
        typed[path.parent.name] = [number for number in named if number not in generated]
    assert {phase: numbers for phase, numbers in typed.items() if numbers} == {}
