"""`python -m bench`: everything side by side in one go. Writes report.json and chart.png, and prints a table."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import torch

from bench.chart import draw
from bench.tables import in_readme, table
from common.files import write_text
from common.machine import cpu_flags, fast_bfloat16, hardware, versions

SECTIONS = ("extraction", "photographs", "training", "sampling", "rows", "growth", "start_up", "memory")


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("bench"), show_default=True, help="A folder.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Measurements of each case.")
@click.option("--weights", default="random", show_default=True, help="A ResNet18's state dict, or random.")
@click.option("--only", multiple=True, type=click.Choice(SECTIONS), help="These sections.  [default: all]")
@click.option("--readme", type=click.Path(path_type=Path), help="Measure nothing: write OUT's report into its table.")
@click.option("--check", is_flag=True, help="With --readme: change nothing, exit code 1 where the table is another.")
def main(out: Path, rounds: int, weights: str, only: tuple[str, ...], readme: Path | None, check: bool) -> None:
    """Measure extraction, training, sampling, the store and start-up beside their peers."""
    if readme:
        _write_readme(out / "report.json", readme, check)
        return
    device = torch.device("cpu")
    machine = hardware(device) | {"flags": cpu_flags(), "fast_bfloat16": fast_bfloat16(device)}
    report: dict[str, Any] = {"machine": machine, "versions": versions(), "sections": {}}
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


def _write_readme(report: Path, readme: Path, check: bool) -> None:
    found = readme.read_text(encoding="utf-8")
    made = in_readme(found, json.loads(report.read_text(encoding="utf-8")))
    if made != found:
        click.echo(f"{'stale' if check else 'rewritten'}: {readme}", err=True)
        if check:
            raise SystemExit(1)
        write_text(readme, made)


if __name__ == "__main__":
    main()
