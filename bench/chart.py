"""The chart of a benchmark's report."""

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

CHARTED = ("extraction", "training", "rows")


def draw(report: dict[str, Any], path: Path) -> None:
    """Bars of the rates, with their spread, a panel for each section that compares ways to do the same."""
    sections = {name: found for name in CHARTED if (found := report["sections"].get(name)) and found["rates"]}
    if not sections:
        return
    heights = [len(section["rates"]) + 1.5 for section in sections.values()]
    figure = Figure(figsize=(10, 0.36 * sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(sections), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, (name, section) in zip(panels, sections.items(), strict=True):
        ways, rates = list(section["rates"]), list(section["rates"].values())
        medians = [rate["median"] for rate in rates]
        errors = [[r["median"] - r["low"] for r in rates], [r["high"] - r["median"] for r in rates]]
        colours = ["#999999" if way.startswith("roof") else "#0072b2" for way in ways]
        axes.barh(ways, medians, xerr=errors, color=colours, ecolor="#444444", height=0.7)
        for number, median in enumerate(medians):
            axes.annotate(f" {median / medians[0]:.2f} ×", (0, number), color="white", va="center", fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel(section["unit"])
        axes.set_title(name, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="y", labelsize=8)
        axes.set_xlim(0)
    figure.savefig(path, dpi=120)
