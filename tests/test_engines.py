import numpy as np
import pytest
import torch
import torchvision
from fabricate import refuses, relative_error

from extract import engines
from extract.backbones import Backbone, load_backbone
from extract.engines import EngineChoice, NotHere, TorchEngine, bfloat16, build_engine, float32, gains_from_bfloat16

CPU = torch.device("cpu")
needs_openvino = pytest.mark.skipif(
    "openvino" not in engines.available(CPU), reason="openvino is not installed (extra: fast)"
)
each_kind = pytest.mark.parametrize("kind", ["torch", pytest.param("openvino", marks=needs_openvino)])


AFTER = "bfloat16 after {} layers in float32"


@pytest.fixture(scope="module")
def images():
    return torch.randn(21, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def run(engine, images):
    return engine.features(engine.upload(images))


def engine_of(kind, arithmetic):
    return TorchEngine(arithmetic, CPU) if kind == "torch" else engines.OpenVinoEngine(arithmetic, 32)


@pytest.mark.processor
@each_kind
@pytest.mark.parametrize("layers", [("last",), ("last", "layer3")])
def test_in_float32_every_engine_gives_the_features_of_the_backbone_whatever_the_batch(images, kind, layers):
    backbone = load_backbone("resnet18", "random", 0, 32, layers)
    engine, expected = engine_of(kind, float32(backbone)), backbone.features(images).numpy()
    assert (engine.name, expected.shape) == (f"{kind} float32", (21, sum(backbone.layers.values())))
    for n in (21, 1):  # of OpenVINO a whole chunk and a part of one, and a part alone
        for part in (slice(0, 512), slice(512, 768))[: len(layers)]:
            found = run(engine, images[:n])[:, part]
            assert relative_error(found, expected[:n, part]) < (1e-6 if kind == "torch" else 1e-5)


@pytest.mark.processor
@each_kind
def test_first_layers_in_float32_bring_bfloat16_nearer(resnet, images, kind):
    if kind == "openvino" and not gains_from_bfloat16(kind, CPU):
        pytest.skip("OpenVINO does not execute bfloat16 on this processor")
    expected = resnet.features(images).numpy()
    errors = []
    for _, arithmetic in zip(range(3), bfloat16(resnet), strict=False):
        engine = engine_of(kind, arithmetic)
        assert engine.precision == "bfloat16"
        features = run(engine, images)
        assert features.dtype == np.float32
        errors.append(np.square(features - expected).mean())
    assert errors[0] > 1e-12  # bfloat16 was really used
    assert errors[2] < errors[0]


@needs_openvino
@pytest.mark.parametrize("low", [False, True])
def test_openvino_is_what_its_name_says_or_not_here(resnet, images, monkeypatch, low):
    arithmetic = next(bfloat16(resnet)) if low else float32(resnet)
    try:
        build_engine("openvino", arithmetic, CPU, 32)
    except NotHere as error:
        if "cannot run the network" in str(error):  # as with ONEDNN_MAX_CPU_ISA=AVX2 on a processor that has more
            pytest.skip(str(error))
    for executed in ({"f32"}, {"bf16"}, {"f32", "bf16"}, {"f16"}):
        monkeypatch.setattr(engines, "_executed_precisions", lambda compiled, executed=executed: executed)
        if ("bf16" in executed) == low and executed != {"f16"}:
            assert build_engine("openvino", arithmetic, CPU, 32).precision == ("bfloat16" if low else "float32")
        else:
            with pytest.raises(NotHere):
                build_engine("openvino", arithmetic, CPU, 32)


def test_torch_does_not_offer_what_it_only_emulates(resnet, monkeypatch):
    monkeypatch.setattr(engines, "fast_bfloat16", lambda device: False)
    assert not gains_from_bfloat16("torch", CPU)
    with pytest.raises(NotHere):
        build_engine("torch", next(bfloat16(resnet)), CPU, 32)
    assert build_engine("torch", float32(resnet), CPU, 32).precision == "float32"
    monkeypatch.setattr(engines, "fast_bfloat16", lambda device: True)
    assert build_engine("torch", next(bfloat16(resnet)), CPU, 32).precision == "bfloat16"


def test_a_resnet_is_cut_between_its_blocks(resnet):
    names = [arithmetic.name for arithmetic in bfloat16(resnet)]
    assert names[:4] == ["bfloat16", *(AFTER.format(n) for n in (1, 3, 5))]


@pytest.mark.parametrize("name", ["vit_b_16", "densenet121", "mobilenet_v3_small", "swin_t"])
def test_the_parts_of_any_network_make_up_the_whole(name):
    module = torchvision.models.get_model(name, weights=None).eval()
    backbone = Backbone(name, module, {"last": 1000}, "", "")
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    _, (_, cut), *_ = enumerate(bfloat16(backbone))
    (first, low_first), (rest, low_rest) = cut.parts
    assert (low_first, low_rest) == (False, True)
    with torch.inference_mode():
        torch.testing.assert_close(rest(first(images)), module(images))


@pytest.mark.parametrize("layers", [("last", "layer3"), ("last", "layer4.1", "layer1.0.bn2")])
def test_a_network_with_inner_layers_is_cut_too(layers, images):
    backbone = load_backbone("resnet18", "random", 0, 32, layers)
    _, *cuts = bfloat16(backbone)
    assert cuts
    for cut in cuts[:3]:
        (first, _), (rest, _) = cut.parts
        with torch.inference_mode():
            torch.testing.assert_close(rest(first(images)), backbone.module(images))


def test_a_network_that_cannot_be_traced_and_layers_caught_by_hooks_are_taken_as_a_whole(images):
    class Branching(torch.nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    def names(backbone):
        return [arithmetic.name for arithmetic in bfloat16(backbone)]

    assert names(Backbone("branching", Branching(), {"last": 3}, "", "")) == ["bfloat16"]
    pytest.importorskip("timm", reason="the extra `timm` is not installed")
    backbone = load_backbone("timm:tf_efficientnet_lite0", "random", 0, 32, ("last", "blocks.4.2.bn2"))
    assert names(backbone) == ["bfloat16"]
    assert backbone.features(images).shape == (21, 1280 + 672)


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


def fake(monkeypatch, errors, speeds, low=("openvino", "torch")):
    """Let `EngineChoice` find engines with these `errors`, and measure `speeds`, {name: images a second}.

    low: the kinds that may gain from bfloat16. An engine that is not in `errors` is not here. Returns the names of
    those that ran.
    """
    ran = []

    def build(kind, arithmetic, *_):
        if (name := f"{kind} {arithmetic.name}") not in errors:
            raise NotHere(name)
        return FakeEngine(name, errors[name])

    features = engines._features

    def run(engine, images):
        ran.append(engine.name)
        return features(engine, images)

    monkeypatch.setattr(engines, "available", lambda device: ["openvino", "torch"])
    monkeypatch.setattr(engines, "gains_from_bfloat16", lambda kind, device: kind in low)
    monkeypatch.setattr(engines, "build_engine", build)
    monkeypatch.setattr(EngineChoice, "reference", lambda self: FakeEngine("torch float32", 0))
    monkeypatch.setattr(engines, "_features", run)
    monkeypatch.setattr(engines, "_gain", lambda engine, other, images: speeds[engine.name] / speeds[other.name])
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
    assert engines.suffices({"cosine": 0.99995, "error": 1e-6} | change, precision) is passes


def test_fidelity_of_equal_opposite_and_broken_features():
    features = np.random.default_rng(0).normal(size=(30, 8))
    same = engines.measure_fidelity(features, features)
    assert (round(same["cosine"], 9), same["error"]) == (1, 0)
    assert engines.measure_fidelity(features, -features)["cosine"] == pytest.approx(-1)
    broken = features.copy()
    broken[7] = 0
    assert engines.measure_fidelity(features, broken)["cosine"] == 0


LOW = [
    f"{kind} {name}" for kind in ("openvino", "torch") for name in ("bfloat16", *(AFTER.format(n) for n in (1, 3, 5)))
]
IN_FLOAT32 = {"openvino float32": 1e-7, "torch float32": 0.0}
SPEEDS = dict.fromkeys(LOW, 50) | {"torch float32": 10, "openvino float32": 30}


@pytest.mark.parametrize(
    ("precision", "errors", "speeds", "chosen"),
    [
        *(("float32", IN_FLOAT32, {"openvino float32": speed}, "openvino float32") for speed in (1, 9, 11, 100)),
        ("float32", IN_FLOAT32 | {"openvino float32": 1e-3}, {}, "torch float32"),
        (
            "bfloat16",
            {name: 0.001 if "after 3" in name or "after 5" in name else 0.1 for name in LOW} | IN_FLOAT32,
            {},
            f"openvino {AFTER.format(3)}",
        ),
        ("bfloat16", dict.fromkeys(LOW, 0.1) | IN_FLOAT32, {}, "openvino float32"),
        ("bfloat16", dict.fromkeys(LOW, 0.0) | IN_FLOAT32, dict.fromkeys(LOW, 38), "openvino float32"),
    ],
)
def test_the_first_engine_that_is_true_is_taken_and_bfloat16_where_it_gains(
    resnet, images, monkeypatch, precision, errors, speeds, chosen
):
    fake(monkeypatch, errors, SPEEDS | speeds)
    engine, fidelity = EngineChoice(resnet, precision, CPU, 32).choose(images)
    assert engine.name == chosen
    assert (fidelity == {}) if chosen == "torch float32" else (fidelity["cosine"] > 0.9999)


def test_where_bfloat16_gains_nothing_no_engine_tries_it(resnet, images, monkeypatch):
    ran = fake(monkeypatch, dict.fromkeys(LOW, 0.0) | IN_FLOAT32, SPEEDS, low=())
    choice = EngineChoice(resnet, "bfloat16", CPU, 32)
    assert choice.low_kinds == []
    assert "torch" in choice.kinds
    assert choice.choose(images)[0].precision == "float32"
    assert [name for name in ran if "bfloat16" in name] == []


@pytest.mark.processor
def test_on_this_machine_too_an_engine_in_bfloat16_is_chosen_or_one_in_float32(resnet, images):
    engine, _ = EngineChoice(resnet, "bfloat16", CPU, 32).choose(images)
    assert engine.precision == ("bfloat16" if "bfloat16" in engine.name else "float32")


def test_an_engine_is_found_again_by_its_name_and_one_that_is_not_there_is_one_sentence(resnet, monkeypatch):
    monkeypatch.setattr(engines, "fast_bfloat16", lambda device: True)
    chosen = EngineChoice(resnet, "bfloat16", CPU, 32)
    for name in ("torch bfloat16 after 3 layers in float32", "torch float32"):
        assert chosen.named(name).name == name
    assert chosen.named("torch float64") is None
    assert EngineChoice(resnet, "float32", CPU, 32, "torch").named("openvino float32") is None
    monkeypatch.setattr(engines, "fast_bfloat16", lambda device: False)
    assert EngineChoice(resnet, "bfloat16", CPU, 32).named("torch bfloat16") is None
    monkeypatch.setattr(engines, "available", lambda device: ["torch"])
    missing = "the engine openvino .* on cpu: install it with `pip install"
    refuses(missing, EngineChoice, resnet, "float32", CPU, 32, "openvino")
    assert EngineChoice(resnet, "float32", CPU, 32).kinds == ["torch"]


class Slow(FakeEngine):
    """Takes its time, and three times as long while the machine is busy."""

    def __init__(self, seconds, clock):
        super().__init__("torch float32", 0)
        self.seconds, self.clock = seconds, clock

    def features(self, images):
        self.clock[0] += self.seconds * (3 if self.clock[0] < 4 else 1)
        return super().features(images)


def test_the_gain_of_an_engine_is_the_same_on_a_machine_that_was_busy_for_a_while(images, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(engines.time, "perf_counter", lambda: clock[0])
    images = images.repeat(8, 1, 1, 1)
    assert engines._gain(Slow(0.25, clock), Slow(1.0, clock), images) == pytest.approx(4)
