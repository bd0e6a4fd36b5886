import numpy as np
import pytest
from fabricate import of_split, refuses
from PIL import Image

from extract.sources import Reading, load_source, source_kind


@pytest.fixture
def table(tmp_path):
    def write(text, images=12):
        for i in range(images):
            Image.fromarray(np.full((4, 4, 3), i, np.uint8)).save(tmp_path / f"{i}.png")
        (tmp_path / "t.csv").write_text(text, encoding="utf-8")
        return tmp_path / "t.csv"

    return write


def lines(labels, splits=None):
    rows = [f"{i}.png,{label}" + (f",{splits[i]}" if splits else "") for i, label in enumerate(labels)]
    return "\n".join(["path,label" + (",split" if splits else ""), *rows, ""])


def test_rows_are_ordered_by_label_and_path_and_split_as_told(table):
    source = load_source("csv", table(lines("baba", ["train", "train", "test", "test"]), 4))
    assert source.class_names == ["a", "b"]
    assert of_split(source, "train").names == ["1.png", "0.png"]
    assert of_split(source, "test").labels.tolist() == [0, 1]
    assert of_split(source, "test").image(0)[0, 0, 0] == 3


def test_without_a_split_column_the_rows_are_split_by_class(table):
    source = load_source("csv", table("\ufeff" + lines("ab" * 6).replace(",", ";")), Reading(test_fraction=0.5))
    assert [np.bincount(of_split(source, name).labels).tolist() for name in ("train", "test")] == [[3, 3], [3, 3]]


def test_val_rows_are_the_test_where_there_is_no_other(table):
    source = load_source("csv", table(lines("abab", ["train", "train", "valid", "val"]), 4))
    assert of_split(source, "test").names == ["2.png", "3.png"]
    source = load_source("csv", table(lines("ababab", ["train", "train", "val", "val", "test", "test"]), 6))
    assert of_split(source, "test").names == ["4.png", "5.png"]
    assert "2 rows" in source.notes[0]


def test_a_label_may_have_a_comma_and_missing_images_may_be_skipped(table):
    text = 'path,label\n0.png,"tench, Tinca tinca"\n1.png,"tench, Tinca tinca"\n2.png,b\n3.png,b\n'
    assert load_source("csv", table(text, 4)).class_names == ["b", "tench, Tinca tinca"]
    source = load_source("csv", table(lines("abab") + "gone.png,a\n", 4), Reading(on_error="skip"))
    assert source.left_out == [("gone.png", "missing")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must begin with the line path,label"),
        ("0.png,a\n", "must begin with the line path,label"),
        ("path,label\n", "has no rows"),
        ("path,label\n0.png,a\n1.png\n", r"t\.csv, line 3: expected 2 cells, found 1"),
        ("path,label\n0.png,\n", r"line 2: the label is empty"),
        ("path,label,split\n0.png,a,trian\n", 'line 2: unknown split "trian"'),
        ("path,label\n0.png,a\n0.png,b\n", "lines 2 and 3 are of one image, 0.png"),
        ("path,label\n./0.png,a\nsub/../0.png,b\n", "lines 2 and 3 are of one image, 0.png"),
        ('path,label\n"a\nb\x1b.png",a\n', r"not there, line 3 \(a\\nb\\x1b\.png\)"),
        (
            "path,label\n0.png,a\nx.png,b\ny.png,a\n",
            r"2 of 3 images are not there, line 3 \(x\.png\), line 4 \(y\.png\)",
        ),
    ],
)
def test_a_mistake_in_a_table_is_named_by_its_line(table, text, message):
    refuses(message, load_source, "csv", table(text))


def test_a_table_that_cannot_be_read_is_named(tmp_path):
    refuses(r"cannot read the table .*t\.csv \(no such file", load_source, "csv", tmp_path / "t.csv")
    (tmp_path / "t.csv").write_bytes(b"path,label\ncaf\xe9.png,a\n")
    refuses("is not UTF-8 text", load_source, "csv", tmp_path / "t.csv")


def test_the_fingerprint_follows_the_table_and_its_images(table):
    path = table(lines("abab"), 4)
    kind, seen = source_kind("csv"), set()
    seen.add(kind.fingerprint(path))
    assert len(seen) == 1
    (path.parent / "0.png").write_bytes(b"x")
    seen.add(kind.fingerprint(path))
    path.write_text(lines("aabb"))
    seen.add(kind.fingerprint(path))
    assert len(seen) == 3
