"""`python -m bench.alone STORE`: the table of `find.alone`, learnt on folders of the training split."""

from dataclasses import replace
from pathlib import Path

import click
import numpy as np

from bench.folders import split_of
from common.store import FeatureStore
from find.evidence import Evidence, reckoned
from find.scorers import folder_alone

SIZES = (*range(3, 31), 40, 70, 100, 200)
FOLDERS = 4_000
DRAWS = 5  # of a clean folder of each class, for the median


@click.command()
@click.argument("store_path", type=click.Path(path_type=Path), metavar="STORE")
def main(store_path: Path) -> None:
    """Learn what the score of a folder alone says in folders of each size, and print it."""
    features, labels = split_of(FeatureStore.open(store_path), "train")
    for size in SIZES:
        learnt = learn(features, labels, size)
        assert learnt.weights is not None
        numbers = (*learnt.weights, learnt.typical, learnt.limit)
        click.echo(f"    ({size}, {', '.join(f'{number:.3f}' for number in numbers)}),")


def learn(features: np.ndarray, labels: np.ndarray, size: int) -> Evidence:
    """The evidence of folders of `size` images, of features (n, D) with labels (n,)."""
    alone, generator = folder_alone(), np.random.default_rng(0)
    clean = [
        generator.choice(np.flatnonzero(labels == label), size, replace=False)
        for label in np.unique(labels).repeat(DRAWS)
    ]
    typical = float(np.median([np.median(alone(features[rows])) for rows in clean]))
    lowered = replace(alone, score=lambda x: reckoned(alone.score(x), typical))
    return replace(Evidence.learn(lowered, features, labels, size, 0, FOLDERS), typical=typical)


if __name__ == "__main__":
    main()
