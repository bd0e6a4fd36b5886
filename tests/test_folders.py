import os
import shutil
import socket

import numpy as np
import pytest
import torchvision
from fabricate import of_split, refuses
from PIL import Image

from common.files import OUTPUT_MARK, claim_folder
from common.images import image_suffixes
from common.synthetic import make_images
from extract.sources import UNLABELLED, Reading, left_out_line, load_source, source_kind


def noise(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(256, size=(8, 8, 3), dtype=np.uint8)).save(path)


def test_a_folder_is_read_in_alphabetical_order(tmp_path):
    source = load_source("imagefolder", make_images(tmp_path))
    assert source.class_names == ["class0", "class1", "class2"]
    assert of_split(source, "train").labels.tolist() == [0] * 12 + [1] * 12 + [2] * 12
    assert of_split(source, "test").names[13] == "test/class1/003.png"
    with Image.open(tmp_path / "test/class1/003.png") as image:
        assert (of_split(source, "test").image(13) == np.asarray(image)).all()
    assert (source.left_out, source.notes) == ([], [])


def test_nested_folders_belong_to_their_class_as_in_torchvision(tmp_path):
    for name in ("b/x.png", "b/sub/a.png", "b/sub-2/c.png", "b/sub/deep/d.jpg", "a/z.png", "a/0/y.JPEG"):
        for split in ("train", "test"):
            noise(tmp_path / split / name)
    found = of_split(load_source("imagefolder", tmp_path), "train")
    expected = torchvision.datasets.ImageFolder(tmp_path / "train").samples
    assert [(str(tmp_path / name), label) for name, label in zip(found.names, found.labels, strict=True)] == expected


def test_every_file_is_read_or_left_out_with_a_reason(tmp_path):
    make_images(tmp_path)
    for name in ("notes.txt", "more.txt", "README", "._000.png", ".DS_Store", "Thumbs.db", "x.heic", "x.jfif", "y.tga"):
        path = tmp_path / "train/class0" / name
        if path.suffix in (".jfif", ".tga"):
            Image.new("RGB", (8, 8)).save(path, "JPEG" if path.suffix == ".jfif" else None)
        else:
            path.write_bytes(b"x")
    noise(tmp_path / "train/.cache/a.png")
    noise(tmp_path / "train/__MACOSX/class0/a.png")
    noise(tmp_path / "train/stray.png")
    noise(tmp_path / "val/class0/b.png")
    os.mkfifo(tmp_path / "train/class0/pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "train/class1/s.png"))
    source = load_source("imagefolder", tmp_path)
    assert {"train/class0/x.jfif", "train/class0/y.tga"} <= set(of_split(source, "train").names)
    hidden_inside = 2  # below the hidden folders, which are named themselves
    files = sum(len(names) for _, _, names in os.walk(tmp_path))
    folders = 2
    assert len(source) + len(source.left_out) == files - hidden_inside + folders
    line = left_out_line(source.left_out)
    assert "hidden" in line
    for part in (".txt (no image format)", "1 without a suffix", "in no folder of a class", "2 no regular file"):
        assert part in line
    if ".heic" not in image_suffixes():
        assert "1 .heic (install pillow-heif)" in line
    assert source.notes == [f"val/ of {tmp_path} left out"]


def test_val_stands_in_for_a_missing_test_folder(tmp_path):
    make_images(tmp_path)
    (tmp_path / "test").rename(tmp_path / "val")
    source = load_source("imagefolder", tmp_path)
    assert of_split(source, "test").names[0] == "val/class0/000.png"
    assert "val/ is the test split" in source.notes[0]


def test_class_folders_without_a_split_are_split_by_class(tmp_path):
    make_images(tmp_path / "all", train=20, test=1)
    root = tmp_path / "all/train"
    source = load_source("imagefolder", root)
    assert np.bincount(of_split(source, "test").labels).tolist() == [4, 4, 4]
    assert not set(of_split(source, "test").names) & set(of_split(source, "train").names)
    assert of_split(source, "train").names == sorted(of_split(source, "train").names)
    again = load_source("imagefolder", root, Reading(test_fraction=0.2))
    assert of_split(again, "test").names == of_split(source, "test").names
    half = load_source("imagefolder", root, Reading(test_fraction=0.5))
    assert np.bincount(of_split(half, "test").labels).tolist() == [10, 10, 10]
    folder, reading = tmp_path / "all", Reading(test_fraction=0.2)
    refuses("has a test split, test/: leave --test-fraction out", load_source, "imagefolder", folder, reading)


def test_a_class_may_be_called_train(tmp_path):
    for name in ("train", "tractor", "val"):
        for i in range(3):
            noise(tmp_path / name / f"{i}.png")
    assert load_source("imagefolder", tmp_path).class_names == ["tractor", "train", "val"]


def test_a_tree_without_labels_is_one_class_in_one_split(tmp_path):
    for i, name in enumerate(("b.png", "a/x.jpg", "a/0/y.png", "c.txt.png")):
        noise(tmp_path / name, i)
    (tmp_path / "notes.txt").write_text("x")
    source = load_source("folder", tmp_path)
    assert source.class_names == [UNLABELLED]
    assert of_split(source, "train").names == ["b.png", "c.txt.png", "a/x.jpg", "a/0/y.png"]
    assert (len(of_split(source, "test").labels), len(source.left_out)) == (0, 1)
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    refuses("there is no image at or below", load_source, "folder", tmp_path)


def broken(edit):
    def make(root):
        make_images(root)
        edit(root)

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, r"has no image in 0 class folder\(s\): .*--dataset folder"),
        (lambda root: (root / "a").mkdir(), r"has no image in 1 class folder\(s\)"),
        (lambda root: noise(root / "a.png"), r"has no image in 0 .*1 in no folder of a class"),
        (broken(lambda root: shutil.rmtree(root / "test")), "has train/ but no test/ or val/"),
    ],
)
def test_a_folder_without_labelled_images_is_refused(tmp_path, make, message):
    make(tmp_path)
    assert str(tmp_path) in refuses(message, load_source, "imagefolder", tmp_path)


UNTIDY = "this can be audited by find, but not trained on: "


@pytest.mark.parametrize(
    ("make", "images", "note"),
    [
        (broken(lambda root: shutil.rmtree(root / "test/class1")), 56, "test has none of class1"),
        (broken(lambda root: [f.unlink() for f in (root / "test/class1").iterdir()]), 56, "test has none of class1"),
        (
            broken(lambda root: [f.rename(f"{f}.xyz") for f in (root / "test/class1").iterdir()]),
            56,
            "test has none of c",
        ),
        (lambda root: make_images(root, classes=1), 22, "there is one class, class0"),
        (lambda root: [noise(root / name / "1.png") for name in "ab"], 2, "test has none of a, b"),
        (
            lambda root: [*(noise(root / f"a/{i}.png") for i in range(5)), (root / "b").mkdir()],
            5,
            "train has none of b",
        ),
        (lambda root: [noise(root / f"{i}/1.png") for i in range(9)], 9, "test has none of 0, 1, 2, 3, 4 …"),
    ],
)
def test_an_untidy_folder_is_taken_with_a_note(tmp_path, make, images, note):
    make(tmp_path)
    source = load_source("imagefolder", tmp_path)
    assert len(source) == images
    assert source.notes[-1].startswith(UNTIDY + note)


def test_results_below_the_images_are_left_out(tmp_path):
    make_images(tmp_path / "all", train=6, test=1)
    root = tmp_path / "all/train"
    before = load_source("imagefolder", root)
    digest = source_kind("imagefolder").fingerprint(root)
    for name in ("runs/find-x", "class0/out"):
        claim_folder(root / name)
        noise(root / name / "pictures/0.png")
    (root / "runs" / OUTPUT_MARK).touch()
    source = load_source("imagefolder", root)
    assert source.class_names == before.class_names
    assert of_split(source, "train").names == of_split(before, "train").names
    assert left_out_line(source.left_out) == "2 files left out: 2 a folder of results"
    assert source_kind("imagefolder").fingerprint(root) == digest
    claim_folder(tmp_path / "empty")
    refuses("there is no image", load_source, "folder", tmp_path / "empty")


@pytest.mark.parametrize("name", ["imagefolder", "folder"])
def test_a_missing_folder_is_named(tmp_path, name):
    refuses(r"there is no image folder at .*nowhere", load_source, name, tmp_path / "nowhere")


def test_links_are_followed_but_not_in_a_circle(tmp_path):
    make_images(tmp_path / "images")
    noise(tmp_path / "elsewhere/e.png")
    folder = tmp_path / "images/train/class0"
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "loop").symlink_to(tmp_path / "images/train")
    (folder / "self.png").symlink_to(folder / "self.png")
    (folder / "gone.png").symlink_to(tmp_path / "gone.png")
    source = load_source("imagefolder", tmp_path / "images")
    names = of_split(source, "train").names
    assert "train/class0/linked/e.png" in names
    assert left_out_line(source.left_out) == "1 files left out: 1 a link to a folder above it"
    for name in ("self.png", "gone.png"):
        refuses(name, of_split(source, "train").image, names.index(f"train/class0/{name}"))
    assert source_kind("imagefolder").fingerprint(tmp_path / "images")


def test_a_folder_that_cannot_be_listed_is_an_error_or_skipped(tmp_path, monkeypatch):
    make_images(tmp_path)
    noise(tmp_path / "train/class0/secret/x.png")
    scandir = os.scandir

    def guarded(path):
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    refuses(r"1 folder\(s\) below .* cannot be read: train/class0/secret/", load_source, "imagefolder", tmp_path)
    source = load_source("imagefolder", tmp_path, Reading(on_error="skip"))
    assert source.left_out == [("train/class0/secret/", "a folder that cannot be read")]
    assert source_kind("imagefolder").fingerprint(tmp_path)


def test_names_that_are_no_utf8_are_used_and_printed(tmp_path):
    odd = os.fsdecode(b"caf\xe9")
    for split in ("train", "test"):
        for folder in ("class0", odd):
            noise(tmp_path / split / folder / f"{odd}.png")
    source = load_source("imagefolder", tmp_path)
    assert source.class_names == ["caf\\xe9", "class0"]
    assert os.fsencode(of_split(source, "test").names[0]) == b"test/caf\xe9/caf\xe9.png"
    assert of_split(source, "test").image(0).shape == (8, 8, 3)
    assert source_kind("imagefolder").fingerprint(tmp_path)


def test_the_fingerprint_follows_the_files(tmp_path):
    make_images(tmp_path)
    before = source_kind("imagefolder").fingerprint(tmp_path)
    assert source_kind("imagefolder").fingerprint(tmp_path) == before
    (tmp_path / "train/.DS_Store").write_text("hidden files say nothing")
    assert source_kind("imagefolder").fingerprint(tmp_path) == before
    (tmp_path / "train/class0/000.png").rename(tmp_path / "train/class0/zzz.png")
    assert source_kind("imagefolder").fingerprint(tmp_path) != before
