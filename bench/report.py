"""What the benchmarks share: reports in JSON, whose tables stand in a page. And the tables and the chart of speed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from matplotlib.ticker import EngFormatter

from common.figures import BLUE, GREY, figure_of, save_figure
from common.markdown import fill_blocks, markdown_table, report_stale, rewrite

SHOWN = ("extraction", "training", "sampling", "rows")
CHARTED = ("extraction", "training", "rows")


def report_options(path: str) -> Callable[[Callable], Callable]:
    """The options of each benchmark: --out, its report, by default at `path`; and --readme."""
    kind = click.Path(path_type=Path)
    out = click.option("--out", type=kind, default=path, show_default=True, help="The report.")
    readme = click.option("--readme", type=kind, help="Measure nothing: write OUT's tables and charts there.")
    return lambda command: out(readme(command))


def read_report(path: Path) -> dict[str, Any]:
    """Read a report."""
    return json.loads(path.read_text(encoding="utf-8"))


def fill_page(page: Path, name: str, text: str) -> None:
    """Write a text between the marks of this name in a page; if that changes it, say so."""
    changed = rewrite(page, lambda old: fill_blocks(old, "measured", {name: text}.get), check=False)
    report_stale([page] * changed, check=False)


def make_table(report: dict[str, Any], short: bool = False) -> str:
    """Tell each rate, its spread, its ratio to the first of its section, and what was left out.

    short: the medians of the ways that compete alone, for the page.
    """
    columns = ["what", "way", "median", *([] if short else ["lowest – highest"]), "ratio"]
    rows, left_out = [columns], []
    for name in SHOWN if short else report["sections"]:
        section = report["sections"].get(name, {"rates": {}})
        for way, rate in section["rates"].items():
            low, median, high = (_format_number(rate[key]) for key in ("low", "median", "high"))
            cells = {"what": name, "way": way, "median": f"{median} {section['unit']}"}
            cells |= {"lowest – highest": f"{low} – {high}", "ratio": f"{_ratio(rate, section):.2f} ×"}
            rows.append([cells[column] for column in columns])
        left_out += [f"{name}, {way} ({reason})" for way, reason in section.get("left_out", {}).items()]
    machine = report["machine"]
    about = f"{machine['cpu']}, {machine['threads']} threads; {', '.join(machine.get('flags', []))}."
    return f"{markdown_table(rows)}\n\n{about}" + (f" Left out: {'; '.join(left_out)}." if left_out else "")


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw bars of the rates, with their spread, a panel for each section that compares ways to do the same."""
    sections = {name: found for name in CHARTED if (found := report["sections"].get(name)) and found["rates"]}
    if not sections:
        return
    heights = [len(section["rates"]) + 1.5 for section in sections.values()]
    figure = figure_of(10, 0.36 * sum(heights))
    panels = figure.subplots(len(sections), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, (name, section) in zip(panels, sections.items(), strict=True):
        ways, rates = list(section["rates"]), list(section["rates"].values())
        medians = [rate["median"] for rate in rates]
        errors = [[r["median"] - r["low"] for r in rates], [r["high"] - r["median"] for r in rates]]
        axes.barh(ways, medians, xerr=errors, color=[GREY if way.startswith("roof") else BLUE for way in ways])
        for number, rate in enumerate(rates):  # behind the bar and its spread, where the shortest has room for it, too
            text, end = f"{_ratio(rate, section):.2f} ×", (rate["high"], number)
            axes.annotate(text, end, (5, 0), textcoords="offset points", va="center", fontsize=8)
        axes.invert_yaxis()
        axes.set(xlabel=section["unit"], xlim=(0, 1.12 * max(rate["high"] for rate in rates)))
        axes.xaxis.set_major_formatter(EngFormatter())  # 2.5 k, 1 M
        axes.tick_params("y", labelsize=9)
        axes.set_title(name, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def _ratio(rate: dict[str, float], section: dict[str, Any]) -> float:
    """The median of a way, over that of the first way of its section."""
    return rate["median"] / next(iter(section["rates"].values()))["median"]


def _format_number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
