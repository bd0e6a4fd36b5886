import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from fabricate import of_split, refuses, relative_error

from common.files import exclusive
from common.images import pixel_digest
from common.store_partial import partial_folder
from common.synthetic import make_images
from extract import batches, engines
from extract.batches import Extraction, ahead
from extract.engines import EngineChoice
from extract.pipeline import extract, identity, readable
from extract.preprocessing import Preprocessing
from extract.sources import load_source

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return load_source("imagefolder", make_images(tmp_path_factory.mktemp("images")))


@pytest.fixture
def extraction(source, resnet):
    return Extraction(source, resnet, Preprocessing(32), "float32", {"asked": 1}, 16, CPU, "torch")


def test_every_image_has_one_row_in_the_order_of_the_source(extraction, source, tmp_path, capsys):
    store = extract(extraction, tmp_path / "s.h5")
    assert re.search(r"66 images in .* s \(.*/s\); busy: reading .*%, .* set the pace", capsys.readouterr().err)
    assert store.features.shape == (1, len(source), 512) == (1, 66, 512)
    for row in (0, 17, 35, 36, 65):
        image = source.image(row)
        expected = extraction.backbone.features(extraction.preprocessing([image])[0]).numpy()
        assert relative_error(store.features[:, row], expected) < 1e-5
        assert store.image_sha256[row].tobytes() == pixel_digest(image)
    assert store.labels.tolist() == [0] * 12 + [1] * 12 + [2] * 12 + [0] * 10 + [1] * 10 + [2] * 10
    assert store.class_names == ["class0", "class1", "class2"]
    assert store.image_index.tolist() == [*range(36), *range(30)]
    assert store.thumbnails.shape == (66, 32, 32, 3)
    store.verify()


def test_the_batch_size_changes_nothing_but_rounding(extraction, tmp_path):
    jobs = {size: replace(extraction, batch_size=size) for size in (66, 1, 7)}
    whole, *others = (extract(job, tmp_path / f"{size}.h5").features for size, job in jobs.items())
    assert all(relative_error(other, whole) < 1e-5 for other in others)


def test_the_cached_route_equals_the_network_inside_the_model(extraction, source, tmp_path):
    """Phase 1: raw images (B, 10, 3, 224, 224) through the network, against features (B, 10, 512) of the store."""
    extraction = replace(extraction, preprocessing=Preprocessing(224))
    store = extract(extraction, tmp_path / "s.h5")
    rows = np.random.default_rng(0).integers(36, size=(2, 10))
    images = [of_split(source, "train").image(row) for row in rows.ravel()]
    raw = extraction.preprocessing(images)[0].reshape(2, 10, 3, 224, 224)
    inside = extraction.backbone.features(raw.flatten(0, 1)).reshape(2, 10, 512)
    assert relative_error(store.features[0][rows], inside.numpy()) < 1e-5


def test_views_lie_on_their_axis(extraction, tmp_path):
    both = replace(extraction, preprocessing=Preprocessing(32, ("plain", "mirror")))
    store = extract(both, tmp_path / "two.h5")
    assert store.views == ["plain", "mirror"]
    plain = extract(extraction, tmp_path / "one.h5")
    assert (store.features[0] == plain.features[0]).all()
    assert relative_error(store.features[1], plain.features[0]) > 1e-3


@pytest.fixture
def in_bfloat16(monkeypatch):
    """Whatever this processor has, torch in bfloat16 is chosen where it is allowed."""
    name, chosen = "torch bfloat16 after 3 layers in float32", []

    def choose(self, sample):
        chosen.append(sample.shape)
        return self.named(name) or self.reference(), {"cosine": 1.0, "error": 0.0}

    monkeypatch.setattr(engines, "fast_bfloat16", lambda device: True)
    monkeypatch.setattr(engines, "MIN_GAIN", 0)
    monkeypatch.setattr(EngineChoice, "choose", choose)
    return name, chosen


def test_bfloat16_is_stored_as_half_precision_and_stays_close(extraction, tmp_path, in_bfloat16):
    half = extract(replace(extraction, precision="bfloat16"), tmp_path / "half.h5")
    assert (half.features.dtype, half.identity["precision"]) == (np.float16, "bfloat16")
    full = extract(extraction, tmp_path / "full.h5")
    assert full.features.dtype == np.float32
    assert relative_error(half.features.astype("f4"), full.features) < 0.05
    assert half.identity_sha256 != full.identity_sha256


def test_where_bfloat16_gains_nothing_it_is_not_tried_and_the_store_says_float32(
    extraction, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(engines, "fast_bfloat16", lambda device: False)
    monkeypatch.setattr(engines, "MIN_GAIN", 0)
    job = replace(extraction, precision="bfloat16", request={"precision": "bfloat16"})
    monkeypatch.setattr(engines, "bfloat16", lambda backbone: pytest.fail("tried"))
    store = extract(job, tmp_path / "s.h5")
    assert capsys.readouterr().err.count("using float32: bfloat16 is not faster on this machine") == 1
    assert store.identity == extract(extraction, tmp_path / "full.h5").identity
    assert (store.identity["precision"], store.features.dtype) == ("float32", np.float32)
    assert "bfloat16" not in store.header["provenance"]["engine"]
    assert store.header["provenance"]["request"] == {"precision": "bfloat16"}  # so it is up to date


def test_for_few_images_no_engine_is_chosen(extraction, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(EngineChoice, "choose", lambda self, sample: pytest.fail("chosen"))
    few = replace(extraction, precision="bfloat16", engine="auto")
    assert extract(few, tmp_path / "s.h5").identity["precision"] == "float32"
    assert "for 66 images, finding a faster engine takes longer than it saves" in capsys.readouterr().err


def test_the_identity_follows_pixels_and_weights_not_paths(extraction, tmp_path):
    first = extract(extraction, tmp_path / "a.h5")
    moved = replace(extraction, source=load_source("imagefolder", make_images(tmp_path / "copy")))
    assert extract(moved, tmp_path / "b.h5").identity == first.identity == identity(*readable(moved))
    other = load_source("imagefolder", make_images(tmp_path / "other", seed=1))
    assert identity(*readable(replace(extraction, source=other))) != first.identity


@pytest.fixture
def interrupt(monkeypatch):
    """Stop the extraction before the batches that are counted so; the first rows of the batches, as they come."""
    seen, numbers, real = [], [], batches.features_of

    def interrupted(job, engine, views, start):
        seen.append(start)
        if len(seen) in numbers:
            raise KeyboardInterrupt
        return real(job, engine, views, start)

    monkeypatch.setattr(batches, "features_of", interrupted)
    return seen, numbers


def test_a_resumed_extraction_keeps_its_engine_whatever_would_be_chosen_now(
    extraction, tmp_path, interrupt, in_bfloat16
):
    half = replace(extraction, precision="bfloat16", engine="auto")
    name, chosen = in_bfloat16
    whole = extract(half, tmp_path / "whole.h5")
    assert (whole.header["provenance"]["engine"], whole.header["provenance"]["fidelity"]["cosine"]) == (name, 1.0)
    seen, numbers = interrupt
    numbers.append(len(seen) + 3)
    with pytest.raises(KeyboardInterrupt):
        extract(half, tmp_path / "s.h5")
    assert chosen == [(36, 3, 32, 32)] * 2
    assert extract(half, tmp_path / "s.h5").path.read_bytes() == whole.path.read_bytes()
    assert len(chosen) == 2  # the resumed run did not choose again


def test_features_that_are_not_finite_are_refused_and_nothing_is_left_in_place(extraction, tmp_path):
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 512))
    torch.nn.init.constant_(module[1].bias, float("inf"))
    broken = replace(extraction, backbone=replace(extraction.backbone, module=module))
    refuses("non-finite features at images 0 to 15", extract, broken, tmp_path / "s.h5")
    assert not (tmp_path / "s.h5").exists()


def test_a_second_extraction_beside_a_running_one_is_refused(extraction, tmp_path):
    target = tmp_path / "s.h5"
    with exclusive(partial_folder(target), "held"):
        refuses(r"another extraction is writing .*s\.h5", extract, extraction, target)


def test_working_ahead_keeps_the_order_and_passes_on_errors():
    seen = []
    with pytest.raises(ZeroDivisionError):
        for item in ahead(lambda item: 1 / item, [4, 2, 1, 0, 5]):
            seen.append(item)
    assert seen == [0.25, 0.5, 1]
