"""TOML and JSON ⇄ msgspec Structs: a mistake in a file is one sentence with the rule, the value and the place.

A field is str, bool, int, float, a `Literal`, tuple[str, ...], or one more Struct (a table). Its bounds, if any, stand
on it as `msgspec.Meta`; `description` there replaces the rule that the bounds give. Rules that tie several fields
together belong in `__post_init__`, which raises UserError.
"""

import functools
import re
import reprlib
import tomllib
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import tomli_w
from msgspec import Meta, Struct

from common.errors import UserError, unknown_name

T = TypeVar("T", bound=Struct)

STRINGS = tuple[str, ...]
KINDS = {str: "a string", bool: "true or false", int: "an integer", float: "a number", STRINGS: "a list of strings"}
BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
SHORT = reprlib.Repr()  # a value may be nested, or long, without end
SHORT.maxstring = SHORT.maxother = 100


def read_toml(path: Path | str) -> dict[str, Any]:
    """Return the content of a TOML file. Raises UserError where it cannot be read, or is no TOML."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))  # some editors begin a file with a BOM
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"cannot read the config {path} ({reason}): check the path") from error
    except RecursionError as error:
        raise UserError(f"the config {path} is nested too deeply: write its tables one below the other") from error
    except ValueError as error:  # broken TOML, or bytes that are no UTF-8
        raise UserError(f"the config {path} is not valid TOML: {error}") from error


def from_dict(cls: type[T], content: Mapping[str, Any], where: str, overrides: Sequence[str] = ()) -> T:
    """Build a `cls` from nested mappings, changed by `section.key=value` overrides; missing fields get their defaults.

    where: what error messages call the place, such as a file's name.
    overrides: each value is a TOML value or a bare string; a list of strings may be written `a,b`.
    """
    values = _checked(cls, content, where)
    for override in overrides:
        _apply(cls, values, override)
    # Built only now: rules that tie two fields together hold for the sum of the file and all overrides
    return msgspec.convert(values, cls)


def load(cls: type[T], path: Path | None, overrides: Sequence[str] = ()) -> T:
    """Build a `cls` from a TOML file (None: the defaults), as `from_dict` does."""
    return from_dict(cls, {} if path is None else read_toml(path), str(path), overrides)


def override_keys(overrides: Sequence[str]) -> set[str]:
    """Return the dotted keys that overrides set."""
    return {override.partition("=")[0].strip() for override in overrides}


def flatten(settings: Struct, prefix: str = "") -> dict[str, Any]:
    """Return the value of each dotted key, in the order of the class."""
    values: dict[str, Any] = {}
    for name in settings.__struct_fields__:
        value = getattr(settings, name)
        values |= flatten(value, f"{prefix}{name}.") if isinstance(value, Struct) else {prefix + name: value}
    return values


def to_toml(settings: Struct) -> str:
    """Return the TOML text, every field written out, each on one line; `load` gives back an equal Struct."""
    text = tomli_w.dumps(msgspec.to_builtins(settings))
    return re.sub(r"\[\n    (.*?),\n\]", lambda items: f"[{items[1].replace(chr(10) + '   ', '')}]", text, flags=re.S)


@functools.cache
def _types(cls: type) -> dict[str, Any]:
    """Return the type of each field with its bounds, in the order of the class."""
    return typing.get_type_hints(cls, include_extras=True)


def _is_table(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Struct)


def _keys(cls: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every dotted key with its type, tables included."""
    for name, kind in _types(cls).items():
        yield prefix + name, kind
        if _is_table(kind):
            yield from _keys(kind, f"{prefix}{name}.")


def _checked(cls: type, content: Mapping[str, Any], where: str, prefix: str = "", root: type | None = None) -> dict:
    """Return the nested values of `content`, each of the type of its field."""
    root, values = root or cls, {}
    for name, value in content.items():
        key = prefix + name
        if name not in _types(cls):
            raise unknown_name(f"key in {where}", key, [known for known, _ in _keys(root)])
        kind = _types(cls)[name]
        if not _is_table(kind):
            values[name] = _converted(kind, value, key, where)
        elif isinstance(value, Mapping):
            values[name] = _checked(kind, value, where, f"{key}.", root)
        else:
            raise UserError(f"{key} must be a table of keys, got {SHORT.repr(value)} (in {where})")
    return values


def _converted(kind: Any, value: Any, key: str, where: str) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise UserError(f"{key} must be {_rule(kind)}, got {SHORT.repr(value)} (in {where})") from error


def _split(kind: Any) -> tuple[Any, Meta]:
    """Return a field's type and what is written on it."""
    return typing.get_args(kind)[:2] if hasattr(kind, "__metadata__") else (kind, Meta())


def _rule(kind: Any) -> str:
    """Return what a field of this type must be, in words."""
    base, meta = _split(kind)
    if typing.get_origin(base) is typing.Literal:
        return f"one of {', '.join(typing.get_args(base))}"
    bounds = [f"{word} {bound:,}" for name, word in BOUNDS.items() if (bound := getattr(meta, name)) is not None]
    return meta.description or " of ".join([KINDS[base], *filter(None, [" and ".join(bounds)])])


def _apply(cls: type, values: dict[str, Any], override: str) -> None:
    """Put one `section.key=value` into the nested `values`."""
    key, equals, text = (part.strip() for part in override.partition("="))
    if not equals:
        raise UserError(f'--set needs section.key=value, got "{override}"')
    kinds = {known: kind for known, kind in _keys(cls) if not _is_table(kind)}
    if key not in kinds:
        raise unknown_name("key in --set", key, kinds)
    kind, (*tables, name) = kinds[key], key.split(".")
    for table in tables:
        values = values.setdefault(table, {})
    values[name] = _converted(kind, _override_value(kind, text), key, f"--set {SHORT.repr(override)[1:-1]}")


def _override_value(kind: Any, text: str) -> Any:
    """Return the value that `text` means for a field of type `kind`."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text
    base, _ = _split(kind)
    if base not in (bool, int, float) and not isinstance(value, str | list):
        value = text  # a class may be called 7, or true
    if base == STRINGS and isinstance(value, str):
        return [item.strip() for item in value.split(",") if item.strip()]
    return value
