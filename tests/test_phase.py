import json

import pytest
from fabricate import SMALL_HEAD, call, killed_after_two_epochs, read_reports

from common.files import exclusive
from common.synthetic import make_store
from train.cli import main
from train.config import Config
from train.log.plan import plan_configs
from train.log.runs import group_runs, load_run
from train.run_folder import RunFolder

PLAN = f"""{SMALL_HEAD}
[plan]
seeds = 2
runs = ["head:", "chance: method=random"]
once = ["nearest: method=knn", "nearest-l2: method=knn distance.metric=l2"]
"""
RUNS = ["head-seed0", "chance-seed0", "nearest-seed0", "nearest-l2-seed0", "head-seed1", "chance-seed1"]


def write_plan(folder, text=PLAN):
    folder.mkdir()
    path = folder / "config.toml"
    path.write_text(text, encoding="utf-8")
    return path


def small_store(path, **options):
    return make_store(path, train=100, test=12, thumbnails=False, class_superclass=[0, 0, 1, 1], **options).path


@pytest.fixture(scope="module", autouse=True)
def no_pictures():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.report.write._draw", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A phase that was made once: its config, the options of its command, its folder, and what was said."""
    folder = tmp_path_factory.mktemp("phase")
    options = (write_plan(folder / "tiny"), "--store", small_store(folder / "s.h5"), "--runs", folder / "runs")
    return options, folder / "runs/tiny", call(main, "phase", *options)


@pytest.fixture
def store(tmp_path):
    return small_store(tmp_path / "s.h5")


def test_all_runs_of_the_plan_are_made_by_their_configs(finished):
    (config, *_), folder, result = finished
    assert sorted(path.name for path in folder.iterdir()) == sorted(RUNS)
    assert result.stdout == f"{folder}\n"
    assert f"run 6 of 6: {folder / 'chance-seed1'}" in result.stderr
    planned = plan_configs(config)
    for name in RUNS:
        assert RunFolder(folder / name).is_done
        assert load_run(folder / name).config == planned[name] == Config.load(folder / name / "config.toml")
    groups = group_runs(map(load_run, sorted(folder.iterdir())))
    assert {group.name: len(group.runs) for group in groups} == {"chance": 2, "head": 2, "nearest": 1, "nearest-l2": 1}


def test_the_second_call_only_reports(finished):
    options, folder, _ = finished
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    assert call(main, "phase", *options).stderr.count("complete: ") == 6
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before


def test_what_another_process_is_at_work_on_is_left_to_it(store, tmp_path):
    plan = write_plan(tmp_path / "tiny", '[plan]\nonce = ["a: method=knn", "b: method=centroid"]')
    options = (plan, "--store", store, "--runs", tmp_path / "runs")
    a, b = (RunFolder(tmp_path / "runs/tiny" / name) for name in ("a-seed0", "b-seed0"))
    with exclusive(a.path, "held"):
        assert f"another process is at work on {a.path}" in call(main, "phase", *options).stderr
    assert (a.is_done, b.is_done) == (False, True)
    call(main, "phase", *options)
    assert a.is_done


def test_only_the_runs_that_match_are_made(store, tmp_path):
    options = (write_plan(tmp_path / "tiny"), "--store", store, "--runs", tmp_path / "runs")
    call(main, "phase", *options, "--only", "nearest*")
    assert {path.name for path in (tmp_path / "runs/tiny").iterdir()} == {"nearest-seed0", "nearest-l2-seed0"}
    refused = call(main, "phase", *options, "--only", "neerest", code=2)
    assert "matches neerest: give --only a name of its [plan], or a pattern" in refused.output


def test_from_several_stores_each_run_is_made_and_named_after_the_store(store, tmp_path):
    other = small_store(tmp_path / "other.h5", seed=1)
    plan = write_plan(tmp_path / "tiny", '[plan]\nseeds = 2\nruns = ["a: method=random"]\nonce = ["b: method=knn"]')
    call(main, "phase", plan, "--store", store, "--store", other, "--runs", tmp_path / "runs")
    folders = sorted((tmp_path / "runs/tiny").iterdir())
    names = {f"{run}@{name}-seed{seed}" for run, seed in (("a", 0), ("a", 1), ("b", 0)) for name in ("s", "other")}
    assert {path.name for path in folders} == names
    runs = [load_run(path) for path in folders]
    assert {run.report.store.path for run in runs if "@other" in run.name} == {str(other)}
    assert sorted(group.name for group in group_runs(runs)) == ["a@other", "a@s", "b@other", "b@s"]


def test_a_mistake_in_the_plan_is_one_sentence_before_anything_is_made(store, tmp_path):
    plan = write_plan(tmp_path / "tiny", '[plan]\nruns = ["a: method=knn", "b: method=transfomer"]')
    said = call(main, "phase", plan, "--store", store, "--runs", tmp_path / "runs", code=2).output
    assert said.startswith("Error: ")
    assert 'unknown method "transfomer": did you mean "tran' in said
    assert not (tmp_path / "runs").exists()


def test_compare_ranks_the_runs_of_a_phase(finished):
    _, folder, _ = finished
    text = call(main, "compare", *folder.iterdir()).stdout
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert {row[0].strip("| ") for row in rows[1:]} == {"head", "chance", "nearest", "nearest-l2"}
    assert [row[2] for row in rows[1:] if "head" in row[0] or "chance" in row[0]] == ["2", "2"]
    assert rows[-1][0] == "| chance"
    top1 = 100 * json.loads((folder / "nearest-seed0/report.json").read_text())["test"]["top1"]
    assert f"**{top1:.2f}**" in text
    assert "n = 48 test sets each" in text
    assert "48 hard sets each" in call(main, "compare", "--hard", *folder.iterdir()).stdout


def test_compare_refuses_what_was_not_measured_on_the_same_sets(finished, store, tmp_path):
    _, folder, _ = finished
    other = write_plan(tmp_path / "other", '[data]\nset_size = 5\n\n[plan]\nonce = ["five: method=knn"]')
    call(main, "phase", other, "--store", store, "--runs", tmp_path)
    five = tmp_path / "other/five-seed0"
    result = call(main, "compare", folder / "nearest-seed0", five, code=2)
    assert "nearest and five were measured on different test sets" in result.output
    (five / "DONE").unlink()
    assert "is not complete" in call(main, "compare", folder / "nearest-seed0", five, code=2).output
    assert "there is no run at nowhere" in call(main, "compare", "nowhere", code=2).output


def test_a_killed_phase_ends_equal_to_one_that_was_not(store, tmp_path):
    plan = '[plan]\nruns = ["head:"]\nonce = ["nearest: method=knn"]\n'
    path = write_plan(tmp_path / "tiny", SMALL_HEAD.replace("epochs = 2", "epochs = 4") + plan)
    command = ["phase", path, "--store", store, "--runs"]
    with killed_after_two_epochs():
        call(main, *command, tmp_path / "killed")
    assert not list((tmp_path / "killed").rglob("DONE"))
    for name in ("killed", "whole"):
        call(main, *command, tmp_path / name)
    killed, whole = (read_reports(tmp_path / name) for name in ("killed", "whole"))
    assert (sorted(killed), killed) == (["head-seed0", "nearest-seed0"], whole)
    assert not list((tmp_path / "killed").rglob(".*"))
