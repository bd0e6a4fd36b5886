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
from msgspec.structs import asdict
from torch import Tensor

from common.errors import UserError, refusal_of
from common.files import write_bytes
from common.schema import from_dict, to_toml
from train.config import Config
from train.loop import RunState
from train.methods.base import Method, build_method

FORMAT = 2
SEAL = b"set-anomaly checkpoint sha256:"
SEAL_BYTES = len(SEAL) + 64


class Checkpoint(RunState, kw_only=True):
    """The progress of a run, and what it is trained with: a config, and a store whose features have D = input_dim."""

    config: Config
    input_dim: int
    store_identity: str


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write it atomically, sealed, as a dict of what torch loads with `weights_only=True`."""
    content = {"format": FORMAT, **asdict(checkpoint)}
    content["config"], content["history"] = to_toml(checkpoint.config), msgspec.to_builtins(checkpoint.history)
    buffer = io.BytesIO()  # into memory: torch.save reports a full disk as something else
    torch.save(content, buffer)
    write_bytes(path, seal(buffer.getvalue()))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, on the CPU; settings that an older version did not write get their defaults.

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
        content = dict(torch.load(io.BytesIO(unseal(data)), map_location="cpu", weights_only=True))
        version = content["format"]
        if type(version) is not int or version < FORMAT:
            raise ValueError(f"its format must be {FORMAT}")
        if version > FORMAT:
            raise UserError(f"{path} has format {version}, this code reads up to {FORMAT}: update it")
        content["config"] = from_dict(Config, tomllib.loads(content["config"]), f"the config of {path}")
        checkpoint = msgspec.convert(content, Checkpoint)
        _require_sound(checkpoint)
    except Exception as error:  # whatever zipfile and torch raise for a file that is not their own
        if isinstance(error, UserError) or refusal_of(error):  # too little memory is no damage
            raise
        raise _damaged(path, str(error).split("\n", 1)[0]) from error
    return checkpoint


def load_head(path: Path | str) -> Method:
    """Load the trained method of a checkpoint, at its best epoch, on the CPU, ready for `score_sets`.

    Raises UserError as `load_checkpoint`, and for a method whose layers are different in this version.
    """
    path = Path(path)
    checkpoint = load_checkpoint(path)
    head = checkpoint.head
    # The number of training classes is no setting. Methods that know classes have it as a dimension of their state.
    for classes in reversed([len(value) for value in head.values() if value.ndim] or [0]):
        method = build_method(checkpoint.config, checkpoint.input_dim, classes)
        if _layout(method.state_dict()) == _layout(head):
            method.load_state_dict(head)
            return method.eval()
    raise _foreign(path)


def require_fitting(path: Path, state: RunState, method: Method) -> None:
    """Raise UserError unless the states in `state` are of such a method, and AdamW's of its parameters."""
    if not state.history:
        return
    built = _layout(method.state_dict())
    fits = all(_layout(weights) == built for weights in (state.head, state.model) if weights is not None)
    if not fits or (state.optimizer and not _optimizer_fits(state.optimizer, method)):
        raise _foreign(path)


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


def _require_sound(checkpoint: Checkpoint) -> None:
    history, epochs = checkpoint.history, checkpoint.config.training.epochs
    if [record.epoch for record in history] != list(range(1, len(history) + 1)):
        raise ValueError("its epochs are not numbered one after the other")
    if len(history) > epochs:
        raise ValueError("it has more epochs than its config")
    if (checkpoint.model is None) != (checkpoint.optimizer is None):
        raise ValueError("it has only one of model and optimizer")
    if checkpoint.model is None and 0 < len(history) < epochs:
        raise ValueError("its run is not finished, and what is needed to go on is not in it")


def _layout(state: Any) -> dict[str, Any]:
    return {name: _kind(value) for name, value in state.items()}


def _kind(value: Tensor) -> tuple[Any, ...]:
    return value.shape, value.dtype, value.layout, value.device.type


def _optimizer_fits(optimizer: dict[str, Any], method: Method) -> bool:
    """Whether AdamW's state has the moments and steps of each parameter."""
    expected = [[_kind(torch.empty(shape)) for shape in (p.shape, p.shape, ())] for p in method.parameters()]
    try:
        state = optimizer["state"]
        moments = [[_kind(state[i][name]) for name in ("exp_avg", "exp_avg_sq", "step")] for i in range(len(expected))]
        return moments == expected and len(state) == len(expected)
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
