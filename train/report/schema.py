"""report.json as types: `train.report.write` fills them, the log and `compare` read them back.

A field is written under its own name unless it says otherwise. A field with a default is left out of the file where it
has this value. A field without a default that is None is written as null.
"""

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct, field

from common.errors import UserError
from common.files import readable_json
from common.intervals import wilson_interval


class Proportion(Struct, frozen=True, omit_defaults=True):
    """Top-1, a fraction, of `n` sets and its 95 % interval; without these where there are no sets."""

    n: int
    top1: float | None = None
    top1_interval: list[float] | None = None

    @classmethod
    def of(cls, solved: np.ndarray) -> "Proportion":
        """That of sets (n,), from which of them were solved, a part of one where scores were tied."""
        n, hits = len(solved), float(solved.sum())
        return cls(n, hits / n, list(wilson_interval(hits, n))) if n else cls(0)


class Measured(Struct, frozen=True):
    """The metrics of fixed sets (`train.metrics.evaluate_scores`), and which sets they were.

    positions: how often the anomaly is at each. sets_sha256: equal for equal sets. solved: see `pack_bits`.
    """

    n: int
    top1: float
    top1_interval: list[float]
    top5: float
    top5_interval: list[float]
    average_precision: float
    auroc: float | None
    loss: float
    positions: list[int]
    sets_sha256: str
    solved: str

    def unpack_solved(self) -> np.ndarray:
        """Return which sets were solved, (n,) bool."""
        return np.unpackbits(np.frombuffer(bytes.fromhex(self.solved), np.uint8), count=self.n).astype(bool)


class Twins(Struct, frozen=True, omit_defaults=True):
    """The proportion of test sets without images whose pixels are in the training split, too.

    images: (class, index in the test split) of each of these images.
    """

    images: list[tuple[str, int]]
    n: int
    top1: float | None = None
    top1_interval: list[float] | None = None


class Failures(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Where the test sets were solved, see `train.report.failures.measure_failures`."""

    by_set_class: dict[str, float]
    by_anomaly_class: dict[str, float]
    within_superclass: Proportion | None = None
    across: Proportion | None = None
    groups: list[str] | None = None
    matrix: list[list[tuple[int, int]]] | None = None
    worst_pairs: list[tuple[str, str, int, int]]


class Ranking(Struct, frozen=True):
    """How well items are ranked within `n` sets of k anomalies: AUROC, and precision of the k highest scores."""

    n: int
    auroc_within_sets: float
    precision_at_k: float


class BestThreshold(Struct, frozen=True):
    """The threshold that is best on validation, where half of the sets have one anomaly, and its test accuracy."""

    threshold: float
    accuracy: float


class Detection(Struct, frozen=True, omit_defaults=True):
    """Telling sets with anomalies from sets without, see `train.report.other_sets.measure_detection`.

    statistic: the one of the scores that is compared with the threshold; where it is missing it was "contrast".
    """

    n: int
    threshold: float
    false_alarms: float
    detected: dict[str, float]
    auroc: dict[str, float]
    best_accuracy: BestThreshold
    statistic: str = "contrast"


class OtherSets(Struct, frozen=True):
    """Sets of other sizes, by S, and with other numbers of anomalies, by k."""

    set_size: dict[str, Proportion]
    anomalies: dict[str, Ranking]
    detection: Detection | None = field(name="none")


class Attention(Struct, frozen=True):
    """The attention that inliers give to the anomaly: mean over `n` sets, by layer and head; `uniform` is 1/S."""

    n: int
    uniform: float
    mass_on_anomaly: list[list[float]]


class Epoch(Struct, frozen=True, omit_defaults=True, kw_only=True, forbid_unknown_fields=True):
    """One epoch of training: losses in nats, top-1 as fractions, seconds with and without validation.

    arithmetic: "float32" or "bfloat16", what its forward passes were computed in; missing in the first reports.
    """

    epoch: int
    train_loss: float
    train_top1: float
    learning_rate: float
    train_seconds: float
    val_loss: float
    val_top1: float
    seconds: float
    arithmetic: str | None = None


class Store(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The feature store, and what was used of it.

    beside: the stores, where several are joined; the other fields then have the values of all, joined by " + ", or what
    is common to them.
    """

    path: str
    identity_sha256: str
    backbone: str
    image_size: int | None
    views: list[str]
    layers: list[str]
    weights_sha256: str
    random_weights: bool
    beside: list["Store"] = []

    @property
    def parts(self) -> list["Store"]:
        """The stores: itself, if it is one."""
        return self.beside or [self]


class Hardware(Struct, frozen=True, omit_defaults=True):
    """Where it was computed (`common.machine.hardware`)."""

    cpu: str
    cores: int | None
    threads: int
    device: str
    gpu: str | None = None


class Report(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """All that is known of a finished run. `config` has every key; seconds are of training, and of everything.

    arithmetic: those of the epochs, each once.
    """

    config: dict[str, Any]
    test: Measured
    val: Measured
    hard: Measured | None = None
    without_twins: Twins
    failures: Failures
    other_sets: OtherSets = field(name="beyond")
    attention: Attention | None
    history: list[Epoch]
    best_epoch: int | None
    chance_top1: float
    train_images: int
    classes: int
    parameters: int
    arithmetic: list[str] = []
    train_seconds: int | float
    seconds: float
    finished: str
    train_sets_per_second: int | None
    store: Store
    versions: dict[str, str]
    hardware: Hardware

    def get_measured(self, sets: str) -> Measured | None:
        """Return what was measured on "test", "val" or "hard" sets; None where there are no such sets."""
        return {"test": self.test, "val": self.val, "hard": self.hard}[sets]

    @property
    def arithmetic_used(self) -> str:
        """What training computed in, such as "bfloat16, float32"; of an old report what its config said; "" of none."""
        used = self.arithmetic or [self.config["training"]["precision"]]
        return ", ".join(used) if self.history else ""

    def seconds_to(self, level: float) -> float | None:
        """Seconds of training until validation top-1 first reached a level; None where it never did."""
        seconds = 0.0
        for epoch in self.history:
            seconds += epoch.train_seconds
            if epoch.val_top1 >= level:
                return seconds
        return None

    def to_json(self) -> str:
        """The text of report.json."""
        return readable_json(msgspec.to_builtins(self))


def read_report(path: Path) -> Report:
    """The report in a file. Raises UserError for a file that is missing, or not a report of this version."""
    try:
        report = msgspec.convert(json.loads(path.read_text(encoding="utf-8")), Report)
        report.test.unpack_solved()
    except OSError as error:
        raise UserError(f"there is no run at {path}: give a run folder, or its report.json") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a report of this version ({error}): make the run again") from error
    return report


def pack_bits(solved: np.ndarray) -> str:
    """Which sets (n,) bool were solved, a bit each, as hexadecimal digits: what paired tests need.

    >>> pack_bits(np.array([True, False, True]))
    'a0'
    """
    return np.packbits(solved).tobytes().hex()
