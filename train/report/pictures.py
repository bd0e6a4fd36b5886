"""Pictures of a run: its learning curves, what the head attends to, and its most confident mistakes.

K sets drawn · S set_size · H, W height and width of an image
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from common.figures import BLUE, GREEN, GREY, ORANGE, RED, figure_of, save_figure
from train.report.schema import Epoch

TILE = 0.95  # inches that one image of a strip takes
HEIGHT = TILE + 0.7  # of a strip, with its title and its probabilities
LEGEND = "green frame: anomaly  ·  red dashed frame: wrong pick  ·  ▲ the model's pick  ·  % its probabilities"
ATTENTION = "\ngreen ticks: the anomaly as query and as key"

Array = NDArray[Any]


class ShownSets(NamedTuple):
    """The sets of a picture, one in a row.

    pictures (K, S, H, W, 3) uint8, or None: position numbers instead; probabilities (K, S); target (K,); names (set
    class, anomaly class) of each set.
    """

    pictures: Array | None
    probabilities: Array
    target: Array
    names: Sequence[tuple[str, str]]


def plot_curves(history: Sequence[Epoch], path: Path, set_size: int) -> None:
    """Loss and top-1 over the epochs, for training and validation; the best validation epoch is marked."""
    figure = figure_of(10, 4.2)
    epochs = [entry.epoch for entry in history]
    best = max(history, key=lambda entry: entry.val_top1)
    panels = (("loss", "cross-entropy (nats)", 1), ("top1", "top-1 (%)", 100))
    for axes, (metric, label, scale) in zip(figure.subplots(1, 2), panels, strict=True):
        for split, name, colour, style in (
            ("train", "training", ORANGE, "--"),
            ("val", "validation", BLUE, "-"),
        ):
            values = [scale * getattr(entry, f"{split}_{metric}") for entry in history]
            marker = "." if len(history) == 1 else ""
            axes.plot(epochs, values, style, color=colour, marker=marker, linewidth=1.8, label=name)
        height, caption = scale * getattr(best, f"val_{metric}"), f"best validation (epoch {best.epoch})"
        axes.plot(best.epoch, height, "o", color=BLUE, ms=8, markeredgecolor="white", label=caption)
        if metric == "top1":
            chance = 100 / set_size
            axes.axhline(chance, color=GREY, linestyle=":", label=f"chance, 1/{set_size} = {chance:.3g} %")
            axes.set_ylim(0, 100)
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    # Below the panels, where it hides no curve; the last panel has every line of the first, and chance.
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(f"Learning curves: best validation top-1 {100 * best.val_top1:.1f} %", fontsize=13)
    save_figure(figure, path)


def plot_attention(sets: ShownSets, attention: Array, path: Path) -> None:
    """Sets beside the attention among their positions, (K, S, S) with a row for each query."""
    rows, set_size = sets.probabilities.shape
    figure = figure_of(TILE * set_size + 2.7, HEIGHT * rows + 0.9)
    grid = figure.subplots(rows, 2, squeeze=False, width_ratios=[TILE * set_size, HEIGHT])
    highest = float(attention.max())  # one scale for all sets, so that colours compare
    for row, (strip, heat) in enumerate(grid):
        target = int(sets.target[row])
        verdict = "found" if sets.probabilities[row].argmax() == target else "missed"
        _draw_strip(strip, sets, row, f": {verdict}")
        strip.set_anchor("W")
        image = heat.imshow(attention[row], cmap="cividis", vmin=0, vmax=highest)
        heat.set_xticks([target], [""])
        heat.set_yticks([target], [""])
        heat.tick_params(colors=GREEN, width=2.5, length=6)
        heat.set_ylabel("query", fontsize=9)
    heat.set_xlabel("key", fontsize=9)  # of the last; the others have the same axes
    bar = figure.colorbar(image, ax=list(grid[:, 1]), shrink=0.9 if rows == 1 else 0.6, aspect=30)
    bar.set_label("attention weight", fontsize=9)
    _heading(figure, "What the last layer attends to (mean of its heads; each query's weights sum to 1)", ATTENTION)
    save_figure(figure, path)


def plot_mistakes(sets: ShownSets, total: int, path: Path) -> None:
    """The most confident of all `total` mistakes."""
    rows, set_size = sets.probabilities.shape
    if rows == 0:
        figure = figure_of(6, 2)
        figure.text(0.5, 0.5, "no mistakes", fontsize=16, color=GREY, ha="center", va="center")
        save_figure(figure, path)
        return
    figure = figure_of(TILE * set_size + 0.4, HEIGHT * rows + 0.7)
    for row, axes in enumerate(figure.subplots(rows, 1, squeeze=False)[:, 0]):
        _draw_strip(axes, sets, row)
    _heading(figure, f"The most confident mistakes: {rows:,} of {total:,}")
    save_figure(figure, path)


def _draw_strip(axes: Axes, sets: ShownSets, row: int, verdict: str = "") -> None:
    """One set in a line: its title, S images (or their numbers), frames, and the probabilities beneath."""
    probabilities, target = sets.probabilities[row], int(sets.target[row])
    picked = int(probabilities.argmax())
    for position, probability in enumerate(probabilities):
        if sets.pictures is None:
            axes.add_patch(Rectangle((position + 0.06, 0.06), 0.88, 0.88, color="#eeeeee"))
            axes.text(position + 0.5, 0.5, str(position + 1), fontsize=15, color=GREY, ha="center", va="center")
        else:
            extent = (position + 0.06, position + 0.94, 0.06, 0.94)
            axes.imshow(sets.pictures[row, position], extent=extent, interpolation="nearest")
        chosen = position == picked
        colour = "black" if not chosen else GREEN if picked == target else RED
        text = f"{'▲ ' if chosen else ''}{100 * probability:.0f} %"
        weight = "bold" if chosen else "normal"
        axes.text(position + 0.5, -0.04, text, fontsize=10, color=colour, weight=weight, ha="center", va="top")
    frames = [(target, GREEN, "-")] + ([(picked, RED, (0, (3, 1)))] if picked != target else [])
    for position, colour, style in frames:
        axes.add_patch(
            Rectangle((position + 0.06, 0.06), 0.88, 0.88, fill=False, color=colour, linewidth=3.5, linestyle=style)
        )
    axes.set(xlim=(0, len(probabilities)), ylim=(-0.3, 1), aspect="equal")
    axes.axis("off")
    inlier, anomaly = (name.replace("_", " ") for name in sets.names[row])
    title = f"{len(probabilities) - 1} × {inlier}, 1 × {anomaly}{verdict}"
    axes.set_title(title, fontsize=11, loc="left", pad=3, parse_math=False)  # a class may be called "$": no formula


def _heading(figure: Figure, text: str, more: str = "") -> None:
    figure.suptitle(text, fontsize=14)
    figure.supxlabel(LEGEND + more, fontsize=9, color=GREY)
