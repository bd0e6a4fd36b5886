import errno
import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torchvision
from fabricate import fails_with, refuses

from extract.backbones import HookedLayers, PooledLayers, load_backbone, parse_layers, preprocessing_of
from extract.preprocessing import Preprocessing


def images(n=2, size=32):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "feature_dim"),
    [("resnet18", 512), ("mobilenet_v3_small", 1024), ("squeezenet1_0", 512), ("shufflenet_v2_x0_5", 1024)],
)
def test_the_feature_dim_of_any_classification_model_is_found(name, feature_dim):
    backbone = load_backbone(name, "random", 0, 64)
    assert backbone.feature_dim == feature_dim
    assert backbone.features(images(size=64)).shape == (2, feature_dim)


def test_the_features_are_what_the_classifier_gets(resnet):
    reference = torchvision.models.resnet18()
    reference.load_state_dict({**reference.state_dict(), **resnet.module.state_dict()})
    seen = []
    reference.fc.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        reference.eval()(images())
    torch.testing.assert_close(resnet.features(images()), seen[0], rtol=1e-4, atol=1e-4)


def test_other_layers_stand_behind_the_last_as_their_means_over_space(resnet):
    backbone = load_backbone("resnet18", "random", 0, 32, ("last", "layer3", "layer1"))
    assert (backbone.layers, backbone.feature_dim) == ({"last": 512, "layer3": 256, "layer1": 64}, 832)
    seen = {}

    def hook(name):
        keep = lambda module, inputs, output: seen.update({name: output.mean((2, 3))})  # noqa: E731
        return resnet.module.get_submodule(name).register_forward_hook(keep)

    hooks = [hook("layer3"), hook("layer1")]
    plain, found = resnet.features(images()), backbone.features(images())
    for hook in hooks:
        hook.remove()
    expected = torch.cat([plain, seen["layer3"], seen["layer1"]], 1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert backbone.weights_sha256 == resnet.weights_sha256
    assert not any(parameter.requires_grad for parameter in backbone.module.parameters())
    assert not any(module.training for module in backbone.module.modules() if isinstance(module, torch.nn.BatchNorm2d))


def test_layers_are_named_once_last_first():
    assert parse_layers("last") == ("last",)
    assert parse_layers("last, layer3") == ("last", "layer3")
    for text in ("layer3", "layer3,last", "last,last", "last,layer3,layer3", ""):
        refuses('must begin with "last" and name each layer once', parse_layers, text)


@pytest.mark.parametrize(
    ("name", "size", "layers", "message"),
    [
        ("resnet81", 32, (), 'unknown backbone "resnet81": did you mean'),
        ("tim:resnet18", 32, (), 'unknown kind of backbone "tim": did you mean "timm"'),
        ("vit_b_32", 64, (), "vit_b_32 does not take images of 64×64"),
        ("resnet18", 32, ("layr3",), 'unknown layer of resnet18 "layr3": did you mean "layer3"'),
        ("resnet18", 32, ("layer3.2",), 'unknown layer of resnet18 "layer3.2": did you mean "layer3.1"'),
        ("resnet18", 32, ("fc",), "not all of the layers last, fc of resnet18 are maps of pixels, or tokens: choose"),
    ],
)
def test_what_cannot_be_had_is_an_error_that_says_so(name, size, layers, message):
    assert message in refuses("", load_backbone, name, "random", 0, size, ("last", *layers))


def test_frozen_means_frozen(resnet):
    before = {key: value.clone() for key, value in resnet.module.state_dict().items()}
    assert not resnet.features(images(8)).requires_grad
    assert not any(module.training for module in resnet.module.modules())
    assert not any(parameter.requires_grad for parameter in resnet.module.parameters())
    after = resnet.module.state_dict()
    assert any("running_var" in key for key in after)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_random_weights_come_from_their_seed_in_any_thread_and_leave_the_global_generator(resnet):
    state = torch.random.get_rng_state()
    other = load_backbone("resnet18", "random", 1, 32)
    assert resnet.weights_sha256 != other.weights_sha256
    assert (resnet.random_seed, other.random_seed) == (0, 1)
    with ThreadPoolExecutor(4) as pool:
        again = pool.map(lambda _: load_backbone("resnet18", "random", 0, 32).weights_sha256, range(8))
        assert set(again) == {resnet.weights_sha256}
    assert torch.equal(torch.random.get_rng_state(), state)


def test_weights_of_a_file_are_loaded_and_digested(tmp_path):
    path = tmp_path / "w.pth"
    state = torchvision.models.resnet18().state_dict()
    torch.save({key: value for key, value in state.items() if "num_batches" not in key}, path)
    backbone = load_backbone("resnet18", str(path), 0, 32)
    assert torch.equal(backbone.module.state_dict()["layer1.0.conv1.weight"], state["layer1.0.conv1.weight"])
    assert backbone.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (backbone.random_seed, backbone.note) == (None, "")


def test_the_preprocessing_is_that_which_the_weights_name():
    plain = Preprocessing()
    assert preprocessing_of("resnet18") == plain
    assert "resize" not in plain.as_json()
    named = preprocessing_of("resnet50")
    transforms = torchvision.models.ResNet50_Weights.DEFAULT.transforms()
    assert (named.resize, named.image_size) == (transforms.resize_size[0], transforms.crop_size[0]) == (232, 224)
    assert named.as_json()["resize"] == 232
    assert preprocessing_of("resnet50", 112).resize == 116
    bicubic = preprocessing_of("efficientnet_b0")
    assert bicubic.interpolation == "bicubic, antialiased"
    picture = np.random.default_rng(0).integers(256, size=(300, 400, 3), dtype=np.uint8)
    for name, preprocessing in (("ResNet50", named), ("EfficientNet_B0", bicubic)):
        reference = getattr(torchvision.models, f"{name}_Weights").DEFAULT.transforms()
        expected = reference(torch.from_numpy(picture).permute(2, 0, 1) / 255)
        mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
        # torchvision does not cut off what bicubic overshoots in floats
        expected = torch.minimum(torch.maximum(expected, -mean / std), (1 - mean) / std)
        torch.testing.assert_close(preprocessing([picture])[0, 0], expected, rtol=1e-4, atol=1e-4)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """torchvision's weights of resnet18, faked: a file whose name carries its digest, and an empty cache."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    path = tmp_path / "weights.pth"
    torch.save(torchvision.models.resnet18().state_dict(), path)
    named = tmp_path / f"resnet18-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth"
    path.rename(named)
    weights = torchvision.models.ResNet18_Weights.DEFAULT
    object.__setattr__(weights.value, "url", named.as_uri())
    yield named
    object.__setattr__(weights.value, "url", "https://download.pytorch.org/models/resnet18-f37072fd.pth")


def test_imagenet_weights_are_downloaded_once_and_checked_always(server, tmp_path):
    first = load_backbone("resnet18", "torchvision", 0, 32)
    server.unlink()
    assert first.weights_sha256 == load_backbone("resnet18", "torchvision", 0, 32).weights_sha256
    cached = tmp_path / "hub/checkpoints" / server.name
    cached.write_bytes(cached.read_bytes()[:-1])
    refuses(f"{cached.name} is damaged", load_backbone, "resnet18", "torchvision", 0, 32)


def test_without_a_network_the_weights_can_be_put_there_by_hand(server, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.hub.urlopen", fails_with(errno.ENETUNREACH))
    place = tmp_path / "hub/checkpoints" / server.name
    said = refuses("", load_backbone, "resnet18", "torchvision", 0, 32)
    assert server.as_uri() in said
    assert str(place) in said
    server.rename(place)
    assert load_backbone("resnet18", "torchvision", 0, 32).feature_dim == 512


class Branching(torch.nn.Module):
    """A network whose way depends on its input, so that it cannot be traced: maps, then tokens."""

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 4, 4, 4)
        self.encoder = torch.nn.Linear(4, 6)

    def forward(self, images):
        maps = self.stem(images)
        if maps.sum() > 1e9:
            maps = -maps
        return self.encoder(maps.flatten(2).transpose(1, 2))[:, 0]


def test_layers_of_a_network_that_cannot_be_traced_are_caught_as_they_are_made():
    network = Branching().eval()
    pooled = PooledLayers(network, "branching", ("stem", "encoder")).eval()
    assert isinstance(pooled.network, HookedLayers)
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    maps = network.stem(images)
    tokens = network.encoder(maps.flatten(2).transpose(1, 2))
    torch.testing.assert_close(pooled(images), torch.cat([tokens[:, 0], maps.mean((2, 3)), tokens.mean(1)], 1))
    assert not network.stem._forward_hooks
