"""What a run leaves behind: report.json and its pictures."""

import dataclasses
import datetime
import time
from typing import Any

import numpy as np
import torch

from common.checks import check_shape
from common.machine import choose_device, hardware, versions
from common.run_folder import RunFolder
from common.store import FeatureStore
from train.analysis import measure_attention, measure_failures, measure_twins
from train.beyond import measure_beyond
from train.config import Config
from train.loop import predict
from train.methods.base import Method
from train.metrics import evaluate_scores
from train.plots import plot_attention, plot_curves, plot_mistakes
from train.runs import pack_bits
from train.sets import Sets
from train.task import Task

PICTURED_SETS = 6


def write_report(
    run: RunFolder, config: Config, store: FeatureStore, task: Task, model: Method, history: list[dict]
) -> dict[str, Any]:
    """Evaluate the best head on validation and, once, on test; write report.json and the pictures."""
    started = time.perf_counter()
    batch_size = config.training.evaluation_batch_size
    evaluated = {"test": task.test, "val": task.val} | ({"hard": task.hard} if task.hard else {})
    logits = {name: predict(model, task, sets, batch_size).numpy() for name, sets in evaluated.items()}
    solved = {name: scores.argmax(1) == evaluated[name].target for name, scores in logits.items()}
    best = max(history, key=lambda record: record["val_top1"], default={"epoch": None})
    train_seconds = sum(record["train_seconds"] for record in history)
    n_train = len(task.train.rows)
    report = {
        "config": dataclasses.asdict(config),
        **{name: _measured(logits[name], sets) for name, sets in evaluated.items()},
        "without_twins": measure_twins(solved["test"], task),
        "failures": measure_failures(solved["test"], task, solved.get("hard")),
        "beyond": measure_beyond(model, task, batch_size),
        "attention": measure_attention(model, task),
        "history": history,
        "best_epoch": best["epoch"],
        "chance_top1": 1 / task.set_size,
        "train_images": n_train,
        "classes": len(task.test_images.classes),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "train_seconds": round(train_seconds, 1),
        "seconds": round(sum(record["seconds"] for record in history) + time.perf_counter() - started, 1),
        "finished": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "train_sets_per_second": round(n_train * len(history) / train_seconds) if history else None,
        "store": {
            "path": str(store.path),
            "identity_sha256": store.identity_sha256,
            "backbone": store.identity["backbone"]["name"],
            "image_size": store.identity["preprocessing"].get("image_size"),
            "views": store.views if config.data.views == "all" else store.views[:1],
            "layers": list(store.layers) if config.data.layers == "all" else ["last"],
            "weights_sha256": store.identity["weights"]["sha256"],
            "random_weights": store.identity["weights"]["random_seed"] is not None,
        },
        "versions": versions(),
        "hardware": hardware(choose_device(config.training.device)),
    }
    run.write_report(report)
    _draw(run, store, task, model, logits["test"], history)
    return report


def summary(report: dict[str, Any]) -> str:
    """The result of a run in a few lines."""
    test, low_high = report["test"], [100 * bound for bound in report["test"]["top1_interval"]]
    lines = [
        f"test top-1 {100 * test['top1']:.2f} % (95 % interval {low_high[0]:.2f} to {low_high[1]:.2f}, "
        f"n = {test['n']:,} sets, chance {100 * report['chance_top1']:.0f} %)",
        f"top-5 {100 * test['top5']:.2f} % · average precision {test['average_precision']:.4f} · "
        f"loss {test['loss']:.4f}",
    ]
    if "hard" in report:
        hard, twins = report["hard"], report["without_twins"]
        lines.append(
            f"hard sets, of one super-class: {100 * hard['top1']:.2f} % (n = {hard['n']:,}) · without the "
            f"{len(twins['images'])} test images that are in the training split too: {100 * twins['top1']:.2f} %"
        )
    if report["history"]:
        lines.append(
            f"best epoch {report['best_epoch']} of {len(report['history'])} by validation top-1 "
            f"({100 * report['val']['top1']:.2f} %) · {report['train_sets_per_second']:,} sets/s in training"
        )
    if report["store"]["random_weights"]:
        lines.append("the backbone has RANDOM weights: this shows that the pipeline works, not what it can do")
    return "\n".join(lines)


def _measured(logits: np.ndarray, sets: Sets) -> dict[str, Any]:
    return {
        **evaluate_scores(logits, sets.target),
        "positions": np.bincount(sets.target, minlength=sets.rows.shape[1]).tolist(),
        "sets_sha256": sets.digest(),
        "solved": pack_bits(logits.argmax(1) == sets.target),
    }


def _draw(
    run: RunFolder, store: FeatureStore, task: Task, model: Method, logits: np.ndarray, history: list[dict]
) -> None:
    check_shape("logits", logits, "test", B=len(task.test), S=task.set_size)
    if history:
        plot_curves(history, run.path / "curves.png", task.set_size)
    probabilities = torch.from_numpy(logits).softmax(1).numpy()
    some = np.linspace(0, len(task.test) - 1, PICTURED_SETS).astype(int)
    with torch.inference_mode():
        maps = model.attention_maps(task.gather(task.test.rows[some]))
    if maps is not None:
        plot_attention(
            _pictures(store, task.test, some),
            probabilities[some],
            task.test.target[some],
            maps[-1].mean(1).numpy(),
            _names(task, some),
            run.path / "attention.png",
        )
    wrong = np.flatnonzero(logits.argmax(1) != task.test.target)
    confident = wrong[np.argsort(-probabilities[wrong].max(1), kind="stable")][:PICTURED_SETS]
    plot_mistakes(
        _pictures(store, task.test, confident),
        probabilities[confident],
        task.test.target[confident],
        _names(task, confident),
        run.path / "mistakes.png",
        len(wrong),
    )


def _pictures(store: FeatureStore, sets: Sets, chosen: np.ndarray) -> np.ndarray | None:
    return None if store.thumbnails is None else store.thumbnails[sets.rows[chosen]]


def _names(task: Task, chosen: np.ndarray) -> list[tuple[str, str]]:
    names = task.class_names
    return [(names[task.test.set_label[i]], names[task.test.anomaly_label[i]]) for i in chosen]
