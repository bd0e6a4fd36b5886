"""The runs of a phase on a Ray cluster: each is a task on a node with free resources, and can be resumed."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from pkgutil import resolve_name

import torch

from common.cluster import AGAIN, Cluster, connected, nodes_of, reason_of
from common.errors import UserError
from common.files import Busy
from common.joined import open_stores
from train.config import Config
from train.fit import fit
from train.log.plan import Planned

TRIES = 3  # of a run whose node or process ends: each resumes after the last epoch that was saved

Outcome = tuple[str, list[str], str]  # of a task: the id of its node, its lines of progress, its error or ""


def fit_on_cluster(planned: Sequence[Planned], cluster: Cluster, say: Callable[[str], object]) -> None:
    """Make the runs of a phase on the nodes of a cluster, as many at a time as fit.

    Stores and run folders must be on a path that all nodes see. Raises UserError, naming the node, for the first run
    that ends with an error; the other runs are stopped then, and keep their epochs.
    """
    with connected(cluster) as ray:
        settled = cluster.settled(nodes_of(ray))
        task = ray.remote(num_cpus=settled.cpus, num_gpus=settled.gpus, max_retries=TRIES - 1)(_fit)
        share = settled.cpus, bool(settled.gpus)
        tasks = {
            task.remote(
                run.config, [store.path.absolute() for store in run.store.stores], run.path.absolute(), share
            ): (number, run)
            for number, run in enumerate(planned, 1)
        }
        say(f"{len(planned)} runs on the cluster, {settled.share}")
        try:
            while tasks:
                for done in ray.wait(list(tasks), num_returns=1, timeout=1)[0]:
                    number, run = tasks.pop(done)
                    node_id, lines, error = _outcome(ray, done, run)
                    name = {node.id: node.name for node in nodes_of(ray)}.get(node_id, node_id[:8])
                    say(f"run {number} of {len(planned)}, on node {name}: {run.path}")
                    for line in lines:
                        say(line)
                    if error:
                        raise UserError(f"{run.path}, on node {name}: {error}")
        finally:
            for left in tasks:
                ray.cancel(left, force=True)


def _outcome(ray, task, run: Planned) -> Outcome:
    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:
        raise RuntimeError(f"{run.path} failed: {error}") from error
    except ray.exceptions.RayError as error:
        raise UserError(f"{run.path} ended {TRIES} times on the cluster ({reason_of(error)}): {AGAIN}") from error


def _fit(config: Config, stores: list[Path], path: Path, share: tuple[int, bool]) -> Outcome:
    """One run, in a process on a node."""
    threads, has_gpu = share
    if not has_gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # those of the node belong to others; torch has not looked yet
    torch.set_num_threads(threads)
    ray = resolve_name("ray")  # an extra: only a worker is sure to have it
    node_id, lines = ray.get_runtime_context().get_node_id(), list[str]()
    try:
        fit(config, open_stores(stores, lines.append), path, lines.append)
    except Busy as busy:
        lines.append(busy.message)
    except UserError as error:
        return node_id, lines, error.message
    return node_id, lines, ""
