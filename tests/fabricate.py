"""What tests are made of: feature stores with a cluster a class, folders of noisy images, reports of runs, findings."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from common.errors import UserError
from common.images import pixel_digest, read_image
from common.schema import load
from common.store import FeatureStore
from common.store_writer import name_arrays, write_store
from common.synthetic import make_header
from extract.sources import ImageSource
from find.findings import Finding, Findings, Threshold
from find.findings import Image as ImageOfStore
from train.config import Config
from train.log.runs import Run
from train.loop import RunState, train
from train.methods.base import Method, build_method
from train.report.schema import Epoch, Failures, Hardware, Measured, OtherSets, Report, Store, Twins, pack_bits
from train.run_folder import RunFolder
from train.task import Task

SMALL_HEAD = """
[head]
width = 16
layers = 1
feed_forward = 16

[training]
epochs = 2
batch_size = 64
"""


def make_config(*overrides: str) -> Config:
    """The default config with some keys changed, also by what does nothing for the method."""
    return load(Config, None, overrides)


def train_method(
    config: Config, task: Task, state: RunState | None = None, save: Callable[[RunState], object] = lambda state: None
) -> Method:
    """The method of a config, trained on a task."""
    model = build_method(config, task.feature_dim, len(task.train.classes))
    train(config.training, task, model, state or RunState(), save)
    return model


def make_report(
    solved: Sequence[bool] | np.ndarray,
    *changes: str,
    sets: str = "a",
    hard: Sequence[bool] | np.ndarray | None = None,
    store: str = "s",
    threads: int = 1,
    history: Sequence[Epoch] = (),
    arithmetic: Sequence[str] = (),
) -> Report:
    """The report of a run that solved these test sets, and hard sets.

    changes: how its config differs from the defaults, "key=value". sets, store: equal for equal ones.
    """
    return Report(
        config=msgspec.to_builtins(make_config(*changes)),
        test=_measured(np.asarray(solved), sets),
        val=_measured(np.asarray(solved), f"val {sets}"),
        hard=None if hard is None else _measured(np.asarray(hard), f"hard {sets}"),
        without_twins=Twins([], len(solved), float(np.mean(solved)), [0.0, 1.0]),
        failures=Failures(by_set_class={}, by_anomaly_class={}, worst_pairs=[]),
        other_sets=OtherSets({}, {}, None),
        attention=None,
        history=list(history),
        best_epoch=len(history) or None,
        chance_top1=0.1,
        train_images=100,
        classes=10,
        parameters=1234,
        arithmetic=list(arithmetic),
        train_seconds=sum(epoch.train_seconds for epoch in history) if history else 60.0,
        seconds=90.0,
        finished="2026-01-01 00:00 UTC",
        train_sets_per_second=None,
        store=Store(
            path="s.h5",
            identity_sha256=store,
            backbone="resnet18",
            image_size=224,
            views=["plain"],
            layers=["last"],
            weights_sha256="0" * 64,
            random_weights=False,
        ),
        versions={"python": "3", "torch": "2", "torchvision": "0", "numpy": "2", "h5py": "3", "pillow": "10"},
        hardware=Hardware("a processor", 2, threads, "cpu"),
    )


def has_margin(path: Path, pixels: int = 3) -> bool:
    """Whether the outermost pixels of a picture are white: then nothing is cut off, and no label touches the edge."""
    with Image.open(path) as picture:
        white = np.asarray(picture.convert("L")) == 255
    return all(edge.all() for edge in (white[:pixels], white[-pixels:], white[:, :pixels], white[:, -pixels:]))


def make_epoch(epoch: int, val_top1: float = 0.5, train_seconds: float = 2.0) -> Epoch:
    """The record of an epoch."""
    return Epoch(
        epoch=epoch,
        train_loss=1.0,
        train_top1=0.5,
        learning_rate=1e-3,
        train_seconds=train_seconds,
        val_loss=1.0,
        val_top1=val_top1,
        seconds=train_seconds + 0.5,
    )


def make_run(name: str, solved: Sequence[bool] | np.ndarray, *changes: str, **options: Any) -> Run:
    """A run with the report that `make_report` makes."""
    return Run(name, make_report(solved, *changes, **options))


def _measured(solved: np.ndarray, sets: str) -> Measured:
    return Measured(
        n=len(solved),
        top1=float(solved.mean()),
        top1_interval=[0.0, 1.0],
        top5=1.0,
        top5_interval=[0.0, 1.0],
        average_precision=0.75,
        auroc=0.875,
        loss=1.0,
        positions=[1] * 10,
        sets_sha256=sets,
        solved=pack_bits(solved),
    )


def make_findings(
    paths: Sequence[str],
    *,
    mode: str = "audit",
    probabilities: Sequence[float] | None = None,
    flagged: int = 0,
    names: Sequence[str] = ("cat", "dog"),
    root: Path | None = None,
    **options: Any,
) -> Findings:
    """Findings of these paths, the first `flagged` of them flagged; in an audit in classes `names` in turn.

    The typical images of each class, in mode "odd" of the folder, are the first findings themselves.
    """
    if probabilities is None:
        probabilities = [1 - (i + 0.5) / len(paths) for i in range(len(paths))]
    audit = mode == "audit"
    question, rate = ("label" if audit else "foreign"), 0.2
    found = []
    for i, (path, probability) in enumerate(zip(paths, probabilities, strict=True)):
        own, suggested = (names[(i + k) % len(names)] if audit else None for k in (0, 1))
        q = rate * (i + 1) / flagged if i < flagged else rate + (1 - rate) * (i + 1) / len(paths)
        why = (f"nearer to {suggested}", f"far from {own}") if audit else ("far from the others",)
        found.append(
            Finding(
                row=i,
                path=path,
                split="train",
                question=question,
                own=own,
                suggested=suggested,
                probability=probability,
                q=q,
                flagged=i < flagged,
                why=why,
            )
        )
    typical = tuple(ImageOfStore(each.row, each.path) for each in found[:4])
    values: dict[str, Any] = {
        "findings": tuple(found),
        "conclusion": f"{flagged} of {len(paths)} images" if flagged else "nothing odd here",
        "class_names": tuple(names) if audit else (),
        "typical": dict.fromkeys(names if audit else ["the folder"], typical),
        "counts": {"images": len(paths), "findings": len(paths), "flagged": flagged, question: len(paths)},
        "thresholds": {question: Threshold(rate, flagged, 1 - rate if flagged else None)},
        "root": None if root is None else str(root),
    }
    return Findings(mode=mode, **(values | options))


def make_pictures(path: Path, root: Path, names: Sequence[str]) -> FeatureStore:
    """Small pictures below a folder, each of another colour, and a store of them: half of them cats, half dogs."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(root / name, "png")
    n, header = len(names), make_header(2, 8)
    header["class_names"] = header["identity"]["data_set"]["class_names"] = ["cat", "dog"]
    header["provenance"]["request"] = {"dataset": "csv"}
    arrays = {
        "features": np.random.default_rng(0).normal(size=(1, n, 8)).astype("<f4"),
        "labels": np.repeat([0, 1], n // 2),
        "image_index": np.arange(n),
        "split": np.zeros(n, np.uint8),
        "image_sha256": np.stack([np.frombuffer(pixel_digest(read_image(root / name)), np.uint8) for name in names]),
        **name_arrays(names),
    }
    write_store(path, header, arrays)
    return FeatureStore.open(path)


def smooth(height: int, width: int, seed: int = 0) -> Image.Image:
    """A picture of this size without sharp edges."""
    small = np.random.default_rng(seed).integers(256, size=(6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def of_split(source: ImageSource, split: str) -> ImageSource:
    """The images of one split alone."""
    return source.subset(source.rows_of(split))


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, over the largest absolute value that is expected."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def fails_with(number: int) -> Callable:
    """A function that raises this error of the system, whatever it gets."""

    def fails(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    return fails


def flip_bit(path: Path, offset: int, bit: int = 0) -> None:
    """Change one bit of a file."""
    with path.open("r+b", buffering=0) as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """torch computes in one thread, as it does with OMP_NUM_THREADS=1 in another process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def wait_until(done: Callable[[], bool], process: subprocess.Popen) -> None:
    """Wait until `done` is true of what a process makes."""
    deadline = time.monotonic() + 300
    while not done():
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def call(command: click.Command, *arguments: Any, code: int = 0, **options: Any) -> Result:
    """What a command line gives for these arguments: it ends with this exit code, and without a traceback."""
    result = CliRunner().invoke(command, [str(argument) for argument in arguments], **options)
    assert result.exit_code == code, (result.output, result.exception)
    assert "Traceback" not in result.output
    return result


def refuses(match: str, function: Callable, /, *arguments: Any, **options: Any) -> str:
    """The one sentence of the UserError that a function raises for these arguments: it matches, whatever the test.

    The temporary folder is left out when it is compared, since its name is that of the test.
    """
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    message = caught.value.message
    assert "\n" not in message
    assert re.search(match, re.sub(r"/\S*/pytest-\d+/\w+", "", message)), message
    return message


def python(*arguments: Any, code: int | None = 0, **options: Any) -> subprocess.CompletedProcess:
    """What Python, in a process of its own, says for these arguments: it ends with this exit code, None for any."""
    command = [sys.executable, *map(str, arguments)]
    result = subprocess.run(command, **{"capture_output": True, "text": True} | options)
    assert code is None or result.returncode == code, (result.stdout, result.stderr)
    assert "Traceback" not in (result.stderr or "")
    return result


def begin(*arguments: Any) -> subprocess.Popen:
    """Python in a process of its own, with one thread; what it says goes into pipes."""
    command, environment = [sys.executable, *map(str, arguments)], {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def without_times(value: Any) -> Any:
    """A report, or records of epochs, without what differs between two runs of anything."""
    value = msgspec.to_builtins(value)
    if isinstance(value, dict):
        times = {key for key in value if "seconds" in key or key in ("finished", "train_sets_per_second")}
        return {key: without_times(value[key]) for key in value if key not in times}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def result_of(run: Path) -> dict[str, Any]:
    """What has to be equal in equal runs: the history, the weights, the config and what was measured."""
    content = torch.load(run / "checkpoint.pt", weights_only=True)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines == content["history"], "metrics.jsonl is not the history of the checkpoint"
    report = json.loads((run / "report.json").read_text())
    measured = {name: report[name] for name in ("test", "val", "without_twins")}
    head = {name: value.tolist() for name, value in content["head"].items()}
    return measured | {"history": without_times(lines), "head": head, "config": content["config"]}


def read_reports(folder: Path) -> dict[str, Any]:
    """The reports below a folder, by the names of their runs, without times."""
    return {file.parent.name: without_times(json.loads(file.read_text())) for file in folder.rglob("report.json")}


class Killed(BaseException):
    """What ends a process as abruptly as a test may."""


@contextlib.contextmanager
def killed_after_two_epochs() -> Iterator[None]:
    """The run in the body is killed after its second epoch, between the checkpoint and metrics.jsonl."""
    real = RunFolder.write_metrics

    def write(self: RunFolder, history: list[Epoch]) -> None:
        if len(history) == 2:
            raise Killed
        real(self, history)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(RunFolder, "write_metrics", write)
        yield


def wait_for_epochs(path: Path, epochs: int, process: subprocess.Popen) -> None:
    """Wait until a run that is made by `process` has so many lines in its metrics.jsonl."""
    wait_until(lambda: path.exists() and len(path.read_text().splitlines()) >= epochs, process)
