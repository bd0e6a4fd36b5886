from pathlib import Path

import numpy as np
import pytest
import torch
from fabricate import refuses

from find.inputs import take_features, take_inputs, take_labels

X = np.arange(12, dtype=np.float32).reshape(4, 3)
HEX = ["00" * 31 + f"{i:02x}" for i in range(4)]


@pytest.mark.parametrize(
    "features",
    [
        X,
        X.tolist(),
        X.astype(np.float16),
        X.astype(np.int64),
        torch.from_numpy(X).requires_grad_(),
        torch.from_numpy(X).bfloat16(),
        list(torch.from_numpy(X).requires_grad_()),
        X[:, ::-1][:, ::-1],
    ],
)
def test_features_of_any_kind_become_float32(features):
    taken = take_inputs(features).features
    assert taken.dtype == np.float32
    assert taken.flags.c_contiguous
    np.testing.assert_array_equal(taken, X)


@pytest.mark.parametrize(
    ("labels", "codes", "names"),
    [
        (["b", "a", "b", "c"], [1, 0, 1, 2], ("a", "b", "c")),
        ([-1, 2_000_000_000, -1, 3], [0, 2, 0, 1], ("-1", "3", "2000000000")),
        ([10, 9, 10, 9], [1, 0, 1, 0], ("9", "10")),
        (torch.tensor([7, 7, 7, 7]), [0, 0, 0, 0], ("7",)),
        (np.array(["b", "a", "b", "c"], object), [1, 0, 1, 2], ("a", "b", "c")),
        (np.array([1.0, 0.0, 1.0, 2.0]), [1, 0, 1, 2], ("0", "1", "2")),
        ([True, False, True, True], [1, 0, 1, 1], ("False", "True")),
    ],
)
def test_labels_of_any_kind_become_numbers_and_names(labels, codes, names):
    taken = take_inputs(X, labels)
    assert taken.labels.tolist() == codes
    assert taken.class_names == names


def test_given_class_names_are_those_of_the_labels():
    assert take_labels([2, 0, 0, 2], 4, ["a", "b", "c"])[1] == ("a", "b", "c")
    assert take_labels(["c", "a", "a", "c"], 4, ["a", "b", "c"])[0].tolist() == [2, 0, 0, 2]


def test_what_images_are_called():
    taken = take_inputs(X, paths=[Path("a/b.png"), *"cde"], splits=np.array(["train"] * 3 + ["test"]), digests=HEX)
    assert taken.paths == ["a/b.png", "c", "d", "e"]
    assert taken.splits == ["train", "train", "train", "test"]
    for digests in (HEX, [bytes.fromhex(each) for each in HEX], taken.digests, taken.digests.tolist()):
        np.testing.assert_array_equal(take_inputs(X, digests=digests).digests, taken.digests)
    assert take_inputs(X, paths=np.array(list("abcd"))).paths == list("abcd")
    assert take_inputs(X).paths[3] == "train/3"


WRONG = {
    "features": [
        (X[0], r"features must be \(n, D\), got \(3,\)"),
        ([[1, 2], [3]], "features cannot be made an array"),
        (torch.ones(3, 2).to_sparse(), "features cannot be made an array"),
        ([["a"], ["b"]], "features must be numbers"),
        (X * np.nan, "features have values that are not finite"),
        (X * 1e30, r"the largest of the features is 1e\+31"),
        (X * 1e-30, "too far from 1"),
        (X.astype(np.float64) * 1e300, "too far from 1"),
    ],
    "labels": [
        ([0, 1, 1], "there are 3 labels for 4 images"),
        ([[0], [1], [1], [0]], r"labels must be \(n,\), got \(4, 1\)"),
        (np.eye(4), r"labels must be \(n,\), got \(4, 4\)"),
        ([0.5, 1, 1, 0], "labels must be whole numbers or texts of one kind, found 0.5"),
        ([0, 1, np.nan, 0], "found nan"),
        (["a", None, "b", "b"], "found None"),
        (np.array(["a", 1, "b", "b"], object), "of one kind"),
    ],
    "paths": [(["a"], "there are 1 paths for 4 images")],
    "splits": [(["train"] * 5, "there are 5 splits for 4 images")],
    "digests": [(HEX[:3], "there are 3 digests"), (["xy"] * 4, "hex digits"), (X, r"digests must be \(n, 32\)")],
    "rate": [(value, "rate must be a number between 0 and 1") for value in (0, 5, "0.1", float("nan"))],
    "seed": [(value, f"seed must be a whole number of at least 0, got {value}") for value in (-1, 0.5)],
}


@pytest.mark.parametrize(("name", "value", "rule"), [(name, *each) for name, rows in WRONG.items() for each in rows])
def test_what_cannot_be_taken_is_refused_in_one_sentence(name, value, rule):
    refuses(rule, take_inputs, **{"features": X, name: value})


def test_labels_beyond_the_class_names_and_equal_names_are_refused():
    for labels in ([0, 1, 2, 0], [0, 1, -1, 0], list("abca")):
        refuses("beyond the 2 class_names", take_inputs, X, labels, class_names=["a", "b"])
    refuses("two class_names are the same", take_inputs, X, [0, 1, 1, 0], class_names=["a", "a"])


def test_features_of_a_reference_are_named():
    name = "the features of the reference"
    refuses(f"{name} have values", take_features, np.full((2, 3), np.inf), name)
