import dataclasses

import numpy as np
import pytest
import torch

from common.errors import UserError
from extract import choice
from extract.backbones import load_backbone
from extract.choice import EngineChoice, Fidelity, measure_fidelity

CPU = torch.device("cpu")
GOOD = Fidelity(cosine=0.99995, error=1e-6, top1=0.8, reference_top1=0.8, sets=240)


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("resnet18", "random", 0, 32)


@pytest.fixture(scope="module")
def sample():
    return torch.randn(20, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class FakeEngine:
    """Features that are off by `error`, at a pace that is set."""

    def __init__(self, name, error):
        self.name, self.error = name, error

    def upload(self, images):
        return images

    def features(self, images):
        flat = images.flatten(1)[:, :64].numpy()
        return flat + self.error * np.roll(flat, 1, 1)


def fake(monkeypatch, engines, speeds):
    """Let `EngineChoice` find `engines`, {name: error}, and measure `speeds`, {name: images a second}."""
    monkeypatch.setattr(choice, "available", lambda device: ["openvino", "torch"])
    monkeypatch.setattr(
        EngineChoice,
        "_build",
        lambda self, kind, arithmetic: FakeEngine(name := f"{kind} {arithmetic.name}", engines[name]),
    )
    run = choice._run
    monkeypatch.setattr(choice, "_run", lambda engine, images: (run(engine, images)[0], speeds[engine.name]))


@pytest.mark.parametrize(
    ("change", "precision", "passes"),
    [
        ({}, "float32", True),
        ({"cosine": 0.99985}, "bfloat16", False),
        ({"error": 1e-4}, "float32", False),
        ({"error": 1e-2}, "bfloat16", True),
        ({"top1": 0.7}, "bfloat16", False),
        ({"top1": 0.9}, "bfloat16", False),
        ({"top1": 0.79}, "bfloat16", True),
        ({"cosine": float("nan")}, "bfloat16", False),
    ],
)
def test_what_may_stand_in_for_the_reference(change, precision, passes):
    assert dataclasses.replace(GOOD, **change).suffices(precision) is passes


def test_fidelity_of_equal_opposite_and_separable_features():
    features = np.random.default_rng(0).normal(size=(30, 8)) + 20 * np.eye(8)[np.repeat([0, 1, 2], 10)]
    same = measure_fidelity(features, features)
    assert (round(same.cosine, 9), same.error, same.top1, same.sets) == (1, 0, 1, 6)
    assert measure_fidelity(features, -features).cosine == pytest.approx(-1)
    broken = features.copy()
    broken[7] = 0
    assert measure_fidelity(features, broken).cosine == 0


def test_the_fastest_true_engine_is_chosen(backbone, sample, monkeypatch):
    fake(monkeypatch, {"torch float32": 0, "openvino float32": 1e-7}, {"torch float32": 10, "openvino float32": 20})
    engine, fidelity = EngineChoice(backbone, "float32", CPU, 32).fastest(sample)
    assert engine.name == "openvino float32"
    assert fidelity["cosine"] > 0.9999


def test_a_fast_engine_that_is_not_true_is_not_chosen(backbone, sample, monkeypatch):
    fake(monkeypatch, {"torch float32": 0, "openvino float32": 1e-3}, {"torch float32": 10, "openvino float32": 20})
    engine, fidelity = EngineChoice(backbone, "float32", CPU, 32).fastest(sample)
    assert (engine.name, fidelity) == ("torch float32", {})


def test_bfloat16_keeps_layers_in_float32_until_it_is_true(backbone, sample, monkeypatch):
    after = "bfloat16 after {} layers in float32"
    engines = {
        f"{kind} {after.format(n)}": 0.001 if n >= 3 else 0.1 for kind in ("torch", "openvino") for n in (1, 3, 5)
    }
    engines |= {"torch float32": 0, "torch bfloat16": 0.1, "openvino bfloat16": 0.1}
    speeds = dict.fromkeys(engines, 50.0)
    engine, _ = EngineChoice(backbone, "bfloat16", CPU, 32).fastest(sample)  # the real ones
    assert "bfloat16" in engine.name or engine.name == "torch float32"
    fake(monkeypatch, engines, speeds)
    engine, _ = EngineChoice(backbone, "bfloat16", CPU, 32).fastest(sample)
    assert engine.name == f"openvino {after.format(3)}"
    fake(monkeypatch, dict.fromkeys(engines, 0.1) | {"torch float32": 0}, speeds)
    engine, fidelity = EngineChoice(backbone, "bfloat16", CPU, 32).fastest(sample)
    assert (engine.name, fidelity) == ("torch float32", {})


def test_an_engine_is_found_again_by_its_name(backbone):
    chosen = EngineChoice(backbone, "bfloat16", CPU, 32)
    name = "torch bfloat16 after 3 layers in float32"
    assert chosen.named(name).name == name
    assert chosen.named("torch float64") is None
    assert EngineChoice(backbone, "float32", CPU, 32, "torch").named("openvino float32") is None


def test_an_engine_that_is_not_there_is_one_sentence(backbone, monkeypatch):
    monkeypatch.setattr(choice, "available", lambda device: ["torch"])
    with pytest.raises(
        UserError, match="the engine openvino is not to be had here on cpu: install it with `pip install"
    ):
        EngineChoice(backbone, "float32", CPU, 32, "openvino")
    assert not EngineChoice(backbone, "float32", CPU, 32).needs_sample()
