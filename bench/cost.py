"""`python -m bench.cost`: the pace of extraction of several backbones, beside the accuracy that they lead to.

Paces are measured, in turns in one run. Accuracies are those of the reports of phase 7, whose stores these are.
"""

import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from bench.extraction import IMAGES, extraction
from bench.report import fill_page, read_report, report_options
from bench.timing import CPU, Cases, measure_cases
from common.figures import BLUE, ORANGE, figure_of, save_figure
from common.files import readable_json, write_text
from common.machine import fast_bfloat16, hardware, versions
from common.markdown import markdown_table
from common.synthetic import make_images
from extract.backbones import Backbone, load_backbone, preprocessing_of
from extract.batches import Extraction
from extract.engines import Engine, NotHere, available, bfloat16, build_engine, float32
from extract.sources import load_source
from train.log.runs import Group, group_runs, load_run

CIFAR = 60_000  # images
FOUR = ("plain", "mirror", "upper-left", "lower-right-mirror")
RUNS = Path("experiments/phase7/runs")


@dataclass(frozen=True)
class Request:
    """What a store of phase 7 was asked for. float32_layers: the first ones, where the others are true in bfloat16."""

    backbone: str
    image_size: int
    views: tuple[str, ...] = FOUR[:1]
    layers: tuple[str, ...] = ("last",)
    float32_layers: int | None = None


REQUESTS = {
    "resnet18": Request("resnet18", 224, float32_layers=3),
    "resnet18-4": Request("resnet18", 160, FOUR, ("last", "layer3"), float32_layers=3),
    "lite0": Request("timm:tf_efficientnet_lite0", 224),
    "lite0-4": Request("timm:tf_efficientnet_lite0", 224, FOUR, ("last", "blocks.6", "blocks.5", "blocks.4.2.bn2")),
}
BOTH = ("resnet18-4", "lite0-4")  # side by side: the run "full"
Costs = dict[str, tuple[float, Group]]  # by store: the seconds of its extraction, and the runs on it


@click.command()
@report_options("bench/cost.json")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Measurements of each request.")
def main(out: Path, readme: Path | None, rounds: int) -> None:
    """Measure how many images a second become features, for each store of phase 7."""
    if readme is None:
        machine = hardware(CPU) | {"fast_bfloat16": fast_bfloat16(CPU)}
        write_text(out, readable_json({"machine": machine, "versions": versions(), **measure_paces(rounds)}))
        return
    report = read_report(out)
    groups = {group.name: group for group in group_runs(map(load_run, sorted(RUNS.glob("full*.json"))))}
    costs = add_accuracy(report["rates"], groups)
    draw_costs(costs, readme.parent / "images/cost.png")
    about = f"{report['machine']['cpu']}, {report['machine']['threads']} thread(s)."
    fill_page(readme, "cost", f"{make_cost_table(costs)}\n\n{about}")


def measure_paces(rounds: int) -> dict[str, Any]:
    """Images a second, all views of an image together, from PNG files of 32 × 32 pixels; the weights are random."""
    cases: Cases = {}
    with tempfile.TemporaryDirectory() as folder:
        source = load_source("imagefolder", make_images(Path(folder), classes=2, train=IMAGES // 2, size=32))
        for name, request in REQUESTS.items():
            backbone = load_backbone(request.backbone, "random", 0, request.image_size, request.layers)
            preprocessing = preprocessing_of(request.backbone, request.image_size, request.views)
            job = Extraction(source, backbone, preprocessing, "float32", {}, 32, CPU)
            cases[name] = extraction(job, build_fastest(backbone, request), IMAGES)
        return {"unit": "images/s", **measure_cases(cases, rounds)}


def build_fastest(backbone: Backbone, request: Request) -> Engine:
    """Build the engine that extraction chooses for trained weights, where this machine has it; else the next one."""
    after = f"bfloat16 after {request.float32_layers} layers in float32"
    low = [arithmetic for arithmetic in bfloat16(backbone) if arithmetic.name == after]
    for arithmetic in [*low, float32(backbone)]:
        with contextlib.suppress(NotHere):
            return build_engine(available(CPU)[0], arithmetic, CPU, request.image_size)
    raise AssertionError("float32 is everywhere")


def add_accuracy(rates: dict[str, Any], groups: dict[str, Group]) -> Costs:
    """By store: the seconds that the features of CIFAR-100 take, and the runs on them. Two stores take both times."""
    seconds = {name: CIFAR / rate["median"] for name, rate in rates.items()}
    costs = {name: (seconds[name], groups[f"full@{name}"]) for name in rates if f"full@{name}" in groups}
    if "full" in groups:
        costs[" + ".join(BOTH)] = (sum(seconds[name] for name in BOTH), groups["full"])
    return costs


def make_cost_table(costs: Costs) -> str:
    """Make the table of what `draw_costs` draws."""
    rows = [["store", "minutes of extraction", "seeds", "top-1 %", "hard sets %"]]
    for name, (seconds, group) in costs.items():
        top1, hard = (f"{100 * group.top1(sets).mean():.2f}" for sets in ("test", "hard"))
        rows.append([name, f"{seconds / 60:.1f}", str(len(group.runs)), top1, hard])
    return markdown_table(rows)


def draw_costs(costs: Costs, path: Path) -> None:
    """Draw test top-1, and that of hard sets, over the minutes that the features of CIFAR-100 take."""
    figure = figure_of(9, 4.5)
    panels = figure.subplots(1, 2)
    for axes, sets, colour in zip(panels, ("test", "hard"), (BLUE, ORANGE), strict=True):
        for name, (seconds, group) in costs.items():
            point = (seconds / 60, 100 * group.top1(sets).mean())
            axes.plot(*point, "o", color=colour)
            axes.annotate(name.replace(" + ", "\n+ "), point, (6, -4), textcoords="offset points", fontsize=8)
        axes.set(xlabel="minutes of extraction", ylabel="top-1 (%)", xscale="log", title=f"{sets} sets")
        axes.margins(x=0.6, y=0.15)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


if __name__ == "__main__":
    main()
