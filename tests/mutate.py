"""Damaged files: seeded mutations of bytes, and stores whose edited parts are sealed again as if nothing had happened.

`python -m tests.mutate --count 10000` counts what the reader makes of mutated stores; `--weights` does so for files of
weights. Whatever is damaged must be refused, or be as it was.
"""

import hashlib
import json
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import nn

from common.errors import UserError
from common.files import canonical_json
from common.store import FeatureStore
from common.store_header import BLOCK, MAGIC, ArrayPlace, gaps
from common.synthetic import make_store
from extract.weights import load_weights
from tests.victims import Counts, report

LIMIT = 10  # seconds of the processor: others may be at work on the machine
ODD = [None, True, False, 0, -5, 1.9, 2**70, "", "é", [], {}, [[]], "0" * 64, -1, 1e300, "train"]


def mutated(content: bytes, generator: np.random.Generator) -> tuple[str, bytes]:
    """A kind of damage and the damaged bytes: flipped bits, zeros, a cut, something appended, two blocks swapped."""
    data, n = bytearray(content), len(content)
    kind = str(generator.choice(["bit", "bits", "byte", "zeros", "noise", "cut", "longer", "swap", "shift"]))
    # Half of all damage strikes the small part at the beginning, where the parser is
    start = int(generator.integers(n if generator.random() < 0.5 else min(n, 16384)))
    stop = min(n, start + int(2 ** generator.uniform(0, 13)))
    if kind in ("bit", "bits"):
        for place in [start, *generator.integers(n, size=0 if kind == "bit" else 7)]:
            data[place] ^= 1 << int(generator.integers(8))
    elif kind == "byte":
        data[start] = int(generator.integers(256))
    elif kind == "zeros":
        data[start:stop] = bytes(stop - start)
    elif kind == "noise":
        data[start:stop] = generator.bytes(stop - start)
    elif kind == "cut":
        del data[start:]
    elif kind == "longer":
        data += generator.bytes(stop - start)
    elif kind == "swap":
        other = int(generator.integers(max(1, n - (stop - start))))
        data[start:stop], data[other : other + stop - start] = (
            content[other : other + stop - start],
            content[start:stop],
        )
        del data[n:]
    else:
        del data[start:stop]
    return kind if bytes(data) != content else "unchanged", bytes(data)


def flipped(content: bytes, places: dict[str, ArrayPlace], generator: np.random.Generator) -> tuple[str, bytes]:
    """One flipped bit in an array, each array as often as any other; and its name."""
    name = str(generator.choice(sorted(places)))
    data = bytearray(content)
    data[int(generator.integers(places[name].offset, places[name].stop))] ^= 1 << int(generator.integers(8))
    return f"bit in {name}", bytes(data)


def resealed(
    content: bytes,
    header: Callable[[Any], Any] = lambda value: value,
    facts: Callable[[Any], Any] = lambda value: value,
) -> bytes:
    """A store with another header, or other facts in its first block, and right seals for them."""
    before = json.loads(content[len(MAGIC) + 64 : BLOCK].rstrip(b"\0"))
    start, length = before["header"]
    text = json.dumps(header(json.loads(content[start : start + length]))).encode()
    del before["rest_sha256"]
    after = {**before, "header": [len(content), len(text)], "file_bytes": len(content) + len(text)}
    content += text
    changed = facts(after)
    try:
        places = {name: ArrayPlace(d, tuple(shape), offset) for name, (d, shape, offset) in changed["arrays"].items()}
        rest = b"".join(content[a:b] for a, b in gaps(places, len(content)))
        changed = {"rest_sha256": hashlib.sha256(rest).hexdigest()} | changed
    except (TypeError, ValueError, KeyError, AttributeError):
        pass  # the arrays are nonsense
    block = (MAGIC + bytes(64) + b"\n" + canonical_json(changed).encode()).ljust(BLOCK, b"\0")
    seal = hashlib.sha256(block[: len(MAGIC)] + block[len(MAGIC) + 64 :]).hexdigest().encode()
    return block[: len(MAGIC)] + seal + block[len(MAGIC) + 64 :] + content[BLOCK:]


def near(value: Any) -> list[Any]:
    """Values that are almost this one."""
    return [value - 1, value + 1, value + 64, value - 64] if type(value) is int else []


def edited(
    value: Any,
    generator: np.random.Generator,
    odd: Sequence[Any] = ODD,
    near: Callable[[Any], list[Any]] = near,
) -> Any:
    """A value with one of its parts, at any depth, gone, doubled, `odd`, or `near` to what it was."""
    if isinstance(value, dict | list) and value and generator.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = keys[int(generator.integers(len(keys)))]
        changed = value.copy()
        change = generator.random()
        if change < 0.15:
            del changed[key]
        elif change < 0.25:
            if isinstance(changed, dict):
                changed["another"] = changed[key]
            else:
                changed.append(changed[key])
        else:
            changed[key] = edited(value[key], generator, odd, near)
        return changed
    if (values := near(value)) and generator.random() < 0.5:
        return values[int(generator.integers(len(values)))]
    return odd[int(generator.integers(len(odd)))]


def judge(what: str, act: Callable[[], str]) -> str:
    """What becomes of damage: what `act` says, "refused" for a sentence, TRACEBACK or HANG."""
    started = time.process_time()
    signal.signal(signal.SIGALRM, _too_long)
    signal.setitimer(signal.ITIMER_REAL, 10 * LIMIT)
    try:
        verdict = act()
    except UserError as error:
        verdict = "refused" if "\n" not in error.message.strip() else "MORE THAN A SENTENCE"
    except TimeoutError:
        verdict = "HANG"
    except Exception as error:  # this is what is counted
        click.echo(f"{what}: {error!r}"[:300], err=True)
        verdict = "TRACEBACK"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "HANG" if time.process_time() - started > LIMIT else verdict


def _too_long(*_: Any) -> None:
    raise TimeoutError


def content_of(path: Path) -> dict[str, Any]:
    """All that a store says to whoever uses it."""
    store = FeatureStore.open(path)
    n = store.places["features"].shape[1]
    arrays = {name: hashlib.sha256(store.array(name).tobytes()).hexdigest() for name in store.places}
    return {"header": store.header, "shapes": str(store.places), "names": store.names(range(n)), **arrays}


def mutate_stores(folder: Path, count: int, generator: np.random.Generator) -> Counts:
    """Mutate stores; a fifth of them are sealed again, and whatever is accepted of these obeys the schema."""
    path, counts = folder / "mutated.h5", Counts()
    store = make_store(folder / "s.h5", classes=2, train=4, test=3)
    content, expected = store.path.read_bytes(), content_of(store.path)
    for number in range(count):
        if number % 5 == 4:
            part = "header" if generator.random() < 0.7 else "facts"
            kind = "sealed again"
            damaged = resealed(content, **{part: lambda value: edited(value, generator)})
        elif number % 5 == 3:
            kind, damaged = flipped(content, store.places, generator)
        else:
            kind, damaged = mutated(content, generator)
        path.write_bytes(damaged)

        def act(verify: bool = number % 2 == 0, kind: str = kind) -> str:
            if verify:
                FeatureStore.open(path).verify()
            if content_of(path) == expected:
                return "harmless"
            return "fits the schema" if kind == "sealed again" else "ACCEPTED"

        counts[f"{judge(str(path), act)}: {kind}"] += 1
    return counts


def mutate_weights(folder: Path, count: int, generator: np.random.Generator) -> Counts:
    """Damage torch's zip files. They are a few KB, so that half of all flips strike the zip file's own bytes."""
    path, counts = folder / "w.pth", Counts()

    def network() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 16, 3))

    expected = network().state_dict()
    torch.save(expected, path)
    content = path.read_bytes()

    def act() -> str:
        module = network()
        load_weights(module, "net", path)
        state = module.state_dict()
        return "harmless" if all(torch.equal(state[key], expected[key]) for key in expected) else "ACCEPTED"

    for number in range(count):
        if number % 2:
            kind, damaged = mutated(content, generator)
        else:
            kind, damaged = flipped(content, {"the file": ArrayPlace("|u1", (len(content),), 0)}, generator)
        path.write_bytes(damaged)
        counts[f"{judge(str(path), act)}: {kind}"] += 1
    return counts


@click.command()
@click.option("--count", default=10_000, show_default=True, help="Mutated files.")
@click.option("--weights", is_flag=True, help="Files of weights, not stores.")
@click.option("--seed", default=0, show_default=True)
def main(count: int, weights: bool, seed: int) -> None:
    """Mutate stores, or files of weights, and count what the reader makes of them."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        mutate = mutate_weights if weights else mutate_stores
        counts = mutate(Path(folder), count, np.random.default_rng(seed))
    report(counts)


if __name__ == "__main__":
    main()
