"""`python -m bench`: everything side by side in one go. Writes report.json and chart.png, and prints a table."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import torch

from bench.chart import draw
from common.files import write_text
from common.machine import cpu_flags, hardware, versions

SECTIONS = ("extraction", "training", "sampling", "rows", "growth", "start_up", "memory")


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("bench"), show_default=True, help="A folder.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Measurements of each case.")
@click.option("--weights", default="random", show_default=True, help="A ResNet18's state dict, or random.")
@click.option("--only", multiple=True, type=click.Choice(SECTIONS), help="These sections.  [default: all]")
def main(out: Path, rounds: int, weights: str, only: tuple[str, ...]) -> None:
    """Measure extraction, training, sampling, the store and start-up beside their peers."""
    report: dict[str, Any] = {
        "machine": hardware(torch.device("cpu")) | {"flags": cpu_flags()},
        "versions": versions(),
        "sections": {},
    }
    for name in only or SECTIONS:
        click.echo(f"{name} …", err=True)
        command = [sys.executable, "-m", "bench.section", name, str(rounds), weights]
        found = subprocess.run(command, capture_output=True, text=True)
        if found.returncode:
            raise click.ClickException(f"{name} failed: {found.stderr[-1000:]}")
        report["sections"][name] = json.loads(found.stdout.splitlines()[-1])
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "report.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    draw(report, out / "chart.png")
    click.echo(table(report))


def table(report: dict[str, Any]) -> str:
    """The report as Markdown: each rate, its spread, and its ratio to the first of its section."""
    lines = [f"{key}: {value}" for key, value in (report["machine"] | report["versions"]).items()]
    for name, section in report["sections"].items():
        lines += ["", f"**{name}** {section['about']}", ""]
        slow = section["unit"] == "runs/s"  # what takes long is told in seconds
        lines += [f"| way | {'time' if slow else section['unit']} | lowest – highest | ratio |", "|---|---|---|---|"]
        first = next(iter(section["rates"].values()))["median"]
        for way, rate in section["rates"].items():
            low, middle, high = (_seconds(rate[k]) if slow else _number(rate[k]) for k in ("low", "median", "high"))
            spread = f"{high} – {low}" if slow else f"{low} – {high}"
            lines.append(f"| {way} | {middle} | {spread} | {rate['median'] / first:.2f} × |")
        lines += [f"{case}: {taken}" for case, taken in section.get("memory", {}).items()]
    return "\n".join(lines)


def _seconds(rate: float) -> str:
    return f"{1 / rate:.3f} s"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    main()
