import numpy as np
import pytest
import torch
from torchvision import transforms

from common.errors import UserError
from extract.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, parse_views


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


def test_large_images_are_stacked_a_few_at_a_time(monkeypatch):
    pictures = [image(20, 20, seed) for seed in range(5)]
    whole = Preprocessing(16)(pictures)
    monkeypatch.setattr("extract.preprocessing.MAX_RUN_PIXELS", 900)
    torch.testing.assert_close(Preprocessing(16)(pictures), whole)


def test_views_are_named_once_plain_first():
    assert parse_views("plain,mirror") == ("plain", "mirror")
    with pytest.raises(UserError, match='unknown view "miror": did you mean "mirror"'):
        parse_views("plain,miror")
    for text in ("mirror", "plain,plain", "mirror,plain"):
        with pytest.raises(UserError, match='must begin with "plain"'):
            parse_views(text)
