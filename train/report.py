"""What a run leaves behind: report.json and its pictures."""

from typing import Any

import numpy as np
import torch

from common.checks import check_shape
from common.machine import choose_device, hardware, versions
from common.run_folder import RunFolder
from common.store import FeatureStore
from train.config import Config
from train.loop import predict
from train.methods.base import Method
from train.methods.transformer import AnomalyTransformer
from train.metrics import evaluate_scores
from train.plots import plot_attention, plot_curves, plot_mistakes
from train.sets import Sets
from train.task import Task

PICTURED_SETS = 6


def write_report(
    run: RunFolder, config: Config, store: FeatureStore, task: Task, model: Method, history: list[dict]
) -> dict[str, Any]:
    """Evaluate the best head on validation and, once, on test; write report.json and the pictures."""
    batch_size = config.training.evaluation_batch_size
    logits = {name: predict(model, task, sets, batch_size).numpy() for name, sets in _evaluation_sets(task).items()}
    best = max(history, key=lambda record: record["val_top1"], default={"epoch": None})
    train_seconds = sum(record["train_seconds"] for record in history)
    n_train = len(task.train.rows)
    report = {
        "method": config.method,
        "test": _measured(logits["test"], task.test) | {"hits": packed_hits(logits["test"], task.test)},
        "val": _measured(logits["val"], task.val),
        "best_epoch": best["epoch"],
        "epochs": len(history),
        "chance_top1": 1 / task.set_size,
        "train_images": n_train,
        "classes": len(np.unique(task.test.set_label)),
        "set_size": task.set_size,
        "labels_shuffled": config.data.shuffle_labels,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "train_seconds": round(train_seconds, 1),
        "train_sets_per_second": round(n_train * len(history) / train_seconds) if history else None,
        "seed": config.training.seed,
        "store": {
            "path": str(store.path),
            "identity_sha256": store.identity_sha256,
            "backbone": store.identity["backbone"]["name"],
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
    if report["epochs"]:
        lines.append(
            f"best epoch {report['best_epoch']} of {report['epochs']} by validation top-1 "
            f"({100 * report['val']['top1']:.2f} %) · {report['train_sets_per_second']:,} sets/s in training"
        )
    if report["store"]["random_weights"]:
        lines.append("the backbone has RANDOM weights: this shows that the pipeline works, not what it can do")
    return "\n".join(lines)


def _evaluation_sets(task: Task) -> dict[str, Sets]:
    return {"val": task.val, "test": task.test}


def packed_hits(scores: np.ndarray, sets: Sets) -> str:
    """Which sets were solved, a bit each in their order, as hexadecimal digits: what paired tests need."""
    return np.packbits(scores.argmax(1) == sets.target).tobytes().hex()


def _measured(logits: np.ndarray, sets: Sets) -> dict[str, Any]:
    return {**evaluate_scores(logits, sets.target), "sets_sha256": sets.digest()}


def _draw(
    run: RunFolder, store: FeatureStore, task: Task, model: Method, logits: np.ndarray, history: list[dict]
) -> None:
    check_shape("logits", logits, "test", B=len(task.test), S=task.set_size)
    if history:
        plot_curves(history, run.path / "curves.png", task.set_size)
    probabilities = torch.from_numpy(logits).softmax(1).numpy()
    some = np.linspace(0, len(task.test) - 1, PICTURED_SETS).astype(int)
    if isinstance(model, AnomalyTransformer):
        with torch.inference_mode():
            last_layer = model.attention_maps(task.gather(task.test.rows[some]))[-1]
        plot_attention(
            _pictures(store, task.test, some),
            probabilities[some],
            task.test.target[some],
            last_layer.mean(1).numpy(),
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
