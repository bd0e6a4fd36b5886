"""Flipped bits in weights files: what loading them comes to.

`python -m tests.mutate_weights --count 1000` counts. A damaged torch file must be refused, or give the same tensors.
"""

import collections
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import torch
from torch import nn

from common.errors import UserError
from extract.weights import load_weights
from tests.mutate import mutated

LIMIT = 10.0  # seconds of the processor


def build_network() -> nn.Module:
    """A small network; its weights are a few KB, so that half of all flips strike the zip file's own bytes."""
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 16, 3))


def judge(path: Path, expected: dict[str, torch.Tensor]) -> str:
    """What a damaged file comes to: refused, harmless (the same tensors), ACCEPTED, TRACEBACK or HANG."""
    module, started = build_network(), time.process_time()
    try:
        load_weights(module, "net", path)
        state = module.state_dict()
        verdict = "harmless" if all(torch.equal(state[key], expected[key]) for key in expected) else "ACCEPTED"
    except UserError as error:
        verdict = "refused" if "\n" not in error.message.strip() else "MORE THAN A SENTENCE"
    except Exception as error:
        click.echo(repr(error)[:200], err=True)
        verdict = "TRACEBACK"
    return "HANG" if time.process_time() - started > LIMIT else verdict


@click.command()
@click.option("--count", default=1000, show_default=True, help="Half with one flipped bit, half with other damage.")
@click.option("--seed", default=0, show_default=True)
def main(count: int, seed: int) -> None:
    """Damage torch's zip files and count what loading them comes to."""
    torch.manual_seed(0)
    generator, counts = np.random.default_rng(seed), collections.Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w.pth"
        expected = build_network().state_dict()
        torch.save(expected, path)
        content = path.read_bytes()
        for number in range(count):
            if number % 2:
                kind, damaged = mutated(content, generator)
            else:
                data = bytearray(content)
                data[int(generator.integers(len(data)))] ^= 1 << int(generator.integers(8))
                kind, damaged = "bit, anywhere", bytes(data)
            path.write_bytes(damaged)
            counts[f"{judge(path, expected)}: {'unchanged' if damaged == content else kind}"] += 1
    for what, n in sorted(counts.items()):
        click.echo(f"{n:6}  {what}")
    sys.exit(any(what.split(":")[0].isupper() for what in counts))


if __name__ == "__main__":
    main()
