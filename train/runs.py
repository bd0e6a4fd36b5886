"""Reports of finished runs, and the groups that they form."""

import dataclasses
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from common.config import from_dict
from common.errors import UserError
from common.files import canonical_json
from train.config import Config
from train.run_folder import RunFolder

SEEDED = ("training", "seed"), ("data", "split_seed")  # what may differ within a group


@dataclass(frozen=True)
class Run:
    """The report of a finished run and its name, which ends in "-seed<number>" where it is one of several."""

    name: str
    report: dict[str, Any]

    @property
    def config(self) -> Config:
        """The config that was really used; keys that it is too old to have get their defaults."""
        return from_dict(Config, self.report["config"], f"the config of {self.name}")

    def solved(self, sets: str) -> np.ndarray:
        """Which sets of "test" or "hard" were solved, (n,) bool."""
        return unpack_bits(self.report[sets]["solved"], self.report[sets]["n"])


def load_run(path: Path) -> Run:
    """The run in a folder, or whose report a JSON file is.

    Raises UserError for a run that is not complete, a file that is no report, and a report of another version.
    """
    report = path
    if path.is_dir():
        if not RunFolder(path).is_done:
            raise UserError(f"{path} is not complete (it has no DONE): go on with it by the command that began it")
        report = RunFolder(path).report
    try:
        content = RunFolder(path).finished_report() if path.is_dir() else json.loads(report.read_text("utf-8"))
        run = Run(report.resolve().parent.name if report.name == "report.json" else report.stem, content)
        run.config, content["test"]["sets_sha256"], run.solved("test")
    except OSError as error:
        raise UserError(f"there is no run at {path}: give a run folder, or its report.json") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{report} is not a report of this version ({type(error).__name__}: {error}): make the run again"
        ) from error
    return run


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed and their split, in the order of these."""

    name: str
    runs: tuple[Run, ...]

    @cached_property
    def first(self) -> dict[str, Any]:
        """The report of the first run."""
        return self.runs[0].report

    def values(self, *keys: str) -> np.ndarray:
        """A number of each report, (runs,) float64."""
        found = []
        for run in self.runs:
            value: Any = run.report
            for key in keys:
                value = value[key]
            found.append(value)
        return np.array(found, np.float64)

    def hashes(self, sets: str) -> set[str]:
        """The digests of the evaluation sets that it was measured on."""
        return {run.report[sets]["sets_sha256"] for run in self.runs if sets in run.report}


def groups_of(runs: Iterable[Run]) -> list[Group]:
    """Group runs of one store and one config but for its seeds, in the order of their first appearance."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        config = dataclasses.asdict(run.config)
        for table, key in (*SEEDED, ("training", "device")):
            del config[table][key]
        found.setdefault(canonical_json([config, run.report["store"]["identity_sha256"]]), []).append(run)
    return [
        Group(re.sub(r"-seed\d+", "", members[0].name), tuple(sorted(members, key=_seeds)))
        for members in found.values()
    ]


def pack_bits(solved: np.ndarray) -> str:
    """Which sets (n,) bool were solved, a bit each, as hexadecimal digits: what paired tests need.

    >>> unpack_bits(pack_bits(np.array([True, False, True])), 3).tolist()
    [True, False, True]
    """
    return np.packbits(solved).tobytes().hex()


def unpack_bits(digits: str, n: int) -> np.ndarray:
    """The solved sets (n,) bool that `pack_bits` wrote."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(digits), np.uint8), count=n).astype(bool)


def _seeds(run: Run) -> tuple[int, ...]:
    return tuple(getattr(getattr(run.config, table), key) for table, key in SEEDED)
