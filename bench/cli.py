"""`python -m bench`: everything side by side in one go. Writes a report, and prints its table."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from bench.extraction import measure_extraction, measure_photographs
from bench.report import draw, fill_page, make_table, read_report, report_options
from bench.timing import CPU, in_own_process
from bench.training import measure_rows, measure_sampling, measure_training
from common.files import readable_json, write_text
from common.machine import cpu_flags, fast_bfloat16, hardware, versions

SECTIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "extraction": measure_extraction,
    "photographs": measure_photographs,
    "training": measure_training,
    "sampling": measure_sampling,
    "rows": measure_rows,
}
NEED_WEIGHTS = "extraction", "photographs"


@click.command()
@report_options("bench/report.json")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Measurements of each case.")
@click.option("--weights", default="random", show_default=True, help="A ResNet18's state dict, or random.")
@click.option("--only", multiple=True, type=click.Choice(list(SECTIONS)), help="These sections.  [default: all]")
def main(out: Path, readme: Path | None, rounds: int, weights: str, only: tuple[str, ...]) -> None:
    """Measure extraction, training, sampling and the store beside their peers."""
    if readme:
        report = read_report(out)
        draw(report, readme.parent / "images/benchmark.png")
        fill_page(readme, "speed", make_table(report, short=True))
        return
    machine = hardware(CPU) | {"flags": cpu_flags(), "fast_bfloat16": fast_bfloat16(CPU)}
    report = {"machine": machine, "versions": versions(), "sections": {}}
    for name in only or SECTIONS:
        click.echo(f"{name} …", err=True)
        report["sections"][name] = in_own_process(measure_section, name, rounds, weights)
    write_text(out, readable_json(report))
    click.echo(make_table(report))


def measure_section(name: str, rounds: int, weights: str) -> dict[str, Any]:
    """Measure a section, and say what it is about: its function's docstring."""
    measure, more = SECTIONS[name], [weights] if name in NEED_WEIGHTS else []
    with tempfile.TemporaryDirectory() as folder:
        return {"about": " ".join((measure.__doc__ or "").split()), **measure(Path(folder), rounds, *more)}
