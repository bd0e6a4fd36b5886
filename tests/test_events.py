import sys

import pytest
from fabricate import call, killed_after_two_epochs

from common.synthetic import make_store
from train.cli import main
from train.config import Config
from train.fit import fit
from train.report.schema import read_report

TINY = ["method=shared_mlp", "head.hidden=4", "training.epochs=3", "training.batch_size=64"]
CONFIG = Config.load(None, TINY)
TAGS = ["learning_rate", "train/loss", "train/top1", "val/loss", "val/top1"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store") / "s.h5")


def events_of(run):
    """{tag: [(epoch, value), …]}, as TensorBoard reads them from all files of a folder."""
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reading.EventAccumulator(str(run)).Reload()
    return {tag: [(each.step, each.value) for each in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def expected(run):
    history = read_report(run / "report.json").history
    fields = {tag: tag.replace("/", "_") for tag in TAGS}
    return {tag: [(x.epoch, pytest.approx(getattr(x, field))) for x in history] for tag, field in fields.items()}


@pytest.fixture
def _tensorboard():
    pytest.importorskip("tensorboard", reason="TensorBoard is missing: pip install '.[tensorboard]'")


@pytest.mark.usefixtures("_tensorboard")
def test_every_epoch_is_there_once_also_after_a_kill(store, tmp_path):
    run = tmp_path / "run"
    with killed_after_two_epochs():
        fit(CONFIG, store, run, print, tensorboard=True)
    assert [epoch for epoch, _ in events_of(run)["val/top1"]] == [1], "the second is in the checkpoint only"
    fit(CONFIG, store, run, print, tensorboard=True)
    assert events_of(run) == expected(run)
    before = sorted(run.iterdir())
    fit(CONFIG, store, run, print, tensorboard=True)
    assert sorted(run.iterdir()) == before, "a complete run is only reported"


@pytest.mark.usefixtures("_tensorboard")
def test_a_complete_run_gets_events_when_asked_for_them_later(store, tmp_path):
    run = tmp_path / "run"
    command = ["fit", "--store", store.path, "--run", run, *(part for pair in TINY for part in ("--set", pair))]
    call(main, *command)
    assert not list(run.glob("events*"))
    call(main, *command, "--tensorboard")
    assert events_of(run) == expected(run)


def test_without_tensorboard_nothing_is_begun(store, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith(("tensorboard", "torch.utils.tensorboard"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    run = tmp_path / "run"
    result = call(main, "fit", "--store", store.path, "--run", run, "--tensorboard", code=2)
    assert "pip install tensorboard" in result.stderr
    assert not run.exists()
