"""Typed settings on pydantic: a frozen class per config group, all errors at once.

A settings class is made with `@config_group` and its fields with `setting(meaning, ...)`. Values live in the YAML files
under `conf/` and only there: a field has no default, so a key that a file forgets is an error like one nobody knows.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar, dataclass_transform

from pydantic import ConfigDict, Field, ValidationError, WrapValidator, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails, PydanticCustomError

from src.core.errors import ConfigError

T = TypeVar("T")

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}")
_BOUNDS: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "ge": (lambda v, b: v >= b, ">="),
    "gt": (lambda v, b: v > b, ">"),
    "le": (lambda v, b: v <= b, "<="),
    "lt": (lambda v, b: v < b, "<"),
}


def setting(
    meaning: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    choices: tuple | None = None,
    file_name: bool = False,
    auto: bool = False,
    in_fingerprint: bool = True,
    when: Mapping[str, Any] | None = None,
) -> Any:
    """A field with its meaning, its allowed values, and when it is read.

    Args:
        meaning: one line that a reader of the YAML file would want.
        ge, gt, le, lt: bounds on the value, or on every element of a list.
        choices: the allowed values.
        auto: `auto` is allowed, and becomes None.
        file_name: the text becomes the name of a folder, and must not lead elsewhere.
        in_fingerprint: False for settings that change where or how fast, never what is computed.
        when: {field of the same group: its values with which this one is read, or True for any but 0 and null};
            elsewhere it stays out of fingerprints, and (with values) setting it is refused.
    """
    bounds = {name: b for name, b in (("ge", ge), ("gt", gt), ("le", le), ("lt", lt)) if b is not None}
    allowed = [f"{_BOUNDS[name][1]} {bound}" for name, bound in bounds.items()]
    allowed += [" | ".join(map(str, choices))] if choices else []
    allowed += ["auto"] if auto else []
    extra: Any = {"in_fingerprint": in_fingerprint, "when": dict(when or {}), "allowed": ", ".join(allowed)}
    field: Any = Field(description=meaning, json_schema_extra=extra)
    field.metadata.append(
        WrapValidator(partial(_checked, bounds=bounds, choices=choices, file_name=file_name, auto=auto))
    )
    return field


@dataclass_transform(frozen_default=True, field_specifiers=(setting, Field))
def config_group(cls: type[T]) -> type[T]:
    """Make a frozen, validated dataclass; its method `problems()`, if any, lists contradictions among its fields."""

    def consistent(self: Any) -> Any:
        if problems := self.problems():
            raise PydanticCustomError("contradiction", "{problems}", {"problems": problems})
        return self

    if "problems" in vars(cls):
        cls.consistent = model_validator(mode="after")(consistent)  # type: ignore[attr-defined]
    config = ConfigDict(extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)
    made: Any = dataclass(frozen=True, config=config)(cls)
    return made


def build(cls: type[T], values: Mapping[str, Any] | None, where: str, problems: list[str]) -> T | None:
    """Make `cls` from a plain mapping; what is wrong is appended to `problems` with its full key.

    Returns None when this group (or one nested in it) had a problem.
    """
    if not isinstance(values, Mapping):
        problems.append(f"{where}: found {values!r}, expected a group of settings")
        return None
    try:
        return cls.__pydantic_validator__.validate_python({**values})  # type: ignore[attr-defined]
    except ValidationError as e:
        errors = sorted(e.errors(include_url=False), key=lambda e: e["type"] != "unexpected_keyword_argument")
        problems.extend(line for error in errors for line in _lines(cls, error, where))
        return None


def build_or_raise(cls: type[T], values: Mapping[str, Any] | None, where: str) -> T:
    """`build`, raising ConfigError with every problem found."""
    problems: list[str] = []
    made = build(cls, values, where, problems)
    if made is None:
        raise ConfigError(problems)
    return made


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ " (did you mean X?)" where a known name is close, else an empty text."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _checked(
    value: Any,
    handler: Callable,
    *,
    bounds: dict[str, float],
    choices: tuple | None,
    file_name: bool,
    auto: bool,
) -> Any:
    """The value as pydantic makes it, refused where that took a conversion or where it is out of bounds."""
    if auto and value == "auto":
        return None
    made = handler(value)
    pairs = zip(value, made, strict=True) if isinstance(made, tuple) else [(value, made)]
    for found, v in pairs:
        if v is None:
            continue
        _check_type(found, v)
        if choices and v not in choices:
            raise _wrong(found, f"one of {', '.join(map(str, choices))}")
        if file_name and not _FILE_NAME.fullmatch(v):
            raise _wrong(found, "a name of letters, digits, _ - . and +")
        for name, bound in bounds.items():
            compare, sign = _BOUNDS[name]
            if not compare(v, bound):
                raise _wrong(v, f"{sign} {bound}")
    return made


def _check_type(found: Any, made: Any) -> None:
    if isinstance(made, int) and made.bit_length() > 63:
        raise _wrong(made, "at most 63")
    whole = type(made) is float and type(found) is int
    if isinstance(made, (bool, int, float, str)) and type(found) is not type(made) and not whole:
        raise _wrong(found, type(made).__name__)


def _wrong(found: Any, expected: str) -> PydanticCustomError:
    return PydanticCustomError("wrong", "{line}", {"line": f"found {_shown(found)}, expected {expected}"})


def _shown(value: Any) -> str:
    huge = isinstance(value, int) and value.bit_length() > 63
    return f"a number of {value.bit_length()} bits" if huge else repr(value)


_EXPECTED = {
    "tuple": "a list",
    "dataclass": "a group of settings",
    "finite": "a finite number",
    "string": "str",
}


def _lines(cls: type, error: ErrorDetails, where: str) -> list[str]:
    """One error of pydantic in our words, with its full key (of a list: without the element's number)."""
    path = [str(part) for part in error["loc"] if isinstance(part, str)]
    key, group = ".".join([where, *path]), cls
    for name in path[:-1]:
        group = group_of(group, name) or group
    kind, value = error["type"], error["input"]
    if kind == "contradiction":
        return [f"{key}: {problem}" for problem in error["ctx"]["problems"]]
    if kind == "unexpected_keyword_argument":
        names = [f.name for f in dataclasses.fields(group) if f.init]
        close = did_you_mean(path[-1], names)
        return [f"{key}: unknown key, expected one of {', '.join(names)}{close}"]
    if kind == "missing":
        return [f"{key}: missing ({fields_of(group)[path[-1]].description})"]
    if kind == "wrong":
        return [f"{key}: {error['ctx']['line']}"]
    if isinstance(value, int) and not isinstance(value, bool) and kind == "float_type":
        return [f"{key}: found {_shown(value)}, expected a finite number"]
    expected = _EXPECTED.get(kind.split("_")[0], kind.split("_")[0])
    return [f"{key}: found {_shown(value)}, expected {expected}"]


def fields_of(cls: Any) -> dict[str, Any]:
    """{name: pydantic field} of a settings class or object, with `description` and `json_schema_extra`; {} else."""
    return getattr(cls, "__pydantic_fields__", {})


def rules_of(cls: Any, name: str) -> dict[str, Any]:
    """What `setting` was told of a field: `in_fingerprint`, `when`, `allowed`."""
    return fields_of(cls)[name].json_schema_extra or {"in_fingerprint": True, "when": {}, "allowed": ""}


def group_of(cls: type, name: str) -> type | None:
    """The settings class of a nested group; None for a value."""
    annotation = fields_of(cls)[name].annotation if name in fields_of(cls) else None
    parts = (annotation, *getattr(annotation, "__args__", ()))
    return next((part for part in parts if fields_of(part)), None)


def is_read(group: Any, name: str, by_kind: bool = False) -> bool:
    """Whether the group's other values let `name` have an effect.

    Args:
        by_kind: look only at conditions with values (a chosen kind), not at weights that are 0.
    """
    return all(
        (by_kind or bool(getattr(group, key))) if wanted is True else getattr(group, key) in wanted
        for key, wanted in rules_of(group, name)["when"].items()
    )


def unread(group: Any, path: Sequence[str]) -> str | None:
    """Why setting the key `path` below `group` would have no effect; None where it has one.

    Conditions across groups a class tells by a method `ignored()`: {key or group of keys: why}.
    """
    for depth, name in enumerate(path):
        if hasattr(group, "ignored"):
            rest = ".".join(path[depth:]) + "."
            if why := next((why for key, why in group.ignored().items() if rest.startswith(f"{key}.")), None):
                return f"not read with {why}"
        if isinstance(group, Mapping) and name in group:
            group = group[name]
            continue
        if name not in fields_of(group):
            return None
        if not is_read(group, name, by_kind=True):
            for key, wanted in rules_of(group, name)["when"].items():
                if wanted is not True and (found := getattr(group, key)) not in wanted:
                    return f"not read with {key}={found}, expected {key}={' or '.join(map(str, wanted))}"
        group = getattr(group, name)
    return None


def determining(value: Any) -> Any:
    """The part of a settings object that determines results, as plain JSON types (for fingerprints)."""
    if fields := fields_of(value):
        return {
            name: determining(getattr(value, name))
            for name in fields
            if rules_of(value, name)["in_fingerprint"] and is_read(value, name)
        }
    if isinstance(value, Mapping):
        return {name: determining(v) for name, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [determining(v) for v in value]
    return value
