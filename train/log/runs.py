"""Reports of finished runs, and the groups that they form."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.schema import from_dict
from train.config import Config
from train.experiment import ARITHMETIC, SEEDS, make_key
from train.report.schema import Measured, Report, read_report
from train.run_folder import RunFolder


@dataclass(frozen=True)
class Run:
    """The report of a finished run and its name, which ends in "-seed<number>" where it is one of several."""

    name: str
    report: Report

    @cached_property
    def config(self) -> Config:
        """The config that was really used; keys that it is too old to have get their defaults."""
        return from_dict(Config, self.report.config, f"the config of {self.name}")

    @property
    def seeds(self) -> tuple[int, int]:
        """The seed of the training and the seed of the split."""
        return self.config.training.seed, self.config.data.split_seed

    @property
    def stem(self) -> str:
        """The name without its seed."""
        return re.sub(r"-seed\d+", "", self.name)


def load_run(path: Path) -> Run:
    """Load the run of a folder, or of the JSON file of a report.

    Raises UserError for a run that is not complete, a file that is not a report, and a report of another version.
    """
    if not path.is_dir():
        name = path.resolve().parent.name if path.name == "report.json" else path.stem
        return Run(name, read_report(path))
    folder = RunFolder(path)
    if not folder.is_done:
        raise UserError(f"{path} is not complete (it has no DONE): run the training command again to resume it")
    return Run(path.resolve().name, folder.read_finished_report())


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed and their split, in the order of these."""

    name: str
    runs: tuple[Run, ...]

    @property
    def first(self) -> Report:
        """The report of the first run."""
        return self.runs[0].report

    def values(self, of: Callable[[Report], Any]) -> np.ndarray:
        """A number of each report, or several, (runs, …) float64."""
        return np.array([of(run.report) for run in self.runs], np.float64)

    def mean(self, of: Callable[[Report], Any]) -> float:
        """The mean of a number of each report."""
        return float(self.values(of).mean())

    def measured(self, sets: str) -> list[Measured]:
        """What was measured on "test", "val" or "hard" sets, of each run that has such sets."""
        return [measured for run in self.runs if (measured := run.report.get_measured(sets))]

    def top1(self, sets: str = "test") -> np.ndarray:
        """Top-1 of each run, a fraction, (runs,) float64."""
        return np.array([measured.top1 for measured in self.measured(sets)], np.float64)

    def hashes(self, sets: str) -> set[str]:
        """The digests of its evaluation sets."""
        return {measured.sets_sha256 for measured in self.measured(sets)}


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Group runs whose store, arithmetic and config, except its seeds, are equal; in the order of first appearance.

    Runs with equal seeds, too, do not repeat one experiment: these are grouped by their names. Raises UserError where
    two runs have the same name and seeds.
    """
    same: dict[str, list[Run]] = {}
    for run in runs:
        computed = f"{run.report.store.identity_sha256} {run.report.arithmetic_used}"
        same.setdefault(make_key(run.config, computed, (*SEEDS, ARITHMETIC)), []).append(run)
    groups = []
    for members in same.values():
        if len({run.seeds for run in members}) == len(members):
            groups.append(members)
            continue
        by_name: dict[str, list[Run]] = {}
        for run in members:
            by_name.setdefault(run.stem, []).append(run)
        for name, repeats in by_name.items():
            if len({run.seeds for run in repeats}) < len(repeats):
                raise UserError(f"two runs of {name} have the same config and the same seed: give each run once")
        groups += by_name.values()
    return [Group(members[0].stem, tuple(sorted(members, key=lambda run: run.seeds))) for members in groups]


def mark_arithmetic(groups: Sequence[Group]) -> list[Group]:
    """Add the arithmetic to the names of the trained groups where it is not the same for all of them."""
    if len({group.first.arithmetic_used for group in groups} - {""}) < 2:
        return list(groups)
    return [
        replace(group, name=f"{group.name} ({used})") if (used := group.first.arithmetic_used) else group
        for group in groups
    ]


def join_values(groups: Iterable[Group], of: Callable[[Report], Any]) -> str:
    """Join the distinct values of all runs of the groups."""
    return ", ".join(sorted({str(of(run.report)) for group in groups for run in group.runs}))


def describe_machine(group: Group) -> str:
    """The hardware that decides a group's training time: the GPU, or else the number of threads."""

    def machine(report: Report) -> str:
        hardware = report.hardware
        return hardware.gpu or f"{hardware.threads} thread{'s' * (hardware.threads > 1)}"

    return join_values([group], machine)
