import numpy as np
import pytest
import torch
from torchvision import transforms

from common.errors import UserError
from extract.preprocessing import IMAGENET_MEAN, IMAGENET_STD, VIEWS, Preprocessing, parse_views


def image(height, width, seed=0):
    return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(32, 32), (50, 80), (300, 90), (24, 24)])
def test_it_equals_the_transforms_of_torchvision(shape):
    expected = transforms.Compose(
        [
            transforms.ToTensor(),
            transforms.Resize(48, antialias=True),
            transforms.CenterCrop(48),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    picture = image(*shape)
    found = Preprocessing(48)([picture])[0, 0]
    torch.testing.assert_close(found, expected(picture), rtol=1e-4, atol=1e-4)


def test_a_batch_may_mix_sizes_and_keeps_their_order():
    pictures = [image(20, 20, 1), image(30, 20, 2), image(20, 20, 3), image(20, 20, 4)]
    preprocessing = Preprocessing(16, ("plain", "mirror"))
    batch = preprocessing(pictures)
    assert batch.shape == (2, 4, 3, 16, 16)
    for number, picture in enumerate(pictures):
        torch.testing.assert_close(batch[:, number : number + 1], preprocessing([picture]))


def test_the_mirror_view_is_that_of_the_mirrored_image():
    picture = image(20, 20)
    plain, mirrored = Preprocessing(32, ("plain", "mirror"))([picture])[:, 0]
    torch.testing.assert_close(mirrored, Preprocessing(32)([picture[:, ::-1].copy()])[0, 0])
    torch.testing.assert_close(mirrored, plain.flip(-1), rtol=1e-4, atol=1e-4)


# Where each crop lies in an image of 32 × 32 pixels, and of 40 × 64
CROPS = {
    "zoom": ((slice(2, 30), slice(2, 30)), (slice(2, 37), slice(4, 60))),
    "upper-left": ((slice(0, 28), slice(0, 28)), (slice(0, 35), slice(0, 56))),
    "upper-right": ((slice(0, 28), slice(4, 32)), (slice(0, 35), slice(8, 64))),
    "lower-left": ((slice(4, 32), slice(0, 28)), (slice(5, 40), slice(0, 56))),
    "lower-right": ((slice(4, 32), slice(4, 32)), (slice(5, 40), slice(8, 64))),
}


@pytest.mark.parametrize("name", CROPS)
def test_a_crop_takes_seven_eighths_of_the_image_at_its_place(name):
    preprocessing = Preprocessing(24, ("plain", name, f"{name}-mirror"))
    for picture, place in zip((image(32, 32), image(40, 64)), CROPS[name], strict=True):
        _, crop, mirrored = preprocessing([picture])[:, 0]
        torch.testing.assert_close(crop, Preprocessing(24)([picture[place]])[0, 0])
        torch.testing.assert_close(mirrored, Preprocessing(24)([picture[place][:, ::-1].copy()])[0, 0])


def test_the_views_are_the_crops_and_the_mirror_images_of_all():
    named = ["plain", *CROPS]
    assert set(VIEWS) == {*named, "mirror", *(f"{name}-mirror" for name in CROPS)}
    pixels = torch.arange(2 * 3 * 16 * 24, dtype=torch.int16).reshape(2, 3, 16, 24)
    for name in named:
        mirrored = "mirror" if name == "plain" else f"{name}-mirror"
        assert torch.equal(VIEWS[mirrored](pixels), VIEWS[name](pixels).flip(-1))


def test_large_images_are_stacked_a_few_at_a_time(monkeypatch):
    pictures = [image(20, 20, seed) for seed in range(5)]
    whole = Preprocessing(16)(pictures)
    monkeypatch.setattr("extract.preprocessing.MAX_RUN_PIXELS", 900)
    torch.testing.assert_close(Preprocessing(16)(pictures), whole)


def test_views_are_named_once_plain_first():
    assert parse_views("plain,mirror") == ("plain", "mirror")
    assert parse_views("plain, lower-right-mirror") == ("plain", "lower-right-mirror")
    with pytest.raises(UserError, match='unknown view "miror": did you mean "mirror"'):
        parse_views("plain,miror")
    for text in ("mirror", "plain,plain", "mirror,plain"):
        with pytest.raises(UserError, match='must begin with "plain"'):
            parse_views(text)
