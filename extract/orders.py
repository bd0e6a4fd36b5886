"""Batches to be handed out to workers: the names of their images, or the images themselves where workers see none."""

import contextlib
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from common.errors import is_scarce
from common.images import UnreadableImage, pixel_digest
from extract.network import Extraction
from extract.reading import AllImages, names_of
from extract.sources import ImageSource

READERS = 4  # threads that read what is brought
CHECKED = 4  # images whose pixels every worker must see as this process does

# What a worker gets of an image: None where it reads the file itself, the bytes of the file, the pixels (H, W, 3), or
# why it cannot be read
Brought = bytes | np.ndarray | str | None


@dataclass(frozen=True)
class Order:
    """A batch that is to be computed: rows from `start` on, the names of their files, and what is brought of each."""

    start: int
    names: list[str]
    brought: list[Brought]


class Orders:
    """The batches that are still to be handed out. brought: the images, too; the next are read meanwhile."""

    def __init__(self, job: Extraction, names: Sequence[str], brought: bool, starts: Sequence[int]):
        self._images, self._files, self._size = AllImages(job.source), job.source.files, job.batch_size
        self._names, self._brought = names, brought
        self._starts, self._coming = deque(starts), deque[Future[Order]]()
        self._pool = ThreadPoolExecutor(READERS)

    @property
    def left(self) -> int:
        """How many there are."""
        return len(self._starts) + len(self._coming)

    def next(self) -> Order | None:
        """The next one, None where there is none."""
        while self._starts and len(self._coming) <= READERS:
            self._coming.append(self._pool.submit(self._order, self._starts.popleft()))
        return self._coming.popleft().result() if self._coming else None

    def again(self, start: int) -> None:
        """Hand a batch out once more."""
        self._starts.appendleft(start)

    def close(self) -> None:
        """Read nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _order(self, start: int) -> Order:
        rows = range(start, min(start + self._size, len(self._images)))
        return Order(start, [self._names[row] for row in rows], [self._bring(row) for row in rows])

    def _bring(self, row: int) -> Brought:
        if not self._brought:
            return None
        try:
            if self._files is not None:
                return (self._files.folder / self._names[row]).read_bytes()
            image, index = self._images[row]
            return image(index)
        except UnreadableImage as error:
            return error.reason
        except OSError as error:
            if is_scarce(error):  # no fault of the image's
                raise
            return error.strerror or str(error)


def digests_seen(source: ImageSource) -> dict[str, bytes]:
    """The pixel digests of a few images of a source, by their names."""
    images, names, seen = AllImages(source), names_of(source), {}
    for row in np.linspace(0, len(images) - 1, 4 * CHECKED).astype(int).tolist():
        image, index = images[row]
        with contextlib.suppress(UnreadableImage):
            seen[names[row]] = pixel_digest(image(index))
        if len(seen) == CHECKED:
            break
    return seen
