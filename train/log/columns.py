"""The columns of the log's tables, each declared once, and how numbers are written in them."""

from collections.abc import Callable, Sequence

import numpy as np

from common.intervals import wilson_interval
from common.markdown import markdown_table
from train.log.runs import Group, describe_machine
from train.log.significance import Difference

Groups = Sequence[Group]
Column = tuple[str, Callable[[Group], str]]  # its head, and its cell in the row of a group


def table(groups: Groups, columns: Sequence[str | Column], sets: str = "test", above: Sequence[str] = ()) -> str:
    """A Markdown table with a row for each group.

    columns: each a `Column`, or the name of one of `make_standard_columns`. sets: what these are measured on, "test" or
    "hard". above: one more row, above those of the groups.
    """
    standard = {head.partition(" (")[0]: (head, cell) for head, cell in make_standard_columns(groups, sets)}
    chosen = [standard[column] if isinstance(column, str) else column for column in columns]
    rows = [[cell(group) for _, cell in chosen] for group in groups]
    return markdown_table([[head for head, _ in chosen], *([above] if above else []), *rows])


def make_standard_columns(groups: Groups, sets: str) -> list[Column]:
    """The columns that several tables have."""

    def mean(group: Group, metric: str) -> float:
        return float(np.mean([getattr(measured, metric) for measured in group.measured(sets)]))

    def interval(group: Group) -> str:
        n = group.measured(sets)[0].n
        return format_range(wilson_interval(group.top1(sets).mean() * n, n))

    return [
        ("method", lambda group: group.name),
        ("parameters", lambda group: f"{group.first.parameters:,}"),
        ("classes", lambda group: str(group.first.classes)),
        ("training sets", lambda group: f"{len(group.first.history) * group.first.train_images:,}"),
        ("seeds", lambda group: str(len(group.runs))),
        ("top-1 %", lambda group: f"**{format_mean(group.top1(sets))}**"),
        ("95 % interval", interval),
        ("top-5 %", lambda group: f"{100 * mean(group, 'top5'):.2f}"),
        ("average precision", lambda group: f"{mean(group, 'average_precision'):.4f}"),
        ("AUROC", lambda group: f"{mean(group, 'auroc'):.4f}"),
        ("hard sets, top-1 %", lambda group: format_mean(group.top1("hard")) if group.first.hard else "–"),
        ("test sets n", lambda group: f"{group.first.test.n:,}"),
        ("machine", describe_machine),
        make_time_column(groups),
    ]


def make_time_column(groups: Groups) -> Column:
    """The mean training time; the machine is in the head if it is the same for all groups, else in each cell."""
    machines = {describe_machine(group) for group in groups if group.first.history}

    def cell(group: Group) -> str:
        time = format_duration(group.mean(lambda report: report.train_seconds))
        return f"{time} ({describe_machine(group)})" if len(machines) > 1 and group.first.history else time

    return f"training ({min(machines)})" if len(machines) == 1 else "training", cell


def make_gap_columns(groups: Groups, gaps: Sequence[Difference | None], head: str) -> list[Column]:
    """Columns of the difference of each group from another one; empty where it has none."""
    gap_of = {id(group): gap for group, gap in zip(groups, gaps, strict=True)}

    def column(head: str, cell: Callable[[Difference], str]) -> Column:
        return head, lambda group: cell(gap) if (gap := gap_of[id(group)]) else ""

    return [
        column(head, lambda gap: f"{100 * gap.gained:+.2f}{'' if gap.real else ' (not told apart)'}"),
        column("discordant sets", lambda gap: f"{gap.only_first} : {gap.only_second}"),
        column("p", lambda gap: f"{gap.p:.2g}"),
    ]


def format_range(bounds: Sequence[float]) -> str:
    """Two fractions in percent.

    >>> format_range((0.5, 0.625))
    '50.00 – 62.50'
    """
    return " – ".join(f"{100 * bound:.2f}" for bound in bounds)


def format_mean(fractions: np.ndarray) -> str:
    """Percent, with the standard deviation over runs where there are several.

    >>> format_mean(np.array([0.5, 0.6])), format_mean(np.array([0.5]))
    ('55.00 ± 7.07', '50.00')
    """
    spread = f" ± {100 * fractions.std(ddof=1):.2f}" if len(fractions) > 1 else ""
    return f"{100 * fractions.mean():.2f}{spread}"


def format_duration(seconds: float) -> str:
    """Seconds, or minutes where they are many; a dash for none.

    >>> format_duration(0), format_duration(12.34), format_duration(150)
    ('–', '12 s', '2.5 min')
    """
    if not seconds:
        return "–"
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
