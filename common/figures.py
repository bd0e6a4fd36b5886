"""The style of all figures. pyplot is never imported, since it has global state."""

import io
from pathlib import Path

from matplotlib.figure import Figure

from common.files import write_bytes

# Okabe and Ito's palette: told apart by the colour-blind, too. Line styles say the same a second time.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#666666"
DPI = 120
NARROWEST = 7.5  # inches: what the legend of the pictures takes
MARGIN = 0.1  # inches around each panel, so that no label touches the edge


def figure_of(width: float, height: float) -> Figure:
    """An empty figure of so many inches, not known to pyplot."""
    figure = Figure(figsize=(max(width, NARROWEST), height), dpi=DPI)
    figure.set_layout_engine("constrained", w_pad=MARGIN, h_pad=MARGIN)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG without matplotlib's name and version in it: equal figures are equal files."""
    picture = io.BytesIO()  # first into memory: how matplotlib reports a full disk is its own affair
    figure.savefig(picture, format="png", metadata={"Software": None})
    write_bytes(path, picture.getvalue())
