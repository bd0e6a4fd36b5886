import errno
import sys

import numpy as np
import pytest
import torch
from fabricate import fails_with, refuses
from PIL import Image
from safetensors.torch import save_file

from extract.backbones import load_backbone, preprocessing_of

timm = pytest.importorskip("timm", reason="the extra `timm` is not installed")
huggingface_hub = pytest.importorskip("huggingface_hub", reason="the extra `timm` is not installed")


def images(n=2, size=64):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_its_resnet18_equals_that_of_torchvision(tmp_path):
    theirs = load_backbone("timm:resnet18", "random", 0, 64)
    torch.save(theirs.module.state_dict(), tmp_path / "w.pth")
    expected = load_backbone("resnet18", str(tmp_path / "w.pth"), 0, 64).features(images())
    assert (theirs.features(images()) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (theirs.name, theirs.feature_dim, theirs.random_seed) == ("timm:resnet18", 512, 0)
    torch.save(timm.create_model("resnet18", num_classes=3).state_dict(), tmp_path / "fine-tuned.pth")
    assert load_backbone("timm:resnet18", str(tmp_path / "fine-tuned.pth"), 0, 64).feature_dim == 512


def test_the_preprocessing_is_that_of_its_data_config():
    found = preprocessing_of("timm:vit_small_patch14_dinov2.lvd142m")
    assert (found.image_size, found.resize, found.interpolation) == (518, 518, "bicubic, antialiased")
    found = preprocessing_of("timm:resnet18.a1_in1k")
    config = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg("resnet18.a1_in1k").to_dict())
    transform = timm.data.create_transform(**config, is_training=False)
    picture = np.random.default_rng(0).integers(256, size=(20, 30, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(picture).resize((400, 300)))
    expected = transform(Image.fromarray(picture))
    # theirs rounds to 8 bits after each of two passes
    assert (found([picture])[0, 0] - expected).abs().max() < 2.5 / 255 / min(found.std)
    assert list(found.mean) == list(config["mean"])


def test_a_transformer_takes_other_sizes_than_its_own():
    backbone = load_backbone("timm:vit_tiny_patch16_224", "random", 0, 64)
    assert backbone.feature_dim == 192
    assert backbone.features(images()).shape == (2, 192)


def test_an_unknown_model_is_named_and_without_timm_it_says_what_to_install(monkeypatch):
    refuses('unknown model of timm "resnet81": did you mean', load_backbone, "timm:resnet81", "random", 0)
    refuses("no_such_tag", load_backbone, "timm:resnet18.no_such_tag", "random", 0)
    monkeypatch.setitem(sys.modules, "timm", None)
    refuses("pip install timm", load_backbone, "timm:resnet18", "random", 0)


def test_without_a_network_the_weights_can_be_given_as_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fails_with(errno.EHOSTUNREACH))
    offline = r"cannot be downloaded \(.*No route to host\): get .* by hand and give it with --weights"
    refuses(offline, load_backbone, "timm:resnet18", "pretrained", 0, 64)
    path = tmp_path / "model.safetensors"
    save_file(timm.create_model("resnet18").state_dict(), path)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: str(path))
    fetched = load_backbone("timm:resnet18", "pretrained", 0, 64)
    assert torch.equal(fetched.features(images()), load_backbone("timm:resnet18", str(path), 0, 64).features(images()))
