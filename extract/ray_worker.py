"""A worker: a network with its engine in a process of its own, on some node. Nothing here knows how it is reached."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.errors import UserError
from common.files import sha256_text
from common.images import Files, UnreadableImage, pixel_digest
from common.machine import choose_device, versions
from extract.batches import Arrays, Extraction, LocalNetwork

# What a worker gets of an image: None where it reads the file itself, the bytes of the file, the pixels (H, W, 3), or
# why it cannot be read
Shipped = bytes | np.ndarray | str | None


class Worker:
    """The network of a job without its images. `compute` may run in several threads: one computes, the others read."""

    def __init__(self, job: Extraction, files: Files | None):
        self._job, self._files = job, files
        torch.set_num_threads(job.threads or 1)
        self._network: LocalNetwork | None = None

    def hello(self, code: str, pinned: dict[str, str]) -> str:
        """Answer as soon as it is there: "", or in what it differs from this code and these versions."""
        if code_digest() != code:
            return "its version of this project is another one: install the same on all nodes"
        differing = [f"{name} {version}" for name, version in versions().items() if pinned.get(name) != version]
        return f"it has {', '.join(differing)}, and other versions are pinned" if differing else ""

    def choose(self, n: int, sample: np.ndarray | None) -> tuple[dict[str, Any], list[str]]:
        """The environment that the engine chosen here makes up, as `EngineChoice.settle`; and what is to be said."""
        lines: list[str] = []
        choose_device(str(self._job.device))
        images = None if sample is None else torch.from_numpy(np.array(sample))
        return self._job.choice.settle(n, lambda: images, {}, lines.append)[1], lines

    def prepare(self, environment: dict[str, Any], code: str, seen: dict[str, bytes]) -> str:
        """Make ready to compute as all workers must; return "", or why that cannot be on this node.

        environment: the pinned one. code: the digest of the driver's code. seen: digests of some images, by their
        names. Raises UserError where these are not seen here as they are there.
        """
        if difference := self.hello(code, environment["versions"]):
            return difference
        name = environment["engine"]
        try:
            choose_device(str(self._job.device))
            engine = self._job.choice.named(name)
        except UserError as error:
            return error.message
        if engine is None:
            return f'it cannot run the pinned engine, "{name}", with --engine {self._job.engine}'
        for name, digest in seen.items():
            try:
                reason = "" if pixel_digest(self._image(name, None)) == digest else "other pixels"
            except UnreadableImage as error:
                reason = error.reason
            if reason:
                raise UserError(
                    f"it does not see the images as the driver does ({name}: {reason}): give --root a path that all "
                    "nodes see, or --ship-images"
                )
        self._network = LocalNetwork(self._job, engine, environment, self._job.threads or 1)
        return ""

    def compute(self, start: int, names: list[str], shipped: list[Shipped]) -> tuple[Arrays | None, dict[int, str]]:
        """The batch of the rows from `start` on, as `Network.batches` has it; with what is shipped of each image."""
        assert self._network is not None, "prepare comes first"

        def image(row: int) -> np.ndarray:
            return self._image(names[row - start], shipped[row - start])

        batch, unreadable = self._network.read(image, range(start, start + len(names)))
        return self._network.compute(start, batch), unreadable

    def _image(self, name: str, shipped: Shipped) -> np.ndarray:
        if isinstance(shipped, np.ndarray):
            return shipped
        if isinstance(shipped, str):
            raise UnreadableImage(Path(name), shipped)
        assert self._files is not None, "images that are no files are shipped"
        return self._files.read(name, shipped)


@functools.cache
def code_digest() -> str:
    """The digest of the code that has a part in the numbers."""
    root = Path(__file__).parents[1]
    files = sorted(file for house in ("common", "extract") for file in (root / house).rglob("*.py"))
    return sha256_text("".join(f"{file.relative_to(root)}\n{file.read_text(encoding='utf-8')}" for file in files))
