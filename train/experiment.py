"""When two configs are the same experiment: the one definition, for resuming, naming, grouping and the log."""

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from common.errors import UserError
from common.files import canonical_json, sha256_text
from common.schema import flatten, to_toml
from train.config import Config

# Where it is computed is no part of an experiment
DEVICE = ("training.device",)
# "auto" leaves the arithmetic to the machine: what was begun in any goes on. The report says which it was
ARITHMETIC = "training.precision"
# Runs that differ in these alone repeat one experiment
SEEDS = ("training.seed", "data.split_seed")


def find_changes(before: Config, now: Config) -> list[str]:
    """The keys by which two configs are different experiments, in the order of the config.

    A precision that is left to the machine, "auto", is none of them: the history says what was used.

    >>> find_changes(Config(), Config(method="knn"))
    ['method']
    """
    old, new = flatten(before), flatten(now)
    free = (*DEVICE, ARITHMETIC) if new[ARITHMETIC] == "auto" else DEVICE
    return [key for key, value in new.items() if old[key] != value and key not in free]


def require_same(where: Any, before: Config, now: Config) -> None:
    """Raise UserError, which names the run `where`, unless it was begun as the experiment that is asked for now."""
    old, new = flatten(before), flatten(now)
    changes = ", ".join(f"{key} was {old[key]}, now {new[key]}" for key in find_changes(before, now))
    if changes:
        raise UserError(
            f"{where} was begun with another config ({changes}): choose another --run, or give the old config"
        )


def make_key(config: Config, store_identity: str, apart: Sequence[str] = SEEDS) -> str:
    """A text that is equal for runs of one store and one experiment, whatever the settings `apart` are."""
    settings = {name: value for name, value in flatten(config).items() if name not in (*DEVICE, *apart)}
    return canonical_json([settings, store_identity])


def digest_config(config: Config, store_identity: str) -> str:
    """Eight hexadecimal digits for the default name of a run: equal for the same experiment with the same seeds."""
    anywhere = replace(config, training=replace(config.training, device="auto"))
    return sha256_text(to_toml(anywhere) + store_identity)[:8]
