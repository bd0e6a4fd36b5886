"""Charts of the experiment log: many runs in one picture, for the parts of `train.log.tables` of the same name."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.figures import BLUE, GREY, ORANGE, figure_of, save_figure
from common.intervals import wilson_interval
from train.log.runs import Group, describe_machine

# Lippe, UvA Deep Learning Tutorial 6: test top-1 with a ResNet34's features, and seconds of training
ANCHORS = {"PyTorch": (94.30, 16 * 60 + 34), "JAX": (94.66, 3 * 60 + 45)}
LINES = ("-", "--", "-.", ":")


def comparison(groups: Sequence[Group], path: Path) -> None:
    """Test top-1 of each group, best first, with the 95 % interval of its mean and a dot for each seed."""
    order = sorted(groups, key=lambda group: group.top1().mean())
    figure = figure_of(9, 0.36 * len(order) + 1.4)
    axes = figure.subplots()
    for height, group in enumerate(order):
        top1, n = group.top1(), group.first.test.n
        mean = 100 * top1.mean()
        low, high = (100 * bound for bound in wilson_interval(top1.mean() * n, n))
        learned = bool(group.first.history)
        axes.barh(height, mean, color=BLUE if learned else ORANGE, alpha=0.85, height=0.7)
        axes.errorbar(mean, height, xerr=[[mean - low], [high - mean]], color="black", capsize=3, linewidth=1)
        axes.plot(100 * top1, [height] * len(top1), ".", color="white", markeredgecolor="black", ms=5)
        axes.text(high + 1, height, f"{mean:.1f}", va="center", fontsize=9)
    chance = 100 * groups[0].first.chance_top1
    axes.axvline(chance, color=GREY, linestyle=":")
    axes.text(chance + 0.7, len(order) - 0.35, f"chance {chance:.0f} %", fontsize=8, color=GREY)
    axes.set_yticks(range(len(order)), [group.name for group in order], fontsize=9)
    axes.set(xlabel="test top-1 (%), 95 % interval; dots: seeds", xlim=(0, 107), ylim=(-0.6, len(order)))
    axes.barh(0, 0, color=BLUE, label="trained")
    axes.barh(0, 0, color=ORANGE, label="not trained by gradients")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def curves(groups: Sequence[Group], path: Path) -> None:
    """Validation top-1 over the epochs: the mean of the seeds, and the range between them."""
    figure = figure_of(9, 4.5)
    axes = figure.subplots()
    for number, group in enumerate(group for group in groups if group.first.history):
        shortest = min(len(run.report.history) for run in group.runs)
        top1 = 100 * np.array([[epoch.val_top1 for epoch in run.report.history[:shortest]] for run in group.runs])
        epochs = np.arange(1, shortest + 1)
        (line,) = axes.plot(epochs, top1.mean(0), LINES[number // 10 % 4], label=group.name, linewidth=1.6)
        axes.fill_between(epochs, top1.min(0), top1.max(0), color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set(xlabel="epoch", ylabel="validation top-1 (%)", ylim=(0, 100))
    _finish(figure, axes, path)


def pace(groups: Sequence[Group], path: Path) -> None:
    """Validation top-1 over the seconds of training of each run, with the points of the public reference."""
    figure = figure_of(9, 4.5)
    axes = figure.subplots()
    for number, group in enumerate(group for group in groups if group.first.history):
        colour = f"C{number % 10}"
        for run in group.runs:
            seconds = np.cumsum([epoch.train_seconds for epoch in run.report.history])
            top1 = [100 * epoch.val_top1 for epoch in run.report.history]
            label = f"{group.name}, {describe_machine(group)}" if run is group.runs[0] else None
            axes.plot(seconds, top1, LINES[number // 10 % 4], color=colour, label=label, linewidth=1.2)
    for name, (anchor, taken) in ANCHORS.items():
        (star,) = axes.plot(taken, anchor, "*", color="black", ms=11)
        axes.annotate(name, (taken, anchor), (0, 8), textcoords="offset points", fontsize=8, ha="center")
    star.set_label("tutorial, ResNet34,\nRTX 3090 (test)")
    axes.set(xlabel="seconds of training", ylabel="validation top-1 (%)", xscale="log", ylim=(80, 100))
    axes.xaxis.set_major_formatter("{x:g}")
    _finish(figure, axes, path)


def failures(groups: Sequence[Group], path: Path) -> None:
    """Top-1 by super-class (or class) of the set and of the anomaly, over all runs of the first group, if known."""
    group = groups[0]
    if not group.first.failures.matrix:
        return
    counts = group.values(lambda report: report.failures.matrix).sum(0)
    with np.errstate(invalid="ignore"):
        top1 = 100 * counts[..., 1] / counts[..., 0]
    size = 0.3 * len(top1) + 4
    figure = figure_of(size, size - 1)
    axes = figure.subplots()
    image = axes.imshow(top1, cmap="cividis", vmin=np.floor(np.nanmin(top1) / 10) * 10, vmax=100)
    names = [name.replace("_", " ") for name in group.first.failures.groups or ()]
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(xlabel="of the anomaly", ylabel="of the inliers")
    figure.colorbar(image, shrink=0.7).set_label("test top-1 (%)")
    figure.suptitle(
        f"{group.name}: {len(group.runs)} seed(s), {counts[..., 0].sum():,.0f} test sets in all", fontsize=11
    )
    save_figure(figure, path)


def _finish(figure, axes, path: Path) -> None:
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    save_figure(figure, path)


CHARTS = {chart.__name__: chart for chart in (comparison, curves, pace, failures)}
