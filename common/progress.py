"""Progress of long work: a bar on a terminal, else a line every 30 seconds; nothing with --quiet."""

import contextlib
import sys
import time
from typing import Any

FIRST, EVERY = 10.0, 30.0  # seconds until the first line where there is no terminal, and between two
_quiet = False


def be_quiet() -> None:
    """Show no progress from now on. Decisions and errors are still printed."""
    global _quiet
    _quiet = True


def is_quiet() -> bool:
    """Whether `be_quiet` was called."""
    return _quiet


def say(line: str) -> None:
    """Print a line on stderr, above the progress bar if there is one. Where it cannot be said, the work goes on."""
    from tqdm import tqdm  # here and below, because `--help` must not wait for it

    with contextlib.suppress(OSError):
        tqdm.write(line, file=sys.stderr)


class Progress:
    """Shows how many of `total` items are done; a context manager. done: those of an earlier process.

    >>> with Progress(3, "reading", "images") as progress:
    ...     progress.update(2)
    """

    def __init__(self, total: int, what: str, unit: str, done: int = 0):
        self._total, self._what, self._unit = total, what, unit
        self._done = self._first = done
        self._started = time.monotonic()
        self._next = self._started + FIRST
        on_terminal = sys.stderr.isatty() and not _quiet
        bar: dict[str, Any] = {"desc": what, "unit": f" {unit}", "smoothing": 0.05, "leave": False}
        self._bar: Any = None
        if on_terminal:
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, **bar)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, number: int = 1) -> None:
        """Count this many more as done."""
        self._done += number
        if self._bar is not None:
            self._bar.update(number)
        elif not _quiet and (now := time.monotonic()) >= self._next:
            self._next = now + EVERY
            say(self._line(now))

    def _line(self, now: float) -> str:
        rate = (self._done - self._first) / (now - self._started)
        left = f", {duration((self._total - self._done) / rate)} left" if rate > 0 else ""
        return f"{self._what}: {self._done:,} of {self._total:,} {self._unit}, {rate:.3g}/s{left}"


def duration(seconds: float) -> str:
    """A duration for people.

    >>> duration(44.4), duration(95), duration(7260)
    ('44 s', '1 min 35 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
