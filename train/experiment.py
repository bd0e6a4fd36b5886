"""When two configs are the same experiment: for resuming, naming, grouping and the log."""

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from common.errors import UserError
from common.files import canonical_json, sha256_text
from common.schema import flatten, to_toml
from train.config import Config

DEVICE = "training.device"  # no part of an experiment
ARITHMETIC = "training.precision"  # "auto" resumes a run in any arithmetic; the report has those that were used
SEEDS = ("training.seed", "data.split_seed")  # runs that differ only in these repeat one experiment


def find_changes(before: Config, now: Config) -> dict[str, tuple[Any, Any]]:
    """Return the settings that make two configs different experiments: key → the value before and now.

    The precision is not one of them where it is now "auto".

    >>> find_changes(Config(), Config(method="knn"))
    {'method': ('transformer', 'knn')}
    """
    old, new = flatten(before), flatten(now)
    free = (DEVICE, ARITHMETIC) if new[ARITHMETIC] == "auto" else (DEVICE,)
    return {key: (old[key], new[key]) for key in new if old[key] != new[key] and key not in free}


def require_same(where: Any, before: Config, now: Config) -> None:
    """Raise UserError unless the run at `where`, of the config `before`, is the same experiment as `now`."""
    if changes := find_changes(before, now):
        listed = ", ".join(f"{key} was {old}, now {new}" for key, (old, new) in changes.items())
        raise UserError(
            f"{where} was begun with another config ({listed}): choose another --run, or give the old config"
        )


def make_key(config: Config, store_identity: str, apart: Sequence[str] = SEEDS) -> str:
    """Return a text that is equal for runs of one store and one experiment. The settings `apart` may differ."""
    settings = {name: value for name, value in flatten(config).items() if name not in (DEVICE, *apart)}
    return canonical_json([settings, store_identity])


def digest_config(config: Config, store_identity: str) -> str:
    """Return 8 hexadecimal digits for the default name of a run: equal for the same experiment and seeds."""
    anywhere = replace(config, training=replace(config.training, device="auto"))
    return sha256_text(to_toml(anywhere) + store_identity)[:8]
