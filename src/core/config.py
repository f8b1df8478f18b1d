"""Typed settings: a dataclass per config group, built from Hydra's mapping, all errors at once.

A settings class is a frozen dataclass whose fields are made with `setting(meaning, ...)`. Values
live in the YAML files under `conf/` and only there: a field has no default, so a key that a file
forgets is an error like a key that nobody knows.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from src.core.errors import ConfigError

T = TypeVar("T")


def setting(
    meaning: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    choices: tuple | None = None,
    file_name: bool = False,
    in_fingerprint: bool = True,
) -> Any:
    """A dataclass field with its meaning, its allowed values, and whether it determines results.

    Args:
        meaning: one line that a reader of the YAML file would want.
        ge, gt, le, lt: bounds on the value, or on every element of a list.
        choices: the allowed values.
        file_name: the text becomes the name of a folder, and must not lead elsewhere.
        in_fingerprint: False for settings that change where or how fast, never what is computed.
    """
    return dataclasses.field(
        metadata={
            "meaning": meaning,
            "bounds": (("ge", ge), ("gt", gt), ("le", le), ("lt", lt)),
            "choices": choices,
            "file_name": file_name,
            "in_fingerprint": in_fingerprint,
        }
    )


_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}")
_COMPARE = {
    "ge": (lambda v, b: v >= b, ">="),
    "gt": (lambda v, b: v > b, ">"),
    "le": (lambda v, b: v <= b, "<="),
    "lt": (lambda v, b: v < b, "<"),
}


def build(cls: type[T], values: Mapping[str, Any] | None, where: str, problems: list[str]) -> T | None:
    """Make `cls` from a plain mapping; what is wrong is appended to `problems` with its full key.

    Returns None when this group (or one nested in it) had a problem.
    """
    if not isinstance(values, Mapping):
        problems.append(f"{where}: found {values!r}, expected a group of settings")
        return None
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    before = len(problems)
    for key in values:
        if key not in fields:
            problems.append(f"{where}.{key}: unknown key, expected one of {', '.join(fields)}")
    kwargs = {}
    for name, field in fields.items():
        if name not in values:
            problems.append(f"{where}.{name}: missing ({field.metadata.get('meaning', 'no default')})")
            continue
        kwargs[name] = _convert(values[name], hints[name], f"{where}.{name}", field.metadata, problems)
    if len(problems) > before:
        return None
    made = cls(**kwargs)
    for problem in made.problems() if hasattr(made, "problems") else ():
        problems.append(f"{where}: {problem}")
    return made if len(problems) == before else None


def build_or_raise(cls: type[T], values: Mapping[str, Any] | None, where: str) -> T:
    """`build`, raising ConfigError with every problem found."""
    problems: list[str] = []
    made = build(cls, values, where, problems)
    if problems:
        raise ConfigError(problems)
    assert made is not None
    return made


def _convert(value: Any, hint: Any, where: str, meta: Mapping[str, Any], problems: list[str]) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        hint = next(a for a in args if a is not type(None))
        origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where, problems)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            problems.append(f"{where}: found {value!r}, expected a list")
            return None
        return tuple(_convert(v, args[0], where, meta, problems) for v in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            value = float(value)
        except OverflowError:
            problems.append(f"{where}: found a number of {value.bit_length()} bits, expected a finite number")
            return None
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        problems.append(f"{where}: found {value!r}, expected {hint.__name__}")
        return None
    if isinstance(value, int) and value.bit_length() > 63:
        problems.append(f"{where}: found a number of {value.bit_length()} bits, expected at most 63")
        return None
    if isinstance(value, float) and not math.isfinite(value):
        problems.append(f"{where}: found {value!r}, expected a finite number")
        return None
    choices = meta.get("choices")
    if choices and value not in choices:
        problems.append(f"{where}: found {value!r}, expected one of {', '.join(map(str, choices))}")
    if meta.get("file_name") and not _FILE_NAME.fullmatch(value):
        problems.append(f"{where}: found {value!r}, expected a name of letters, digits, _ - . and +")
    for name, bound in meta.get("bounds", ()):
        compare, sign = _COMPARE[name]
        if bound is not None and not compare(value, bound):
            problems.append(f"{where}: found {value!r}, expected {sign} {bound}")
    return value


def determining(settings: Any) -> Any:
    """The part of a settings object that determines results, as plain JSON types (for fingerprints)."""
    if dataclasses.is_dataclass(settings):
        return {
            f.name: determining(getattr(settings, f.name))
            for f in dataclasses.fields(settings)
            if f.metadata.get("in_fingerprint", True)
        }
    if isinstance(settings, (list, tuple)):
        return [determining(v) for v in settings]
    return settings
