import dataclasses
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import config
from common.errors import UserError
from train.config import Config, DataConfig, HeadConfig, TrainingConfig, classes_from


@dataclasses.dataclass(frozen=True)
class Table:
    word: str = "a"
    flag: bool = False
    whole: int = 1
    real: float = 0.5
    words: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Nested:
    name: str = "x"
    table: Table = dataclasses.field(default_factory=Table)


TABLES = st.builds(
    Table,
    word=st.text(),
    flag=st.booleans(),
    whole=st.integers(-(2**63), 2**63 - 1),
    real=st.floats(allow_nan=False),
    words=st.lists(st.text()).map(tuple),
)

# One value for every field that is not its default. A new field without a value here fails the test below.
OTHER = {
    "head.standardise": "true",
    "data.classes": "apple,bear",
    "data.set_size": "5",
    "data.val_fraction": "0.2",
    "data.split_seed": "1",
    "data.views": "all",
    "data.shuffle_labels": "true",
    "head.width": "128",
    "head.layers": "2",
    "head.heads": "8",
    "head.feed_forward": "64",
    "head.dropout": "0",
    "training.seed": "3",
    "training.epochs": "7",
    "training.batch_size": "32",
    "training.learning_rate": "1e-3",
    "training.weight_decay": "0",
    "training.warmup_epochs": "1",
    "training.gradient_clip": "2",
    "training.precision": "bfloat16",
    "training.evaluation_batch_size": "10",
    "training.device": "cuda:1",
}
KEYS = [
    f"{table.name}.{field.name}"
    for table in dataclasses.fields(Config)
    for field in dataclasses.fields(getattr(Config(), table.name))
]


def written(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text, encoding="utf-8")
    return path


def message(cls: type, path: Path | None, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        config.load(cls, path, overrides)
    return caught.value.message


@given(st.builds(Nested, name=st.text(), table=TABLES))
def test_round_trip(value):
    mapping = tomllib.loads(config.to_toml(value))
    assert config.from_dict(Nested, mapping, "memory") == value


def test_round_trip_through_a_file(tmp_path):
    value = Config.load(None, [f"{key}={text}" for key, text in OTHER.items()])
    assert Config.load(written(tmp_path, config.to_toml(value))) == value
    assert Config.load(written(tmp_path, config.to_toml(Config()))) == Config()


def test_every_field_is_written():
    tables = tomllib.loads(config.to_toml(Config()))
    assert [f"{table}.{name}" for table, fields in tables.items() for name in fields] == KEYS


def test_no_path_and_empty_file_are_the_defaults(tmp_path):
    assert Config.load(None) == Config()
    assert Config.load(written(tmp_path, "")) == Config()


@pytest.mark.parametrize("key", KEYS)
def test_every_field_changes_by_one_override(key):
    table, name = key.split(".")
    changed = Config.load(None, [f"{key}={OTHER[key]}"])
    assert getattr(getattr(changed, table), name) != getattr(getattr(Config(), table), name)
    back = dataclasses.replace(changed, **{table: getattr(Config(), table)})
    assert back == Config(), "another table changed too"
    others = {k: v for k, v in dataclasses.asdict(getattr(changed, table)).items() if k != name}
    assert others.items() <= dataclasses.asdict(getattr(Config(), table)).items()


@pytest.mark.parametrize("table", [DataConfig, HeadConfig, TrainingConfig])
def test_every_field_has_its_meaning_in_the_docstring(table):
    for field in dataclasses.fields(table):
        assert f"\n    {field.name}: " in table.__doc__


@pytest.mark.parametrize(
    ("text", "unknown", "nearest"),
    [
        ("[data]\nset_sise = 5", '"data.set_sise"', '"data.set_size"'),
        ("[trainin]\nseed = 5", '"trainin"', '"training"'),
        ("learning_rate = 1.0", '"learning_rate"', '"training.learning_rate"'),
    ],
)
def test_unknown_key_names_file_and_nearest(tmp_path, text, unknown, nearest):
    path = written(tmp_path, text)
    assert message(Config, path) == f"unknown key in {path} {unknown}: did you mean {nearest}?"


def test_unknown_key_in_override():
    assert message(Config, None, "head.widht=3") == 'unknown key in --set "head.widht": did you mean "head.width"?'
    assert "choose from" in message(Config, None, "zzzzzzzz=3")
    assert "head.width" in message(Config, None, "head=3"), "a table is not a key that can be set"


@pytest.mark.parametrize(
    ("line", "rule", "received"),
    [
        ("word = 1", "a string", "1"),
        ("flag = 1", "true or false", "1"),
        ("whole = true", "an integer", "True"),
        ("whole = 1.0", "an integer", "1.0"),
        ("real = true", "a number", "True"),
        ('real = "1"', "a number", "'1'"),
        ('words = "a"', "a list of strings", "'a'"),
        ("words = [1]", "a list of strings", "[1]"),
    ],
)
def test_wrong_type_names_key_rule_and_value(tmp_path, line, rule, received):
    path = written(tmp_path, f"[table]\n{line}")
    key = line.split()[0]
    assert message(Nested, path) == f"table.{key} must be {rule}, got {received} (in {path})"


def test_table_is_wanted(tmp_path):
    path = written(tmp_path, "table = 3")
    assert message(Nested, path) == f"table must be a table of keys, got 3 (in {path})"


def test_integer_passes_for_a_number(tmp_path):
    real = config.load(Nested, written(tmp_path, "[table]\nreal = 2")).table.real
    assert real == 2.0
    assert type(real) is float


@pytest.mark.parametrize(
    ("override", "name", "value"),
    [
        ("table.words=a, b", "words", ("a", "b")),
        ("table.words=a", "words", ("a",)),
        ("table.words=", "words", ()),
        ("table.words=7", "words", ("7",)),
        ('table.words=["a,b", "c"]', "words", ("a,b", "c")),
        ("table.word=plain", "word", "plain"),
        ('table.word="quoted"', "word", "quoted"),
        ("table.word=true", "word", "true"),
        ("table.word=a=b", "word", "a=b"),
        ("table.word=", "word", ""),
        ("table.real=3", "real", 3.0),
        ("table.flag = true", "flag", True),
    ],
)
def test_override_values(override, name, value):
    assert getattr(config.load(Nested, None, [override]).table, name) == value


def test_overrides_win_over_the_file_and_the_last_over_the_first(tmp_path):
    path = written(tmp_path, 'name = "file"\n[table]\nwhole = 2\nreal = 3.0')
    loaded = config.load(Nested, path, ["table.whole=4", "name=set", "table.whole=5"])
    assert loaded == Nested(name="set", table=Table(whole=5, real=3.0))


def test_wrong_overrides():
    assert message(Config, None, "data.set_size") == '--set needs section.key=value, got "data.set_size"'
    assert (
        message(Config, None, "data.set_size=ten")
        == "data.set_size must be an integer, got 'ten' (in --set data.set_size=ten)"
    )


def test_limits_hold_for_the_sum_of_overrides():
    assert Config.load(None, ["head.width=250", "head.heads=5"]).head.width == 250


def test_broken_and_missing_files(tmp_path):
    broken = written(tmp_path, "[data\nset_size = 3")
    assert message(Config, broken).startswith(f"the config {broken} is not valid TOML: ")
    assert "line 1" in message(Config, broken)
    broken.write_bytes(b"\xff\xfe")
    assert "is not valid TOML" in message(Config, broken)
    missing = tmp_path / "none.toml"
    assert message(Config, missing) == f"cannot read the config {missing} (no such file or directory): check the path"
    assert "is a directory" in message(Config, tmp_path)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("data.set_size=2", "data.set_size must be at least 3, got 2"),
        ("data.val_fraction=1", "data.val_fraction must be between 0 and 1, got 1.0"),
        ("data.val_fraction=nan", "data.val_fraction must be between 0 and 1, got nan"),
        ("data.split_seed=-1", "data.split_seed must be at least 0, got -1"),
        ("data.views=both", 'data.views must be one of first, all, got "both"'),
        ("data.classes=a", "data.classes must be at least 2 names, or none for all, got 1"),
        ("data.classes=a,b,a", "data.classes must be distinct names, got a more than once"),
        ("head.layers=0", "head.layers must be at least 1, got 0"),
        ("head.heads=3", "head.width must be a multiple of head.heads (3), got 256"),
        ("head.heads=0", "head.heads must be at least 1, got 0"),
        ("head.dropout=1", "head.dropout must be at least 0 and less than 1, got 1.0"),
        ("training.seed=-1", "training.seed must be at least 0, got -1"),
        ("training.epochs=0", "training.epochs must be at least 1, got 0"),
        ("training.learning_rate=0", "training.learning_rate must be more than 0 and finite, got 0.0"),
        ("training.learning_rate=nan", "training.learning_rate must be more than 0 and finite, got nan"),
        ("training.weight_decay=-1", "training.weight_decay must be at least 0 and finite, got -1.0"),
        ("training.warmup_epochs=inf", "training.warmup_epochs must be at least 0 and finite, got inf"),
        ("training.gradient_clip=0", "training.gradient_clip must be more than 0 and finite, got 0.0"),
        ("training.precision=half", 'training.precision must be one of float32, bfloat16, got "half"'),
        ("training.device=tpu", 'training.device must be one of auto, cpu, cuda, mps, cuda:<number>, got "tpu"'),
    ],
)
def test_limits(override, sentence):
    assert message(Config, None, override) == sentence


def test_classes_from_names_and_from_a_file(tmp_path):
    assert classes_from("apple, bear,") == ("apple", "bear")
    assert classes_from("") == ()
    path = tmp_path / "twenty.txt"
    path.write_text("# diverse ones\napple\n\n  bear  # an animal\n", encoding="utf-8")
    assert classes_from(str(path)) == ("apple", "bear")


def test_classes_from_refuses_missing_empty_and_binary_files(tmp_path):
    with pytest.raises(UserError, match="no file"):
        classes_from(str(tmp_path / "none.txt"))
    path = tmp_path / "empty.txt"
    path.write_text("# nothing\n", encoding="utf-8")
    with pytest.raises(UserError, match="names no class"):
        classes_from(str(path))
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match="cannot read the class names"):
        classes_from(str(path))
