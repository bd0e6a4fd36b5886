"""`python -m bench`: everything side by side in one go. Writes report.json and chart.png, and prints a table."""

import json
import multiprocessing
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import click

from bench.extraction import measure_extraction
from bench.photographs import photographs
from bench.report import draw, make_speed_table, make_table
from bench.timing import CPU
from bench.training import measure_rows, measure_sampling, measure_training
from common.files import readable_json, write_text
from common.machine import cpu_flags, fast_bfloat16, hardware, versions
from common.markdown import fill_blocks, report_stale, rewrite

SECTIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "extraction": measure_extraction,
    "photographs": photographs,
    "training": measure_training,
    "sampling": measure_sampling,
    "rows": measure_rows,
}
NEED_WEIGHTS = "extraction", "photographs"


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("bench"), show_default=True, help="A folder.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Measurements of each case.")
@click.option("--weights", default="random", show_default=True, help="A ResNet18's state dict, or random.")
@click.option("--only", multiple=True, type=click.Choice(list(SECTIONS)), help="These sections.  [default: all]")
@click.option("--readme", type=click.Path(path_type=Path), help="Measure nothing: write OUT's report into its table.")
@click.option("--check", is_flag=True, help="With --readme: change nothing, exit code 1 where the table is another.")
def main(out: Path, rounds: int, weights: str, only: tuple[str, ...], readme: Path | None, check: bool) -> None:
    """Measure extraction, training, sampling and the store beside their peers."""
    path = out / "report.json"
    if readme:
        made = {"speed": make_speed_table(json.loads(path.read_text(encoding="utf-8")))}
        stale = rewrite(readme, lambda text: fill_blocks(text, "measured", made.get), check)
        report_stale([readme] * stale, check)
        return
    machine = hardware(CPU) | {"flags": cpu_flags(), "fast_bfloat16": fast_bfloat16(CPU)}
    report: dict[str, Any] = {"machine": machine, "versions": versions(), "sections": {}}
    for name in only or SECTIONS:
        click.echo(f"{name} …", err=True)
        # In a process of its own: it finds no threads, workers or caches that another one left
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            report["sections"][name] = process.submit(measure_section, name, rounds, weights).result()
    out.mkdir(parents=True, exist_ok=True)
    write_text(path, readable_json(report))
    draw(report, out / "chart.png")
    click.echo(make_table(report))


def measure_section(name: str, rounds: int, weights: str) -> dict[str, Any]:
    """Measure a section, and say what it is about: its function's docstring."""
    measure = partial(SECTIONS[name], weights=weights) if name in NEED_WEIGHTS else SECTIONS[name]
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), rounds)
    return {"about": " ".join((SECTIONS[name].__doc__ or "").split()), **found}
