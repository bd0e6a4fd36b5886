import inspect
import re
import tomllib
import typing
from pathlib import Path

import pytest
from fabricate import make_config, refuses
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct

from common import schema
from train.cli import parse_classes
from train.config import RECOMMENDED, Config, require_effective
from train.log.plan import Plan, plan_configs
from train.methods import METHODS, list_parameters, load_method_class


class Table(Struct, frozen=True):
    word: str = "a"
    flag: bool = False
    whole: int = 1
    real: float = 0.5
    words: tuple[str, ...] = ()


class Nested(Struct, frozen=True):
    name: str = "x"
    table: Table = Table()


TABLES = st.builds(
    Table,
    word=st.text(),
    flag=st.booleans(),
    whole=st.integers(-(2**63), 2**63 - 1),
    real=st.floats(allow_nan=False),
    words=st.lists(st.text()).map(tuple),
)

# One value for every field that is not its default. A new field without a value here fails the test below.
SETTINGS = """
    method=knn
    data.classes=apple,bear data.class_limit=20 data.unseen_classes=2 data.set_size=5 data.val_fraction=0.2
    data.split_seed=1 data.views=all data.layers=all data.shuffle_labels=true
    head.width=128 head.layers=2 head.heads=8 head.feed_forward=64 head.dropout=0 head.standardise=true head.hidden=64
    head.inducing=8 head.members=3 head.bayes=false
    distance.metric=l2 distance.leave_one_out=false distance.neighbours=9 distance.standardise=true
    distance.between_shrinkage=0.3
    training.seed=3 training.epochs=7 training.batch_size=32 training.images_per_class=12 training.set_loss=0.5
    training.class_loss=1 training.label_smoothing=0.1 training.hard_pairs=0.5 training.without_anomaly=0.2
    training.mixed_classes=9 training.learning_rate=1e-3 training.weight_decay=0 training.warmup_epochs=1
    training.gradient_clip=2 training.precision=bfloat16 training.evaluation_batch_size=10 training.device=cuda:1
"""
OTHER = dict(setting.split("=") for setting in SETTINGS.split())
KEYS = list(schema.flatten(Config()))


def written(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text, encoding="utf-8")
    return path


def message(cls: type, path: Path | None, *overrides: str) -> str:
    return refuses("", schema.load, cls, path, overrides)


@settings(deadline=None)
@given(st.builds(Nested, name=st.text(), table=TABLES))
def test_round_trip(value):
    assert schema.from_dict(Nested, tomllib.loads(schema.to_toml(value)), "memory") == value


def test_round_trip_through_a_file_in_which_every_field_is_written(tmp_path):
    value = make_config(*(f"{key}={text}" for key, text in OTHER.items() if key != "training.mixed_classes"))
    assert schema.load(Config, written(tmp_path, schema.to_toml(value))) == value
    defaults = schema.to_toml(Config())
    assert re.findall(r"^(\w+) = ", defaults, re.M) == [key.rpartition(".")[2] for key in KEYS]
    for text in (defaults, ""):
        assert Config.load(written(tmp_path, text)) == Config.load(None) == Config()


@pytest.mark.parametrize("key", KEYS)
def test_every_field_changes_by_one_override(key):
    assert key in OTHER, f"give {key} another value in OTHER"
    needs = ["training.images_per_class=9"] if key == "training.mixed_classes" else []
    before, after = schema.flatten(make_config(*needs)), schema.flatten(make_config(*needs, f"{key}={OTHER[key]}"))
    assert [name for name in KEYS if before[name] != after[name]] == [key]


@pytest.mark.parametrize("table", [Plan, *(part for part in typing.get_type_hints(Config).values() if part is not str)])
def test_every_field_says_what_it_means(table):
    source = inspect.getsource(table)
    for name in set(table.__struct_fields__) - {"metric"}:
        assert re.search(rf"(\n    # .*)\n    {name}: |\n    {name}: .*  # ", source), name


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
        ("= 3", "a table of keys", "3"),
    ],
)
def test_wrong_type_names_key_rule_and_value(tmp_path, line, rule, received):
    assignment = f"table.{line}".replace(".=", " =")
    key, path = assignment.split()[0], written(tmp_path, assignment)
    assert message(Nested, path) == f"{key} must be {rule}, got {received} (in {path})"


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
    loaded = getattr(schema.load(Nested, None, [override]).table, name)
    assert (loaded, type(loaded)) == (value, type(value))


def test_overrides_win_over_the_file_and_the_last_over_the_first(tmp_path):
    path = written(tmp_path, 'name = "file"\n[table]\nwhole = 2\nreal = 3')
    loaded = schema.load(Nested, path, ["table.whole=4", "name=set", "table.whole=5"])
    assert loaded == Nested(name="set", table=Table(whole=5, real=3.0))
    assert type(loaded.table.real) is float


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["head.inducing=8"], "head.inducing=8"),
        (["distance.metric=l2"], "distance.metric=l2"),
        (["training.class_loss=1"], "training.class_loss=1.0"),
        (["training.label_smoothing=0.1"], "training.label_smoothing=0.1"),
        (["method=posterior", "training.label_smoothing=0.1"], "training.label_smoothing=0.1"),
        (["method=posterior", "head.layers=2"], "head.layers=2"),
        (["method=plda", "distance.metric=l2"], "distance.metric=l2"),
        (["method=knn", "training.epochs=3"], "training.epochs=3"),
        (["method=knn", "head.standardise=true"], "head.standardise=True"),
        (
            ["method=posterior", "training.set_loss=0", "training.class_loss=1", "training.hard_pairs=0.5"],
            "training.hard_pairs=0.5",
        ),
    ],
)
def test_a_setting_that_does_nothing_for_the_method_is_refused_by_name(overrides, key, tmp_path):
    method = next((each.partition("=")[2] for each in overrides if each.startswith("method=")), "transformer")
    said = refuses("", Config.load, None, overrides)
    assert said.startswith(f'{key} does nothing for the method "{method}"')
    assert "leave it out" in said
    config = schema.load(Config, None, overrides)  # reports and checkpoints that have it are read all the same
    assert Config.load(written(tmp_path, schema.to_toml(config))) == config  # what a run wrote has every setting


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_is_made_of_does_something(name):
    table = load_method_class(name).settings
    for key in set(list_parameters(name)) & set(getattr(Config(), table).__struct_fields__):
        Config.load(None, [f"method={name}", f"{table}.{key}={OTHER[f'{table}.{key}']}"])
    Config.load(None, [f"method={name}", "training.seed=3", "data.set_size=5", "training.evaluation_batch_size=10"])
    Config.load(None, [f"method={name}", "head.inducing=4", "training.epochs=50"])  # the defaults


def test_a_setting_of_a_file_serves_the_method_of_the_file(tmp_path):
    path = written(tmp_path, "[head]\nlayers = 2\ninducing = 8")
    refuses(r"head\.inducing=8 does nothing", Config.load, path)
    assert Config.load(path, ["method=set_transformer"]).head.inducing == 8
    path = written(tmp_path, "[head]\nlayers = 2")
    assert Config.load(path, ["method=plda"]).head.layers == 2
    shared = written(tmp_path, '[head]\ninducing = 8\n[plan]\nruns = ["a: method=set_transformer", "b:"]')
    assert Config.load(shared).head.inducing == 8
    assert list(plan_configs(shared)) == ["a-seed0", "b-seed0"]


def test_an_override_of_a_phase_serves_one_of_its_runs(tmp_path):
    path = written(tmp_path, PLAN)
    assert plan_configs(path, ["distance.metric=l2"])["nearest-seed0"].distance.metric == "l2"
    said = refuses(r"head\.inducing does nothing for any run of", plan_configs, path, ["head.inducing=8"])
    assert said.endswith(f"{path}: leave it out")


@pytest.mark.parametrize("overrides", [[], ["training.class_loss=1", "method=deepsets"]])
def test_a_loss_of_nothing_is_refused(overrides):
    made = make_config(*overrides, "training.set_loss=0")
    refuses(r"training\.set_loss must be more than 0 .*, got 0\.0", require_effective, made, [])
    require_effective(make_config("method=posterior", "training.class_loss=1", "training.set_loss=0"), [])


def test_broken_and_missing_files(tmp_path):
    broken = written(tmp_path, "[data\nset_size = 3")
    assert message(Config, broken).startswith(f"the config {broken} is not valid TOML: ")
    assert "line 1" in message(Config, broken)
    broken.write_bytes(b"\xff\xfe")
    assert "is not valid TOML" in message(Config, broken)
    missing = tmp_path / "none.toml"
    assert message(Config, missing) == f"cannot read the config {missing} (no such file or directory): check the path"
    assert "is a directory" in message(Config, tmp_path)
    assert Config.load(str(written(tmp_path, "method = 'knn'"))).method == "knn"


COUNT, WIDTH = "an integer of at least 1 and at most 1,000,000", "an integer of at least 1 and at most 16,384"
SEED = "an integer of at least 0 and at most 9,223,372,036,854,775,807"
SHARE = "a number of at least 0 and less than 1"
WEIGHT, POSITIVE = "at least 0 and finite", "more than 0 and finite"


@pytest.mark.parametrize(
    ("override", "rule", "got"),
    [
        ("data.set_size=2", "an integer of at least 3 and at most 10,000", "2"),
        ("data.val_fraction=1", "a number of more than 0 and less than 1", "1"),
        ("data.val_fraction=nan", "a number of more than 0 and less than 1", "nan"),
        ("data.split_seed=-1", SEED, "-1"),
        ("data.views=both", "one of first, all", "'both'"),
        ("data.unseen_classes=-2", "an integer of at least 0 and at most 1,000,000", "-2"),
        ("data.layers=first", "one of last, all", "'first'"),
        ("distance.metric=l1", "one of l2, cosine", "'l1'"),
        ("distance.neighbours=0", COUNT, "0"),
        ("head.inducing=0", WIDTH, "0"),
        ("head.width=100000000000", WIDTH, "100000000000"),
        ("head.layers=-1", "an integer of at least 0 and at most 1,000", "-1"),
        ("head.heads=0", WIDTH, "0"),
        ("head.dropout=1", SHARE, "1"),
        ("training.seed=-1", SEED, "-1"),
        ("training.seed=9223372036854775808", SEED, "9223372036854775808"),
        ("training.epochs=0", COUNT, "0"),
        ("training.learning_rate=0", POSITIVE, "0"),
        ("training.learning_rate=nan", POSITIVE, "nan"),
        ("data.set_size=ten", "an integer of at least 3 and at most 10,000", "'ten'"),
        ("training.weight_decay=-1", WEIGHT, "-1"),
        ("training.warmup_epochs=inf", WEIGHT, "inf"),
        ("training.gradient_clip=0", POSITIVE, "0"),
        ("training.precision=half", "one of auto, float32, bfloat16", "'half'"),
        ("training.device=tpu", "one of auto, cpu, cuda, mps, cuda:<number>", "'tpu'"),
    ],
)
def test_a_bound_is_told_with_the_value_and_the_place(override, rule, got):
    key = override.partition("=")[0]
    assert message(Config, None, override) == f"{key} must be {rule}, got {got} (in --set {override})"


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ("head.widht=3", 'unknown key in --set "head.widht": did you mean "head.width"?'),
        ("data.set_size", '--set needs section.key=value, got "data.set_size"'),
        ("training.mixed_classes=4", "training.images_per_class must be above 0 with training.mixed_classes, got 0"),
        (
            "training.mixed_classes=4 training.images_per_class=9 training.hard_pairs=0.5",
            "training.hard_pairs must be 0 with training.mixed_classes, got 0.5",
        ),
        ("data.classes=a", "data.classes must be at least 2 names, or none for all, got 1"),
        ("data.classes=a,b,a", "data.classes must be distinct names, got a more than once"),
        ("data.class_limit=1", "data.class_limit must be 0, or at least 2, got 1"),
        ("method=transfomer", 'unknown method "transfomer": did you mean "transformer"?'),
        ("head.heads=3", "head.width must be a multiple of head.heads (3), got 256"),
    ],
)
def test_rules_that_no_bound_can_say(overrides, sentence):
    assert message(Config, None, *overrides.split()) == sentence
    assert "choose from" in message(Config, None, "zzzzzzzz=3")
    assert "head.width" in message(Config, None, "head=3"), "a table is not a key that can be set"
    assert Config.load(None, ["head.width=250", "head.heads=5"]).head.width == 250, "rules hold for all overrides"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("classes = " + 5000 * "[", "nested too deeply"),
        ("a = " + 5000 * "{a = ", "nested too deeply"),
        ("method" + 5000 * ".a" + " = 1", "method must be a string, got {'a': {'a': "),
        (5000 * "a." + "a = 1", "unknown key in "),
        (f"method = {10**4000}", "method must be a string, got 1000"),
        ("method = 1" + 5000 * "0", "is not valid TOML"),
        (f"method = '{'x' * 10**6}'", 'unknown method "xxx'),
        ("[" + ".".join(["a"] * 5000) + "]", "unknown key in "),
    ],
)
def test_a_monstrous_file_is_one_short_sentence(tmp_path, text, sentence):
    error = message(Config, written(tmp_path, text))
    assert sentence in error
    assert len(error) < 1000
    assert message(Config, None, f"head.width={text}").startswith("head.width must be an integer")


def test_class_names_come_from_names_or_a_file(tmp_path):
    assert parse_classes("apple, bear,") == ("apple", "bear")
    assert parse_classes("") == ()
    names = tuple(f"class{number}" for number in range(100))
    assert parse_classes(",".join(names)) == names, "too long to be a path"
    path = tmp_path / "twenty.txt"
    for mark in ("", "\ufeff"):  # some editors begin a file with a byte order mark
        path.write_text(f"{mark}# diverse ones\napple\n\n  bear  # an animal\n", encoding="utf-8")
        assert parse_classes(str(path)) == ("apple", "bear")
    assert Config.load(written(tmp_path, "\ufeffmethod = 'knn'")).method == "knn"
    path.write_text("# nothing\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\xff")
    wrong = {"none.txt": "no file", "twenty.txt": "names no class", "binary.txt": "cannot read the class names"}
    for name, sentence in wrong.items():
        refuses(sentence, parse_classes, str(tmp_path / name))


PLAN = """
[training]
epochs = 5

[plan]
seeds = 3
runs = ["head: training.epochs=7 head.width=8", "nearest: method=knn", "chance: method=random"]
once = ["short: training.epochs=1"]
splits = ["unseen: data.unseen_classes=2", "unseen-nearest: method=knn data.unseen_classes=2"]
"""


def test_the_runs_of_a_phase_have_seeds_where_they_depend_on_one(tmp_path):
    path = written(tmp_path, PLAN)
    runs = plan_configs(path)
    first = ["head", "nearest", "chance", "short", "unseen", "unseen-nearest"]
    later = ["head", "chance", "unseen", "unseen-nearest"]
    expected = [f"{name}-seed0" for name in first] + [f"{name}-seed{seed}" for seed in (1, 2) for name in later]
    assert list(runs) == expected
    assert {type(run) for run in runs.values()} == {Config}
    assert all(run.training.seed == int(name[-1]) for name, run in runs.items())
    splits = {name: run.data.split_seed for name, run in runs.items() if run.data.split_seed}
    assert splits == {f"{name}-seed{seed}": seed for name in ("unseen", "unseen-nearest") for seed in (1, 2)}
    assert Config.load(path) == Config.load(None, ["training.epochs=5"]), "the plan is no part of a config"


def test_what_is_set_for_all_runs_of_a_phase_wins_over_their_own(tmp_path):
    path = written(tmp_path, PLAN)
    runs = plan_configs(path, ["training.epochs=6", "head.width=16"])
    assert runs["head-seed1"] == Config.load(path, ["training.epochs=6", "head.width=16", "training.seed=1"])
    shared = ["training.epochs=6", "head.width=16", "method=knn"]
    assert runs["nearest-seed0"] == schema.from_dict(Config, {}, "", shared)
    assert {run.training.epochs for run in runs.values()} == {6}
    assert plan_configs(path)["short-seed0"].training.epochs == 1


@pytest.mark.parametrize("key", ["training.seed", "data.split_seed"])
def test_the_seeds_of_a_phase_are_its_plans(tmp_path, key):
    refuses(rf"{key} must be left to the plan", plan_configs, written(tmp_path, PLAN), [f"{key}=9"])


@pytest.mark.parametrize(
    ("plan", "part"),
    [
        *(
            (f'runs = ["{name}: method=knn"]', "plan must be of names that a folder may have")
            for name in ("", "../x", "a/b", "..", ".hidden", "-x", "a b", "a@b")
        ),
        ('run = ["a:"]', 'did you mean "plan.runs"'),
        ("", "has no plan: list its runs under [plan] runs, or use `train fit`"),
        ("seeds = 3", "has no plan: list its runs under [plan] runs, or use `train fit`"),
        (
            'runs = ["a: method=knn"]\nonce = ["b: method=knn"]',
            "the runs a-seed0 and b-seed0 of its plan are the same experiment",
        ),
        (
            'runs = ["a: method=knn head.layers=2"]',
            'the run "a" of its plan: head.layers=2 does nothing for the method "knn"',
        ),
        ('runs = ["a:", "b:"]\nonce = ["a: method=knn"]', "plan must be of distinct names, got a more than once"),
        ("seeds = 0", "plan.seeds must be an integer of at least 1 and at most 1,000, got 0 (in "),
        ('runs = ["a: method=kn"]', 'unknown method "kn": did you mean "knn"?'),
        ('runs = ["a: head.widht=3"]', '"head.widht": did you mean "head.width"?'),
        ('runs = ["a: fast"]', 'needs section.key=value, got "fast"'),
    ],
)
def test_a_mistake_in_a_plan_is_one_sentence(tmp_path, plan, part):
    assert part in refuses("", plan_configs, written(tmp_path, f"[plan]\n{plan}"))


def test_the_recommended_recipe_is_that_of_phase_7():
    recommended = Config.load(RECOMMENDED)
    assert recommended == Config.load(Path(__file__).parents[1] / "experiments/phase7/config.toml")
    assert recommended.method == "posterior_transformer"


@pytest.mark.parametrize("key", ["training.seed", "data.split_seed", "training.epochs", "head.width", "head.layers"])
@pytest.mark.parametrize("value", [2**62, 2**63 - 1, 2**63, 10**26, 10**400])
def test_numbers_beyond_all_use_are_a_sentence_with_the_bound(key, value):
    if key.endswith("seed") and value < 2**63:
        assert make_config(f"{key}={value}")
        return
    error = message(Config, None, f"{key}={value}")
    assert error.startswith(f"{key} must be an integer of at least")
    assert len(error) < 300
    assert message(Config, None, f"training.learning_rate={10**400}").startswith("training.learning_rate must be")
