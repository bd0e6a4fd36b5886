"""The checkpoint of a run: what the best head needs to be used, and an unfinished run to be continued.

A checkpoint is what `torch.save` makes, a zip file, and is sealed: the zip's comment holds the SHA-256 of every byte
before it. So it is one file, replaced at once; `torch.load(path, weights_only=True)` opens it anywhere; and here not a
byte reaches a parser before its digest is checked.
"""

import hashlib
import io
import struct
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import torch
from msgspec import Struct
from torch import Tensor

from common.errors import UserError
from common.files import write_bytes
from common.schema import from_dict, to_toml
from train.config import Config
from train.experiment import require_same
from train.loop import RunState, build_optimizer
from train.methods import build_method
from train.methods.base import Method
from train.report.schema import Epoch

FORMAT = 2
SEAL = b"set-anomaly checkpoint sha256:"
SEAL_BYTES = len(SEAL) + 64


class Content(Struct, kw_only=True):
    """What a checkpoint holds; `head` is the best head's state, and a finished run has no `model` and `optimizer`."""

    format: int
    config: str
    input_dim: int
    store_identity: str
    head: dict[str, Tensor]
    history: list[Epoch]
    model: dict[str, Tensor] | None
    optimizer: dict[str, Any] | None


def save_checkpoint(path: Path, config: Config, input_dim: int, store_identity: str, state: RunState) -> None:
    """Write `Content` as a dict, atomically, sealed."""
    content = {
        "format": FORMAT,
        "config": to_toml(config),
        "input_dim": input_dim,
        "store_identity": store_identity,
        "head": state.best,
        "history": state.history,
        "model": state.model,
        "optimizer": state.optimizer,
    }
    buffer = io.BytesIO()  # into memory: torch.save reports a full disk as something else
    torch.save(content, buffer)
    write_bytes(path, seal(buffer.getvalue()))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read `Content` as a dict, on the CPU.

    Raises UserError for a file that is not a checkpoint, is damaged, or is of a newer version.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(
            f"cannot read {path} ({reason}): a head is the checkpoint.pt of a run; check the path"
        ) from error
    try:
        content = torch.load(io.BytesIO(unseal(data)), map_location="cpu", weights_only=True)
        version = dict(content)["format"]
    except Exception as error:  # whatever zipfile and torch raise for a file that is not their own
        raise _damaged(path, str(error).split("\n", 1)[0]) from error
    if type(version) is not int or version < FORMAT:
        raise _damaged(path, f"its format must be {FORMAT}")
    if version > FORMAT:
        raise UserError(f"{path} has format {version}, this code reads up to {FORMAT}: update it")
    if fault := _find_fault(content):
        raise _damaged(path, fault)
    return content


def load_head(path: Path | str) -> Method:
    """Load the trained method of a checkpoint, at its best epoch, on the CPU, ready for `score_sets`.

    Raises UserError as `load_checkpoint`, and for a method whose layers are different in this version.
    """
    path = Path(path)
    content = load_checkpoint(path)
    config, head = config_of(content, path), content["head"]
    # The number of training classes is no setting. Methods that know classes have it as a dimension of their state.
    for classes in reversed([len(value) for value in head.values() if value.ndim] or [0]):
        method = build_method(config, content["input_dim"], classes)
        if _layout(method.state_dict()) == _layout(head):
            method.load_state_dict(head)
            return method.eval()
    raise _foreign(path)


def load_state(path: Path, config: Config, store_identity: str) -> RunState:
    """Load the progress of the run whose checkpoint is at `path`; an empty one where there is no checkpoint.

    Raises UserError when the run was begun with another config or another store.
    """
    if not path.is_file():
        return RunState()
    content = load_checkpoint(path)
    if content["store_identity"] != store_identity:
        raise UserError(
            f"{path.parent} was begun with another feature store (identity {content['store_identity'][:16]}, now "
            f"{store_identity[:16]}): choose another --run, or give the store that it was begun with"
        )
    require_same(path.parent, config_of(content, path), config)
    if len(content["history"]) > config.training.epochs:
        raise _damaged(path, "it has more epochs than its config")
    if content["model"] is None and 0 < len(content["history"]) < config.training.epochs:
        raise _damaged(path, "its run is not finished, and what is needed to go on is not in it")
    return RunState(content["history"], content["head"], content["model"], content["optimizer"])


def require_fitting(path: Path, state: RunState, config: Config, input_dim: int, classes: int) -> None:
    """Raise UserError unless the states in `state` are of the method that the config builds."""
    if not state.history:
        return
    method = build_method(config, input_dim, classes)
    states = [state.best] if state.model is None else [state.best, state.model]
    built = _layout(method.state_dict())
    fits = all(_layout(weights) == built for weights in states)
    if not fits or (state.optimizer and not _optimizer_fits(state.optimizer, method, config)):
        raise _foreign(path)


def config_of(content: dict[str, Any], path: Path) -> Config:
    """Return the config in a checkpoint's content; keys that an older version did not write get their defaults."""
    return from_dict(Config, tomllib.loads(content["config"]), f"the config of {path}")


def seal(archive: bytes) -> bytes:
    """A zip file's bytes with the digest of all of them in its comment."""
    body = archive[:-2] + struct.pack("<H", SEAL_BYTES)
    return body + SEAL + hashlib.sha256(body).hexdigest().encode()


def unseal(data: bytes) -> bytes:
    """The zip file in the bytes of a checkpoint. Raises ValueError for damaged bytes."""
    body, seal = data[:-SEAL_BYTES], data[-SEAL_BYTES:]
    if seal != SEAL + hashlib.sha256(body).hexdigest().encode():
        raise ValueError("its bytes do not match its seal")
    return body[:-2] + b"\0\0"


def _find_fault(content: Any) -> str:
    """Say what is wrong with the content of a checkpoint, or nothing."""
    try:
        checked = msgspec.convert(content, Content)
        tomllib.loads(checked.config)
    except (ValueError, RecursionError) as error:  # msgspec's and tomllib's, too
        return f"it does not hold what it should: {error}"
    for number, (record, epoch) in enumerate(zip(content["history"], checked.history, strict=True), 1):
        if epoch.epoch != number or not set(record) <= set(Epoch.__struct_fields__):
            return f"its record of epoch {number} is not what it should be"
    if (checked.model is None) != (checked.optimizer is None):
        return "it has only one of model and optimizer"
    return ""


def _layout(state: Any) -> dict[str, Any]:
    return {name: _kind(value) for name, value in state.items()}


def _kind(value: Tensor) -> tuple[Any, ...]:
    return value.shape, value.dtype, value.layout, value.device.type


def _optimizer_fits(optimizer: dict[str, Any], method: Method, config: Config) -> bool:
    """Whether AdamW's state has the moments and steps of each parameter, and the settings of the config."""
    built = build_optimizer(method, config).state_dict()["param_groups"][0]
    expected = [[_kind(torch.empty(shape)) for shape in (p.shape, p.shape, ())] for p in method.parameters()]
    try:
        state, (group,) = optimizer["state"], optimizer["param_groups"]
        moments = [[_kind(state[i][name]) for name in ("exp_avg", "exp_avg_sq", "step")] for i in range(len(expected))]
        same = all(built.get(name, value) == value for name, value in group.items() if name != "lr")
        complete = type(group["lr"]) is float and group["params"] == built["params"] and len(state) == len(expected)
        return bool(same and complete) and moments == expected
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, RuntimeError):
        return False


def _damaged(path: Path, reason: str) -> UserError:
    advice = "put back a copy, or move this one file away, and the same command trains the run from its first epoch"
    if path.name != "checkpoint.pt":
        advice = "give the checkpoint.pt of a run"
    elif (path.parent / "DONE").is_file():
        advice = "the report beside it is sound; put back a copy, or choose another --run to train the same head again"
    return UserError(f"{path} is not a sound checkpoint ({reason}): {advice}")


def _foreign(path: Path) -> UserError:
    return UserError(
        f"{path} is of a method that this version builds otherwise: choose another --run, or go on with the version "
        "that began it"
    )
