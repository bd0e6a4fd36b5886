"""Extraction and phases on a real cluster of nodes on this machine: `pytest -m ray`; `tests.kill_cluster` kills."""

import contextlib
import os
import signal

import pytest
from fabricate import SMALL_HEAD, call, one_thread, read_reports
from kill_cluster import NODE, begin, command, count_workers, nodes, rows_of, wait_for_rows

from common.synthetic import make_images, make_store
from extract.cli import main as extract_main
from train.cli import main as train_main

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'ray[client]'")
pytestmark = pytest.mark.ray

LOG = "log"
# What Python reads first in the processes of a node that has another Pillow, and of one that does not see a folder
OLD = """
import importlib.metadata
real = importlib.metadata.version
importlib.metadata.version = lambda name: "1.0" if name == "pillow" else real(name)
"""
BLIND = """
import builtins
real = builtins.open
def seen(path, *arguments, **options):
    if "/hidden/" in str(path):
        raise FileNotFoundError(2, "No such file or directory", str(path))
    return real(path, *arguments, **options)
builtins.open = seen
"""


@pytest.fixture(scope="module")
def cluster():
    with nodes(2) as made:
        yield made


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images") / "hidden", classes=2, train=64, test=16)


@pytest.fixture(scope="module")
def expected(images, tmp_path_factory):
    """The store that one process makes."""
    folder = tmp_path_factory.mktemp("one")
    assert run(command(images, folder / "s.h5"), folder).returncode == 0
    return (folder / "s.h5").read_bytes()


@pytest.fixture
def connected(cluster):
    """This very process as the driver, which saves its start; with one thread, as workers have."""
    ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
    with one_thread():
        yield cluster
    ray.shutdown()


def extract(root, store, cluster, *options, code=0):
    """What an extraction in this process said."""
    arguments = command(root, store, cluster.address if cluster else "")[3:]
    return call(extract_main, *arguments, *options, code=code).stderr


def run(arguments, folder):
    """A command in a process of its own, and what it said."""
    process = begin(list(map(str, arguments)), folder / LOG)
    process.wait(150)
    process.said = (folder / LOG).read_text()
    assert "Traceback" not in process.said
    return process


@pytest.mark.parametrize("ship", [False, True])
def test_two_nodes_make_the_bytes_of_one_process(connected, images, expected, tmp_path, ship):
    said = extract(images, tmp_path / "s.h5", connected, *["--ship-images"] * ship)
    assert (tmp_path / "s.h5").read_bytes() == expected
    assert "2 workers on 2 node(s)" in said
    assert said.count("/s") >= 2, said  # the whole, and each node that was there in time


def test_a_killed_node_costs_nothing_but_its_batches(cluster, images, expected, tmp_path):
    process = begin(command(images, tmp_path / "s.h5", cluster.address), tmp_path / LOG)
    wait_for_rows(tmp_path / "s.h5", 24, process)
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    cluster.add_node(**NODE, node_name="node2")
    assert process.wait(150) == 0, (tmp_path / LOG).read_text()
    assert (tmp_path / "s.h5").read_bytes() == expected


def test_a_killed_driver_and_a_stopped_one_leave_no_worker_and_the_same_command_goes_on(
    cluster, images, expected, tmp_path
):
    for number in (signal.SIGINT, signal.SIGKILL):
        process = begin(command(images, tmp_path / "s.h5", cluster.address), tmp_path / LOG)
        wait_for_rows(tmp_path / "s.h5", rows_of(tmp_path / "s.h5") + 8, process)
        process.send_signal(number)
        assert process.wait(60) == {signal.SIGINT: 130, signal.SIGKILL: -9}[number]
        if number == signal.SIGINT:
            assert "images are saved; run the same command again to resume" in (tmp_path / LOG).read_text()
        assert count_workers(30) == 0
    resumed = run(command(images, tmp_path / "s.h5"), tmp_path)  # off the cluster
    assert "resuming" in resumed.said
    assert (tmp_path / "s.h5").read_bytes() == expected


def test_an_unreadable_image_is_the_sentence_of_one_process_and_may_be_skipped(connected, tmp_path):
    root = make_images(tmp_path / "images", classes=2, train=12, test=10)
    (root / "train/class1/003.png").write_bytes(b"junk")
    said = {}
    for name, cluster in (("one.h5", None), ("ray.h5", connected)):
        refused = extract(root, tmp_path / name, cluster, code=2)
        said[name] = [line for line in refused.splitlines() if "cannot" in line]
        extract(root, tmp_path / name, cluster, "--on-error", "skip")
    assert said["one.h5"] == said["ray.h5"]
    assert len(said["one.h5"]) == 2  # when it was met, and in the end
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "ray.h5").read_bytes()


def test_a_node_that_differs_is_left_out_and_one_that_sees_no_images_is_an_error(connected, images, expected, tmp_path):
    on_the_odd_node_alone = "--cpus-per-worker", str(NODE["num_cpus"] + 1)  # the others may be done before it answers
    with odd_node(connected, "old", OLD, tmp_path):
        refused = extract(images, tmp_path / "s.h5", connected, *on_the_odd_node_alone, code=2)
        assert "node old (" in refused
        assert "is not used: it has pillow 1.0" in refused
        extract(images, tmp_path / "s.h5", connected)
    assert (tmp_path / "s.h5").read_bytes() == expected
    with odd_node(connected, "blind", BLIND, tmp_path):
        refused = extract(images, tmp_path / "t.h5", connected, *on_the_odd_node_alone, code=2)
        assert "node blind (" in refused
        assert "No such file or directory" in refused
        assert "--ship-images" in refused
        extract(images, tmp_path / "t.h5", connected, "--ship-images")
    assert (tmp_path / "t.h5").read_bytes() == expected


@contextlib.contextmanager
def odd_node(cluster, name, code, folder):
    """One more node, whose Python begins with this code."""
    (folder / name).mkdir()
    (folder / name / "sitecustomize.py").write_text(code)
    path = os.pathsep.join([str(folder / name), os.environ.get("PYTHONPATH", "")])
    node = cluster.add_node(**NODE | {"num_cpus": NODE["num_cpus"] + 1}, node_name=name, env_vars={"PYTHONPATH": path})
    try:
        yield
    finally:
        cluster.remove_node(node)


PLAN = SMALL_HEAD + '[plan]\nseeds = 2\nruns = ["head:"]\nonce = ["nearest: method=knn"]\n'


def test_a_phase_on_a_cluster_makes_the_reports_of_one_process(connected, tmp_path):
    store = make_store(tmp_path / "s.h5", train=100, test=12).path
    plan = tmp_path / "tiny/config.toml"
    plan.parent.mkdir()
    plan.write_text(PLAN)
    for name, options in (("one", []), ("ray", ["--ray", connected.address])):
        arguments = ["phase", plan, "--store", store, "--runs", tmp_path / name, *options]
        call(train_main, *arguments)
    found = {name: read_reports(tmp_path / name) for name in ("one", "ray")}
    assert len(found["one"]) == 3
    assert found["ray"] == found["one"]
    again = call(train_main, *arguments).stderr
    assert again.count("complete: ") == 3
    assert "on node node" in again


def test_a_client_from_outside_makes_the_same_bytes(images, expected, tmp_path):
    from ray.cluster_utils import Cluster

    head = {**NODE, "include_dashboard": False, "ray_client_server_port": 25_019}
    outside = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(10):  # Ray's server for clients is ready a little later than the cluster
            made = run(command(images, tmp_path / "s.h5", "ray://127.0.0.1:25019"), tmp_path)
            if "there is no Ray cluster" not in made.said:
                break
    finally:
        outside.shutdown()
    assert made.returncode == 0, made.said
    assert (tmp_path / "s.h5").read_bytes() == expected
