"""The plan of a phase: a config file that lists runs, and how each differs from it."""

import re
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, NamedTuple

from msgspec import Meta, Struct

from common.errors import UserError
from common.schema import from_dict, override_keys, read_toml
from common.store import FeatureStore
from train.config import PLAN, Config, find_unused, require_effective
from train.methods import depends_on_seed

ROW_NAME = re.compile(r"[^\W_][\w.+=-]*")


class Plan(Struct, frozen=True, kw_only=True):
    """The runs of a phase, each "name: key=value key=value …": how it differs from the rest of the file."""

    seeds: Annotated[int, Meta(ge=1, le=1_000)] = 1  # how many seeds, and splits
    runs: tuple[str, ...] = ()  # made with each seed where the method depends on one, else once
    once: tuple[str, ...] = ()  # made with seed 0
    splits: tuple[str, ...] = ()  # made with each split of the classes and images, and the seed of the same number

    def __post_init__(self) -> None:
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


class Phase(Config, frozen=True, kw_only=True):
    """The config file of a phase."""

    plan: Plan = Plan()


def plan_configs(path: Path, overrides: Sequence[str] = ()) -> dict[str, Config]:
    """Return the config of each run of the phase at `path`, by "<name>-seed<seed>", all of a seed before the next.

    overrides: of all runs; they win over the changes of a row. They cannot set the seeds, which the plan counts.
    Raises UserError where the file has no plan, for two rows that are the same experiment, and for a setting of a row,
    or of `overrides`, that does nothing.
    """
    shared = override_keys(overrides)
    for key in sorted({"training.seed", "data.split_seed"} & shared):
        raise UserError(f"{key} must be left to the plan of a phase (plan.seeds), got a value for all runs")
    content = read_toml(path)
    plan = from_dict(Phase, content, str(path), overrides).plan
    content.pop(PLAN, None)
    overrides = [override for override in overrides if not override.startswith(f"{PLAN}.")]
    configs: dict[str, Config] = {}
    for seed in range(plan.seeds):
        for row in (*plan.runs, *plan.once, *plan.splits):
            name, _, changes = (part.strip() for part in row.partition(":"))
            seeds = [f"training.seed={seed}"] + [f"data.split_seed={seed}"] * (row in plan.splits)
            try:
                config = from_dict(Config, content, str(path), [*changes.split(), *overrides, *seeds])
                require_effective(config, override_keys(changes.split()) - shared)
            except UserError as error:
                raise UserError(f'{path}, the run "{name}" of its plan: {error.message}') from error
            is_seeded = row not in plan.once and depends_on_seed(config.method)
            if seed == 0 or is_seeded or row in plan.splits:
                configs[f"{name}-seed{seed}"] = config
    if not configs:
        raise UserError(f"{path} has no plan: list its runs under [plan] runs, or use `train fit` for a single run")
    for key in shared:
        if all(key in find_unused(config) for config in configs.values()):
            raise UserError(f"{key} does nothing for any run of {path}: leave it out")
    names: dict[Config, str] = {}
    for name, config in configs.items():
        first = names.setdefault(config, name)
        if first != name and not overrides:  # an override may remove what tells two rows apart
            raise UserError(f"{path}: the runs {first} and {name} of its plan are the same experiment: drop one")
    return configs


class Planned(NamedTuple):
    """A run of a phase: its folder, and what it is made from."""

    path: Path
    config: Config
    store: FeatureStore


def plan_runs(
    config_path: Path, stores: Sequence[FeatureStore], root: Path, overrides: Sequence[str], only: str
) -> list[Planned]:
    """The runs of the phase at `config_path` whose name matches `only`, all of a seed before the next.

    Each goes to ROOT/<the config's folder>/<name>-seed<seed>; with several stores <name>@<store's file>-seed<seed>.
    """
    folder = root / config_path.resolve().parent.name
    planned = [
        Planned(folder / (f"{name}@{store.stem}-seed{seed}" if len(stores) > 1 else full), config, store)
        for full, config in plan_configs(config_path, overrides).items()
        for name, _, seed in [full.rpartition("-seed")]
        for store in stores
        if fnmatch(name, only)
    ]
    if not planned:
        raise UserError(f"no run of {config_path} matches {only}: give --only a name of its [plan], or a pattern")
    return planned
