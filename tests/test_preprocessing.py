import numpy as np
import pytest
import torch
from fabricate import refuses
from torch.nn import functional
from torchvision import transforms

from extract.preprocessing import IMAGENET_MEAN, IMAGENET_STD, VIEWS, Preprocessing, parse_views


def image(height, width, seed=0):
    return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


def test_a_batch_may_mix_sizes_and_keeps_their_order():
    pictures = [image(20, 20, 1), image(30, 20, 2), image(20, 20, 3), image(20, 20, 4)]
    preprocessing = Preprocessing(16, ("plain", "mirror"))
    batch = preprocessing(pictures)
    assert batch.shape == (2, 4, 3, 16, 16)
    for number, picture in enumerate(pictures):
        torch.testing.assert_close(batch[:, number : number + 1], preprocessing([picture]))


# Where each crop lies in an image of 32 × 32 pixels, and of 40 × 64
CROPS = {
    "zoom": ((slice(2, 30), slice(2, 30)), (slice(2, 37), slice(4, 60))),
    "upper-left": ((slice(0, 28), slice(0, 28)), (slice(0, 35), slice(0, 56))),
    "upper-right": ((slice(0, 28), slice(4, 32)), (slice(0, 35), slice(8, 64))),
    "lower-left": ((slice(4, 32), slice(0, 28)), (slice(5, 40), slice(0, 56))),
    "lower-right": ((slice(4, 32), slice(4, 32)), (slice(5, 40), slice(8, 64))),
}


@pytest.mark.parametrize("name", ["plain", *CROPS])
def test_a_crop_takes_seven_eighths_of_the_image_at_its_place_and_may_be_mirrored(name):
    mirror = "mirror" if name == "plain" else f"{name}-mirror"
    preprocessing = Preprocessing(24, ("plain", name, mirror))
    for picture, place in zip((image(32, 32), image(40, 64)), CROPS.get(name, (..., ...)), strict=True):
        _, crop, mirrored = preprocessing([picture])[:, 0]
        torch.testing.assert_close(crop, Preprocessing(24)([picture[place]])[0, 0])
        torch.testing.assert_close(mirrored, Preprocessing(24)([picture[place][:, ::-1].copy()])[0, 0])


def test_views_are_crops_and_mirror_images_named_once_plain_first():
    assert parse_views("plain,mirror") == ("plain", "mirror")
    assert parse_views("plain, lower-right-mirror") == ("plain", "lower-right-mirror")
    refuses('unknown view "miror": did you mean "mirror"', parse_views, "plain,miror")
    for text in ("mirror", "plain,plain", "mirror,plain"):
        refuses('must begin with "plain"', parse_views, text)
    assert set(VIEWS) == {"plain", "mirror", *CROPS, *(f"{name}-mirror" for name in CROPS)}


@pytest.mark.parametrize(("height", "width"), [(64, 64), (30, 50), (65, 64), (400, 300), (200, 1300), (1900, 150)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_images_of_any_size_are_resized_as_torch_does_it(height, width, interpolation):
    picture = image(height, width)
    resize = (56 * height // min(height, width), 56 * width // min(height, width))
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    whole = functional.interpolate(pixels, resize, mode=interpolation, antialias=True).clamp(0, 255)
    expected = transforms.functional.center_crop(whole, [48, 48])
    views = ("plain", "mirror")
    found = Preprocessing(48, views, f"{interpolation}, antialiased", mean=(0,) * 3, std=(1,) * 3, resize=56)([picture])
    torch.testing.assert_close(found[0] * 255, expected, rtol=1e-5, atol=1e-3)


def test_a_large_image_is_resized_in_strips_to_the_same_bits(monkeypatch):
    picture = image(300, 200)
    expected = Preprocessing(48)([picture])
    for pixels in (1, 7_000, 1 << 30):
        monkeypatch.setattr("extract.preprocessing.STRIP_PIXELS", pixels)
        assert torch.equal(Preprocessing(48)([picture]), expected)


def test_the_least_side_and_the_identity_are_those_of_every_view():
    assert Preprocessing(224).least_side() == 756
    assert Preprocessing(224, ("plain", "mirror"), resize=256).least_side() == 864
    assert Preprocessing(224, ("plain", "zoom")).least_side() * 7 / 8 >= 756
    assert list(Preprocessing(32).as_json()) == ["image_size", "views", "interpolation", "crop", "mean", "std"]
    assert Preprocessing(32, resize=36).as_json()["resize"] == 36


@pytest.mark.parametrize("shape", [(2, 20_000), (20_000, 2), (1, 5_000), (1, 5_000_000)])
def test_the_memory_for_an_elongated_image_is_bounded_by_the_output(shape):
    # The whole resized image would have up to 75 thousand million pixels
    pixels = np.zeros((*shape, 3), np.uint8)
    pixels[...] = 100
    expected = (100 / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    found = Preprocessing(64)([pixels])[0, 0]
    torch.testing.assert_close(found.mean((1, 2)).double(), torch.from_numpy(expected), rtol=1e-4, atol=1e-4)


def test_squashing_takes_the_whole_image_whatever_its_ratio():
    picture = image(30, 90)
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    expected = functional.interpolate(pixels, (24, 24), mode="bilinear", antialias=True)
    found = Preprocessing(24, crop="squash", mean=(0, 0, 0), std=(1, 1, 1))([picture])[0] * 255
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
