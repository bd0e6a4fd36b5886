"""Damaged files: seeded mutations of bytes, and stores that are edited and sealed again as if nothing had happened."""

import hashlib
import json
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

import click
import numpy as np

from common.errors import UserError
from common.files import canonical_json
from common.store_header import BLOCK, MAGIC, ArrayPlace, gaps

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
        size = stop - start
        data[start:stop], data[other : other + size] = content[other : other + size], content[start:stop]
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


def judge(what: str, act: Callable[[], bool | str]) -> str:
    """What becomes of damage: what `act` says, or whether it is "as if undamaged"; "refused"; TRACEBACK; HANG."""
    started = time.process_time()
    signal.signal(signal.SIGALRM, _too_long)
    signal.setitimer(signal.ITIMER_REAL, 10 * LIMIT)
    try:
        verdict = {True: "as if undamaged", False: "ACCEPTED"}.get(found := act(), found)
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
