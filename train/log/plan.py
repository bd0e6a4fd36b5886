"""The plan of a phase: a config file that lists runs, and how each differs from it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from common import config
from common.errors import UserError
from common.store import FeatureStore
from train.config import PLAN, Config, idle, require_effective
from train.registry import depends_on_seed

ROW_NAME = re.compile(r"[^\W_][\w.+=-]*")


@dataclass(frozen=True)
class Plan:
    """The runs of a phase, each "name: key=value key=value …": how it differs from the rest of the file.

    seeds: how many seeds, and splits.
    runs: made with each seed where the method depends on one, else once.
    once: made with seed 0.
    splits: made with each split of the classes and of the training images, and the seed of the same number.
    """

    seeds: int = 1
    runs: tuple[str, ...] = ()
    once: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise UserError(f"plan.seeds must be at least 1, got {self.seeds}")
        names = [run.partition(":")[0].strip() for run in (*self.runs, *self.once, *self.splits)]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise UserError(f"plan must be of distinct names, got {', '.join(repeated)} more than once")
        for name in names:
            if not ROW_NAME.fullmatch(name):
                raise UserError(
                    "plan must be of names that a folder may have: letters, digits and . _ + = -, a letter or digit "
                    f'first, got "{name}"'
                )


@dataclass(frozen=True)
class Phase(Config):
    """The config file of a phase."""

    plan: Plan = field(default_factory=Plan)


def planned_configs(path: Path, overrides: Sequence[str] = ()) -> dict[str, Config]:
    """The config of each run of the phase at `path`, by "<name>-seed<seed>", all of a seed before the next.

    `overrides` hold for all runs: they win over what a row changes. Seeds are the plan's own. Raises UserError where
    the file has no plan, for two rows that are the same experiment, and for a setting of a row, or of `overrides`, that
    does nothing.
    """
    given = config.override_keys(overrides)
    for key in sorted({"training.seed", "data.split_seed"} & given):
        raise UserError(f"{key} must be left to the plan of a phase (plan.seeds), got a value for all runs")
    plan = config.load(Phase, path, overrides).plan
    overrides = [each for each in overrides if not each.startswith(f"{PLAN}.")]
    made: dict[str, Config] = {}
    for seed in range(plan.seeds):
        for row in (*plan.runs, *plan.once, *plan.splits):
            name, _, changes = (part.strip() for part in row.partition(":"))
            keys = [f"training.seed={seed}"] + [f"data.split_seed={seed}"] * (row in plan.splits)
            try:
                run = config.load(Config, path, [*changes.split(), *overrides, *keys], ignore=[PLAN])
                require_effective(run, config.override_keys(changes.split()) - given)
            except UserError as error:
                raise UserError(f'{path}, the run "{name}" of its plan: {error.message}') from error
            seeded = row not in plan.once and depends_on_seed(run.method)
            if seed == 0 or seeded or row in plan.splits:
                made[f"{name}-seed{seed}"] = run
    if not made:
        raise UserError(f"{path} has no plan: list its runs under [plan] runs, or use `train fit` for a single run")
    for key in given:
        if all(key in idle(run) for run in made.values()):
            raise UserError(f"{key} does nothing for any run of {path}: leave it out")
    if not overrides:  # these may level what tells two rows apart
        _require_distinct(path, made)
    return made


@dataclass(frozen=True)
class Planned:
    """A run of a phase: where it goes, and what it is made from."""

    path: Path
    config: Config
    store: FeatureStore


def planned_runs(
    config_path: Path, stores: Sequence[FeatureStore], root: Path, overrides: Sequence[str] = (), only: str = "*"
) -> list[Planned]:
    """The runs of the phase at `config_path` whose name matches `only`, all of a seed before the next.

    Each goes to ROOT/<the config's folder>/<name>-seed<seed>; with several stores <name>@<store's file>-seed<seed>.
    """
    folder = root / config_path.resolve().parent.name
    planned = [
        Planned(folder / (f"{name}@{store.path.stem}-seed{seed}" if len(stores) > 1 else full), config, store)
        for full, config in planned_configs(config_path, overrides).items()
        for name, _, seed in [full.rpartition("-seed")]
        for store in stores
        if fnmatch(name, only)
    ]
    if not planned:
        raise UserError(f"no run of {config_path} matches {only}: give --only a name of its [plan], or a pattern")
    return planned


def _require_distinct(path: Path, made: dict[str, Config]) -> None:
    names: dict[Config, str] = {}
    for name, run in made.items():
        if run in names:
            raise UserError(f"{path}: the runs {names[run]} and {name} of its plan are the same experiment: drop one")
        names[run] = name
