import errno
import hashlib
import pickle
import shutil
import tarfile
import urllib.request

import numpy as np
import pytest
import torchvision
from fabricate import fails_with, of_split, refuses

from common.images import pixel_digest
from extract.cifar import CIFAR100_SUPERCLASSES, superclasses_of
from extract.features import Request
from extract.sources import load_source, source_kind, split_by_class


def test_digits_are_whole_and_in_two_disjoint_splits():
    source = load_source("digits", None)
    assert [len(of_split(source, name).labels) for name in ("train", "test")] == [1433, 364]
    image = of_split(source, "test").image(0)
    assert (image.shape, image.dtype) == ((8, 8, 3), np.uint8)
    assert of_split(source, "test").labels[:10].tolist() == list(range(10))


def test_a_request_names_the_rule_only_where_files_are_decoded_by_it(tmp_path):
    def reading(dataset, **options):
        request = Request(dataset=dataset, root=tmp_path, weights="random", **options).as_json()
        return {name: value for name, value in request.items() if name == "decoding" or name in options}

    assert reading("digits") == reading("cifar100") == {}
    assert reading("imagefolder") == {"decoding": 3}
    recorded = reading("imagefolder", on_error="skip", test_fraction=0.5, max_pixels=10)
    assert recorded == {"decoding": 3, "on_error": "skip", "test_fraction": 0.5}
    for options in ({"test_fraction": 0.5}, {"max_pixels": 10}):
        refuses("do nothing for digits", reading, "digits", **options)


def test_a_split_takes_its_part_of_each_class_and_leaves_one_on_each_side():
    labels = np.repeat([0, 1, 2], [2, 10, 95])
    is_test, note = split_by_class(labels, ["a", "b", "c"], None)
    assert np.bincount(labels[is_test]).tolist() == [1, 2, 19]
    assert "20%" in note
    assert np.bincount(labels[split_by_class(labels, ["a", "b", "c"], 0.99)[0]]).tolist() == [1, 9, 94]
    # A class keeps its split when others come and go
    other, _ = split_by_class(labels[labels == 1] - 1, ["b"], None)
    assert (other == is_test[labels == 1]).all()
    assert split_by_class(np.array([0, 0, 1]), ["a", "b"], None)[0].tolist().count(True) == 1
    assert not split_by_class(np.array([0]), ["a", "b"], 0.99)[0].any(), "a single image is for training"


def test_the_pixel_digest_sees_shape_and_content():
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert pixel_digest(image) == hashlib.sha256(b"(2, 4, 3)" + bytes(range(24))).digest()
    assert pixel_digest(image.reshape(4, 2, 3)) != pixel_digest(image)


def test_cifar100_has_twenty_superclasses_of_five():
    fine = [name for names in CIFAR100_SUPERCLASSES.values() for name in names.split()]
    assert len(set(fine)) == 100
    names, of_class = superclasses_of(sorted(fine))
    # The published ids, in the alphabetical order of the fine classes
    assert (of_class[:10], of_class[-5:]) == ([4, 1, 14, 8, 0, 6, 7, 7, 18, 3], [0, 17, 8, 14, 13])
    assert np.bincount(of_class).tolist() == [5] * 20
    assert names[14] == "people"
    assert superclasses_of(["cat", "dog"]) == ([], [])


FAKES = {
    "cifar10": ("CIFAR10", ["data_batch_1"], ["test_batch"], "labels", ("batches.meta", "label_names")),
    "cifar100": ("CIFAR100", ["train"], ["test"], "fine_labels", ("meta", "fine_label_names")),
}


def fake_archive(name, folder, monkeypatch):
    """A tiny archive in the official format, served from a file, with torchvision's table of MD5s adapted."""
    class_name, train, test, key, (meta, names_key) = FAKES[name]
    data_set = getattr(torchvision.datasets, class_name)
    inside = folder / data_set.base_folder
    inside.mkdir(parents=True)
    generator = np.random.default_rng(0)

    def write(file, n):
        content = {"data": generator.integers(256, size=(n, 3072), dtype=np.uint8), key: [i % 2 for i in range(n)]}
        (inside / file).write_bytes(pickle.dumps(content))
        return [file, md5(inside / file)]

    def md5(file):
        return hashlib.md5(file.read_bytes()).hexdigest()

    monkeypatch.setattr(data_set, "train_list", [write(file, 40) for file in train])
    monkeypatch.setattr(data_set, "test_list", [write(file, 24) for file in test])
    (inside / meta).write_bytes(pickle.dumps({names_key: ["cat", "dog"]}))
    monkeypatch.setattr(data_set, "meta", {"filename": meta, "key": names_key, "md5": md5(inside / meta)})
    archive = folder / data_set.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(inside, data_set.base_folder)
    shutil.rmtree(inside)
    monkeypatch.setattr(data_set, "tgz_md5", md5(archive))
    monkeypatch.setattr(data_set, "url", archive.as_uri())

    def urlopen(*arguments, original=urllib.request.urlopen):
        response = original(*arguments)
        response.length = archive.stat().st_size  # as one of a web server has
        return response

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    return archive


@pytest.mark.parametrize("name", FAKES)
def test_cifar_is_downloaded_checked_and_unpacked_once(name, tmp_path, monkeypatch, capsys):
    archive = fake_archive(name, tmp_path / "server", monkeypatch)
    for _ in range(2):
        source = load_source(name, tmp_path / "data")
        archive.unlink(missing_ok=True)  # the second time there is nothing to download
    assert source.class_names == ["cat", "dog"]
    assert of_split(source, "train").image(3).shape == (32, 32, 3)
    assert of_split(source, "test").labels.tolist() == [0, 1] * 12
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", FAKES)
def test_without_a_network_the_archive_can_be_put_there_by_hand(name, tmp_path, monkeypatch):
    archive = fake_archive(name, tmp_path / "server", monkeypatch)
    data_set = getattr(torchvision.datasets, FAKES[name][0])

    monkeypatch.setattr(data_set, "url", "https://example.invalid/archive.tar.gz")
    monkeypatch.setattr("urllib.request.urlopen", fails_with(errno.ENETUNREACH))
    said = refuses("", load_source, name, tmp_path / "data")
    place = tmp_path / "data" / data_set.filename
    for part in (data_set.url, data_set.tgz_md5, str(place)):
        assert part in said
    archive.rename(place)
    assert len(load_source(name, tmp_path / "data").rows_of("train")) == 40


def test_the_fingerprint_of_cifar_is_that_of_its_unpacked_files(tmp_path):
    before = source_kind("cifar100").fingerprint(tmp_path)
    assert before == hashlib.sha256(b"[]").hexdigest()  # as of every version before
    (tmp_path / "cifar-100-python").mkdir()
    (tmp_path / "cifar-100-python/train").write_text("x")
    assert source_kind("cifar100").fingerprint(tmp_path) != before
