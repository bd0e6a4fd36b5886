"""Which differences between methods are real: paired tests on the same sets."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.errors import UserError
from common.intervals import wilson_interval
from train.runs import Group, Run

LEVEL = 0.05


@dataclass(frozen=True)
class Difference:
    """A group against another one on the same sets: top-1 gained (a fraction), discordant sets, and a p-value.

    Of several seeds, `gained` is the difference of the means, the rest is of the pair of runs with the highest p-value:
    what holds for it holds for all.
    """

    gained: float
    only_first: int
    only_second: int
    p: float
    real: bool = False


def mcnemar(first: np.ndarray, second: np.ndarray) -> tuple[int, int, float]:
    """McNemar's exact test (1947) of solved sets (n,) bool → solved by the first only, by the second only, two-sided p.

    >>> mcnemar(np.array([1, 1, 1, 1, 1, 0]) > 0, np.array([0, 0, 0, 0, 0, 0]) > 0)
    (5, 0, 0.0625)
    """
    from scipy.stats import binomtest  # here: it is slow to start

    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    n = only_first + only_second
    return only_first, only_second, float(binomtest(only_first, n).pvalue) if n else 1.0


def difference(first: Group, second: Group, sets: str = "test") -> Difference:
    """The difference of two groups, run by run of equal seeds; a method without seeds meets each run of the other."""
    tested = [
        mcnemar(a.solved(sets), b.solved(sets))
        for a in first.runs
        for b in second.runs
        if _meet(a, b, sets, first, second)
    ]
    gained = float(first.values(sets, "top1").mean() - second.values(sets, "top1").mean())
    return Difference(gained, *max(tested, key=lambda found: found[2]))


def holm(p_values: Sequence[float]) -> list[bool]:
    """Which of several hypotheses are rejected at 5 % together (Holm, 1979).

    >>> holm([0.01, 0.04, 0.03])
    [True, False, False]
    """
    rejected = [False] * len(p_values)
    for rank, number in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if p_values[number] > LEVEL / (len(p_values) - rank):
            break
        rejected[number] = True
    return rejected


def ranked(groups: Sequence[Group], sets: str = "test") -> list[tuple[Group, Difference | None]]:
    """The groups from the highest mean top-1 down, each with its difference from the next one.

    Raises UserError where they were not measured on the same sets.
    """
    require_same_sets(groups, sets)
    order = sorted(groups, key=lambda group: -group.values(sets, "top1").mean())
    found = [difference(a, b, sets) for a, b in itertools.pairwise(order)]
    real = holm([each.p for each in found])
    judged = [Difference(d.gained, d.only_first, d.only_second, d.p, yes) for d, yes in zip(found, real, strict=True)]
    return list(zip(order, [*judged, None], strict=True))


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


def table(groups: Sequence[Group], sets: str = "test") -> str:
    """The ranking as a Markdown table, and a sentence on which neighbours cannot be told apart."""
    rows = [
        "| method | parameters | seeds | top-1 % | 95 % interval | top-5 % | AP | AUROC | training | "
        "above the next, points | discordant sets | p |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    order = ranked(groups, sets)
    for group, gap in order:
        top1 = group.values(sets, "top1")
        cells = [
            group.name,
            f"{group.first['parameters']:,}",
            str(len(top1)),
            f"**{mean_and_std(top1)}**",
            interval(group, sets),
            f"{100 * group.values(sets, 'top5').mean():.2f}",
            f"{group.values(sets, 'average_precision').mean():.4f}",
            f"{group.values(sets, 'auroc').mean():.4f}",
            duration(group.values("train_seconds").mean()),
        ]
        if gap:
            sign = "" if gap.real else " (not told apart)"
            cells += [f"{100 * gap.gained:+.2f}{sign}", f"{gap.only_first} : {gap.only_second}", f"{gap.p:.2g}"]
        else:
            cells += ["", "", ""]
        rows.append(f"| {' | '.join(cells)} |")
    n, hashes = order[0][0].first[sets]["n"], sorted(order[0][0].hashes(sets))
    digests = ", ".join(f"`{digest[:12]}`" for digest in hashes)
    same = [f"{a.name} and {b.name}" for (a, gap), (b, _) in itertools.pairwise(order) if gap and not gap.real]
    verdict = f"Not told apart from each other: {'; '.join(same)}." if same else "Each is really above the next."
    verdict = verdict if len(order) > 1 else ""
    about = (
        f"n = {n:,} {sets} sets each (sets {digests}); mean ± standard deviation over the seeds; Wilson's interval of "
        "the mean. The last columns compare each row with the next on the same sets: McNemar's exact test, the seed "
        f"pair with the highest p; “not told apart”: p above 5 % after Holm's correction. {verdict}"
    )
    return "\n".join([*rows, "", about.rstrip()])


def interval(group: Group, sets: str = "test") -> str:
    """The 95 % interval of a group's mean top-1, in percent."""
    n = group.first[sets]["n"]
    low, high = wilson_interval(group.values(sets, "top1").mean() * n, n)
    return f"{100 * low:.2f} – {100 * high:.2f}"


def mean_and_std(fractions: np.ndarray) -> str:
    """Percent, with the standard deviation over runs where there are several.

    >>> mean_and_std(np.array([0.5, 0.6])), mean_and_std(np.array([0.5]))
    ('55.00 ± 7.07', '50.00')
    """
    spread = f" ± {100 * fractions.std(ddof=1):.2f}" if len(fractions) > 1 else ""
    return f"{100 * fractions.mean():.2f}{spread}"


def duration(seconds: float) -> str:
    """Seconds, or minutes where they are many; a dash for none.

    >>> duration(0), duration(12.34), duration(150)
    ('–', '12 s', '2.5 min')
    """
    if not seconds:
        return "–"
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"


def _meet(a: Run, b: Run, sets: str, first: Group, second: Group) -> bool:
    if a.report[sets]["sets_sha256"] != b.report[sets]["sets_sha256"]:
        return False
    seeds = [{run.config.training.seed for run in group.runs} for group in (first, second)]
    return a.config.training.seed == b.config.training.seed or not seeds[0] & seeds[1] or 1 in map(len, seeds)
