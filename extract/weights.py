"""Reads a state dict from a file, in whatever wrapper it is, without ever running code from the file."""

import contextlib
import io
import pickle
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from common.errors import UserError, is_scarce

State = dict[str, Tensor]
# Names of what a network may end in after fine-tuning or self-supervision; ignored like the classifier
HEADS = ("fc", "head", "heads", "classifier", "head_dist", "projector", "projection_head", "predictor", "prototypes")
MAX_DEPTH = 4  # of dictionaries in dictionaries
SLACK = 1 << 26  # bytes by which the unpacked file may be larger: torch saves without compression
SAVE = "save it with torch.save(model.state_dict(), …) in the program that it comes from"


def load_weights(module: nn.Module, name: str, path: Path, classifier: str = "") -> str:
    """Load the weights in a file into a network without classifier; returns a note of what was decided, or "".

    classifier: the name that it had in the network. Wrappers and prefixes are removed if exactly one set of weights
    inside fits. Raises UserError, which names the file, for everything else.
    """
    if not path.is_file():
        raise UserError(f"there are no weights at {path}: give --weights (make: WEIGHTS=) a file with a state dict")
    content = _read(path)
    wanted = module.state_dict()
    fitting, nearest = _fitting(content, wanted, classifier)
    if not fitting:
        raise UserError(_why_not(path, name, content, wanted, nearest))
    place, state = next(iter(fitting.items()))
    cast = {key: _checked(path, key, value, wanted[key]) for key, value in state.items()}
    if any(not _equal(other, state) for other in fitting.values()):
        places = ", ".join(f'"{place}"' if place else "at the top" for place in fitting)
        raise UserError(
            f"{path} holds more than one set of weights that fits {name} ({places}): save the one meant alone"
        )
    types = sorted({str(value.dtype).removeprefix("torch.") for value in state.values() if value.is_floating_point()})
    module.load_state_dict(cast, strict=False)  # the names are checked; only the counters may be absent
    notes = [f'its weights are below "{place}"'] if place else []
    if types != ["float32"]:
        notes.append(f"{' and '.join(types)} is taken as float32")
    return f"{path}: {', '.join(notes)}" if notes else ""


def _read(path: Path) -> Any:
    """The content of a file, read safely. Raises UserError if it is no weights file, often by its first bytes."""
    with path.open("rb") as file:
        start = file.read(512)
    text = start.lstrip().lower()
    if not start:
        raise UserError(f"{path} is empty: get the weights again")
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a pointer of Git LFS, not the weights: fetch them with `git lfs pull`")
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(f"{path} is a web page, not weights: download the file that the page links to")
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        return _read_safetensors(path)
    source = _checked_archive(path) if start.startswith(b"PK") else path
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about oddities of the file; it is checked below
            return torch.load(source, map_location="cpu", weights_only=True)
    except MemoryError as error:
        raise UserError(f"{path} asks for more memory than there is: get the weights again") from error
    except Exception as error:  # torch.load raises errors of any kind on a damaged file
        if is_scarce(error):
            raise
        raise UserError(_unreadable(path, error)) from error


def _read_safetensors(path: Path) -> State:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        if is_scarce(error):
            raise
        raise UserError(f"{path} is a damaged safetensors file ({error}): get it again") from error


def _checked_archive(path: Path) -> Path | io.BytesIO:
    """A zip file that torch can read safely. Refuses TorchScript, and archives that would grow in the memory.

    The entries are checked by their checksums and written into a new archive: torch trusts fields of the directory that
    no checksum covers, and takes foreign memory for weights where they are damaged.
    """
    with _damage(path), zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    declared, size = sum(entry.file_size for entry in entries), path.stat().st_size
    if declared > size + SLACK:
        raise UserError(
            f"{path} would grow from {size / 1e6:,.0f} to {declared / 1e6:,.0f} MB when it is unpacked, "
            f"which no weights do: {SAVE}"
        )
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise UserError(f"{path} is a TorchScript program, not a state dict: {SAVE}")
    if not any(entry.CRC for entry in entries):  # torch can be told to write no checksums
        return path
    rebuilt = io.BytesIO()
    with _damage(path), zipfile.ZipFile(path) as archive, zipfile.ZipFile(rebuilt, "w") as copy:
        for entry in entries:
            copy.writestr(entry.filename, archive.read(entry))
    rebuilt.seek(0)
    return rebuilt


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Raise UserError for whatever zipfile raises on a damaged file."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, EOFError, RuntimeError, struct.error) as error:
        if is_scarce(error):
            raise
        raise UserError(f"{path} is truncated or damaged ({error}): get it again") from error


def _unreadable(path: Path, error: Exception) -> str:
    reason = str(error)
    match = re.search(r"(?:GLOBAL|global) `?([\w.]+)`?|class ([\w.]+)", reason)
    if isinstance(error, pickle.UnpicklingError) and match and "Weights only load failed" in reason:
        kind = match[1] or match[2]
        return (
            f"{path} holds Python objects ({kind}) beside tensors, which could run any program, so is refused: {SAVE}"
        )
    reason = "" if "weights_only" in reason.lower() else f" ({reason.splitlines()[0][:200]})" if reason else ""
    return f"{path} is not a readable state dict, or is truncated{reason}: get it again"


def _fitting(content: Any, wanted: State, classifier: str) -> tuple[dict[str, State], State]:
    """The sets of weights in a file that fit, by their place in it; and the one with most keys of the network."""
    fitting: dict[str, State] = {}
    nearest: State = {}
    for where, state in _dictionaries(content):
        for prefix in _prefixes(state, wanted):
            inside = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
            common = {key: value for key, value in inside.items() if key in wanted}
            if len(common) > len(nearest):
                nearest = inside
            if not _difference(inside, wanted, classifier):
                fitting[f"{where}{prefix}".strip(".")] = common
    return fitting, nearest


def _dictionaries(content: Any, where: str = "", seen: tuple[int, ...] = ()) -> Iterator[tuple[str, State]]:
    """Every dictionary with tensors in a file, and where it is."""
    if not isinstance(content, dict) or id(content) in seen or len(seen) > MAX_DEPTH:
        return
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if tensors:
        yield where, tensors
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _dictionaries(value, f"{where}{key}.", (*seen, id(content)))


def _prefixes(state: State, wanted: State) -> list[str]:
    """What may stand before the network's names: what stands before one of them."""
    first = next(iter(wanted), "")
    prefixes = [key[: -len(first)] for key in state if key.endswith(first) and first]
    return [prefix for prefix in prefixes if not prefix or prefix.endswith(".")]


def _difference(state: State, wanted: State, classifier: str) -> str:
    """The first name at which weights differ from those of the network, its classifier aside; "" where they fit."""
    expected, found = _shapes(wanted), _shapes(state)
    heads = tuple(f"{head}." for head in (*HEADS, classifier) if head)
    differing = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
    return next((key for key in differing if key in expected or not key.startswith(heads)), "")


def _shapes(state: State) -> dict[str, tuple[int, ...]]:
    # a counter that BatchNorm needs in training only, and that older files lack
    return {key: tuple(value.shape) for key, value in state.items() if not key.endswith("num_batches_tracked")}


def _equal(a: State, b: State) -> bool:
    return a is b or all(key in b and torch.equal(value, b[key]) for key, value in a.items())


def _why_not(path: Path, name: str, content: Any, wanted: State, nearest: State) -> str:
    if isinstance(content, dict) and any(not isinstance(key, str) for key in content):
        key = next(key for key in content if not isinstance(key, str))
        return f"{path} is not a state dict, its key {key!r} is no text: {SAVE}"
    if not any(True for _ in _dictionaries(content)):
        return f"{path} is not a state dict {{name: tensor}}: {SAVE}"
    nearest = nearest or max((state for _, state in _dictionaries(content)), key=len)
    key = _difference(nearest, wanted, "") or next(iter(wanted))
    expected, found = _shapes(wanted), _shapes(nearest)
    return (
        f"{path} holds weights of another architecture than {name} "
        f'("{key}": expected {expected.get(key, "none")}, found {found.get(key, "none")}): '
        "give --backbone the model that they were made for"
    )


def _checked(path: Path, key: str, value: Tensor, wanted: Tensor) -> Tensor:
    """A tensor that is fit to be copied into the network. Raises UserError, which names it, for another one."""
    kind = ""
    if value.is_meta:
        kind = "has a shape but no values (meta)"
    elif value.is_quantized or (wanted.is_floating_point() and not value.is_floating_point()):
        kind = f"is quantised or of integers ({str(value.dtype).removeprefix('torch.')})"
    elif value.layout != torch.strided:
        kind = "is sparse"
    if kind:
        raise UserError(f'{path}: "{key}" {kind}: save ordinary floating-point weights, model.float().state_dict()')
    value = value.to(wanted.dtype)
    if not torch.isfinite(value).all():
        raise UserError(f'{path}: "{key}" has values that are not finite: take a checkpoint from before they appeared')
    return value
