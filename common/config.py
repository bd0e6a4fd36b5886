"""TOML files as frozen dataclasses: unknown keys and wrong types are refused; a config writes itself back.

A config is a frozen dataclass whose fields are str, bool, int, float, tuple[str, ...] or one more such
dataclass (a table). The default of every field is in the class; ranges are the business of its `__post_init__`.
"""

import dataclasses
import re
import tomllib
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tomli_w

from common.errors import UserError, unknown_name

T = TypeVar("T")

STRINGS = tuple[str, ...]
LARGEST = 2**63 - 1
RULES = {
    str: "a string",
    bool: "true or false",
    int: "an integer",
    float: "a number",
    STRINGS: "a list of strings",
}


def load(cls: type[T], path: Path | None, overrides: Sequence[str] = (), ignore: Sequence[str] = ()) -> T:
    """Read `path` (None: the defaults), apply `section.key=value` overrides, and build a `cls`.

    The value of an override is a TOML value or a bare string; a list of strings may be written `a,b`. Tables of the
    file whose names are in `ignore` are none of the config's.
    """
    content = {} if path is None else {name: value for name, value in read(path).items() if name not in ignore}
    values = _checked(cls, content, str(path))
    for override in overrides:
        _apply(cls, values, override)
    # Built only now: limits that tie two fields together hold for the sum of the file and all overrides.
    return _build(cls, values)


def override_keys(overrides: Sequence[str]) -> set[str]:
    """The dotted keys that overrides set."""
    return {override.partition("=")[0].strip() for override in overrides}


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """The value of each dotted key, in the order of the class."""
    values: dict[str, Any] = {}
    for name in _types(type(config)):
        value = getattr(config, name)
        values |= flat(value, f"{prefix}{name}.") if dataclasses.is_dataclass(value) else {prefix + name: value}
    return values


def from_dict(cls: type[T], mapping: Mapping[str, Any], where: str) -> T:
    """Build a `cls` from nested mappings; `where` (a file's name) stands in the error messages."""
    return _build(cls, _checked(cls, mapping, where))


def to_toml(config: Any) -> str:
    """The TOML text of a config, every field written out, each on one line; `load` gives back an equal config."""
    text = tomli_w.dumps(dataclasses.asdict(config))
    return re.sub(r"\[\n    (.*?),\n\]", lambda items: f"[{items[1].replace(chr(10) + '   ', '')}]", text, flags=re.S)


def read(path: Path) -> dict[str, Any]:
    """The content of a TOML file. Raises UserError where it cannot be read, or is no TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # editors on Windows begin a file with a mark
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"cannot read the config {path} ({reason}): check the path") from error
    except RecursionError as error:
        raise UserError(f"the config {path} is nested too deeply: a config has tables of keys, no deeper") from error
    except ValueError as error:  # broken TOML, bytes that are no UTF-8, or a NUL in the path
        raise UserError(f"the config {path} is not valid TOML: {error}") from error


def _types(cls: type) -> dict[str, Any]:
    """The type of each field, in the order of the class."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _keys(cls: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key with its type, tables included."""
    for name, kind in _types(cls).items():
        yield prefix + name, kind
        if dataclasses.is_dataclass(kind):
            yield from _keys(typing.cast(type, kind), f"{prefix}{name}.")


def _checked(cls: type, mapping: Mapping[str, Any], where: str, prefix: str = "", root: type | None = None) -> dict:
    """The nested values of `mapping`, each of the type of its field."""
    root, types, values = root or cls, _types(cls), {}
    for name, value in mapping.items():
        key = prefix + name
        if name not in types:
            raise unknown_name(f"key in {where}", key, [known for known, _ in _keys(root)])
        kind = types[name]
        if not dataclasses.is_dataclass(kind):
            values[name] = _converted(kind, value, key, where)
        elif isinstance(value, Mapping):
            values[name] = _checked(typing.cast(type, kind), value, where, f"{key}.", root)
        else:
            raise UserError(f"{key} must be a table of keys, got {_short(value)} (in {where})")
    return values


def _converted(kind: Any, value: Any, key: str, where: str) -> Any:
    """`value` as `kind`. Whole numbers pass for numbers; true and false never do, though Python says so."""
    if type(value) is int and not -LARGEST <= value <= LARGEST:
        raise UserError(f"{key} must lie within ±{LARGEST:,}, got a number of {len(str(value)):,} digits (in {where})")
    if kind is float and type(value) is int:
        return float(value)
    if kind == STRINGS and isinstance(value, list | tuple) and all(type(item) is str for item in value):
        return tuple(value)
    if type(value) is not kind:
        raise UserError(f"{key} must be {RULES[kind]}, got {_short(value)} (in {where})")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 100 else f"{text[:100]} …"


def _apply(cls: type, values: dict[str, Any], override: str) -> None:
    """Put one `section.key=value` into the nested `values`."""
    key, equals, text = (part.strip() for part in override.partition("="))
    if not equals:
        raise UserError(f'--set needs section.key=value, got "{override}"')
    kinds = {known: kind for known, kind in _keys(cls) if not dataclasses.is_dataclass(kind)}
    if key not in kinds:
        raise unknown_name("key in --set", key, kinds)
    kind, (*tables, name) = kinds[key], key.split(".")
    for table in tables:
        values = values.setdefault(table, {})
    values[name] = _converted(kind, _override_value(kind, text), key, f"--set {override}")


def _override_value(kind: Any, text: str) -> Any:
    """The value that `text` means for a field of type `kind`."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text
    if kind in (str, STRINGS) and not isinstance(value, str | list):
        value = text  # a class may be called 7, or true
    if kind == STRINGS and isinstance(value, str):
        return [item.strip() for item in value.split(",") if item.strip()]
    return value


def _build(cls: type[T], values: Mapping[str, Any]) -> T:
    types = _types(cls)
    return cls(
        **{name: _build(types[name], value) if isinstance(value, dict) else value for name, value in values.items()}
    )
