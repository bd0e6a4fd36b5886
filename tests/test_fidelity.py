import dataclasses

import numpy as np
import pytest
import torch

from common.errors import UserError
from extract import engines, fidelity
from extract.backbones import load_backbone
from extract.engines import NotHere
from extract.fidelity import EngineChoice, Fidelity, measure_fidelity

CPU = torch.device("cpu")
GOOD = Fidelity(cosine=0.99995, error=1e-6)


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("resnet18", "random", 0, 32)


@pytest.fixture(scope="module")
def sample():
    return torch.randn(20, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class FakeEngine:
    """Features that are off by `error`."""

    def __init__(self, name, error):
        self.name, self.error = name, error
        self.precision = "bfloat16" if "bfloat16" in name else "float32"

    def upload(self, images):
        return images

    def features(self, images):
        flat = images.flatten(1)[:, :64].numpy()
        return flat + self.error * np.roll(flat, 1, 1)


def fake(monkeypatch, engines, speeds, low=("openvino", "torch")):
    """Let `EngineChoice` find `engines`, {name: error}, and measure `speeds`, {name: images a second}.

    low: the kinds that may gain from bfloat16. An engine that is not in `engines` is not here. Returns the names of
    those that ran.
    """
    ran = []

    def build(kind, arithmetic, *_):
        if (name := f"{kind} {arithmetic.name}") not in engines:
            raise NotHere(name)
        return FakeEngine(name, engines[name])

    features = fidelity._features

    def run(engine, images):
        ran.append(engine.name)
        return features(engine, images)

    monkeypatch.setattr(fidelity, "available", lambda device: ["openvino", "torch"])
    monkeypatch.setattr(fidelity, "gains_from_bfloat16", lambda kind, device: kind in low)
    monkeypatch.setattr(fidelity, "build_engine", build)
    monkeypatch.setattr(EngineChoice, "reference", lambda self: FakeEngine("torch float32", 0))
    monkeypatch.setattr(fidelity, "_features", run)
    monkeypatch.setattr(fidelity, "_gain", lambda engine, other, images: speeds[engine.name] / speeds[other.name])
    return ran


@pytest.mark.parametrize(
    ("change", "precision", "passes"),
    [
        ({}, "float32", True),
        ({"cosine": 0.99985}, "bfloat16", False),
        ({"error": 1e-4}, "float32", False),
        ({"error": 1e-2}, "bfloat16", True),
        ({"cosine": float("nan")}, "bfloat16", False),
    ],
)
def test_what_may_stand_in_for_the_reference(change, precision, passes):
    assert dataclasses.replace(GOOD, **change).suffices(precision) is passes


def test_fidelity_of_equal_opposite_and_broken_features():
    features = np.random.default_rng(0).normal(size=(30, 8))
    same = measure_fidelity(features, features)
    assert (round(same.cosine, 9), same.error) == (1, 0)
    assert measure_fidelity(features, -features).cosine == pytest.approx(-1)
    broken = features.copy()
    broken[7] = 0
    assert measure_fidelity(features, broken).cosine == 0


@pytest.mark.parametrize("speed", [1, 9, 11, 100])
def test_in_float32_openvino_is_taken_where_it_is_true_whatever_its_pace(backbone, sample, monkeypatch, speed):
    fake(monkeypatch, {"openvino float32": 1e-7}, {"torch float32": 10, "openvino float32": speed})
    engine, found = EngineChoice(backbone, "float32", CPU, 32).choose(sample)
    assert engine.name == "openvino float32"
    assert found["cosine"] > 0.9999


def test_a_fast_engine_that_is_not_true_is_not_chosen(backbone, sample, monkeypatch):
    fake(monkeypatch, {"openvino float32": 1e-3, "torch float32": 0}, {"torch float32": 10, "openvino float32": 20})
    engine, found = EngineChoice(backbone, "float32", CPU, 32).choose(sample)
    assert (engine.name, found) == ("torch float32", {})


AFTER = "bfloat16 after {} layers in float32"
LOW = [
    f"{kind} {name}" for kind in ("openvino", "torch") for name in ("bfloat16", *(AFTER.format(n) for n in (1, 3, 5)))
]
IN_FLOAT32 = {"openvino float32": 1e-7, "torch float32": 0}


def test_bfloat16_keeps_layers_in_float32_until_it_is_true(backbone, sample, monkeypatch):
    engines = {name: 0.001 if "after 3" in name or "after 5" in name else 0.1 for name in LOW}
    speeds = dict.fromkeys(LOW, 50.0) | dict.fromkeys(IN_FLOAT32, 20.0)
    fake(monkeypatch, engines | IN_FLOAT32, speeds)
    engine, _ = EngineChoice(backbone, "bfloat16", CPU, 32).choose(sample)
    assert engine.name == f"openvino {AFTER.format(3)}"


def test_bfloat16_that_is_not_true_or_not_faster_than_float32_gives_float32(backbone, sample, monkeypatch):
    speeds = dict.fromkeys(LOW, 50.0) | {"torch float32": 10, "openvino float32": 30}
    fake(monkeypatch, dict.fromkeys(LOW, 0.1) | IN_FLOAT32, speeds)
    assert EngineChoice(backbone, "bfloat16", CPU, 32).choose(sample)[0].name == "openvino float32"
    fake(monkeypatch, dict.fromkeys(LOW, 0.0) | IN_FLOAT32, speeds | dict.fromkeys(LOW, 38.0))
    assert EngineChoice(backbone, "bfloat16", CPU, 32).choose(sample)[0].name == "openvino float32"


def test_where_bfloat16_gains_nothing_no_engine_tries_it(backbone, sample, monkeypatch):
    speeds = {"torch float32": 10, "openvino float32": 30}
    ran = fake(monkeypatch, dict.fromkeys(LOW, 0.0) | IN_FLOAT32, speeds, low=())
    choice = EngineChoice(backbone, "bfloat16", CPU, 32)
    assert choice.low_kinds == []
    assert choice.may_be_reference()
    assert choice.choose(sample)[0].precision == "float32"
    assert [name for name in ran if "bfloat16" in name] == []


def test_on_this_machine_too_an_engine_in_bfloat16_is_chosen_or_one_in_float32(backbone, sample):
    engine, _ = EngineChoice(backbone, "bfloat16", CPU, 32).choose(sample)
    assert engine.precision == ("bfloat16" if "bfloat16" in engine.name else "float32")


def test_an_engine_is_found_again_by_its_name(backbone, monkeypatch):
    monkeypatch.setattr(engines, "fast_bfloat16", lambda device: True)
    chosen = EngineChoice(backbone, "bfloat16", CPU, 32)
    for name in ("torch bfloat16 after 3 layers in float32", "torch float32"):
        assert chosen.named(name).name == name
    assert chosen.named("torch float64") is None
    assert EngineChoice(backbone, "float32", CPU, 32, "torch").named("openvino float32") is None


def test_an_engine_that_this_machine_would_not_execute_is_not_found_by_its_name(backbone, monkeypatch):
    monkeypatch.setattr(engines, "fast_bfloat16", lambda device: False)
    assert EngineChoice(backbone, "bfloat16", CPU, 32).named("torch bfloat16") is None


def test_an_engine_that_is_not_there_is_one_sentence(backbone, monkeypatch):
    monkeypatch.setattr(fidelity, "available", lambda device: ["torch"])
    with pytest.raises(UserError, match=r"the engine openvino .* on cpu: install it with `pip install"):
        EngineChoice(backbone, "float32", CPU, 32, "openvino")
    assert EngineChoice(backbone, "float32", CPU, 32).may_be_reference()


class Slow(FakeEngine):
    """Takes its time, and three times as long while the machine is busy."""

    def __init__(self, seconds, clock):
        super().__init__("torch float32", 0)
        self.seconds, self.clock = seconds, clock

    def features(self, images):
        self.clock[0] += self.seconds * (3 if self.clock[0] < 4 else 1)
        return super().features(images)


def test_the_gain_of_an_engine_is_the_same_on_a_machine_that_was_busy_for_a_while(sample, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(fidelity.time, "perf_counter", lambda: clock[0])
    images = sample.repeat(8, 1, 1, 1)
    assert fidelity._gain(Slow(0.25, clock), Slow(1.0, clock), images) == pytest.approx(4)
