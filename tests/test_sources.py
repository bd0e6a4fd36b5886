import hashlib
import pickle
import tarfile
import urllib.error
import urllib.request

import numpy as np
import pytest
import torchvision
from PIL import Image

from common.errors import UserError
from common.synthetic import make_images
from extract.cifar import CIFAR100_SUPERCLASSES, superclasses_of
from extract.sources import fingerprint, load_source, pixel_digest


def test_digits_are_whole_and_in_two_disjoint_splits():
    source = load_source("digits", None)
    images = {
        name: [split.image(i).tobytes() for i in range(len(split.labels))] for name, split in source.splits.items()
    }
    assert len(images["train"]) + len(images["test"]) == 1797
    assert len(images["test"]) == 364
    assert source.splits["test"].image(0).shape == (8, 8, 3)
    assert source.splits["test"].image(0).dtype == np.uint8
    assert source.splits["test"].labels[:10].tolist() == list(range(10))


def test_a_folder_is_read_in_alphabetical_order(tmp_path):
    source = load_source("imagefolder", make_images(tmp_path))
    assert source.class_names == ["class0", "class1", "class2"]
    assert source.splits["train"].labels.tolist() == [0] * 12 + [1] * 12 + [2] * 12
    with Image.open(tmp_path / "test/class1/003.png") as image:
        assert (source.splits["test"].image(13) == np.asarray(image)).all()


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_any_kind_of_image_becomes_rgb(tmp_path, mode):
    make_images(tmp_path)
    suffix = "jpg" if mode == "CMYK" else "png"
    Image.new(mode, (9, 5)).save(tmp_path / f"train/class0/0000.{suffix}")
    image = load_source("imagefolder", tmp_path).splits["train"].image(1)
    assert image.shape == (5, 9, 3)
    assert image.dtype == np.uint8


def test_what_is_no_image_is_left_out(tmp_path):
    make_images(tmp_path)
    (tmp_path / "train/class0/notes.txt").write_text("x")
    (tmp_path / "train/.cache").mkdir()
    assert len(load_source("imagefolder", tmp_path).splits["train"].labels) == 36


def broken(edit):
    def make(root):
        make_images(root)
        edit(root)

    return make


def remove(folder):
    for file in sorted(folder.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    folder.rmdir()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "has no train/ folder"),
        (broken(lambda root: remove(root / "test")), "has no test/ folder"),
        (broken(lambda root: remove(root / "test/class1")), '"class1" is in one only'),
        (broken(lambda root: (root / "test/class1/000.png").unlink()), r'9 image\(s\) of class "class1" in its test'),
        (lambda root: make_images(root, classes=1), r"has 1 class\(es\): sets need at least 2"),
    ],
)
def test_a_folder_that_cannot_make_sets_is_refused(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        load_source("imagefolder", tmp_path)
    assert str(tmp_path) in caught.value.message


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"there is no image folder at .*nowhere"):
        load_source("imagefolder", tmp_path / "nowhere")


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_an_unreadable_image_is_named(tmp_path, content):
    make_images(tmp_path)
    file = tmp_path / "train/class0/000.png"
    file.write_bytes(file.read_bytes()[:200] if content is None else content)
    with pytest.raises(UserError, match=r"cannot read the image .*class0/000\.png"):
        load_source("imagefolder", tmp_path).splits["train"].image(0)


def test_the_fingerprint_follows_the_files(tmp_path):
    make_images(tmp_path)
    before = fingerprint("imagefolder", tmp_path)
    assert fingerprint("imagefolder", tmp_path) == before
    (tmp_path / "train/class0/000.png").rename(tmp_path / "train/class0/zzz.png")
    assert fingerprint("imagefolder", tmp_path) != before


def test_the_pixel_digest_sees_shape_and_content():
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert pixel_digest(image) == hashlib.sha256(b"(2, 4, 3)" + bytes(range(24))).digest()
    assert pixel_digest(image.reshape(4, 2, 3)) != pixel_digest(image)


def test_cifar100_has_twenty_superclasses_of_five():
    fine = [name for names in CIFAR100_SUPERCLASSES.values() for name in names.split()]
    assert len(set(fine)) == 100
    names, of_class = superclasses_of(sorted(fine))
    # The published ids, in the alphabetical order of the fine classes
    assert of_class[:10] == [4, 1, 14, 8, 0, 6, 7, 7, 18, 3]
    assert of_class[-5:] == [0, 17, 8, 14, 13]
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
    remove(inside)
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
    assert source.splits["train"].image(3).shape == (32, 32, 3)
    assert source.splits["test"].labels.tolist() == [0, 1] * 12
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", FAKES)
def test_without_a_network_the_archive_can_be_put_there_by_hand(name, tmp_path, monkeypatch):
    archive = fake_archive(name, tmp_path / "server", monkeypatch)
    data_set = getattr(torchvision.datasets, FAKES[name][0])

    def no_network(*_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(data_set, "url", "https://example.invalid/archive.tar.gz")
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(UserError) as caught:
        load_source(name, tmp_path / "data")
    place = tmp_path / "data" / data_set.filename
    for part in (data_set.url, data_set.tgz_md5, str(place)):
        assert part in caught.value.message
    archive.rename(place)
    assert len(load_source(name, tmp_path / "data").splits["train"].labels) == 40


def test_both_routes_to_cifar100_know_its_superclasses(tmp_path):
    fine = sorted(name for names in CIFAR100_SUPERCLASSES.values() for name in names.split())
    for split in ("train", "test"):
        for name in fine:
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(10):
                (tmp_path / split / name / f"{i}.png").touch()
    assert load_source("imagefolder", tmp_path).superclasses() == superclasses_of(fine)
