"""Prefetching in a thread, and the seconds that each stage takes."""

import contextlib
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

PREFETCHED = 2  # batches

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`map` in a thread, `PREFETCHED` items ahead; its exceptions are raised here."""
    with ThreadPoolExecutor(1) as pool:
        pending: deque[Future[Result]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > PREFETCHED:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class Stopwatch:
    """Seconds by stage. Reading runs beside the others, so the sum may exceed the time that passes."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._started = time.perf_counter()

    @contextlib.contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Add the seconds that the body takes to a stage."""
        started = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - started

    def line(self, images: int) -> str:
        """One line: images a second, the share of each stage, and the slowest stage."""
        total = time.perf_counter() - self._started
        shares = ", ".join(f"{stage} {seconds / total:.0%}" for stage, seconds in self.seconds.items())
        slowest = max(self.seconds, key=self.seconds.__getitem__)
        return f"{images:,} images in {total:.0f} s ({images / total:.0f}/s); busy: {shares}; {slowest} set the pace"
