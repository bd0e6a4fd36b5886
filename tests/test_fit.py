"""Runs that are gone on with, reported or refused: never guessed."""

import errno
import os
import shutil
from pathlib import Path

import pytest
from fabricate import call, flip_bit, killed_after_two_epochs, refuses, result_of

from common.errors import UserError
from common.files import write_bytes
from common.synthetic import make_store
from train.cli import main
from train.config import Config
from train.fit import fit
from train.log.runs import load_run
from train.run_folder import RunFolder

TINY = ["method=shared_mlp", "head.hidden=4", "training.epochs=3", "training.batch_size=64"]
CONFIG = Config.load(None, TINY)
OTHER = Config.load(None, [*TINY, "training.seed=1"])
PICTURES = {"curves.png", "mistakes.png"}


@pytest.fixture(scope="module", autouse=True)
def no_slow_pictures():
    def draw(run, *_):
        for name in PICTURES:
            write_bytes(run.path / name, b"a picture")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.report.write._draw", draw)
        yield


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store") / "s.h5")


@pytest.fixture(scope="module")
def finished(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    fit(CONFIG, store, folder, quiet)
    return folder


@pytest.fixture(scope="module")
def begun(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("begun") / "run"
    with killed_after_two_epochs():
        fit(CONFIG, store, folder, quiet)
    return folder


@pytest.fixture
def done(finished, tmp_path):
    """A copy of the finished run."""
    return RunFolder(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def stopped(begun, tmp_path):
    """A copy of the run that was killed."""
    return RunFolder(shutil.copytree(begun, tmp_path / "stopped"))


def quiet(_):
    pass


def contents(run):
    return {path.name: path.read_bytes() for path in run.iterdir()}


def test_a_complete_run_is_reported_and_nothing_is_written(finished, store, monkeypatch):
    def locked(*_):
        raise AssertionError("a lock was asked for")

    monkeypatch.setattr("train.fit.exclusive", locked)
    lines, before = [], {file: file.stat().st_mtime_ns for file in finished.iterdir()}
    assert fit(CONFIG, store, finished, lines.append) == load_run(finished).report
    assert lines[0].startswith("complete: ")
    assert before == {file: file.stat().st_mtime_ns for file in finished.iterdir()}


def test_metrics_are_right_for_good_after_a_kill_and_no_leftovers_stay(stopped, finished, store):
    assert len(stopped.metrics.read_text().splitlines()) == 1
    for name in (".checkpoint.1-0a1b2c3d.pt", ".report.99999999-0a1b2c3d.json", ".lock"):
        (stopped.path / name).write_text("")
    fit(CONFIG, store, stopped.path, quiet)
    assert result_of(stopped.path) == result_of(finished)
    assert not list(stopped.path.glob(".*"))


@pytest.mark.parametrize("name", ["report.json", "config.toml", "metrics.jsonl", "DONE"])
def test_what_is_missing_is_made_again_from_the_checkpoint(done, finished, store, name):
    (done.path / name).unlink()
    refuses(rf"no {name}(: run the training command again|\))", load_run, done.path)
    fit(CONFIG, store, done.path, quiet)
    assert result_of(done.path) == result_of(finished)
    assert load_run(done.path).report.test == load_run(finished).report.test


def test_a_complete_run_without_its_checkpoint_is_not_complete_for_anybody(done, store):
    done.checkpoint.unlink()
    for config in (CONFIG, OTHER):
        refuses(r"DONE but no checkpoint\.pt", fit, config, store, done.path, quiet)
    refuses(r"DONE but no checkpoint\.pt", load_run, done.path)


def test_a_report_or_a_checkpoint_that_has_changed_is_refused_and_the_advice_helps(done, store):
    judges = (lambda: fit(CONFIG, store, done.path, quiet), lambda: load_run(done.path))
    for text in ("", done.report.read_text().replace('"seed": 0', '"seed": 7')):
        done.report.write_text(text)
        for judge in judges:
            refuses(r"report\.json is not what DONE declares: .* move it away and run", judge)
    done.report.rename(done.path / "away.json")
    fit(CONFIG, store, done.path, quiet)
    assert load_run(done.path).report.test
    flip_bit(done.checkpoint, done.checkpoint.read_bytes().index(b"shared_mlp"))
    for judge in judges:
        refuses(r"checkpoint\.pt is not .* the report beside it is sound", judge)


def test_another_seed_or_store_is_refused_but_not_another_device(done, stopped, store, tmp_path):
    other_store = make_store(tmp_path / "other.h5", seed=1)
    identities = (each.identity_sha256[:16] for each in (store, other_store))
    another = rf"another feature store \(identity {', now '.join(identities)}\)"
    for run in (done.path, stopped.path):
        before = contents(run)
        refuses(r"training\.seed was 0, now 1", fit, OTHER, store, run, quiet)
        refuses(another, fit, CONFIG, other_store, run, quiet)
        assert contents(run) == before
    fit(Config.load(None, [*TINY, "training.device=cuda"]), store, done.path, quiet)


@pytest.mark.parametrize("text", ["", "seed = 3", "[training]\nseed = 1\n", "method =", "\0"])
def test_a_config_of_another_run_is_refused(done, stopped, store, text):
    for run in (done, stopped):
        run.config.write_text(text)
        before = contents(run.path)
        refuses(r"config", fit, CONFIG, store, run.path, quiet)
        assert contents(run.path) == before


def test_the_checkpoint_of_another_run_is_refused(done, stopped, store, tmp_path):
    fit(OTHER, store, tmp_path / "other", quiet)
    for run in (done, stopped):
        shutil.copy(tmp_path / "other/checkpoint.pt", run.checkpoint)
        for config in (CONFIG, OTHER):
            refuses(r"pt is not what DONE declares|begun with another config", fit, config, store, run.path, quiet)


@pytest.mark.parametrize("name", ["report.json", "metrics.jsonl", "curves.png"])
def test_files_of_something_else_are_not_overwritten(store, tmp_path, name):
    (tmp_path / name).write_text("mine")
    refuses("is not a run folder", fit, CONFIG, store, tmp_path, quiet)
    assert (tmp_path / name).read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_flipped_bit_in_an_unfinished_run_is_refused_and_the_advice_helps(stopped, finished, store, tmp_path):
    flip_bit(stopped.checkpoint, stopped.checkpoint.stat().st_size // 2)
    advice = "move this one file away, and the same command trains the run from its first"
    refuses(advice, fit, CONFIG, store, stopped.path, quiet)
    stopped.checkpoint.rename(tmp_path / "away.pt")
    fit(CONFIG, store, stopped.path, quiet)
    assert result_of(stopped.path) == result_of(finished)


@pytest.mark.parametrize("name", ["DONE", "config.toml", "checkpoint.pt", "report.json", "metrics.jsonl"])
def test_a_folder_where_a_file_should_be_is_one_sentence(done, store, name):
    (done.path / name).unlink()
    (done.path / name).mkdir()
    refuses(name, fit, CONFIG, store, done.path, quiet)


@pytest.mark.parametrize(
    ("where", "number"),
    [("write", errno.ENOSPC), ("fsync", errno.ENOSPC), ("rename", errno.ENOSPC), ("write", errno.EIO)],
)
def test_a_full_disk_at_any_write_loses_nothing(store, finished, tmp_path, monkeypatch, where, number):
    """Let the first, second, … write of the run fail: each time one sentence, and the same command goes on."""
    owner, name = {"write": (Path, "write_bytes"), "fsync": (os, "fsync"), "rename": (Path, "replace")}[where]
    real = getattr(owner, name)
    run, failures, calls, allowed = tmp_path / "run", 0, 0, 0

    def fails(*arguments):
        nonlocal calls
        calls += 1
        if calls > allowed:
            if where == "write":
                real(arguments[0], arguments[1][: len(arguments[1]) // 2])
            raise OSError(number, os.strerror(number))
        return real(*arguments)

    monkeypatch.setattr(owner, name, fails)
    while not (run / "DONE").exists():
        calls = 0
        try:
            fit(CONFIG, store, run, quiet)
        except UserError as error:
            assert str(run) in error.message
            assert ("no space left" in error.message) == (number == errno.ENOSPC)
            failures, allowed = failures + 1, allowed + 1
        assert not list(run.glob(".*"))
    assert failures > 5
    assert result_of(run) == result_of(finished)
    assert load_run(run)


@pytest.mark.parametrize("command", ["compare", "log"])
def test_compare_and_log_judge_as_training_does(command, finished, tmp_path):
    phase = tmp_path / "experiments/tiny"
    phase.mkdir(parents=True)
    (phase / "config.toml").write_text('[plan]\nonce = ["a: method=knn"]\n')
    run = RunFolder(shutil.copytree(finished, tmp_path / "runs/tiny/a-seed0"))
    run.metrics.write_text("damaged")
    log = ["--runs", tmp_path / "runs", "--experiments", tmp_path / "experiments"]
    said = call(main, command, *{"compare": [run.path], "log": log}[command], code=2).output
    assert "metrics.jsonl is not what DONE declares" in said
