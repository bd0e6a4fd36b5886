"""`python -m bench.section NAME ROUNDS WEIGHTS`: one section of the benchmark, as JSON.

Each has a process to itself, so that it finds no threads, workers or caches that another one left.
"""

import json
import sys
import tempfile
from pathlib import Path

from bench.cases import SECTIONS


def main(name: str, rounds: int, weights: str) -> None:
    """Measure a section of `bench.cases` and print what was found."""
    section = SECTIONS[name]
    extra = {"weights": weights} if name in ("extraction", "photographs") else {}
    with tempfile.TemporaryDirectory() as folder:
        found = section(Path(folder), rounds, **extra)
    print(json.dumps({"about": " ".join((section.__doc__ or "").split()), **found}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
