from fabricate import make_config

from train.experiment import differences, key, short_digest


def test_where_it_is_computed_is_no_part_of_an_experiment():
    here, there = make_config(), make_config("training.device=cuda:1")
    assert differences(here, there) == []
    assert key(here, "s") == key(there, "s")
    assert short_digest(here, "s") == short_digest(there, "s")


def test_a_precision_that_is_left_to_the_machine_agrees_with_what_it_was():
    auto, single, half = (make_config(f"training.precision={name}") for name in ("auto", "float32", "bfloat16"))
    assert differences(auto, single) == differences(half, auto) == []
    assert differences(single, half) == ["training.precision"]


def test_a_run_without_options_has_the_name_that_it_had_when_float32_was_the_default():
    single = make_config("training.precision=float32")
    assert short_digest(make_config(), "s") == short_digest(single, "s")
    assert short_digest(make_config(), "s") != short_digest(make_config("training.seed=1"), "s")
    assert short_digest(make_config(), "s") != short_digest(make_config(), "t")


def test_seeds_repeat_an_experiment():
    assert key(make_config("training.seed=3", "data.split_seed=4"), "s") == key(make_config(), "s")
    assert key(make_config("head.layers=3"), "s") != key(make_config(), "s")
    assert differences(make_config(), make_config("training.seed=1")) == ["training.seed"]
