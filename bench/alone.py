"""`python -m bench.alone STORE`: the table of `find.alone`, learnt on folders of the training split."""

from dataclasses import replace
from pathlib import Path

import click
import numpy as np

from bench.folders import split_of
from common.store import FeatureStore
from find.evidence import Evidence, reckoned
from find.scorers import Scorer, folder_alone

SIZES = (*range(3, 21), 25, 30, 40, 70, 100, 200)
FOLDERS = 4_000


@click.command()
@click.argument("store_path", type=click.Path(path_type=Path), metavar="STORE")
def main(store_path: Path) -> None:
    """Learn what the score of a folder alone says in folders of each size, and print it."""
    images = split_of(FeatureStore.open(store_path), "train")
    for size in SIZES:
        medians: list[float] = []
        Evidence.learn(_from_typical(np.inf, medians), *images, size, 0, FOLDERS)
        typical = float(np.median(medians))
        learnt = Evidence.learn(_from_typical(typical, []), *images, size, 0, FOLDERS)
        assert learnt.weights is not None
        numbers = (*learnt.weights, typical, learnt.limit)
        click.echo(f"    ({size}, {', '.join(f'{number:.3f}' for number in numbers)}),")


def _from_typical(typical: float, medians: list[float]) -> Scorer:
    """The score of a folder alone as `Evidence` reckons it; the median of each folder is added to `medians`."""
    alone = folder_alone()

    def score(x: np.ndarray) -> np.ndarray:
        scores = alone.score(x)
        medians.append(float(np.median(scores)))
        return reckoned(scores, typical)

    return replace(alone, score=score)


if __name__ == "__main__":
    main()
