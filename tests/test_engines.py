import numpy as np
import pytest
import torch
import torchvision

from extract import engines
from extract.backbones import Backbone, load_backbone
from extract.engines import (
    NotHere,
    OpenVinoEngine,
    TorchEngine,
    available,
    bfloat16,
    build_engine,
    float32,
    gains_from_bfloat16,
)

CPU = torch.device("cpu")
needs_openvino = pytest.mark.skipif("openvino" not in available(CPU), reason="openvino is not installed (extra: fast)")


@pytest.fixture(scope="module")
def resnet():
    return load_backbone("resnet18", "random", 0, 32)


@pytest.fixture(scope="module")
def images():
    return torch.randn(21, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def run(engine, images):
    return engine.features(engine.upload(images))


def relative_error(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


def test_the_reference_is_the_backbone(resnet, images):
    engine = TorchEngine(float32(resnet), CPU)
    assert engine.name == "torch float32"
    assert relative_error(run(engine, images), resnet.features(images).numpy()) < 1e-6


@needs_openvino
def test_openvino_in_float32_equals_the_reference_whatever_the_batch(resnet, images):
    engine = OpenVinoEngine(float32(resnet), 32)
    assert engine.name == "openvino float32"
    expected = resnet.features(images).numpy()
    assert relative_error(run(engine, images), expected) < 1e-5  # 16 + 5: a whole chunk and a part of one
    assert relative_error(run(engine, images[:1]), expected[:1]) < 1e-5


@pytest.mark.parametrize("kind", ["torch", pytest.param("openvino", marks=needs_openvino)])
def test_features_of_several_layers_are_those_of_the_reference(images, kind):
    backbone = load_backbone("resnet18", "random", 0, 32, ("last", "layer3"))
    engine = TorchEngine(float32(backbone), CPU) if kind == "torch" else OpenVinoEngine(float32(backbone), 32)
    expected = backbone.features(images).numpy()
    assert expected.shape == (21, 768)
    for part in (slice(0, 512), slice(512, 768)):
        assert relative_error(run(engine, images)[:, part], expected[:, part]) < 1e-5


@pytest.mark.parametrize("kind", ["torch", pytest.param("openvino", marks=needs_openvino)])
def test_first_layers_in_float32_bring_bfloat16_nearer(resnet, images, kind):
    if kind == "openvino" and not gains_from_bfloat16(kind, CPU):
        pytest.skip("OpenVINO does not execute bfloat16 on this processor")
    expected = resnet.features(images).numpy()
    errors = []
    for _, arithmetic in zip(range(3), bfloat16(resnet), strict=False):
        engine = TorchEngine(arithmetic, CPU) if kind == "torch" else OpenVinoEngine(arithmetic, 32)
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
    assert names[:4] == ["bfloat16", *(f"bfloat16 after {n} layers in float32" for n in (1, 3, 5))]


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


def test_a_network_that_cannot_be_traced_is_taken_as_a_whole():
    class Branching(torch.nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    names = [arithmetic.name for arithmetic in bfloat16(Backbone("branching", Branching(), {"last": 3}, "", ""))]
    assert names == ["bfloat16"]
