import numpy as np
import pytest
from fabricate import has_margin, make_epoch
from PIL import Image

from train.report.pictures import ShownSets, plot_attention, plot_curves, plot_mistakes

SET_SIZE = 6


def history(epochs):
    return [make_epoch(n, 0.8 - 0.7 / n) for n in range(1, epochs + 1)]


def some_sets(count, pictures=True):
    """Fabricated sets, and their attention."""
    random = np.random.default_rng(0)
    shown = ShownSets(
        pictures=random.integers(0, 256, (count, SET_SIZE, 8, 8, 3), dtype=np.uint8) if pictures else None,
        probabilities=random.dirichlet(np.ones(SET_SIZE), count),
        target=random.integers(0, SET_SIZE, count),
        names=[("maple_tree", "$x$ & co")] * count,  # a name that is no formula
    )
    return shown, random.dirichlet(np.ones(SET_SIZE), (count, SET_SIZE))


PLOTS = {
    "curves": lambda path: plot_curves(history(5), path, SET_SIZE),
    "one epoch": lambda path: plot_curves(history(1), path, SET_SIZE),
    "attention": lambda path: plot_attention(*some_sets(3), path),
    "attention of one without pictures": lambda path: plot_attention(*some_sets(1, pictures=False), path),
    "mistakes": lambda path: plot_mistakes(some_sets(3)[0], 1234, path),
    "mistakes without pictures": lambda path: plot_mistakes(some_sets(2, pictures=False)[0], 2, path),
    "no mistakes": lambda path: plot_mistakes(some_sets(0)[0], 0, path),
}


@pytest.mark.parametrize("plot", PLOTS.values(), ids=PLOTS)
@pytest.mark.filterwarnings("error")
def test_plot_is_a_png_the_same_each_time_and_leaves_nothing_else(tmp_path, plot):
    path, again = tmp_path / "run" / "plot.png", tmp_path / "run" / "again.png"
    plot(path)
    plot(again)
    assert path.read_bytes() == again.read_bytes()
    assert has_margin(path)
    assert sorted(path.parent.iterdir()) == [again, path], "temporary files are left"
    with Image.open(path) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert "Software" not in picture.info
        assert all(200 <= side <= 3000 for side in picture.size)
        assert len(picture.convert("RGB").getcolors(2**24)) > 3, "an empty picture"


def count_of(path, colour):
    with Image.open(path) as picture:
        return int((np.asarray(picture.convert("RGB")) == colour).all(axis=-1).sum())


def test_a_wrong_pick_is_framed_and_a_right_one_is_not(tmp_path):
    green, red = (0, 0x9E, 0x73), (0xD5, 0x5E, 0)
    probabilities = np.full((1, SET_SIZE), 0.1)
    probabilities[0, 2] = 0.5
    for name, target in (("right", 2), ("wrong", 4)):
        shown = ShownSets(None, probabilities, np.array([target]), [("a", "b")])
        plot_mistakes(shown, 1, tmp_path / f"{name}.png")
    assert count_of(tmp_path / "right.png", red) == 0
    assert count_of(tmp_path / "right.png", green) > 1000
    assert count_of(tmp_path / "wrong.png", red) > 1000
    assert count_of(tmp_path / "wrong.png", green) > 1000
