import pytest

from common.errors import UserError
from train.config import Config
from train.experiment import differences, key, require_same


def config(*changes):
    return Config.load(None, changes)


@pytest.mark.parametrize(
    ("before", "now", "different"),
    [
        ("training.device=cpu", "training.device=cuda", []),
        ("head.layers=2", "head.layers=3", ["head.layers"]),
        ("training.precision=bfloat16", "training.precision=auto", []),
        ("training.precision=float32", "training.precision=auto", []),
        ("training.precision=auto", "training.precision=float32", ["training.precision"]),
        ("training.precision=bfloat16", "training.precision=float32", ["training.precision"]),
    ],
)
def test_auto_goes_on_with_any_arithmetic_and_an_explicit_wish_is_honoured(before, now, different):
    assert differences(config(before), config(now)) == different


def test_what_differs_is_named_with_both_values():
    with pytest.raises(UserError, match=r"runs/a .*training\.precision was auto, now float32"):
        require_same("runs/a", config(), config("training.precision=float32"))


def test_a_key_leaves_out_the_place_and_what_is_set_apart():
    assert key(config("training.seed=1"), "s") == key(config("training.device=cpu"), "s")
    assert key(config("training.seed=1"), "s", ()) != key(config(), "s", ())
    assert key(config(), "s") != key(config(), "t")
