import io
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fabricate import call, of_split, refuses
from PIL import Image

from common.images import UnreadableImage, pixel_digest, read_image
from common.store import FeatureStore
from common.synthetic import make_images
from extract.cli import main
from extract.features import Request
from extract.sources import Reading, load_source, source_kind


def png(value, size=8):
    file = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def make(library, values, labels=None, label_type=None, **others):
    """A data set of squares of these values."""
    columns = {"image": [None if value is None else {"bytes": png(value), "path": None} for value in values]}
    types = {"image": library.Image()}
    if labels is not None:
        columns["label"], types["label"] = labels, label_type or library.ClassLabel(names=["cat", "dog"])
    for name, (values_, kind) in others.items():
        columns[name], types[name] = values_, kind
    return library.Dataset.from_dict(columns, features=library.Features(types))


def saved(tmp_path, data):
    data.save_to_disk(str(tmp_path / "saved"))
    return tmp_path / "saved"


def values_of(split):
    return [int(split.image(i)[0, 0, 0]) for i in range(len(split.labels))]


def test_an_image_folder_gives_what_our_own_reader_gives(datasets, tmp_path):
    root = make_images(tmp_path / "images", classes=3, train=4, test=2)
    theirs, ours = load_source("hf", root), load_source("imagefolder", root)
    assert theirs.class_names == ours.class_names
    for name in ("train", "test"):
        a, b = of_split(theirs, name), of_split(ours, name)
        assert a.names == b.names
        assert a.labels.tolist() == b.labels.tolist()
        assert all(pixel_digest(a.image(i)) == pixel_digest(b.image(i)) for i in range(len(a.labels)))
    name = of_split(theirs, "test").names[0]
    assert theirs.files is not None, "a worker reads them by their names"
    np.testing.assert_array_equal(theirs.files.read(name), read_image(root / name))


def test_a_saved_dict_of_splits(datasets, tmp_path):
    values = {"train": range(6), "validation": range(30, 32), "test": range(21, 25)}
    parts = {name: make(datasets, each, [value % 2 for value in each]) for name, each in values.items()}
    source = load_source("hf", saved(tmp_path, datasets.DatasetDict(parts)))
    assert source.class_names == ["cat", "dog"]
    assert values_of(of_split(source, "train")) == list(range(6))
    assert values_of(of_split(source, "test")) == list(range(21, 25))
    assert of_split(source, "test").labels.tolist() == [1, 0, 1, 0]
    assert of_split(source, "test").names[:2] == ["test/00000", "test/00001"]
    assert source.notes == [f"split validation of {tmp_path / 'saved'} left out"]
    assert source.files is None, "a worker gets the pixels"
    refuses("leave it out", load_source, "hf", tmp_path / "saved", Reading(test_fraction=0.5))


def test_a_saved_single_data_set_is_split_by_class(datasets, tmp_path):
    root = saved(tmp_path, make(datasets, range(20), [0, 1] * 10))
    source = load_source("hf", root)
    assert np.bincount(of_split(source, "test").labels).tolist() == [2, 2]
    assert sorted(values_of(of_split(source, "train")) + values_of(of_split(source, "test"))) == list(range(20))
    half = load_source("hf", root, Reading(test_fraction=0.5))
    assert np.bincount(of_split(half, "test").labels).tolist() == [5, 5]
    assert "no test split" in source.notes[0]


def test_shuffled_rows_are_read_from_many_threads(datasets, tmp_path):
    source = load_source("hf", saved(tmp_path, make(datasets, range(200), [0, 1] * 100).shuffle(seed=0)))
    train = of_split(source, "train")
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(train.image, range(len(train.labels))))
    assert [int(image[0, 0, 0]) % 2 for image in read] == train.labels.tolist()


def test_validation_is_the_test_split_where_test_has_no_labels(datasets, tmp_path):
    parts = {"train": (range(4), [0, 1, 0, 1]), "validation": ([7, 8, 9], [0, 1, -1]), "test": ([5, 6], [-1, -1])}
    parts = {name: make(datasets, *part) for name, part in parts.items()}
    source = load_source("hf", saved(tmp_path, datasets.DatasetDict(parts)))
    assert values_of(of_split(source, "test")) == [7, 8]
    assert source.left_out == [("validation/00002", "without a label")]
    assert "validation is the test split" in source.notes[0]


def test_labels_may_be_words_or_numbers(datasets, tmp_path):
    words = make(datasets, range(4), ["b", "a", None, "b"], datasets.Value("string"))
    source = load_source("hf", saved(tmp_path, datasets.DatasetDict(train=words, test=words)))
    assert source.class_names == ["a", "b"]
    assert of_split(source, "train").labels.tolist() == [1, 0, 1]
    numbers = make(datasets, range(3), [10, 9, 10], datasets.Value("int64"))
    source = load_source("hf", saved(tmp_path / "n", datasets.DatasetDict(train=numbers, test=numbers)))
    assert source.class_names == ["9", "10"]


def test_columns_are_named_where_there_are_several(datasets, tmp_path):
    coarse = ([1, 0], datasets.ClassLabel(names=["plant", "animal"]))
    second = ([{"bytes": png(100 + i), "path": None} for i in range(2)], datasets.Image())
    data = make(datasets, range(2), [0, 1], coarse=coarse, second=second)
    root = saved(tmp_path, datasets.DatasetDict(train=data, test=data))
    refuses(r"several image columns \(image, second\): name one with --image-column", load_source, "hf", root)
    several = r"several columns of labels \(label, coarse\): name one with --label-column"
    refuses(several, load_source, "hf", root, Reading(image_column="image"))
    source = load_source("hf", root, Reading(image_column="second", label_column="coarse"))
    assert values_of(of_split(source, "train")) == [100, 101]
    assert of_split(source, "train").labels.tolist() == [1, 0]
    for image, label, sentence in (
        ("image", "corse", 'unknown column of .*"corse": did you mean "coarse"'),
        ("label", "label", r"column label of .* holds no images \(int64\)"),
        ("image", "image", "column image of .* holds no labels"),
    ):
        refuses(sentence, load_source, "hf", root, Reading(image_column=image, label_column=label))


def test_without_labels_all_is_one_class(datasets, tmp_path):
    root = saved(tmp_path, datasets.DatasetDict(train=make(datasets, range(3)), extra=make(datasets, [9])))
    source = load_source("hf", root)
    assert source.class_names == ["unlabelled"]
    assert values_of(of_split(source, "train")) == [0, 1, 2, 9]
    assert of_split(source, "train").names[-1] == "extra/00000"
    refuses("--test-fraction", load_source, "hf", root, Reading(test_fraction=0.5))


def test_data_sets_that_do_not_suit(datasets, tmp_path, monkeypatch):
    a, unlabelled = make(datasets, [1], [0]), make(datasets, [1], [-1])
    swapped = make(datasets, [1], [0], datasets.ClassLabel(names=["dog", "cat"]))
    words = datasets.Dataset.from_dict({"text": ["a"], "label": [0]})
    cases = {
        "has the splits a, b, and none of them is train": datasets.DatasetDict(a=a, b=a),
        "the column label of .* has no label": datasets.DatasetDict(train=unlabelled, test=unlabelled),
        r"differ in their columns or classes \(train, test\)": datasets.DatasetDict(train=a, test=swapped),
        r"has no image column \(text, label\)": words,
    }
    for number, (message, data) in enumerate(cases.items()):
        refuses(message, load_source, "hf", saved(tmp_path / str(number), data))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: datasets.DatasetDict(train=make(datasets, [], [])))
    refuses("no/rows has no rows", load_source, "hf", Path("no/rows"))


def test_a_row_without_an_image_or_with_a_broken_one_is_named(datasets, tmp_path):
    data = make(datasets, [1, None, 3], [0, 1, 1])
    broken = data.cast_column("image", datasets.Image(decode=False)).to_dict()
    broken["image"][2]["bytes"] = png(3)[:40]
    data = datasets.Dataset.from_dict(broken, features=data.features)
    source = load_source("hf", saved(tmp_path, datasets.DatasetDict(train=data, test=data)))
    for row in (1, 2):
        with pytest.raises(UnreadableImage, match=f"train/0000{row}"):
            of_split(source, "train").image(row)


def test_what_is_no_place_and_without_the_library(datasets, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for place in ("../nowhere", "/nowhere", "a/b/c", "no spaces", tmp_path / "file"):
        refuses("no folder, and no name on the hub", load_source, "hf", Request(dataset=f"hf:{place}").root)
    (tmp_path / "empty").mkdir()
    refuses(
        r"folder .*empty cannot be loaded by `datasets` \(.*: give one of images", load_source, "hf", tmp_path / "empty"
    )
    monkeypatch.setitem(sys.modules, "datasets", None)
    refuses("pip install datasets", load_source, "hf", tmp_path)


def test_a_name_on_the_hub(datasets, tmp_path, monkeypatch):
    asked = []

    def load(name, config=None):
        asked.append((name, config))
        print("something on stdout")
        if name == "no/such":
            raise FileNotFoundError("Couldn't find it\nat all")
        cached = tmp_path / "hf-cache" / name.replace("/", "___") / "default"
        cached.mkdir(parents=True, exist_ok=True)
        (cached / "train.arrow").touch()
        return datasets.DatasetDict(train=make(datasets, range(2), [0, 1]), test=make(datasets, [5, 6], [1, 0]))

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.chdir(tmp_path)
    wanted = Request(dataset="hf:owner/beans:small", weights="random", image_size=32)
    before = wanted.as_json()
    command = ["features", "--dataset", "hf:owner/beans:small", "--weights", "random", "--image-size", 32]
    result = call(main, *command)
    assert asked == [("owner/beans", "small")]
    assert result.stdout == f"{wanted.default_store()}\n"
    assert result.stdout.startswith("data/features/hf-beans-small-resnet18-")
    assert FeatureStore.open(tmp_path / result.stdout.strip()).class_names == ["cat", "dog"]
    assert wanted.as_json() != before, "it is in the cache now"
    assert wanted.as_json()["fingerprint"] != source_kind("hf").fingerprint(Request(dataset="hf:owner/other").root)
    assert "up to date" in call(main, *command).stderr
    assert len(asked) == 1
    nowhere = r"no folder no/such, .* cannot be loaded by `datasets` \(Couldn't find it\)"
    refuses(nowhere, load_source, "hf", Request(dataset="hf:no/such").root)


def test_a_folder_is_recognised_and_its_change_seen(datasets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = make_images(tmp_path / "images", classes=2, train=4, test=2)
    command = ["features", "--dataset", "hf:images", "--weights", "random", "--image-size", "32", "--store", "s.h5"]
    call(main, *command)
    assert FeatureStore.open("s.h5").names([0]) == ["train/class0/000.png"]
    assert call(main, *command).stderr == "up to date: s.h5\n"
    monkeypatch.chdir(root)
    assert load_source("hf", Path()).names[0] == "train/class0/000.png"
    monkeypatch.chdir(tmp_path)
    (root / "train/class0/000.png").unlink()
    assert "1 gone" in call(main, *command, code=2).stderr


def test_the_request_names_the_columns():
    request = Request(dataset="hf:.", weights="random", label_column="fine").as_json()
    assert (request["decoding"], request["label_column"]) == (3, "fine")
    for name in ("imagefolder", "digits"):
        other = Request(dataset=name, root=Path(), weights="random", label_column="fine")
        refuses(f"--label-column do nothing for {name}", other.as_json)
    refuses("leave --root", Request, dataset="hf:beans", root=Path("x"))
    refuses("--dataset hf needs", Request, dataset="hf:")
