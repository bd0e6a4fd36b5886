import pytest
from fabricate import make_config, refuses

from train.experiment import digest_config, find_changes, make_key, require_same


def test_an_experiment_is_what_is_computed_not_where_and_seeds_repeat_it():
    here, there = make_config(), make_config("training.device=cuda:1")
    assert find_changes(here, there) == {}
    assert make_key(here, "s") == make_key(there, "s")
    assert digest_config(here, "s") == digest_config(there, "s")
    assert make_key(make_config("training.seed=3", "data.split_seed=4"), "s") == make_key(make_config(), "s")
    assert make_key(make_config("training.seed=3"), "s", ()) != make_key(make_config(), "s", ())
    assert make_key(make_config("head.layers=3"), "s") != make_key(make_config(), "s")
    settings = ([], ["training.seed=1"], ["training.precision=float32"])
    names = {digest_config(make_config(), "t"), *(digest_config(make_config(*each), "s") for each in settings)}
    assert len(names) == 4


@pytest.mark.parametrize(
    ("before", "now", "different"),
    [
        ("head.layers=2", "head.layers=3", ["head.layers"]),
        ("training.seed=0", "training.seed=1", ["training.seed"]),
        ("training.precision=bfloat16", "training.precision=auto", []),
        ("training.precision=float32", "training.precision=auto", []),
        ("training.precision=auto", "training.precision=float32", ["training.precision"]),
        ("training.precision=bfloat16", "training.precision=float32", ["training.precision"]),
    ],
)
def test_auto_goes_on_with_any_arithmetic_and_an_explicit_wish_is_honoured(before, now, different):
    assert list(find_changes(make_config(before), make_config(now))) == different


def test_what_differs_is_named_with_both_values():
    changed = make_config("training.precision=float32")
    refuses(r"runs/a .*training\.precision was auto, now float32", require_same, "runs/a", make_config(), changed)
