import json

import numpy as np
import pytest
from fabricate import make_report, make_run
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from train.config import Config
from train.run_folder import RunFolder
from train.runs import groups_of, load_run, pack_bits, unpack_bits

SOLVED = np.array([True, False, True, True] * 5)


def written(path, report):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report if isinstance(report, str) else json.dumps(report), encoding="utf-8")
    return path


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_packed_bits_come_back(solved):
    digits = pack_bits(np.array(solved))
    assert len(digits) == 2 * -(-len(solved) // 8)
    assert unpack_bits(digits, len(solved)).tolist() == solved


def test_a_run_is_loaded_from_its_folder_and_from_its_report(tmp_path):
    report = make_report(SOLVED, "method=knn", "data.classes=a,b")
    written(tmp_path / "knn-seed0/report.json", report)
    written(tmp_path / "knn-seed0/checkpoint.pt", "a head")
    RunFolder(tmp_path / "knn-seed0").mark_done()
    folder, file = load_run(tmp_path / "knn-seed0"), load_run(written(tmp_path / "knn-seed0.json", report))
    assert folder == file
    assert folder.name == "knn-seed0"
    assert folder.report == report
    assert folder.config == Config.load(None, ["method=knn", "data.classes=a,b"])
    assert folder.solved("test").tolist() == SOLVED.tolist()


def test_a_report_in_a_run_folder_has_the_name_of_the_folder(tmp_path):
    path = written(tmp_path / "knn-seed0/report.json", make_report(SOLVED))
    assert load_run(path).name == "knn-seed0"


def test_keys_that_a_report_is_too_old_to_have_get_their_defaults(tmp_path):
    report = make_report(SOLVED)
    del report["config"]["distance"], report["config"]["head"]["inducing"]
    assert load_run(written(tmp_path / "r.json", report)).config == Config()


def test_an_unfinished_run_is_refused(tmp_path):
    written(tmp_path / "run/report.json", make_report(SOLVED))
    with pytest.raises(UserError, match=r"run is not complete \(it has no DONE\): go on with it"):
        load_run(tmp_path / "run")


def test_a_missing_run_and_a_folder_without_a_report_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"there is no run at .*none: give a run folder, or its report\.json"):
        load_run(tmp_path / "none")
    written(tmp_path / "run/DONE", "")
    with pytest.raises(UserError, match=r"run has DONE but no checkpoint"):
        load_run(tmp_path / "run")


def without(*keys):
    report = make_report(SOLVED)
    part = report
    for key in keys[:-1]:
        part = part[key]
    del part[keys[-1]]
    return report


@pytest.mark.parametrize(
    "report",
    [
        "not JSON",
        "[1, 2]",
        "3",
        "{}",
        without("config"),  # what reports were before they had a config
        without("test"),
        without("test", "solved"),
        without("test", "sets_sha256"),
        {**make_report(SOLVED), "config": "default"},
        {**make_report(SOLVED), "test": {**make_report(SOLVED)["test"], "solved": "no digits"}},
    ],
    ids=lambda report: json.dumps(report)[:30],
)
def test_what_is_no_report_of_this_version_is_refused(tmp_path, report):
    path = written(tmp_path / "r.json", report)
    with pytest.raises(UserError, match="is not a report of this version") as caught:
        load_run(path)
    assert str(path) in caught.value.message
    assert "make the run again" in caught.value.message


def test_an_unknown_config_key_in_a_report_is_named(tmp_path):
    report = make_report(SOLVED)
    report["config"]["head"]["widht"] = 3
    with pytest.raises(UserError, match=r'config of r "head\.widht": did you mean "head\.width"'):
        load_run(written(tmp_path / "r.json", report))


def test_runs_that_differ_in_seed_split_and_device_alone_are_one_group():
    runs = [
        make_run("head-seed1", SOLVED, "training.seed=1", "data.split_seed=1", "training.device=cpu"),
        make_run("knn-seed0", SOLVED, "method=knn"),
        make_run("head-seed0", SOLVED),
        make_run("wide-seed0", SOLVED, "head.width=512"),
        make_run("head@other-seed0", SOLVED, store="other"),
    ]
    groups = groups_of(runs)
    assert [group.name for group in groups] == ["head", "knn", "wide", "head@other"]
    assert [run.name for run in groups[0].runs] == ["head-seed0", "head-seed1"]
    assert groups[0].first is runs[2].report
    assert runs[0].report["config"]["training"]["seed"] == 1, "grouping changed a report"


def test_a_run_that_is_too_old_for_a_key_is_grouped_with_those_that_have_its_default():
    old, new = make_run("head-seed0", SOLVED), make_run("head-seed1", SOLVED, "training.seed=1")
    del old.report["config"]["distance"], old.report["config"]["data"]["split_seed"]
    assert [len(group.runs) for group in groups_of([old, new])] == [2]


def test_a_group_gives_a_number_of_each_run_and_the_digests_of_its_sets():
    runs = [make_run(f"r-seed{seed}", SOLVED[seed:], f"training.seed={seed}", sets=str(seed)) for seed in (0, 1)]
    (group,) = groups_of(runs)
    assert group.values("test", "top1").tolist() == [0.75, SOLVED[1:].mean()]
    assert group.hashes("test") == {"0", "1"}
    assert group.hashes("hard") == set()
