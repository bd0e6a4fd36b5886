"""Damaged files: seeded mutations of bytes, and stores whose edited parts are sealed again as if nothing had happened.

`python -m tests.mutate --count 10000` counts what the reader makes of mutated stores.
"""

import collections
import hashlib
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from common.errors import UserError
from common.files import canonical_json
from common.store import FeatureStore
from common.store_header import BLOCK, MAGIC, ArrayPlace, gaps

LIMIT = 10  # seconds


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
    return kind, bytes(data)


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


def edited(value: Any, generator: np.random.Generator) -> Any:
    """A JSON value with one of its parts, at any depth, gone, doubled, or of another kind."""
    odd = [None, True, False, 0, -5, 1.9, 2**70, "", "é", [], {}, [[]], "0" * 64, -1, 1e300, "train"]
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
            changed[key] = edited(value[key], generator)
        return changed
    if type(value) is int and generator.random() < 0.5:
        return value + int(generator.choice([-1, 1, 64, -64]))
    return odd[int(generator.integers(len(odd)))]


def content_of(path: Path) -> dict[str, Any]:
    """All that a store says to whoever uses it."""
    store = FeatureStore.open(path)
    n = store.places["features"].shape[1]
    arrays = {name: hashlib.sha256(store.array(name).tobytes()).hexdigest() for name in store.places}
    return {"header": store.header, "shapes": str(store.places), "names": store.names(range(n)), **arrays}


def judge(path: Path, sound: dict[str, Any] | None, verify: bool = True) -> str:
    """What the reader makes of a file: refused, harmless (all is as in `sound`), ACCEPTED, TRACEBACK or HANG.

    verify: as a whole; else it is only used.
    """
    started = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    try:
        if verify:
            FeatureStore.open(path).verify()
        found = content_of(path)
        verdict = "harmless" if found == sound else "ACCEPTED"
    except UserError:
        verdict = "refused"
    except TimeoutError:
        verdict = "HANG"
    except Exception as error:  # this is what is counted
        click.echo(f"{path}: {error!r}", err=True)
        verdict = "TRACEBACK"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "HANG" if time.monotonic() - started > LIMIT else verdict


def sealed_edit(content: bytes, generator: np.random.Generator) -> bytes:
    """A store whose header or first block was edited and sealed again."""
    if generator.random() < 0.7:
        return resealed(content, header=lambda value: edited(value, generator))
    return resealed(content, facts=lambda value: edited(value, generator))


@click.command()
@click.option("--count", default=10_000, show_default=True, help="Mutated stores; a fifth of them are sealed again.")
@click.option("--seed", default=0, show_default=True)
def main(count: int, seed: int) -> None:
    """Mutate stores and count what the reader makes of them."""
    from common.synthetic import make_store

    def too_long(*_: Any) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, too_long)
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    generator = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mutated.h5"
        store = make_store(Path(folder) / "s.h5", classes=2, train=4, test=3)
        content, expected = store.path.read_bytes(), content_of(store.path)
        for number in range(count):
            sound, kind, damaged = expected, "", b""
            if number % 5 == 4:
                kind, damaged = "sealed again", sealed_edit(content, generator)
                sound = None  # whatever is accepted obeys the schema; it must not raise or hang
            elif number % 5 == 3:
                kind, damaged = flipped(content, store.places, generator)
            else:
                kind, damaged = mutated(content, generator)
            path.write_bytes(damaged)
            verdict = judge(path, sound, verify=number % 2 == 0)
            kind = "unchanged" if damaged == content else kind
            counts[kind, "fits the schema" if sound is None and verdict == "ACCEPTED" else verdict] += 1
    for (kind, verdict), n in sorted(counts.items()):
        click.echo(f"{kind:24}{verdict:16}{n:6}")
    totals = collections.Counter(dict.fromkeys(("refused", "harmless", "ACCEPTED", "TRACEBACK", "HANG"), 0))
    for (_, verdict), n in counts.items():
        totals[verdict] += n
    click.echo(", ".join(f"{verdict} {n}" for verdict, n in totals.items()))
    sys.exit(any(totals[verdict] for verdict in ("ACCEPTED", "TRACEBACK", "HANG")))


if __name__ == "__main__":
    main()
