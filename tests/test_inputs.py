from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import UserError
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
    assert taken.images.paths == ["a/b.png", "c", "d", "e"]
    assert taken.images.splits == ["train", "train", "train", "test"]
    for digests in (HEX, [bytes.fromhex(each) for each in HEX], taken.digests, taken.digests.tolist()):
        np.testing.assert_array_equal(take_inputs(X, digests=digests).digests, taken.digests)
    assert take_inputs(X, paths=np.array(list("abcd"))).images.paths == list("abcd")
    assert take_inputs(X).images.paths[3] == "train/3"


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({"features": X[0]}, r"features must be \(n, D\), got \(3,\)"),
        ({"features": [[1, 2], [3]]}, "features cannot be made an array"),
        ({"features": [["a"], ["b"]]}, "features must be numbers"),
        ({"features": X * np.nan}, "features have values that are not finite"),
        ({"features": X * 1e30}, r"the largest of the features is 1e\+31"),
        ({"features": X * 1e-30}, "too far from 1"),
        ({"features": X.astype(np.float64) * 1e300}, "too far from 1"),
        ({"labels": [0, 1, 1]}, "there are 3 labels for 4 images"),
        ({"labels": [[0], [1], [1], [0]]}, r"labels must be \(n,\), got \(4, 1\)"),
        ({"labels": np.eye(4)}, r"labels must be \(n,\), got \(4, 4\)"),
        ({"labels": [0.5, 1, 1, 0]}, "labels must be whole numbers or texts of one kind, found 0.5"),
        ({"labels": [0, 1, np.nan, 0]}, "found nan"),
        ({"labels": ["a", None, "b", "b"]}, "found None"),
        ({"labels": np.array(["a", 1, "b", "b"], object)}, "of one kind"),
        ({"labels": [0, 1, 2, 0], "class_names": ["a", "b"]}, "beyond the 2 class_names"),
        ({"labels": [0, 1, -1, 0], "class_names": ["a", "b"]}, "beyond the 2 class_names"),
        ({"labels": list("abca"), "class_names": ["a", "b"]}, "beyond the 2 class_names"),
        ({"labels": [0, 1, 1, 0], "class_names": ["a", "a"]}, "two class_names are the same"),
        ({"features": torch.ones(3, 2).to_sparse()}, "features cannot be made an array"),
        ({"paths": ["a"]}, "there are 1 paths for 4 images"),
        ({"splits": ["train"] * 5}, "there are 5 splits for 4 images"),
        ({"digests": HEX[:3]}, "there are 3 digests for 4 images"),
        ({"digests": ["xy"] * 4}, "hex digits"),
        ({"digests": X}, r"digests must be \(n, 32\)"),
        ({"rate": 0}, "rate must be a number between 0 and 1"),
        ({"rate": 5}, "rate must be"),
        ({"rate": "0.1"}, "rate must be"),
        ({"rate": float("nan")}, "rate must be"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"seed": 0.5}, "seed must be"),
    ],
)
def test_what_cannot_be_taken_is_refused_in_one_sentence(given, rule):
    with pytest.raises(UserError, match=rule) as caught:
        take_inputs(**{"features": X, **given})
    assert "\n" not in caught.value.message


def test_features_of_a_reference_are_named():
    with pytest.raises(UserError, match="the features of the reference have values"):
        take_features(np.full((2, 3), np.inf), "the features of the reference")
