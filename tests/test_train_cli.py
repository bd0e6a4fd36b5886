import json
import os
import re
import resource
import signal
import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path

import pytest
import torch
from fabricate import begin, call, one_thread, result_of, wait_for_epochs

from common.synthetic import make_store
from train.checkpoint import load_head
from train.cli import main
from train.config import Config
from train.log.plan import plan_configs
from train.run_folder import RunFolder

TINY = ["head.width=16", "head.layers=1", "head.feed_forward=16", "training.epochs=2", "training.batch_size=60"]
SET = [part for setting in TINY for part in ("--set", setting)]


fit = partial(call, main, "fit")


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr("train.report.write._draw", lambda *_: None)


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path / "s.h5").path


def test_a_run_folder_holds_all_that_was_promised(store, tmp_path, monkeypatch):
    monkeypatch.undo()  # with pictures
    run = tmp_path / "run"
    assert fit("--store", store, "--run", run, *SET).stdout.strip() == str(run)
    names = {"config.toml", "metrics.jsonl", "checkpoint.pt", "report.json", "DONE"}
    assert {file.name for file in run.iterdir()} == names | {"curves.png", "attention.png", "mistakes.png"}
    report = json.loads((run / "report.json").read_text())
    for split, n in (("val", 36), ("test", 60)):
        measured = report[split]
        assert measured["n"] == n
        assert measured["top1_interval"][0] <= measured["top1"] <= measured["top1_interval"][1]
        assert 0 <= measured["top1"] <= measured["top5"] <= 1
        assert measured["loss"] > 0
        assert 0 < measured["average_precision"] <= 1
        assert len(measured["sets_sha256"]) == 64
    assert report["parameters"] == sum(p.numel() for p in load_head(run / "checkpoint.pt").parameters())
    assert report["train_sets_per_second"] > 0
    assert report["store"]["identity_sha256"]
    assert report["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert report["hardware"]["device"] == "cpu"
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2


def test_quiet_leaves_the_epochs_out_but_not_the_result(store, tmp_path, monkeypatch):
    monkeypatch.setattr("common.progress._quiet", False)  # and false again afterwards
    assert fit("--store", store, "--run", tmp_path / "loud", *SET).stderr.count("epoch ") == 3  # the best one, too
    said = fit("--store", store, "--run", tmp_path / "quiet", *SET, "--quiet").stderr
    assert said.startswith("test top-1 ")
    assert said.count("epoch ") == 1


def test_the_config_in_the_run_folder_makes_the_same_run(store, tmp_path):
    fit("--store", store, "--run", tmp_path / "a", *SET, "--seed", 5)
    fit("--store", store, "--run", tmp_path / "b", "--config", tmp_path / "a/config.toml")
    a, b = (json.loads((tmp_path / name / "report.json").read_text()) for name in "ab")
    assert (a["test"], a["config"], a["config"]["training"]["seed"]) == (b["test"], b["config"], 5)


def test_every_option_reaches_the_config_and_a_class_may_have_a_comma_in_its_name(store, tmp_path):
    config = tmp_path / "c.toml"
    config.write_text("[head]\nheads = 2\n")
    options = ["--config", config, *SET, "--classes", "class0,class2", "--seed", 9, "--device", "cpu"]
    fit("--store", store, "--run", tmp_path / "run", *options)
    used = Config.load(tmp_path / "run/config.toml")
    assert (used.head.heads, used.head.width, used.data.classes) == (2, 16, ("class0", "class2"))
    assert (used.training.seed, used.training.device) == (9, "cpu")
    (tmp_path / "classes.txt").write_text("tench, Tinca tinca\nclass0\n")
    assert '"tench, Tinca tinca"' in fit("--store", store, "--classes", tmp_path / "classes.txt", code=2).output


def test_each_experiment_gets_a_folder_of_its_own(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = {fit("--store", store, *SET, "--seed", seed).stdout for seed in (0, 1, 1)}
    assert len(runs) == 2
    assert fit("--store", store, *SET, "--seed", 1, "--device", "cpu").stdout in runs, "a device is no experiment"


def test_a_stopped_and_killed_run_ends_equal_to_one_that_was_not(store, tmp_path, monkeypatch):
    metrics = tmp_path / "run/metrics.jsonl"
    command = ["fit", "--store", store, *SET, "--set", "training.epochs=40", "--run"]
    process = begin("-m", "train", *command, metrics.parent)
    wait_for_epochs(metrics, 1, process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL

    write = RunFolder.write_metrics

    def stop(run, history):
        write(run, history)
        if len(history) in stops:
            signal.raise_signal(stops.pop(len(history)))

    monkeypatch.setattr(RunFolder, "write_metrics", stop)
    monkeypatch.setattr(os, "_exit", sys.exit)  # what ends a process that has threads, as other tests may leave some
    with one_thread():
        for epochs, number in ((10, signal.SIGINT), (20, signal.SIGTERM)):
            stops = {epochs: number}
            *_, last = call(main, *command, metrics.parent, code=128 + number).stderr.splitlines()
            assert re.search(r"\d+ of 40 epochs are saved in .*run; run the same command again to resume", last)
        for name in ("run", "whole"):
            call(main, *command, tmp_path / name)
    assert result_of(tmp_path / "run") == result_of(tmp_path / "whole")
    assert not list(metrics.parent.glob(".*"))


@pytest.mark.parametrize("config", sorted(Path("experiments").glob("*/config.toml")), ids=str)
def test_the_configs_of_the_experiments_load(config):
    plan = tomllib.loads(config.read_text()).get("plan")
    assert Config.load(config)
    if plan:
        assert len(plan_configs(config)) >= len([*plan.get("runs", []), *plan.get("once", []), *plan.get("splits", [])])


def test_what_a_killed_log_left_is_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / "experiments/tiny/runs").mkdir(parents=True)
    left = [tmp_path / name for name in ("experiments/tiny/.log.{}-0a1b2c3d.md", ".README.{}-0a1b2c3d.md")]
    for path in left:
        Path(str(path).format(dead.pid)).write_text("half")
    options = ["--experiments", tmp_path / "experiments", "--readme", tmp_path / "README.md", "--runs", tmp_path]
    call(main, "log", *options)
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [4, 8, 16, 24, 32, 48, 64, 96])
def test_a_disk_that_is_really_full_loses_nothing(store, tmp_path, kilobytes):
    """On a tmpfs of so many kilobytes, which then gets larger: the same command goes on, to the same result."""
    small = tmp_path / "small"
    small.mkdir()
    train = f"{sys.executable} -m train fit --store {store} {' '.join(SET)} --run"
    script = f"""
        mount -t tmpfs -o size={kilobytes}k tmpfs {small} || exit 99
        {train} {small}/run; echo code $? >&2
        mount -o remount,size=8m {small}
        {train} {small}/run && ls -a {small}/run && cp -r {small}/run {tmp_path}/run
    """
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no unshare here")
    if result.returncode in (1, 99) and "train" not in result.stderr:
        pytest.skip(f"no tmpfs can be mounted here: {result.stderr}")
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    assert "code 2" in result.stderr
    assert "no space left for" in result.stderr
    assert not [name for name in result.stdout.split() if name.startswith(".") and name.strip(".")]
    fit("--store", store, "--run", tmp_path / "whole", *SET)
    assert result_of(tmp_path / "run") == result_of(tmp_path / "whole")


@pytest.mark.parametrize("name", ["n" * 300, "a\0b", "file/run", "file"])
@pytest.mark.parametrize("option", ["--run", "--store", "--config", "--classes"])
def test_a_path_that_cannot_be_is_a_sentence(tmp_path, monkeypatch, option, name):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("=")  # no TOML, and no class
    options = {"--store": str(make_store(tmp_path / "s.h5").path), "--run": "run", option: name}
    result = fit(*(part for pair in options.items() for part in pair), code=2)
    assert result.stderr.startswith(("Error: ", "Usage: ")), result.output
    assert "cannot write" in result.stderr or (option, name) != ("--run", "file/run")
    assert not Path("run").exists()


def test_memory_that_does_not_suffice_is_a_sentence(store, tmp_path):
    """Within 1 GB more than now: the first matrix of a head of 16,384 units takes 3."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 30), before[1]))
    try:
        fit("--store", store, "--run", tmp_path / "small", *SET)
        said = fit("--store", store, "--run", tmp_path / "large", "--set", "head.width=16384", code=2).stderr
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert said.splitlines()[-1].startswith("Error: out of memory")
