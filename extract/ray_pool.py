"""The network on many machines: workers on Ray. This process hands out batches and takes them in any order."""

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from common.cluster import AGAIN, Cluster, Node, connected, nodes_of, reason_of
from common.errors import UserError, is_scarce
from common.images import UnreadableImage, pixel_digest
from common.machine import versions
from common.progress import say
from extract.batches import Arrays, Extraction, Stopwatch, ahead, read_sample
from extract.ray_worker import Shipped, Worker, code_digest
from extract.sources import ImageSource

OPEN = 3  # batches that a worker has at a time: it reads some while it computes one
MAX_TRIES = 5  # of a batch whose workers end
MAX_STARTS = 3  # of workers on a node that end before they are ready
LOOK = 5.0  # seconds between two looks at which nodes there are
PATIENCE = 60.0  # seconds without any worker until that is said, or is an error where none is on its way
READERS = 4  # threads that read what is shipped
CHECKED = 4  # images whose pixels every worker must see as this process does

Order = tuple[int, list[str], list[Shipped]]  # what `Worker.compute` takes


def make_order(job: Extraction, shipped: bool, start: int) -> Order:
    """The batch of the rows from `start` on, as `Worker.compute` takes it. shipped: with what is in the files."""
    rows = range(start, min(start + job.batch_size, len(job.source)))
    return start, [job.source.names[row] for row in rows], [_ship(job.source, row) if shipped else None for row in rows]


def _ship(source: ImageSource, row: int) -> Shipped:
    try:
        return source.image(row) if source.files is None else source.path(row).read_bytes()
    except UnreadableImage as error:
        return error.reason
    except OSError as error:
        if is_scarce(error):  # no fault of the image's
            raise
        return error.strerror or str(error)


def digests_seen(source: ImageSource) -> dict[str, bytes]:
    """The pixel digests of a few images of a source, by their names."""
    names, seen = source.names, {}
    for row in np.linspace(0, len(source) - 1, 4 * CHECKED).astype(int).tolist():
        with contextlib.suppress(UnreadableImage):
            seen[names[row]] = pixel_digest(source.image(row))
        if len(seen) == CHECKED:
            break
    return seen


@contextlib.contextmanager
def on_cluster(job: Extraction, resumed: dict[str, Any]) -> Iterator["Pool"]:
    """The network of a job on its cluster. resumed: the environment of the extraction that is resumed, {} for none.

    Raises UserError, naming the node, where one does not see the images that should, or no node can do what is pinned.
    """
    assert job.cluster is not None
    with connected(job.cluster) as ray:
        pool = Pool(ray, job, job.cluster)
        try:
            pool.begin(resumed)
            yield pool
        finally:
            pool.close()


@dataclass(eq=False)
class Member:
    """A worker of the pool; ready: it is prepared; open: how many batches it has; end: why it ended."""

    actor: Any
    node: Node
    ready: bool = False
    open: int = 0
    end: str = ""


class Pool:
    """Workers on the nodes of a cluster, as many as fit, each with a few batches at a time: a `Network`.

    A worker that ends costs its open batches, which others make again. Nodes may come and go.
    """

    def __init__(self, ray: Any, job: Extraction, cluster: Cluster):
        self._ray = ray
        self._cluster = cluster.settled(nodes_of(ray))
        device = job.device if self._cluster.gpus else torch.device("cpu")
        self._job = replace(job, device=device, threads=cluster.cpus)
        self._files = job.source.files
        self._shipped = job.ship_images or self._files is None
        self._members: list[Member] = []
        self._tasks: dict[Any, tuple[Member, int | None]] = {}  # what is computed: its first row, None for `prepare`
        self._refused: dict[str, str] = {}  # by the id of the node
        self._failed_starts: Counter[str] = Counter()
        self._made: Counter[str] = Counter()  # images, by the name of the node
        self.environment: dict[str, Any] = {}  # the pinned one, and the precision in it, once `begin` has chosen them
        self.precision = ""
        self._required: tuple = ()  # of every worker, as `Worker.prepare` takes it; once that is known
        self._looked, self._begun = -LOOK, time.monotonic()
        self._served = self._begun  # when a worker was last there
        self._create_worker()

    def begin(self, resumed: dict[str, Any]) -> None:
        """Start the workers, and let one of them choose the engine for all, unless `resumed` pins it."""
        mine = {"device": self._job.device.type, "versions": versions()}
        seen = {} if self._shipped else digests_seen(self._job.source)
        self._look()
        self.environment = resumed if resumed and {**resumed, **mine} == resumed else self._choose()
        self.precision = "bfloat16" if "bfloat16" in self.environment["engine"] else "float32"
        self._required = self.environment, code_digest(), seen
        for member in self._members:
            self._prepare(member)
        while not any(member.ready for member in self._members):
            for task in self._wait(list(self._tasks)):
                self._result(task)
        on = {member.node.id for member in self._members}
        say(f"{len(self._members)} workers on {len(on)} node(s), {self._cluster.share}")
        self._begun = time.monotonic()

    def batches(self, starts: Sequence[int], watch: Stopwatch) -> Iterator[tuple[int, Arrays | None, dict[int, str]]]:
        tries: Counter[int] = Counter()
        again: list[int] = []  # the starts of batches whose worker has ended
        order = partial(make_order, self._job, self._shipped)
        with contextlib.closing(ahead(order, starts, READERS)) as orders:
            while self._hand_out(orders, again) or any(start is not None for _, start in self._tasks.values()):
                with watch.time("waiting"):
                    done = self._wait(list(self._tasks))
                for task in done:
                    member, start = self._tasks[task]
                    result = self._result(task)
                    if start is None:
                        continue
                    if result is None:
                        tries[start] += 1
                        if tries[start] == MAX_TRIES:
                            raise UserError(
                                f"{MAX_TRIES} workers ended while they had the batch of images from {start} on, the "
                                f"last on node {member.node.name} ({member.end}): give them more memory, or a smaller "
                                "--batch-size"
                            )
                        again.append(start)
                        continue
                    arrays, unreadable = result
                    member.open -= 1
                    if arrays is not None:
                        self._made[member.node.name] += len(arrays["thumbnails"])
                    yield start, arrays, unreadable
        seconds = time.monotonic() - self._begun
        for name, images in sorted(self._made.items()):
            say(f"node {name}: {images:,} images, {images / seconds:.0f}/s")

    def close(self) -> None:
        """End all workers."""
        for member in self._members:
            with contextlib.suppress(Exception):  # such as that of a cluster that is lost
                self._ray.kill(member.actor)
        self._members.clear()

    def _create_worker(self) -> None:
        job = replace(
            self._job, source=ImageSource("", [], np.zeros(0), np.zeros(0), np.zeros), request={}
        )  # workers need neither
        files = None if self._files is None else replace(self._files, folder=self._files.folder.absolute())
        options = {"num_cpus": self._cluster.cpus, "num_gpus": self._cluster.gpus, "max_concurrency": OPEN}
        self._worker = self._ray.remote(**options)(Worker)
        self._arguments = self._ray.put(job), files

    def _look(self) -> None:
        """Start workers wherever there is room for one, a few seconds after the last look."""
        if time.monotonic() - self._looked < LOOK:
            return
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

        for node in nodes_of(self._ray):
            missing = node.room(self._cluster) - sum(member.node.id == node.id for member in self._members)
            for _ in range(0 if node.id in self._refused else missing):
                actor = self._worker.options(scheduling_strategy=On(node.id, soft=False)).remote(*self._arguments)
                self._members.append(Member(actor, node))
                if self._required:
                    self._prepare(self._members[-1])
        self._looked = time.monotonic()

    def _choose(self) -> dict[str, Any]:
        """The environment that the first worker to answer chooses, of those that are like this process."""
        sample = read_sample(self._job.source, self._job.preprocessing)
        n, shipped = len(self._job.source), self._ray.put(None if sample is None else sample.numpy())
        greetings: dict[Any, Member] = {}
        while True:
            for member in self._members:
                if member not in greetings.values():
                    greetings[member.actor.hello.remote(code_digest(), versions())] = member
            for greeting in self._wait(list(greetings)):
                member = greetings.pop(greeting)
                try:
                    if difference := self._get(greeting):
                        self._refuse(member.node, difference)
                        continue
                    environment, lines = self._get(member.actor.choose.remote(n, shipped))
                except UserError as error:
                    raise UserError(f"node {member.node.name}: {error.message}") from error
                except self._ray.exceptions.RayError as error:
                    self._lose(member, error)
                    continue
                for line in lines:
                    say(f"{line} (on node {member.node.name}, for all)")
                return environment

    def _prepare(self, member: Member) -> None:
        self._tasks[member.actor.prepare.remote(*self._required)] = member, None

    def _refuse(self, node: Node, reason: str) -> None:
        if node.id not in self._refused:
            say(f"node {node.name} is not used: {reason}")
        self._refused[node.id] = f"{node.name}: {reason}"
        for member in [member for member in self._members if member.node.id == node.id]:
            self._members.remove(member)
            self._ray.kill(member.actor)

    def _lose(self, member: Member, error: Exception) -> None:
        """Note that a worker has ended, and say so once."""
        if member not in self._members:
            return
        member.end = reason_of(error)
        self._members.remove(member)
        with contextlib.suppress(Exception):  # it may be half alive
            self._ray.kill(member.actor)
        self._looked = time.monotonic()  # give a node that dies the time to be known as dead
        if member.ready:
            say(f"a worker on node {member.node.name} ended ({member.end}): what it had is made again")
            return
        self._failed_starts[member.node.id] += 1
        if self._failed_starts[member.node.id] == MAX_STARTS:
            self._refuse(member.node, f"its workers end before they begin ({member.end})")

    def _hand_out(self, orders: Iterator[Order], again: list[int]) -> bool:
        """Give each worker as many batches as it may have, those that have fewest first. False when there is none left.

        again: the starts of batches that come first.
        """
        for open_ in range(OPEN):
            for member in self._members:
                if member.ready and member.open == open_:
                    order = make_order(self._job, self._shipped, again.pop()) if again else next(orders, None)
                    if order is None:
                        return False
                    self._tasks[member.actor.compute.remote(*order)] = member, order[0]
                    member.open += 1
        return True

    def _wait(self, tasks: list) -> list:
        """Those of the tasks that are done, none after a second in which nothing happens."""
        self._look()
        now = time.monotonic()
        if any(member.ready for member in self._members):
            self._served = now
        elif not self._members and (self._refused or now - self._served > PATIENCE):
            reasons = f" ({'; '.join(sorted(self._refused.values()))})" if self._refused else ""
            raise UserError(f"no node of the cluster can be used{reasons}: {AGAIN}")
        elif now - self._served > PATIENCE:
            say("no worker has begun yet: the cluster is busy, or starts slowly")
            self._served = now
        if not tasks:
            time.sleep(0.1)
            return []
        done, _ = self._ray.wait(tasks, num_returns=len(tasks), timeout=0)
        return done or self._ray.wait(tasks, num_returns=1, timeout=1)[0]

    def _result(self, task: Any) -> Any:
        """What a worker made, None for one that is prepared, and for one that has ended."""
        member, start = self._tasks.pop(task)
        try:
            result = self._get(task)
        except self._ray.exceptions.RayError as error:
            self._lose(member, error)
            return None
        except UserError as error:
            if start is None:
                raise UserError(f"node {member.node.name}: {error.message}") from error
            raise
        if start is not None:
            return result
        if result:
            self._refuse(member.node, result)
        elif member in self._members:
            member.ready = True
        return None

    def _get(self, task: Any) -> Any:
        """The result of a task. Raises the worker's own UserError, and RayError where the worker ended."""
        try:
            return self._ray.get(task)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(error.cause.message) from None
            raise RuntimeError(f"a worker failed: {error}") from error
