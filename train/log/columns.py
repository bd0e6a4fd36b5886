"""The columns of the log's tables, each declared once, and how numbers are written in them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from common.intervals import wilson_interval
from common.markdown import markdown_table
from train.log.runs import Group, describe_machine
from train.log.significance import Difference

Groups = Sequence[Group]


@dataclass(frozen=True)
class Column:
    """A column of a table that has a row for each group."""

    head: str
    cell: Callable[[Group], str]


def make_rows(groups: Groups, columns: Sequence[str | Column], sets: str = "test") -> list[list[str]]:
    """The head, and a row for each group; a column may be named, if it is one of `make_standard_columns`."""
    standard = {column.head.partition(" (")[0]: column for column in make_standard_columns(groups, sets)}
    chosen = [standard[column] if isinstance(column, str) else column for column in columns]
    return [[column.head for column in chosen], *([column.cell(group) for column in chosen] for group in groups)]


def table(groups: Groups, columns: Sequence[str | Column], sets: str = "test") -> str:
    """The same in Markdown."""
    return markdown_table(make_rows(groups, columns, sets))


def make_standard_columns(groups: Groups, sets: str) -> list[Column]:
    """What several tables have of groups, measured on "test" or "hard" sets."""

    def mean(group: Group, metric: str) -> float:
        return float(np.mean([getattr(found, metric) for found in group.measured(sets)]))

    return [
        Column("method", lambda group: group.name),
        Column("parameters", lambda group: f"{group.first.parameters:,}"),
        Column("classes", lambda group: str(group.first.classes)),
        Column("training sets", lambda group: f"{len(group.first.history) * group.first.train_images:,}"),
        Column("seeds", lambda group: str(len(group.runs))),
        Column("top-1 %", lambda group: f"**{format_mean(group.top1(sets))}**"),
        Column("95 % interval", lambda group: format_interval(group, sets)),
        Column("top-5 %", lambda group: f"{100 * mean(group, 'top5'):.2f}"),
        Column("average precision", lambda group: f"{mean(group, 'average_precision'):.4f}"),
        Column("AUROC", lambda group: f"{mean(group, 'auroc'):.4f}"),
        Column("hard sets, top-1 %", lambda group: format_mean(group.top1("hard")) if group.first.hard else "–"),
        Column("test sets n", lambda group: f"{group.first.test.n:,}"),
        Column("machine", describe_machine),
        make_time_column(groups),
    ]


def make_time_column(groups: Groups) -> Column:
    """The mean time of training, and where: in the head where that is the same for all, else in each cell."""
    machines = {describe_machine(group) for group in groups if group.first.history}

    def cell(group: Group) -> str:
        taken = format_duration(group.mean(lambda report: report.train_seconds))
        return f"{taken} ({describe_machine(group)})" if len(machines) > 1 and group.first.history else taken

    return Column(f"training ({min(machines)})" if len(machines) == 1 else "training", cell)


def make_gap_columns(groups: Groups, found: Sequence[Difference | None], head: str) -> list[Column]:
    """Columns of the difference of each group from another one; empty where it has none."""
    gap_of = {id(group): gap for group, gap in zip(groups, found, strict=True)}

    def column(head: str, cell: Callable[[Difference], str]) -> Column:
        return Column(head, lambda group: cell(gap) if (gap := gap_of[id(group)]) else "")

    return [
        column(head, lambda gap: f"{100 * gap.gained:+.2f}{'' if gap.real else ' (not told apart)'}"),
        column("discordant sets", lambda gap: f"{gap.only_first} : {gap.only_second}"),
        column("p", lambda gap: f"{gap.p:.2g}"),
    ]


def format_interval(group: Group, sets: str = "test") -> str:
    """The 95 % interval of a group's mean top-1, in percent."""
    n = group.measured(sets)[0].n
    return format_range(wilson_interval(group.top1(sets).mean() * n, n))


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
