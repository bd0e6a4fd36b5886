"""Which differences between methods are real: paired tests on the same sets."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from common.errors import UserError
from train.log.runs import Group

LEVEL = 0.05


@dataclass(frozen=True)
class Difference:
    """The difference of two groups on the same sets.

    gained: the difference of their mean top-1, a fraction. only_first, only_second: the number of sets that only one of
    them solved; p: the p-value; all three are of the pair of runs with the highest p-value, so that every other pair
    differs more clearly. real: whether it is significant after Holm's correction for all comparisons made together.
    """

    gained: float
    only_first: int
    only_second: int
    p: float
    real: bool


def mcnemar(first: np.ndarray, second: np.ndarray) -> tuple[int, int, float]:
    """McNemar's exact test (1947) of solved sets (n,) bool → solved by the first only, by the second only, two-sided p.

    >>> mcnemar(np.array([1, 1, 1, 1, 1, 0]) > 0, np.array([0, 0, 0, 0, 0, 0]) > 0)
    (5, 0, 0.0625)
    """
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    n = only_first + only_second
    return only_first, only_second, float(binomtest(only_first, n).pvalue) if n else 1.0


def holm(p_values: Sequence[float]) -> list[bool]:
    """Which of several hypotheses are rejected at 5 % together (Holm, 1979).

    By hand: ten lines, for which statsmodels would be one more thing to install.

    >>> holm([0.01, 0.04, 0.03])
    [True, False, False]
    """
    rejected = [False] * len(p_values)
    for rank, number in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if p_values[number] > LEVEL / (len(p_values) - rank):
            break
        rejected[number] = True
    return rejected


def differences(pairs: Sequence[tuple[Group, Group]], sets: str = "test") -> list[Difference]:
    """The difference of each pair of groups, judged together by Holm's correction.

    Raises UserError where the groups were not measured on the same sets.
    """
    require_same_sets([group for pair in pairs for group in pair], sets)
    tested = [max(_tests(first, second, sets), key=lambda results: results[2]) for first, second in pairs]
    real = holm([p for _, _, p in tested])
    return [
        Difference(float(first.top1(sets).mean() - second.top1(sets).mean()), *results, real=yes)
        for (first, second), results, yes in zip(pairs, tested, real, strict=True)
    ]


def rank(groups: Sequence[Group], sets: str = "test") -> list[tuple[Group, Difference | None]]:
    """The groups from the highest mean top-1 down, each with its difference from the next one.

    Raises UserError where they were not measured on the same sets.
    """
    require_same_sets(groups, sets)
    order = sorted(groups, key=lambda group: -group.top1(sets).mean())
    return list(zip(order, [*differences(list(itertools.pairwise(order)), sets), None], strict=True))


def require_same_sets(groups: Sequence[Group], sets: str = "test") -> None:
    """Raise UserError unless all groups were measured on the same evaluation sets."""
    for group in groups:
        if not group.hashes(sets):
            raise UserError(f"{group.name} has no {sets} sets: its classes share no super-class")
        if group.hashes(sets) != groups[0].hashes(sets):
            a, b = (min(g.hashes(sets))[:12] for g in (groups[0], group))
            raise UserError(
                f"{groups[0].name} and {group.name} were measured on different {sets} sets ({a}…, {b}…): "
                "compare runs of the same store, classes, set size and splits"
            )


def _tests(first: Group, second: Group, sets: str) -> list[tuple[int, int, float]]:
    """McNemar's tests of pairs of runs on the same sets.

    Pairs of equal seeds, where both groups have several seeds and share some; else all pairs.
    """
    results: dict[bool, list] = {True: [], False: []}
    for a, b in itertools.product(first.runs, second.runs):
        of_a, of_b = a.report.get_measured(sets), b.report.get_measured(sets)
        if of_a and of_b and of_a.sets_sha256 == of_b.sets_sha256:
            results[a.seeds[0] == b.seeds[0]].append(mcnemar(of_a.unpack_solved(), of_b.unpack_solved()))
    several = all(len({run.seeds[0] for run in group.runs}) > 1 for group in (first, second))
    return results[True] if several and results[True] else results[True] + results[False]
