"""The training loop: epochs of fresh sets, best-on-validation, resumable after any epoch."""

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from msgspec import Struct
from msgspec.structs import replace
from torch import Tensor
from torch.nn import functional

from common.errors import UserError
from common.machine import choose_arithmetic, choose_device
from common.progress import Progress, say
from common.shapes import check_shape
from train.config import TrainingConfig
from train.methods.base import Method
from train.metrics import evaluate_scores
from train.mixing import add_mixed_classes
from train.report.schema import Epoch
from train.sets import Sampling, Sets, draw_batches, pair_mostly_within
from train.task import NO_CLASS, Inputs, Task

RELEASE_EVERY = 2  # steps after which the mapped rows of the store are given back: memory does not grow with the store


class RunState(Struct):
    """The progress of a run: everything that is needed to resume it.

    history: one record per epoch. head: the method's state after the epoch of the highest validation top-1. model,
    optimizer: their states after the last epoch; None before the first, and when the run is finished.
    """

    history: list[Epoch] = []
    head: dict[str, Tensor] = {}
    model: dict[str, Tensor] | None = None
    optimizer: dict[str, Any] | None = None


def train(
    settings: TrainingConfig, task: Task, model: Method, state: RunState, save: Callable[[RunState], None]
) -> None:
    """Fit `model`, train it from `state` to the last epoch, and leave it at its best epoch, on the device.

    `save` is called after each epoch. Every epoch draws its sets, views and dropout from its own generators, seeded by
    (seed, epoch). So a resumed run equals an uninterrupted one, and no generator's state has to be saved. Raises
    UserError when the loss is not finite, and for settings that do not fit the store or each other.
    """
    device = choose_device(settings.device)
    model.fit(task)
    if not model.learns:
        state.head = _copy(model.state_dict())
        return
    arithmetic = choose_arithmetic(settings.precision, device)
    if settings.precision == "bfloat16" and arithmetic != "bfloat16":
        say("bfloat16 is not faster than float32 on this machine: training in float32")
    settings = replace(settings, precision=arithmetic)
    model.to(device)
    optimizer = build_optimizer(model, settings)
    if state.model and state.optimizer:
        model.load_state_dict(state.model)
        groups = optimizer.state_dict()["param_groups"]  # the settings are those of the config
        optimizer.load_state_dict({"state": state.optimizer["state"], "param_groups": groups})
    for epoch in range(len(state.history) + 1, settings.epochs + 1):
        started = time.perf_counter()
        trained = train_epoch(settings, task, model, optimizer, epoch)
        train_seconds = time.perf_counter() - started
        val = evaluate(model, task, task.val, settings.evaluation_batch_size)
        record = Epoch(
            epoch=epoch,
            **trained,
            train_seconds=round(train_seconds, 3),
            val_loss=val["loss"],
            val_top1=val["top1"],
            seconds=round(time.perf_counter() - started, 3),
            arithmetic=arithmetic,
        )
        if record.val_top1 > max((past.val_top1 for past in state.history), default=-1):
            state.head = _copy(model.state_dict())
        state.history.append(record)
        state.model, state.optimizer = model.state_dict(), optimizer.state_dict()
        save(state)
    state.model = state.optimizer = None
    model.load_state_dict(state.head)


def evaluate(model: Method, task: Task, sets: Sets, batch_size: int) -> dict[str, Any]:
    """The metrics of `train.metrics.evaluate_scores` on fixed sets. Raises UserError for scores that are not finite."""
    scores = predict(model, task, sets, batch_size).numpy()
    if not np.isfinite(scores).all():
        raise UserError("the scores of the head are not finite: lower training.learning_rate and choose another --run")
    return evaluate_scores(scores, sets.target)


def predict(model: Method, task: Task, sets: Sets, batch_size: int) -> Tensor:
    """Logits (n, S) of sets, as `Scorer` gives them."""
    return Scorer(model, task, np.unique(sets.rows), batch_size)(sets.rows)


class Scorer:
    """Logits of sets of the images (n,), rows of the store: in full precision, averaged over the task's views.

    A method that averages views encodes each image once, in whatever sets it is. Another one encodes it in each batch
    of sets, since it needs the views of all, and they may not fit into memory.
    """

    def __init__(self, model: Method, task: Task, images: np.ndarray, batch_size: int):
        self.model, self._task, self._batch_size = model, task, batch_size
        self._images = np.sort(images)
        parts = np.array_split(self._images, -(-len(images) // batch_size))
        self._encoded = torch.cat([self._encode(part) for part in parts], 1) if model.averages_views else None

    def __call__(self, rows: np.ndarray) -> Tensor:
        """Logits (n, S) float32 on the CPU, of sets of the rows (n, S)."""
        logits = []
        for start in range(0, len(rows), self._batch_size):
            batch = rows[start : start + self._batch_size]
            if self._encoded is None:
                images, items = np.unique(batch, return_inverse=True)
                encoded = self._encode(images)
            else:
                items, encoded = np.searchsorted(self._images, batch), self._encoded
            index = torch.from_numpy(items.reshape(batch.shape)).to(self.model.device)
            logits.append(self.model.score_encoded(encoded, index).cpu())
        return torch.cat(logits)

    def _encode(self, images: np.ndarray) -> Tensor:
        views = (self._task.gather(images, view).to(self.model.device) for view in range(self._task.views))
        return self.model.encode_views(views)


def train_epoch(
    settings: TrainingConfig, task: Task, model: Method, optimizer: torch.optim.Optimizer, epoch: int
) -> dict[str, float]:
    """One pass over fresh sets → train_loss, train_top1 and the last learning_rate."""
    device = model.device
    for_sets, for_views, for_dropout, for_mixing = np.random.default_rng([settings.seed, epoch]).spawn(4)
    model.seed_dropout(torch.Generator(device).manual_seed(int(for_dropout.integers(1 << 62))))
    model.train()
    sampling = Sampling(
        set_size=task.set_size,
        batch_size=settings.batch_size,
        images_per_class=settings.images_per_class,
        pairs=_choose_pairs(task, settings.hard_pairs),
        without=settings.without_anomaly,
    )
    steps = sampling.count_steps(len(task.train.rows))
    warmup_steps = min(round(settings.warmup_epochs * steps), settings.epochs * steps)
    loss_sum, hits = torch.zeros((), device=device), torch.zeros((), device=device)
    sets, rate = 0, 0.0
    with Progress(steps, f"epoch {epoch} of {settings.epochs}", "steps") as progress:
        for number, batch in enumerate(draw_batches(task.train, sampling, for_sets), (epoch - 1) * steps + 1):
            inputs = task.inputs(batch, for_views)
            if settings.mixed_classes:
                inputs = add_mixed_classes(inputs, settings.mixed_classes, for_mixing)
            inputs = inputs.to(device)
            rate = settings.learning_rate * learning_rate_factor(number, warmup_steps, settings.epochs * steps)
            logits, loss = train_step(model, optimizer, inputs, rate, settings)
            if number % RELEASE_EVERY == 0:
                task.store.release()
            loss_sum += loss * len(logits)
            hits += (logits.argmax(1) == inputs.target).sum()
            sets += len(logits)
            progress.update()
    mean_loss = float(loss_sum) / sets
    if not math.isfinite(mean_loss):
        raise UserError(
            f"the training loss is not finite in epoch {epoch}: lower training.learning_rate "
            f"(now {settings.learning_rate}) or use training.precision=float32"
        )
    return {"train_loss": mean_loss, "train_top1": float(hits) / sets, "learning_rate": rate}


def train_step(
    model: Method, optimizer: torch.optim.Optimizer, inputs: Inputs, rate: float, settings: TrainingConfig
) -> tuple[Tensor, Tensor]:
    """One step of the optimizer at a learning rate → logits (B, S) and the mean loss of the sets.

    With `training.without_anomaly` the logits are (B, S + 1), "none" being the last. `training.precision` is that of
    the forward pass, "float32" or "bfloat16".
    """
    for group in optimizer.param_groups:
        group["lr"] = rate
    with torch.autocast(inputs.features.device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
        logits, class_logits, labels = model.training_outputs(inputs)
    check_shape("logits", logits, "head", B=len(inputs.items), S=inputs.items.shape[1])
    if settings.without_anomaly:
        logits = functional.pad(logits, (0, 1))  # the logit of "none" is 0
    loss = functional.cross_entropy(logits.float(), inputs.target)
    total = settings.set_loss * loss
    if settings.class_loss and class_logits is not None:
        smoothing = settings.label_smoothing
        of_classes = functional.cross_entropy(
            class_logits.float(), labels, label_smoothing=smoothing, ignore_index=NO_CLASS
        )
        total = total + settings.class_loss * of_classes
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_clip)
    optimizer.step()
    return logits.detach(), loss.detach()


def learning_rate_factor(step: int, warmup_steps: int, total_steps: int) -> float:
    """The part of the highest learning rate at `step` = 1 … total: linear warm-up from 0, then a cosine down to 0.

    >>> [round(learning_rate_factor(step, 2, 6), 2) for step in (1, 2, 4, 6)]
    [0.5, 1.0, 0.5, 0.0]
    """
    if step <= warmup_steps:
        return step / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps)))


def build_optimizer(model: Method, settings: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW on all parameters, in one kernel."""
    return torch.optim.AdamW(model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay, fused=True)


def _choose_pairs(task: Task, hard: float) -> np.ndarray | None:
    if not hard:
        return None
    if task.superclass is None:
        raise UserError(f"training.hard_pairs={hard} needs super-classes, {task.store.path} has none: set it to 0")
    return pair_mostly_within(task.superclass[task.train.classes], hard)


def _copy(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value.detach().cpu().clone() for key, value in state.items()}
