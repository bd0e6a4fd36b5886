import dataclasses

import numpy as np
import pytest
import torch
from fabricate import make_config, refuses, train_method, without_times

from common import machine
from common.synthetic import make_store
from train.config import Config
from train.loop import RunState, evaluate, learning_rate_factor, predict
from train.methods.base import build_method
from train.task import Task, prepare

TINY = [
    *("head.width=16", "head.layers=1", "head.feed_forward=16", "training.epochs=3", "training.batch_size=16"),
    *("training.learning_rate=0.003", "training.warmup_epochs=0.5"),
]


class Stopped(Exception):
    pass


def run(store, *overrides, progress=None, stop_after=None):
    config = make_config(*TINY, *overrides)
    task = prepare(store, config.data)
    progress = progress or RunState()

    def save(progress):
        if len(progress.history) == stop_after:
            raise Stopped

    return train_method(config, task, progress, save), task, progress


def test_it_learns_to_find_the_anomaly_and_the_best_epoch_on_validation_is_returned(store):
    model, task, progress = run(store, "training.epochs=8")
    assert evaluate(model, task, task.test, 100)["top1"] > 0.5
    assert progress.history[-1].train_loss < progress.history[0].train_loss
    best = max(record.val_top1 for record in progress.history)
    assert evaluate(model, task, task.val, 100)["top1"] == best


def test_with_shuffled_labels_there_is_nothing_to_learn(tmp_path):
    store = make_store(tmp_path / "many.h5", classes=8, train=60, test=60)
    model, task, _ = run(store, "data.shuffle_labels=true")
    low, high = evaluate(model, task, task.test, 100)["top1_interval"]
    assert low < 0.1 < high


def test_the_same_seed_gives_the_same_run_another_seed_another_and_global_generators_are_not_moved(store):
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, again, other = (run(store, f"training.seed={seed}") for seed in (3, 3, 4))
    assert without_times(first[2].history) == without_times(again[2].history)
    for key, value in first[0].state_dict().items():
        assert torch.equal(value, again[0].state_dict()[key])
    assert without_times(first[2].history) != without_times(other[2].history)
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002


@pytest.mark.parametrize("stop_after", [1, 2])
def test_a_stopped_run_ends_equal_to_one_that_was_not(store, stop_after):
    whole, _, expected = run(store)
    progress = RunState()
    with pytest.raises(Stopped):
        run(store, progress=progress, stop_after=stop_after)
    resumed, _, found = run(store, progress=progress)
    assert without_times(found.history) == without_times(expected.history)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key])


def test_evaluation_averages_the_logits_of_the_views(tmp_path):
    store = make_store(tmp_path / "views.h5", views=2)
    config = Config.load(None, [*TINY, "data.views=all"])
    task = prepare(store, config.data)
    model = build_method(config, task.feature_dim)
    views = [dataclasses.replace(task, features=(view[None],)) for view in task.features[0]]
    each = [predict(model, view, task.test, 7) for view in views]
    torch.testing.assert_close(predict(model, task, task.test, 60), (each[0] + each[1]) / 2)


@pytest.mark.processor
def test_bfloat16_learns_as_well(store, monkeypatch):
    monkeypatch.setattr(machine, "fast_bfloat16", lambda device: True)
    model, task, progress = run(store, "training.precision=bfloat16", "training.epochs=8")
    assert evaluate(model, task, task.test, 100)["top1"] > 0.5
    assert {record.arithmetic for record in progress.history} == {"bfloat16"}


def test_bfloat16_that_is_not_faster_is_float32_and_one_line_says_so(store, monkeypatch, capsys):
    monkeypatch.setattr(machine, "fast_bfloat16", lambda device: False)
    model, _, progress = run(store, "training.precision=bfloat16")
    assert {record.arithmetic for record in progress.history} == {"float32"}
    assert capsys.readouterr().err.count("float32") == 2  # in one line
    plain, _, _ = run(store, "training.precision=float32")
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in model.state_dict().items())
    assert "float32" not in capsys.readouterr().err


def test_auto_takes_what_the_machine_gains_from_and_each_epoch_says_which(store, monkeypatch, capsys):
    progress = RunState()
    monkeypatch.setattr(machine, "fast_bfloat16", lambda device: True)
    with pytest.raises(Stopped):
        run(store, "training.precision=auto", progress=progress, stop_after=1)
    monkeypatch.setattr(machine, "fast_bfloat16", lambda device: False)  # it goes on on another machine
    run(store, "training.precision=auto", progress=progress)
    assert [record.arithmetic for record in progress.history] == ["bfloat16", "float32", "float32"]
    assert "float32" not in capsys.readouterr().err


def test_a_loss_that_is_not_finite_and_hard_pairs_without_superclasses_are_refused(store):
    steep = "training.learning_rate=1e30", "training.gradient_clip=1e30"
    refuses(r"not finite in epoch \d+: lower training\.learning_rate", run, store, *steep)
    refuses(r"hard_pairs=0\.5 needs super-classes, .*s\.h5 has none: set it to", run, store, "training.hard_pairs=0.5")


def test_the_learning_rate_warms_up_and_falls_to_zero():
    factors = [learning_rate_factor(step, 10, 100) for step in range(1, 101)]
    assert factors[0] == 0.1
    assert max(factors) == factors[9] == 1
    assert factors[-1] == pytest.approx(0)
    assert (np.diff(factors[9:]) < 0).all()
    assert learning_rate_factor(1, 0, 1) == pytest.approx(0)
    assert learning_rate_factor(5, 5, 5) == 1


@pytest.mark.parametrize("shared", [0, 9])
def test_so_many_training_sets_are_hard(tmp_path, monkeypatch, shared):
    superclasses = [0, 0, 1, 1, 2, 2]
    store = make_store(tmp_path / "s.h5", classes=6, train=60, class_superclass=superclasses)
    batches = []
    inputs = Task.inputs
    monkeypatch.setattr(Task, "inputs", lambda self, sets, views: batches.append(sets) or inputs(self, sets, views))
    run(store, "training.hard_pairs=0.5", f"training.images_per_class={shared}", "training.batch_size=60")
    groups = np.array(superclasses)
    within = np.concatenate([groups[batch.set_label] == groups[batch.anomaly_label] for batch in batches])
    assert len(within) > 500
    assert np.mean(within) == pytest.approx(0.5 + 0.5 / 5, abs=0.1)


@pytest.mark.parametrize("method", ["deepsets", "deep_plda"])
def test_mixed_classes_join_the_training_and_a_resumed_run_mixes_the_same(store, method):
    settings = (f"method={method}", "head.hidden=16", "training.images_per_class=10", "training.mixed_classes=4")
    settings = (*settings, "training.class_loss=1", "training.batch_size=60")
    model, task, whole = run(store, *settings)
    progress = RunState()
    with pytest.raises(Stopped):
        run(store, *settings, progress=progress, stop_after=1)
    _, _, resumed = run(store, *settings, progress=progress)
    assert without_times(resumed.history) == without_times(whole.history)
    assert evaluate(model, task, task.test, 100)["top1"] > 0.3
    _, _, unmixed = run(store, *settings, "training.mixed_classes=0")
    assert without_times(unmixed.history) != without_times(whole.history)
