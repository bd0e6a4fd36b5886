import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from common.files import (
    Busy,
    atomic_path,
    canonical_json,
    exclusive,
    readable_json,
    sha256_file,
    sha256_text,
    write_text,
)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text('ab [],:{}"\\\n'),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("a[ ]\n"), inner, max_size=4),
    max_leaves=12,
)


def test_a_failed_write_leaves_the_old_content_and_nothing_else(tmp_path):
    target = tmp_path / "a.txt"
    write_text(target, "old")
    with pytest.raises(KeyError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert target.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_folders_are_made_and_content_replaced(tmp_path):
    target = tmp_path / "b/c/a.txt"
    write_text(target, "one")
    write_text(target, "two")
    assert target.read_text() == "two"
    assert sha256_file(target) == sha256_text("two")


def test_a_target_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/a\.txt"):
        write_text(tmp_path / "file/a.txt", "x")


def test_equal_values_have_one_text():
    assert (
        canonical_json({"b": 1, "a": [1.5, "ü"]})
        == canonical_json({"a": [1.5, "ü"], "b": 1})
        == '{"a":[1.5,"ü"],"b":1}'
    )
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json(float("nan"))


@settings(deadline=None)
@given(VALUES)
def test_what_people_read_is_the_same_value(value):
    assert json.loads(readable_json(value)) == value


def test_people_read_a_list_of_numbers_on_one_line():
    matrix = {"a": {"b": [[1, 2], [3, 4]], "c": ["x", "y"], "d": [{"e": [5, 6]}]}}
    lines = [line.strip() for line in readable_json(matrix).splitlines()]
    assert {'"b": [ [ 1, 2 ], [ 3, 4 ] ],', '"c": [ "x", "y" ],', '"e": [ 5, 6 ]'} <= set(lines)


def test_a_folder_is_held_by_one_at_a_time(tmp_path):
    with exclusive(tmp_path / "x", "busy"), pytest.raises(Busy, match="busy"), exclusive(tmp_path / "x", "busy"):
        pass
    with exclusive(tmp_path / "x", "busy"):
        pass


def test_a_killed_process_leaves_no_lock(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from common.files import exclusive\n"
        "with exclusive(Path(sys.argv[1]), 'busy'): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "x")])
    with exclusive(tmp_path / "x", "busy"):
        pass
