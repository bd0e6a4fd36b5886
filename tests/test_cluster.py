"""Workers, orders and the pool without Ray: what stands in for it runs everything in this process."""

import contextlib
import functools
import socket
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fabricate import call, python, refuses

from common.cluster import Cluster, Node, asked_for, connected
from common.errors import UserError
from common.machine import versions
from common.synthetic import make_store
from extract import features, ray_pool
from extract.batches import Extraction, Stopwatch
from extract.cli import main as extract_main
from extract.features import Request
from extract.pipeline import extract, start_network
from extract.preprocessing import Preprocessing
from extract.ray_pool import Pool, digests_seen, make_order
from extract.ray_worker import Worker, code_digest
from extract.sources import load_source
from train.cli import main as train_main

CPU = torch.device("cpu")
SMALL = ["--weights", "random", "--image-size", "32", "--engine", "torch"]


@pytest.fixture
def job(root, resnet):
    source = load_source("imagefolder", root)
    return Extraction(source, resnet, Preprocessing(32), "float32", {"asked": 1}, 8, CPU, "torch", threads=1)


# What a cluster is


def test_as_many_workers_as_fit_on_each_node_with_a_gpu_where_there_are_some():
    cases = ((8, 0, (3,), 2), (64, 8, (4, 1.0), 8), (64, 2, (4, 0.5), 4), (64, 0, (4, 1.0), 0))
    for cpus, gpus, asked, workers in cases:
        assert Node("a", "a", cpus, gpus).room(Cluster("", *asked)) == workers
    nodes = [Node("a", "a", 8, 0), Node("b", "b", 4, 2)]
    assert (Cluster("").settled(nodes).gpus, Cluster("").settled(nodes[:1]).gpus) == (1, 0)
    assert Cluster("", gpus=0.0).settled(nodes).gpus == 0
    for asked in (Cluster("", 16), Cluster("", 1, 4.0)):
        refuses(r"the largest have 8 and 2: .*--cpus-per-worker", asked.settled, nodes)


def test_the_device_says_whether_workers_have_gpus():
    for name, device, gpus in (("auto", "cuda", None), ("cpu", "cpu", 0), ("cuda", "cuda", 1)):
        request = Request(dataset="digits", weights="random", image_size=32, device=name, cluster=Cluster(""))
        job = features._load(request)
        assert (job.device, job.cluster.gpus) == (torch.device(device), gpus)
    refuses("cuda:1", Cluster("").for_device, "cuda:1")


def test_options_and_ray_itself_are_not_needed_without_a_cluster(root, tmp_path):
    assert asked_for(None, None, None) is None
    assert asked_for("auto", 2, 0.5) == Cluster("auto", 2, 0.5)
    for options in ((2, None), (None, 1.0)):
        refuses("do nothing without --ray", asked_for, None, *options)
    code = "import sys; from extract.cli import main; main(standalone_mode=False); print('ray' in sys.modules)"
    command = ["features", "--dataset", "imagefolder", "--root", root, "--store", tmp_path / "s.h5", *SMALL]
    assert python("-c", code, *command).stdout.split() == [str(tmp_path / "s.h5"), "False"]


def test_without_ray_one_sentence_says_how_to_get_it(root, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    (tmp_path / "config.toml").write_text('[plan]\nonce = ["a: method=knn"]')
    store = make_store(tmp_path / "s.h5", train=100, test=12).path
    extraction = ["features", "--dataset", "imagefolder", "--root", root, "--store", tmp_path / "t.h5", *SMALL]
    phase = ["phase", tmp_path / "config.toml", "--store", store, "--runs", tmp_path / "runs"]
    for main, arguments in ((extract_main, extraction), (train_main, phase)):
        said = call(main, *arguments, "--ray", "local", code=2).stderr
        assert f"{sys.executable} -m pip install 'ray[client]'" in said


# What is handed out


def test_an_order_has_names_or_what_is_in_the_files(job, root):
    (root / "train/class0/003.png").unlink()
    names = job.source.names
    assert make_order(job, False, 0) == (0, names[:8], [None] * 8)
    assert make_order(job, False, 64) == (64, names[64:], [None] * 2)
    _, _, bytes_of = make_order(job, True, 0)
    assert (bytes_of[2], bytes_of[3]) == ((root / names[2]).read_bytes(), "No such file or directory")
    digits = load_source("digits", Path())  # whose images are no files
    _, _, pixels = make_order(replace(job, source=digits), True, 0)
    assert (pixels[5] == digits.image(5)).all()


# A worker


def alone(job, starts=range(0, 66, 8)):
    """The environment, the batches by their starts, and what cannot be read, of the network in this process."""
    with start_network(job, {}) as network:
        return network.environment, *by_start(network.batches(starts, Stopwatch()))


def by_start(batches):
    """The batches that are complete, by their starts; and what cannot be read."""
    complete, missing = {}, {}
    for start, arrays, unreadable in batches:
        missing |= unreadable
        if arrays is not None:
            complete[start] = arrays
    return complete, missing


def required(job, **changes):
    return {"environment": alone(job, [])[0], "code": code_digest(), "seen": {}, **changes}


@pytest.mark.parametrize("shipped", [False, True])
def test_a_worker_makes_the_batches_of_one_process(job, root, shipped):
    (root / "train/class1/004.png").write_bytes(b"junk")
    worker = Worker(job, job.source.files)
    assert worker.prepare(**required(job, seen=digests_seen(job.source))) == ""
    _, expected, missing = alone(job)
    orders = [make_order(job, shipped, start) for start in range(0, 66, 8)]
    found, unreadable = by_start((order[0], *worker.compute(*order)) for order in orders)
    assert found.keys() == expected.keys()
    for start, arrays in found.items():
        assert all((array == expected[start][name]).all() for name, array in arrays.items())
    assert unreadable == missing
    assert list(unreadable) == [16]


def test_a_worker_says_what_of_the_terms_it_cannot_fulfil(job, root):
    worker, environment, seen = Worker(job, job.source.files), required(job)["environment"], digests_seen(job.source)
    name = next(iter(seen))
    for changes, reason in (
        ({"code": "other"}, "another one"),
        ({"environment": {**environment, "versions": {**versions(), "pillow": "1.0"}}}, "it has pillow"),
        ({"environment": {**environment, "engine": "torch float8"}}, "torch float8"),
    ):
        assert reason in worker.prepare(**required(job, **changes))
    refuses(rf"\({name}: other pixels\)", worker.prepare, **required(job, seen={**seen, name: bytes(32)}))
    (root / name).unlink()
    refuses(rf"\({name}: No such file or directory\)", worker.prepare, **required(job, seen=seen))


# The pool, on what stands in for Ray


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause):
        super().__init__(str(cause))
        self.cause = cause


class FakeRay:
    """Nodes of one CPU each in this process. `death` gets the node and the method before each call, and may raise."""

    exceptions = types.SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, *names, death=lambda node, method, start: None):
        self.alive = dict.fromkeys(names, True)
        self.death, self.actors, self.killed = death, [], []

    def nodes(self):
        node = {"NodeManagerAddress": "", "Resources": {"CPU": 1.0}}
        return [node | {"NodeID": name, "NodeName": name, "Alive": alive} for name, alive in self.alive.items()]

    def put(self, value):
        return value

    def remote(self, **options):
        def start(node, kind, *arguments):
            self.actors.append(FakeActor(self, node, kind(*arguments)))
            return self.actors[-1]

        def on(kind, scheduling_strategy):
            return types.SimpleNamespace(remote=functools.partial(start, scheduling_strategy, kind))

        return lambda kind: types.SimpleNamespace(options=functools.partial(on, kind))

    def wait(self, tasks, num_returns, timeout):
        return tasks[-num_returns:][::-1], []  # not in the order in which they were handed out

    def get(self, task):
        return task()

    def kill(self, actor):
        self.killed.append(actor)


class FakeActor:
    def __init__(self, ray, node, worker):
        self.ray, self.node, self.worker = ray, node, worker

    def __getattr__(self, method):
        return types.SimpleNamespace(remote=lambda *arguments: functools.partial(self.call, method, arguments))

    def call(self, method, arguments):
        self.ray.death(self.node, method, arguments and arguments[0])
        if self in self.ray.killed:
            raise RayError("the actor was killed")
        try:
            return getattr(self.worker, method)(*arguments)
        except UserError as error:
            raise RayTaskError(error) from error


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    strategies = types.ModuleType("ray.util.scheduling_strategies")
    strategies.NodeAffinitySchedulingStrategy = lambda node, soft: node
    monkeypatch.setitem(sys.modules, "ray.util.scheduling_strategies", strategies)
    monkeypatch.setattr(ray_pool, "LOOK", 0.0)
    monkeypatch.setattr(ray_pool, "PATIENCE", 0.2)


def made(ray, job, resumed=None):
    """The batches that a pool makes, by their starts."""
    pool = Pool(ray, job, Cluster("fake"))
    pool.begin(resumed or {})
    return pool, by_start(pool.batches(range(0, 66, 8), Stopwatch()))[0]


def require_equal(job, batches):
    _, expected, _ = alone(job)
    assert sorted(batches) == sorted(expected)
    assert all((batches[start]["features"] == batch["features"]).all() for start, batch in expected.items())


def test_a_pool_makes_every_batch_once_in_any_order(job, capsys):
    pool, batches = made(FakeRay("a", "b"), job)
    require_equal(job, batches)
    assert list(batches) != sorted(batches)
    assert pool.environment == alone(job, [])[0]
    said = capsys.readouterr().err
    assert "engine: torch float32 (on node" in said
    assert said.count("/s") == 2


def test_a_worker_that_ends_costs_only_what_it_had(job, capsys):
    deaths = [3, 4, 7]

    def death(node, method, start):
        if method == "compute":
            deaths[0] -= 1
            if deaths[0] == 0:
                deaths.pop(0)
                deaths or deaths.append(-1)
                raise RayError("it was killed")

    require_equal(job, made(FakeRay("a", "b", death=death), job)[1])
    assert "a worker on node" in capsys.readouterr().err


def test_nodes_may_come_and_go(job):
    ray, seen = FakeRay("a"), []

    def death(node, method, start):
        seen.append(node)
        if len(seen) == 6:
            ray.alive["a"], ray.alive["b"] = False, True
        if node == "a" and not ray.alive["a"]:
            raise RayError("node a died")

    ray.death = death
    require_equal(job, made(ray, job)[1])
    assert set(seen) == {"a", "b"}


def test_a_node_that_cannot_do_what_is_pinned_is_not_used(job, capsys):
    ray = FakeRay("old", "new")
    environment = alone(job, [])[0]
    real = Worker.prepare

    def prepare(self, *required):
        return "it has torch 1.0" if ray.actors[0].worker is self else real(self, *required)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Worker, "prepare", prepare)
        require_equal(job, made(ray, job, environment)[1])
        assert "node old (old) is not used: it has torch 1.0" in capsys.readouterr().err
        patch.setattr(Worker, "prepare", lambda self, *required: "it has torch 1.0")
        refuses(r"new \(new\): it has torch 1\.0; old \(old\)", made, FakeRay("old", "new"), job, environment)


def test_a_node_that_is_not_like_this_process_chooses_no_engine_and_one_that_sees_no_image_is_named(
    job, capsys, monkeypatch
):
    ray = FakeRay("new", "old")  # the last one answers first
    real = Worker.hello

    def hello(self, code, pinned):
        return "it has torch 1.0" if ray.actors[1].worker is self else real(self, code, pinned)

    monkeypatch.setattr(Worker, "hello", hello)
    require_equal(job, made(ray, job)[1])
    assert "node old (old) is not used: it has torch 1.0" in capsys.readouterr().err
    monkeypatch.setattr(Worker, "hello", real)
    monkeypatch.setattr(ray_pool, "digests_seen", lambda source: {source.names[0]: bytes(32)})
    refuses(r"node a \(a\): it does not see .*train/.*: other pixels.*--ship-images", made, FakeRay("a"), job)


def test_a_batch_that_ends_every_worker_is_an_error_that_names_it(job):
    def death(node, method, start):
        if method == "compute" and start == 16:
            raise RayError("OutOfMemoryError: killed")

    refuses(
        r"5 workers ended .* from 16 on, .*OutOfMemoryError.*--batch-size", made, FakeRay("a", "b", death=death), job
    )


def test_a_node_whose_workers_never_begin_is_not_used(job):
    def death(node, method, start):
        if node == "a":
            raise RayError("ModuleNotFoundError: No module named 'extract'")

    require_equal(job, made(FakeRay("a", "b", death=death), job)[1])
    refuses(r"can be used \(a \(a\): .* before they begin \(ModuleNotFoundError", made, FakeRay("a", death=death), job)


def test_what_is_not_finite_is_the_sentence_of_one_process(job, monkeypatch):
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 512))
    torch.nn.init.constant_(module[1].bias, float("inf"))
    broken = replace(job, backbone=replace(job.backbone, module=module))
    refuses(r"^non-finite features at images \d+ to \d+: the weights", made, FakeRay("a"), broken)


def test_stores_with_skipped_images_are_the_same(job, root, tmp_path, monkeypatch):
    (root / "train/class1/004.png").write_bytes(b"junk")
    for on_error in ("fail", "skip"):
        sentences = []
        for name, cluster in (("one.h5", None), ("pool.h5", Cluster("fake"))):
            monkeypatch.setattr(ray_pool, "connected", lambda _: contextlib.nullcontext(FakeRay("a", "b")))
            try:
                extract(replace(job, on_error=on_error, cluster=cluster), tmp_path / name)
            except UserError as error:
                sentences.append(error.message)
        assert len(set(sentences)) == (on_error == "fail")
    assert (tmp_path / "pool.h5").read_bytes() == (tmp_path / "one.h5").read_bytes()


def test_no_cluster_at_the_address_is_one_sentence(monkeypatch):
    def init(address, **options):
        raise ConnectionError("Could not find any running Ray instance.\nmore")

    monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(is_initialized=lambda: False, init=init))
    refuses(r"no Ray cluster at auto \(Could not find any .*ray start --head", connected(Cluster("auto")).__enter__)


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "[::1]:{}", "127.0.0.1:99999"])
def test_where_nothing_answers_ray_is_not_asked_since_it_would_try_for_minutes(monkeypatch, address):
    ray = types.SimpleNamespace(is_initialized=lambda: False, init=lambda *_, **__: pytest.fail("it was asked"))
    monkeypatch.setitem(sys.modules, "ray", ray)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = address.format(free.getsockname()[1])  # nobody listens there
        with (
            pytest.raises(UserError, match=r"no Ray cluster at .*\(.+\): start one"),
            connected(Cluster(address)),
        ):
            pass


@pytest.mark.parametrize(("end", "said"), [("os._exit(1)", True), ("os.kill(os.getpid(), 9)", True), ("pass", False)])
def test_a_process_that_ray_ends_says_so(end, said):
    code = f"import os; from common.cluster import _sudden_end_in_a_sentence as s\nwith s(): {end}"
    result = python("-c", code, code=None, timeout=60)
    assert result.stderr.count("run the same command again\n") == said
    assert (result.returncode == 0) != said
