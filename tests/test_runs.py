import functools
import json
from pathlib import Path

import numpy as np
import pytest
from fabricate import make_epoch, make_report, make_run, refuses
from hypothesis import given, settings
from hypothesis import strategies as st

from train.config import Config
from train.log.runs import describe_machine, group_runs, load_run, mark_arithmetic
from train.report.schema import pack_bits, read_report
from train.run_folder import RunFolder

SOLVED = np.array([True, False, True, True] * 5)


def content(*changes):
    """The JSON of a report."""
    return json.loads(make_report(SOLVED, *changes).to_json())


def written(path, report):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report if isinstance(report, str) else json.dumps(report), encoding="utf-8")
    return path


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_packed_bits_come_back(solved):
    assert len(pack_bits(np.array(solved))) == 2 * -(-len(solved) // 8)
    assert make_report(solved).test.unpack_solved().tolist() == solved


def test_a_run_is_loaded_from_its_folder_and_from_its_report(tmp_path):
    report = content("method=knn", "data.classes=a,b")
    written(tmp_path / "knn-seed0/report.json", report)
    written(tmp_path / "knn-seed0/checkpoint.pt", "a head")
    RunFolder(tmp_path / "knn-seed0").mark_done()
    folder, file = load_run(tmp_path / "knn-seed0"), load_run(written(tmp_path / "knn-seed0.json", report))
    assert folder == file == load_run(tmp_path / "knn-seed0/report.json")
    assert (folder.name, folder.report) == ("knn-seed0", read_report(tmp_path / "knn-seed0.json"))
    assert folder.config == Config.load(None, ["method=knn", "data.classes=a,b"])
    assert folder.report.test.unpack_solved().tolist() == SOLVED.tolist()


def test_a_config_of_a_report_has_defaults_for_keys_it_is_too_old_for_and_no_unknown_ones(tmp_path):
    report = content()
    del report["config"]["distance"], report["config"]["head"]["inducing"]
    assert load_run(written(tmp_path / "r.json", report)).config == Config()
    report["config"]["head"]["widht"] = 3
    run = load_run(written(tmp_path / "r.json", report))
    refuses(r'config of r "head\.widht": did you mean "head\.width"', group_runs, [run])


def test_an_unfinished_run_a_missing_run_and_a_folder_without_a_report_are_refused(tmp_path):
    written(tmp_path / "run/report.json", content())
    refuses(r"run is not complete \(it has no DONE\): run the training command again", load_run, tmp_path / "run")
    refuses(r"there is no run at .*none: give a run folder, or its report\.json", load_run, tmp_path / "none")
    written(tmp_path / "empty/DONE", "")
    refuses(r"empty/DONE is damaged", load_run, tmp_path / "empty")


def without(*keys):
    report = content()
    *parents, last = keys
    del functools.reduce(dict.get, parents, report)[last]
    return report


@pytest.mark.parametrize(
    "report",
    [
        "not JSON",
        "3",
        without("config"),  # what reports were before they had a config
        without("test"),
        without("test", "solved"),
        without("test", "sets_sha256"),
        {**content(), "config": "default"},
        {**content(), "test": {**content()["test"], "solved": "no digits"}},
    ],
    ids=lambda report: json.dumps(report)[:30],
)
def test_what_is_no_report_of_this_version_is_refused(tmp_path, report):
    path = written(tmp_path / "r.json", report)
    said = refuses("is not a report of this version", load_run, path)
    assert str(path) in said
    assert "make the run again" in said


def test_runs_that_differ_in_seed_split_and_device_alone_are_one_group():
    runs = [
        make_run("head-seed1", SOLVED, "training.seed=1", "data.split_seed=1", "training.device=cpu"),
        make_run("knn-seed0", SOLVED, "method=knn"),
        make_run("head-seed0", SOLVED),
        make_run("wide-seed0", SOLVED, "head.width=512"),
        make_run("head@other-seed0", SOLVED, store="other"),
    ]
    groups = group_runs(runs)
    assert [group.name for group in groups] == ["head", "knn", "wide", "head@other"]
    assert [run.name for run in groups[0].runs] == ["head-seed0", "head-seed1"]
    assert groups[0].first is runs[2].report
    assert runs[0].report.config["training"]["seed"] == 1, "grouping changed a report"


def test_a_run_that_is_too_old_for_a_key_is_grouped_with_those_that_have_its_default():
    old, new = make_run("head-seed0", SOLVED), make_run("head-seed1", SOLVED, "training.seed=1")
    del old.report.config["distance"], old.report.config["data"]["split_seed"]
    assert [len(group.runs) for group in group_runs([old, new])] == [2]


def test_a_group_gives_a_number_of_each_run_and_the_digests_of_its_sets():
    runs = [make_run(f"r-seed{seed}", SOLVED[seed:], f"training.seed={seed}", sets=str(seed)) for seed in (0, 1)]
    (group,) = group_runs(runs)
    assert group.top1().tolist() == [0.75, SOLVED[1:].mean()]
    assert group.hashes("test") == {"0", "1"}
    assert group.hashes("hard") == set()


def test_runs_of_one_config_and_one_seed_are_kept_apart_by_their_names():
    same = [make_run(name, SOLVED) for name in ("a-seed0", "b-seed0")]
    seed = make_run("b-seed1", SOLVED, "training.seed=1")
    assert [(group.name, len(group.runs)) for group in group_runs([*same, seed])] == [("a", 1), ("b", 2)]
    refuses("two runs of a have the same config and the same seed", group_runs, [same[0], same[0]])


def trained(name, arithmetic, *changes):
    return make_run(name, SOLVED, *changes, history=[make_epoch(1)], arithmetic=arithmetic)


def test_the_arithmetic_that_was_executed_keeps_groups_apart_not_the_one_that_was_asked_for():
    runs = [
        trained("a-seed0", ["bfloat16"], "training.precision=bfloat16"),
        trained("b-seed1", ["bfloat16"], "training.precision=auto", "training.seed=1"),
        trained("c-seed0", ["float32"], "training.precision=auto"),
        make_run("plda", SOLVED, "method=plda"),
    ]
    groups = group_runs(runs)
    assert [(group.name, len(group.runs)) for group in groups] == [("a", 2), ("c", 1), ("plda", 1)]
    assert [group.name for group in mark_arithmetic(groups)] == ["a (bfloat16)", "c (float32)", "plda"]
    assert [group.name for group in mark_arithmetic(groups[1:])] == ["c", "plda"]


def test_a_run_has_the_arithmetic_that_was_used_and_its_group_the_machine_that_decides_over_its_time():
    assert trained("a", ["bfloat16", "float32"]).report.arithmetic_used == "bfloat16, float32"
    assert trained("a", [], "training.precision=bfloat16").report.arithmetic_used == "bfloat16"
    assert make_report(SOLVED, "training.precision=bfloat16").arithmetic_used == ""  # nothing was trained
    runs = [make_run(f"r-seed{seed}", SOLVED, f"training.seed={seed}", threads=seed + 1) for seed in (0, 1)]
    assert describe_machine(group_runs(runs[:1])[0]) == "1 thread"
    assert describe_machine(group_runs(runs)[0]) == "1 thread, 2 threads"


@pytest.mark.parametrize("path", sorted(Path("experiments").glob("*/runs/*-seed0.json")), ids=str)
def test_a_report_that_is_read_and_written_has_the_same_bytes(path):
    assert read_report(path).to_json() == path.read_text(encoding="utf-8")
