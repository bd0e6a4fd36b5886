"""A Ray cluster: connecting to it, and what fits on its nodes. Ray is imported when it is asked for, and only here."""

import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import click

from common.command_line import Real
from common.errors import UserError

EXTRA = "ray[client]"
AGAIN = "finished work is kept; check the cluster and run the same command again"
ANSWER = 10  # seconds
# For a cluster of our own: nothing is reported to Ray's authors unasked, and workers are no less important than
# the process that waits for them. For all: what is seen of GPUs stays as it is where none was asked for
SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


@dataclass(frozen=True)
class Cluster:
    """Where to work. address: "auto", "local", "host:port" or "ray://host:port". cpus, gpus: of each worker.

    gpus: None for one where nodes have some.
    """

    address: str
    cpus: int = 1
    gpus: float | None = None

    @property
    def share(self) -> str:
        """What each worker has, for people."""
        return f"{self.cpus} CPU(s)" + (f" and {self.gpus:g} GPU(s)" if self.gpus else "") + " each"

    def for_device(self, device: str) -> "Cluster":
        """This with the GPUs that a device of this name needs. Raises UserError for one that Ray cannot assign."""
        if device not in ("auto", "cpu", "cuda"):
            raise UserError(f"with --ray, --device must be auto, cpu or cuda (Ray chooses which), got {device}")
        return replace(self, gpus={"auto": self.gpus, "cpu": 0.0, "cuda": self.gpus or 1.0}[device])

    def settled(self, nodes: "list[Node]") -> "Cluster":
        """This with the number of GPUs decided. Raises UserError where no worker fits on any node."""
        gpus = float(any(node.gpus for node in nodes)) if self.gpus is None else self.gpus
        settled = replace(self, gpus=gpus)
        if not any(node.room(settled) for node in nodes):
            cpus, most = max((node.cpus for node in nodes), default=0), max((node.gpus for node in nodes), default=0)
            raise UserError(
                f"no node of the cluster has {self.cpus} CPUs and {gpus:g} GPUs for a worker, the largest have "
                f"{cpus:g} and {most:g}: ask for less with --cpus-per-worker and --gpus-per-worker"
            )
        return settled


@dataclass(frozen=True)
class Node:
    """A node that is alive. `name` tells it from all others."""

    id: str
    name: str
    cpus: float
    gpus: float

    def room(self, cluster: Cluster) -> int:
        """How many workers fit on it."""
        by_gpus = self.gpus / cluster.gpus if cluster.gpus else math.inf
        return int(min(self.cpus / cluster.cpus, by_gpus))


def cluster_options(command: Callable) -> Callable:
    """The options of a command whose work may be done on a cluster; `asked_for` makes a Cluster of them."""
    for option in (
        click.option("--gpus-per-worker", type=Real(0), help="[default: 1 where nodes have GPUs]"),
        click.option("--cpus-per-worker", type=click.IntRange(1), help="And threads.  [default: 1]"),
        click.option(
            "--ray", metavar="auto|local|HOST:PORT|ray://HOST:PORT", help="A Ray cluster to work on; see docs/scale.md."
        ),
    ):
        command = option(command)
    return command


def asked_for(ray: str | None, cpus: int | None, gpus: float | None) -> Cluster | None:
    """The cluster that these options ask for, None for none. Raises UserError for options that would do nothing."""
    if ray:
        return Cluster(ray, cpus or 1, gpus)
    if cpus is not None or gpus is not None:
        raise UserError("--cpus-per-worker and --gpus-per-worker do nothing without --ray: leave them out, or give it")
    return None


@contextlib.contextmanager
def connected(cluster: Cluster) -> Iterator[Any]:
    """Ray, connected to a cluster; in the end disconnected, which ends all that was started on it.

    Where this process is connected already, that is used, and stays. Raises UserError where there is no Ray, or no
    cluster at the address, or where it is lost.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise UserError(
            f"Ray is not installed: `{sys.executable} -m pip install '{EXTRA}'`, or leave --ray out"
        ) from error
    own = not ray.is_initialized()
    with _sudden_end_in_a_sentence():
        if own:
            _connect(ray, cluster.address)
        try:
            yield ray
        except (ConnectionError, ray.exceptions.RaySystemError) as error:
            raise UserError(f"the Ray cluster at {cluster.address} was lost ({reason_of(error)}): {AGAIN}") from error
        finally:
            if own:
                ray.shutdown()


@contextlib.contextmanager
def _sudden_end_in_a_sentence() -> Iterator[None]:
    """Let another process say what happened if this one ends within the body.

    When Ray's agent on this machine dies, Ray ends this process from C++, with exit code 1: no handler of ours runs.
    """
    sentence = f"Error: this process was ended, as Ray does when its agent on this machine dies: {AGAIN}"
    command = [sys.executable, "-ISc", "import sys; sys.stdin.read(1) or print(sys.argv[1], file=sys.stderr)", sentence]
    watcher = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
    finally:
        watcher.communicate(b".")


def nodes_of(ray: Any) -> list[Node]:
    """The nodes that are alive."""
    return [
        Node(node["NodeID"], _name(node), node["Resources"].get("CPU", 0), node["Resources"].get("GPU", 0))
        for node in ray.nodes()
        if node["Alive"]
    ]


def reason_of(error: Exception) -> str:
    """Why Ray, or the system, says that something ended or is not there, in few words."""
    text = getattr(error, "strerror", None) or str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    causes = [line for line in lines if line.split(":")[0].endswith("Error")]
    return (causes or lines or [type(error).__name__])[-1 if causes else 0][:200].rstrip(".")


def _name(node: dict[str, Any]) -> str:
    name, address = node["NodeName"], node["NodeManagerAddress"]
    if name == address:  # it was given no name
        name = f"{node['NodeManagerHostname']} {address}"
    return f"{name} ({node['NodeID'][:8]})"


def _connect(ray: Any, address: str) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        options |= {"include_dashboard": False}
    handlers = {}
    with contextlib.suppress(ValueError):  # not the main thread
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        _require_answer(address)
        ray.init(address, **options)
    except (ConnectionError, ValueError, RuntimeError, OSError, OverflowError) as error:
        raise UserError(
            f"there is no Ray cluster at {address} ({reason_of(error)}): start one with `ray start --head`, "
            "or give --ray local or ray://host:10001"
        ) from error
    finally:
        for number, handler in handlers.items():  # Ray's own would end the process without a word of what is kept
            with contextlib.suppress(ValueError):
                signal.signal(number, handler)


def _require_answer(address: str) -> None:
    """Raise OSError or OverflowError unless something answers at HOST:PORT: Ray would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), ANSWER).close()
