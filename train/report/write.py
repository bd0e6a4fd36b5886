"""Writing what a run leaves behind: report.json and its pictures."""

import datetime
import time

import msgspec
import numpy as np
import torch

from common.files import write_text
from common.machine import hardware, versions
from common.store import FeatureStore
from train.config import Config
from train.loop import Scorer
from train.methods.base import Method
from train.metrics import evaluate_scores
from train.report.failures import measure_attention, measure_failures, measure_twins
from train.report.other_sets import measure_other_sets
from train.report.pictures import ShownSets, plot_attention, plot_curves, plot_mistakes
from train.report.schema import Epoch, Hardware, Measured, Report, Store, pack_bits
from train.run_folder import RunFolder
from train.sets import Sets
from train.task import Task

PICTURED_SETS = 6


def write_report(run: RunFolder, config: Config, task: Task, model: Method, history: list[Epoch]) -> Report:
    """Evaluate the best head on validation and, once, on test; write report.json and the pictures."""
    started = time.perf_counter()
    images = np.concatenate([task.val_images.rows, task.test_images.rows])
    score = Scorer(model, task, images, config.training.evaluation_batch_size)
    evaluated = {"test": task.test, "val": task.val} | ({"hard": task.hard} if task.hard else {})
    logits = {name: score(sets.rows).numpy() for name, sets in evaluated.items()}
    solved = {name: scores.argmax(1) == evaluated[name].target for name, scores in logits.items()}
    measured = {name: _measure(logits[name], solved[name], sets) for name, sets in evaluated.items()}
    best = max(history, key=lambda epoch: epoch.val_top1, default=None)
    train_seconds = sum(epoch.train_seconds for epoch in history)
    n_train = len(task.train.rows)
    report = Report(
        config=msgspec.to_builtins(config),
        test=measured["test"],
        val=measured["val"],
        hard=measured.get("hard"),
        without_twins=measure_twins(solved["test"], task),
        failures=measure_failures(solved["test"], task, solved.get("hard")),
        other_sets=measure_other_sets(score, task),
        attention=measure_attention(model, task),
        history=history,
        best_epoch=best.epoch if best else None,
        chance_top1=1 / task.set_size,
        train_images=n_train,
        classes=len(task.test_images.classes),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        arithmetic=sorted({epoch.arithmetic for epoch in history if epoch.arithmetic}),
        train_seconds=round(train_seconds, 1),
        seconds=round(sum(epoch.seconds for epoch in history) + time.perf_counter() - started, 1),
        finished=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        train_sets_per_second=round(n_train * len(history) / train_seconds) if history else None,
        store=_describe_stores(task.store, config),
        versions=versions(),
        hardware=Hardware(**hardware(model.device)),
    )
    write_text(run.report, report.to_json())
    _draw(run, task, model, logits["test"], history)
    return report


def summary(report: Report) -> str:
    """The result of a run in a few lines."""
    test, hard, twins = report.test, report.hard, report.without_twins
    lines = [
        f"test top-1 {100 * test.top1:.2f} % (95 % interval {100 * test.top1_interval[0]:.2f} to "
        f"{100 * test.top1_interval[1]:.2f}, n = {test.n:,} sets, chance {100 * report.chance_top1:.0f} %)",
        f"top-5 {100 * test.top5:.2f} % · average precision {test.average_precision:.4f} · loss {test.loss:.4f}",
    ]
    if hard:
        lines.append(f"hard sets, of one super-class: {100 * hard.top1:.2f} % (n = {hard.n:,})")
    if twins.images and twins.top1 is not None:
        lines.append(
            f"without the {len(twins.images)} test images that are in the training split too: {100 * twins.top1:.2f} %"
        )
    if report.history:
        lines.append(
            f"best epoch {report.best_epoch} of {len(report.history)} by validation top-1 "
            f"({100 * report.val.top1:.2f} %) · {report.train_sets_per_second:,} sets/s in training, "
            f"in {report.arithmetic_used}"
        )
    if report.store.random_weights:
        lines.append("the backbone has RANDOM weights: this shows that the pipeline works, not what it can do")
    return "\n".join(lines)


def _measure(logits: np.ndarray, solved: np.ndarray, sets: Sets) -> Measured:
    return Measured(
        **evaluate_scores(logits, sets.target),
        positions=np.bincount(sets.target, minlength=sets.rows.shape[1]).tolist(),
        sets_sha256=sets.digest(),
        solved=pack_bits(solved),
    )


def _describe_stores(joined: FeatureStore, config: Config) -> Store:
    views = joined.views if config.data.views == "all" else joined.views[:1]
    stores = [_describe_store(store, views, config.data.layers == "all") for store in joined.stores]
    if len(stores) == 1:
        return stores[0]
    sizes = {store.image_size for store in stores}
    return Store(
        path=" + ".join(store.path for store in stores),
        identity_sha256=joined.identity_sha256,
        backbone=" + ".join(store.backbone for store in stores),
        image_size=sizes.pop() if len(sizes) == 1 else None,
        views=views,
        layers=[f"{store.backbone}/{layer}" for store in stores for layer in store.layers],
        weights_sha256=" + ".join(store.weights_sha256 for store in stores),
        random_weights=any(store.random_weights for store in stores),
        beside=stores,
    )


def _describe_store(store: FeatureStore, views: list[str], all_layers: bool) -> Store:
    identity = store.identity
    return Store(
        path=str(store.path),
        identity_sha256=store.identity_sha256,
        backbone=identity["backbone"]["name"],
        image_size=identity["preprocessing"].get("image_size"),
        views=views,
        layers=list(store.layers) if all_layers else ["last"],
        weights_sha256=identity["weights"]["sha256"],
        random_weights=identity["weights"]["random_seed"] is not None,
    )


def _draw(run: RunFolder, task: Task, model: Method, logits: np.ndarray, history: list[Epoch]) -> None:
    if history:
        plot_curves(history, run.path / "curves.png", task.set_size)
    probabilities = torch.from_numpy(logits).softmax(1).numpy()
    spaced = np.linspace(0, len(task.test) - 1, PICTURED_SETS).astype(int)
    with torch.inference_mode():
        maps = model.attention_maps(task.gather(task.test.rows[spaced]).to(model.device))
    if maps is not None:
        shown = _select_shown(task, spaced, probabilities)
        plot_attention(shown, maps[-1].mean(1).cpu().numpy(), run.path / "attention.png")
    wrong = np.flatnonzero(logits.argmax(1) != task.test.target)
    confident = wrong[np.argsort(-probabilities[wrong].max(1), kind="stable")][:PICTURED_SETS]
    plot_mistakes(_select_shown(task, confident, probabilities), len(wrong), run.path / "mistakes.png")


def _select_shown(task: Task, chosen: np.ndarray, probabilities: np.ndarray) -> ShownSets:
    sets, names, store = task.test[chosen], task.class_names, task.store
    return ShownSets(
        pictures=store.rows("thumbnails", sets.rows) if "thumbnails" in store.places else None,
        probabilities=probabilities[chosen],
        target=sets.target,
        names=[(names[own], names[other]) for own, other in zip(sets.set_label, sets.anomaly_label, strict=True)],
    )
