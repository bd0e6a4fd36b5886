"""The checkpoint of a run: what the best head needs to be used, and an unfinished run to be continued."""

import dataclasses
import pickle
import tomllib
from pathlib import Path
from typing import Any

import torch

from common.config import from_dict, to_toml
from common.errors import UserError
from common.files import atomic_path
from train.config import Config
from train.loop import Progress

MOVABLE = ("training.device",)  # a run may go on on another device


def save_checkpoint(path: Path, config: Config, input_dim: int, store_identity: str, progress: Progress) -> None:
    """Write {format, config, input_dim, store_identity, head, history, model, optimizer} atomically.

    `head` is the best head's state; `model` and `optimizer` are None in the checkpoint of a finished run.
    """
    content = {
        "format": 1,
        "config": to_toml(config),
        "input_dim": input_dim,
        "store_identity": store_identity,
        "head": progress.best,
        "history": progress.history,
        "model": progress.model,
        "optimizer": progress.optimizer,
    }
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU. Raises UserError for a file that is none, or is damaged."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        content["head"], content["config"]
        return content
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError) as error:
        reason = str(error).split("\n", 1)[0]
        raise UserError(
            f"{path} is not a readable checkpoint ({reason}): delete its run folder, or choose another --run"
        ) from error


def progress_of(path: Path, config: Config, store_identity: str) -> Progress:
    """The progress of the run whose checkpoint is at `path`; a new one where there is none.

    Raises UserError when the run was begun with another config or another store.
    """
    if not path.is_file():
        return Progress()
    content = load_checkpoint(path)
    require_same(path.parent, content["config"], to_toml(config), content["store_identity"], store_identity)
    return Progress(content["history"], content["head"], content["model"], content["optimizer"])


def require_same(run: Path, begun: str, asked: str, begun_store: str, asked_store: str) -> None:
    """Raise UserError unless a run's config (as TOML) and store identity are the ones that are asked for now."""
    if begun_store != asked_store:
        raise UserError(
            f"{run} was begun with another feature store (identity {begun_store[:16]}, now {asked_store[:16]}): "
            "choose another --run, or give the store that it was begun with"
        )
    before, now = _flat(begun, run), _flat(asked, run)
    different = [key for key in now if before[key] != now[key] and key not in MOVABLE]
    if different:
        changes = ", ".join(f"{key} was {before[key]}, now {now[key]}" for key in different)
        raise UserError(
            f"{run} was begun with another config ({changes}): choose another --run, or give the old config"
        )


def _flat(text: str, run: Path) -> dict[str, Any]:
    """Every key of a config; keys that it is too old to have get their defaults."""
    whole = dataclasses.asdict(from_dict(Config, tomllib.loads(text), f"the config of {run}"))
    tables = {name: part for name, part in whole.items() if isinstance(part, dict)}
    values = {name: part for name, part in whole.items() if name not in tables}
    return values | {f"{table}.{key}": value for table, keys in tables.items() for key, value in keys.items()}
