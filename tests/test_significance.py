import numpy as np
import pytest
from fabricate import make_epoch, make_run, refuses
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from train.log.columns import format_duration, format_mean
from train.log.runs import group_runs
from train.log.significance import differences, holm, mcnemar, rank, require_same_sets
from train.log.tables import ablation, pace, ranking, summary

N = 400


def solving(fraction, seed=0):
    """Which of N sets are solved: a part of them, chosen by lot."""
    return np.random.default_rng(seed).permutation(N) < round(fraction * N)


def group(name, *solved, method="transformer", width=256, **options):
    """A group of one run a seed, with these solved sets."""
    changes = [f"method={method}", f"head.width={width}"]
    runs = [
        make_run(f"{name}-seed{seed}", each, *changes, f"training.seed={seed}", **options)
        for seed, each in enumerate(solved)
    ]
    (made,) = group_runs(runs)
    return made


def split_group(method, *runs):
    """A group of runs, each of a part of the sets that it solves, a seed and a split."""
    (made,) = group_runs(
        make_run(
            f"{method}-seed{seed}",
            solving(part),
            *(f"method={method}", f"training.seed={seed}", f"data.split_seed={split}"),
            sets=f"of split {split}",
        )
        for part, seed, split in runs
    )
    return made


def difference(first, second):
    """The difference of two groups, alone."""
    return differences([(first, second)])[0]


@pytest.mark.parametrize("seed", range(5))
def test_mcnemar_is_the_binomial_test_of_the_discordant_sets_and_symmetric(seed):
    generator = np.random.default_rng(seed)
    first, second = generator.random((2, 300)) < generator.uniform(0.5, 0.9, (2, 1))
    b, c, p = mcnemar(first, second)
    assert (b, c) == (np.sum(first > second), np.sum(second > first))
    assert p == pytest.approx(binomtest(min(b, c), b + c, 0.5).pvalue)
    assert mcnemar(second, first) == (c, b, pytest.approx(p))


def test_runs_that_solve_the_same_sets_differ_by_nothing():
    assert mcnemar(solving(0.7), solving(0.7)) == (0, 0, 1.0)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_as_many_of_the_smallest_as_pass_their_level(p_values):
    order = np.argsort(p_values, kind="stable")
    passed = [p_values[i] <= 0.05 / (len(p_values) - rank) for rank, i in enumerate(order)]
    count = passed.index(False) if False in passed else len(passed)
    rejected = holm(p_values)
    assert sum(rejected) == count
    assert all(rejected[i] for i in order[:count])


def test_the_best_mean_comes_first_and_each_is_compared_with_the_next():
    low, high, middle = (group(name, solving(part), width=width) for name, part, width in SPREAD)
    order = rank([low, high, middle])
    assert [each.name for each, _ in order] == ["high", "middle", "low"]
    assert [gap is None for _, gap in order] == [False, False, True]
    first = order[0][1]
    assert first.gained == pytest.approx(0.25)
    assert (first.only_first, first.only_second, first.real) == (100, 0, True)


SPREAD = [("low", 0.25, 8), ("high", 0.75, 16), ("middle", 0.5, 32)]


def test_runs_of_equal_seeds_meet_and_the_pair_of_the_highest_p_counts():
    good, better, best = solving(0.6), solving(0.8), solving(0.9)
    first, second = group("a", better, best, width=8), group("b", good, better, width=16)
    gap = difference(first, second)
    assert (gap.only_first, gap.only_second) == (40, 0)  # seed 1 with seed 1, not with seed 0: that is 120
    assert (gap.p, gap.gained) == (mcnemar(best, better)[2], pytest.approx(0.15))
    assert difference(second, first).gained == pytest.approx(-0.15)


def test_a_method_without_seeds_meets_every_seed_of_another():
    knn = group("knn", solving(0.5), method="knn")
    head = group("head", solving(0.9), solving(0.52), solving(0.9))
    gap = difference(head, knn)
    assert (gap.only_first, gap.only_second) == (8, 0)
    assert difference(knn, head).p == gap.p


def test_runs_of_a_split_meet_those_of_the_same_split_also_where_seeds_and_splits_cross():
    head, knn = split_group("transformer", (0.9, 0, 0), (0.8, 1, 1)), split_group("knn", (0.7, 0, 0), (0.6, 1, 1))
    gap = difference(head, knn)
    assert (gap.only_first, gap.only_second) == (80, 0)
    refuses("different test sets", difference, head, split_group("knn", (0.85, 1, 1)))  # of one split only
    first = split_group("transformer", (0.9, 0, 0), (0.8, 1, 1))
    second = split_group("random", (0.6, 0, 1), (0.7, 1, 0))
    gap = difference(first, second)  # on split 0: 0.9 and 0.7; on split 1: 0.8 and 0.6
    assert (gap.only_first, gap.only_second) == (80, 0)


def test_runs_on_different_sets_or_without_hard_ones_are_not_compared():
    groups = [group("a", solving(0.5), width=8, sets="1" * 64), group("b", solving(0.6), width=16, sets="2" * 64)]
    refuses(r"a and b were measured on different test sets \(1{12}…, 2{12}…\): compare", require_same_sets, groups)
    refuses("different test sets", ranking, groups)
    groups = [group("a", solving(0.5), width=8, hard=solving(0.4)), group("b", solving(0.6), width=16)]
    refuses("b has no hard sets", rank, groups, "hard")
    assert [each.name for each, _ in rank(groups)] == ["b", "a"]


def test_the_table_tells_apart_what_differs_and_nothing_else():
    parts = {"same": (0.7, 8), "twin": (0.7, 16), "far": (0.2, 32)}
    groups = [group(name, solving(part), width=width) for name, (part, width) in parts.items()]
    lines = ranking(groups).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert {len(row) for row in rows} == {12}
    assert [row[0] for row in rows[2:]] == ["same", "twin", "far"]
    assert [row[3] for row in rows[2:]] == ["**70.00**", "**70.00**", "**20.00**"]
    assert [row[9] for row in rows[2:]] == ["+0.00 (not told apart)", "+50.00", ""]
    assert [row[10] for row in rows[2:]] == ["0 : 0", "200 : 0", ""]
    assert "Not told apart from each other: same and twin." in lines[-1]
    assert "n = 400 test sets each (sets `a`)" in lines[-1]
    assert "not told apart" not in ranking(groups[1:]).partition("\n\n")[0]
    assert "Each is really above the next." in ranking(groups[1:])


def test_the_table_of_hard_sets_has_their_numbers():
    parts = (("a", 0.9, 8, 0.3), ("b", 0.8, 16, 0.6))
    groups = [group(name, solving(part), width=width, hard=solving(hard)) for name, part, width, hard in parts]
    text = ranking(groups, "hard")
    assert text.index("**60.00**") < text.index("**30.00**")
    assert "hard sets each" in text
    assert "90.00" not in text


def test_several_seeds_have_a_mean_a_deviation_and_an_interval_of_the_mean():
    text = ranking([group("a", solving(0.5), solving(0.6), solving(0.7)), group("b", solving(0.1), width=8)])
    assert "| 3 | **60.00 ± 10.00** | 55.13 – 64.68 |" in text
    assert format_mean(np.array([0.5])) == "50.00"
    assert format_duration(89) == "89 s"


def test_a_time_says_its_threads_in_the_head_where_they_agree_else_in_each_cell():
    epochs = [make_epoch(1), make_epoch(2)]
    one, two = (group(f"on {n}", solving(n / 4), width=8 * n, threads=n, history=epochs) for n in (1, 2))
    knn = group("knn", solving(0.1), method="knn", threads=2)
    for made in (ranking([one, knn]), summary([one, knn]), ablation([one, knn])):
        assert "| training (1 thread) |" in made
        assert "| 4 s |" in made
    for made in (ranking([one, two, knn]), summary([one, two, knn]), ablation([one, two, knn])):
        assert "| training |" in made
        assert "| 4 s (1 thread) |" in made
        assert "| 4 s (2 threads) |" in made
    assert "| on 2 | 1 | 2 threads |" in pace([one, two])
