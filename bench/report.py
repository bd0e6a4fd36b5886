"""A benchmark's report as Markdown, all of it and the part that the README shows, and as a chart."""

from pathlib import Path
from typing import Any

from matplotlib.ticker import EngFormatter

from common.figures import BLUE, GREY, figure_of, save_figure
from common.markdown import markdown_table

SHOWN = ("extraction", "training", "sampling", "rows")
CHARTED = ("extraction", "training", "rows")


def make_table(report: dict[str, Any]) -> str:
    """Tell the whole report: each rate, its spread, its ratio to the first of its section, and what was left out."""
    lines = [f"{key}: {value}" for key, value in (report["machine"] | report["versions"]).items()]
    for name, section in report["sections"].items():
        lines += ["", f"**{name}** {section['about']}", ""]
        rows = [["way", section["unit"], "lowest – highest", "ratio"]]
        for way, rate in section["rates"].items():
            low, middle, high = (_format_number(rate[key]) for key in ("low", "median", "high"))
            rows.append([way, middle, f"{low} – {high}", _format_ratio(rate["median"], section)])
        lines.append(markdown_table(rows))
        lines += ["", *(f"Left out: {way}. {reason}" for way, reason in section.get("left_out", {}).items())]
    return "\n".join(lines)


def make_speed_table(report: dict[str, Any]) -> str:
    """Make the README's table: the medians of the ways that compete, in what, and the machine."""
    rows, left_out = [["what", "way", "median", "ratio"]], []
    for name in SHOWN:
        section = report["sections"].get(name, {"rates": {}})
        for way, rate in section["rates"].items():
            median = f"{_format_number(rate['median'])} {section['unit']}"
            rows.append([name, way, median, _format_ratio(rate["median"], section)])
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
            text, end = f"{rate['median'] / medians[0]:.2f} ×", (rate["high"], number)
            axes.annotate(text, end, (5, 0), textcoords="offset points", va="center", fontsize=8)
        axes.invert_yaxis()
        axes.set(xlabel=section["unit"], xlim=(0, 1.12 * max(rate["high"] for rate in rates)))
        axes.xaxis.set_major_formatter(EngFormatter())  # 2.5 k, 1 M
        axes.tick_params("y", labelsize=9)
        axes.set_title(name, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def _format_ratio(median: float, section: dict[str, Any]) -> str:
    """To the first way of its section."""
    first = next(iter(section["rates"].values()))["median"]
    return f"{median / first:.2f} ×"


def _format_number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
