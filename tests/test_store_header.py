import numpy as np
import pytest
from damage import resealed
from fabricate import refuses

from common.store import DamagedStore, FeatureStore
from common.store_writer import write_store
from common.synthetic import make_header, make_store


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path, layers = tmp_path_factory.mktemp("store") / "s.h5", [["last", 10], ["layer3", 6]]
    return make_store(path, classes=4, class_superclass=[0, 0, 1, 1], layers=layers).path.read_bytes()


def refused(path, content):
    path.write_bytes(content)
    with pytest.raises(DamagedStore) as caught:
        FeatureStore.open(path)
    assert str(path) in caught.value.message
    return caught.value.message


ABSENT = object()


def with_value(value, key, new):
    """A JSON value with `new` at a dotted key, or without it."""
    if not key:
        return new
    first, _, rest = key.partition(".")
    if not rest and new is ABSENT:
        return {k: v for k, v in value.items() if k != first}
    return {**value, first: with_value(value[first], rest, new) if rest else new}


WRONG = {
    "": [None, [], "text", 5, True],
    "identity": [ABSENT, None, [], "x"],
    "identity.data_set": [ABSENT, [], 5],
    "identity.data_set.pixels": [ABSENT, {}, {"train": ""}, {"train": 1, "test": ""}, []],
    "identity.data_set.labels": [ABSENT, [], {"train": 5}],
    "identity.data_set.class_names": [ABSENT, ["a"], None],
    "identity.backbone.name": [ABSENT, 5, "\ud800"],
    "identity.backbone.feature_dim": [ABSENT, 15, 16.0, True, "16"],
    "identity.backbone.layers": [
        [],
        None,
        [["last", 16], ["layer3"]],
        [["layer3", 6], ["last", 10]],
        [["last", 10], ["last", 6]],
        [["last", 10], ["layer3", 5]],
        [["last", 16.0]],
        [["last", True], ["layer3", 15]],
        [[["last"], 16]],
        [16],
    ],
    "identity.weights.sha256": [ABSENT, 5, "0" * 63, "G" * 64, "0" * 64 + "\n"],
    "identity.weights.random_seed": [True, 1.5, "0"],
    "identity.preprocessing": [ABSENT, None],
    "identity.preprocessing.views": [ABSENT, [], ["plain", "mirror"], "p", [5], ["plain", "plain"]],
    "identity.precision": [ABSENT, "float64", 5, [], {}, "bfloat16"],
    "identity_sha256": [ABSENT, 5, "0" * 64],
    "class_names": [
        ABSENT,
        [],
        None,
        "abcd",
        ["a", "b", "c"],
        ["a", "b", "c", 4],
        ["a", "b", "c", "c"],
        ["", "b", "c", "d"],
    ],
    "superclass_names": [ABSENT, [], ["a"], [1, 2], ["a", "a"], {}],
    "class_superclass": [ABSENT, [], [0, 0, 1], [0, 0, 1, 2], [0, 0, 1, -1], [0, 0, 1, True], [0, 0, 1, 1.0], "0011"],
    "provenance": [ABSENT, [], None],
    "provenance.request": [ABSENT, [], "x"],
    "block_bytes": [ABSENT, 0, -1, 4194304.0, True, 1 << 20, "4194304"],
    "blocks": [ABSENT, [], {}, None],
    "blocks.labels": [ABSENT, [], ["0" * 64] * 2, [5], "0" * 64, [None], None],
    "blocks.other": [["0" * 64]],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_a_header_that_is_not_as_specified_is_refused_and_the_key_is_named(sound, tmp_path, key, value):
    message = refused(tmp_path / "s.h5", resealed(sound, header=lambda header: with_value(header, key, value)))
    assert any(part in message for part in ("/header", *key.split(".")) if part)
    assert "Error" not in message


ARRAYS = """
    features <f8:1,90,16 <f2:1,180,16 <i4:1,180,16 <f4:180,16 <f4:1,180,16,1 <f4:0,180,16 <f4:2,90,16 <f4:1,16,180
    labels <i8:180,1 <i8:90 <i4:180 >i8:180
    image_index <u8:180
    split |i1:180 |u1:179
    image_sha256 |u1:180,4,8 <u8:180,4 |u1:180,31
    thumbnails |u1:180,3072 |u1:180,3,32,32
    name_bytes |u1:15,180
    name_offsets <i8:180 <i4:181
"""


@pytest.mark.parametrize(
    ("name", "array"), [(line.split()[0], each) for line in ARRAYS.strip().splitlines() for each in line.split()[1:]]
)
def test_an_array_has_the_type_and_all_the_axes_that_are_specified(sound, tmp_path, name, array):
    dtype, _, shape = array.partition(":")

    def changed(facts):
        facts["arrays"][name][:2] = dtype, [int(n) for n in shape.split(",")]
        return facts

    message = refused(tmp_path / "s.h5", resealed(sound, facts=changed))
    assert "must be" in message
    assert f"/{name}" in message or name == "features"  # N is what features say


@pytest.mark.parametrize(
    ("name", "change", "rule"),
    [
        ("labels", lambda a: a.__setitem__(3, 2), r"/labels must lie in 0 … 1"),
        ("labels", lambda a: a.__setitem__(3, -1), r"/labels must lie"),
        ("split", lambda a: a.__setitem__(-1, 2), "/split must be 0"),
        ("split", lambda a: a.__setitem__(0, 1), "/split must be 0"),
        ("image_index", lambda a: a.__setitem__(1, 0), "/image_index must rise"),
        ("image_index", lambda a: a.__setitem__(0, -1), "/image_index must rise"),
        ("name_offsets", lambda a: a.__setitem__(0, 1), "/name_offsets must rise"),
        ("name_offsets", lambda a: a.__setitem__(-1, 10**9), "/name_offsets must rise"),
        ("name_offsets", lambda a: a.__setitem__(2, a[1]), "/name_offsets must rise"),
    ],
)
def test_values_that_cannot_be_are_never_written(tmp_path, name, change, rule):
    store = make_store(tmp_path / "s.h5", classes=2, train=3, test=2)
    before = store.path.read_bytes()
    arrays = {key: np.array(store.array(key)) for key in store.places}
    change(arrays[name])
    refuses(rule, write_store, store.path, make_header(2, 16), arrays)
    assert store.path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["s.h5"]


def test_a_writer_that_breaks_the_schema_is_told_so(tmp_path):
    store = make_store(tmp_path / "s.h5")
    arrays = {name: store.array(name) for name in store.places if name != "labels"}
    with pytest.raises(ValueError, match="/labels is missing"):
        write_store(tmp_path / "t.h5", make_header(4, 16), arrays)
