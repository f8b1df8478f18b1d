"""Overrides of the command line that Hydra takes amiss, or refuses in words that only it understands."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException

from src.core.errors import UserError
from src.core.paths import CONF

_OVERRIDE = re.compile(r"([+~]{0,2})([\w/]+)(@[\w.]*)?(=(.*))?", re.DOTALL)


def check_groups(arguments: Sequence[str]) -> None:
    """Every config group has exactly one choice.

    Raises:
        UserError: a list (Hydra would silently take its last), null, or the group removed.
    """
    for argument in arguments:
        found = _OVERRIDE.fullmatch(argument)
        if found is None or not (CONF / found[2]).is_dir():
            continue
        group, value = found[2], (found[5] or "").strip()
        if found[1].startswith("~") or value.startswith("[") or value.lower() in ("", "null", "none", "~"):
            raise UserError(
                argument, f"one of {', '.join(_choices(group))} (several: --multirun {group}=a,b)", f"{group}"
            )


def explain(error: Exception, arguments: Sequence[str]) -> str:
    """One line about an error of Hydra: what was found, what to write instead, the nearest name that exists."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return text
    for argument in arguments:
        try:
            if not argument.startswith("-"):
                parsed(argument)
        except HydraException as e:
            key, _, value = argument.partition("=")
            advice = f"expected key=value; put a value with such characters in quotes: '{key}=\"{value}\"'"
            return f"found {argument!r}, {advice} ({' '.join(str(e).split())})"
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        names = [o for o in error.options if not o.startswith("_")]
        return f"{group}: found {name!r}, expected one of {', '.join(names)}{_near(name, names)}"
    if found := re.search(r"Could not (?:override|delete from config) '([^']+)'", text):
        if (key := found[1].lstrip("~").partition("=")[0]) in (keys := list(_keys())):
            place = key.partition("/" if "/" in key else ".")[0]
            return f"{key}: not read with the choices made, expected a choice of {place} that has this key"
        return f"{key}: unknown key{_near(key, keys)}; python -m src.exp.explain lists all"
    return f"{text}; see --help for the keys and conf/ for the groups"


@lru_cache(maxsize=4096)
def parsed(override: str) -> Override:
    """An override as Hydra reads it; HydraException where it cannot."""
    return OverridesParser.create().parse_override(override)


def _choices(group: str) -> list[str]:
    return sorted(p.stem for p in (CONF / group).glob("*.yaml") if not p.stem.startswith("_"))


def _near(name: str, names: Sequence[str]) -> str:
    """The likeliest of `names`; a key is compared by its last part too ("student.widht", "widht")."""
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.7)
    if not close:
        by_end = {n.rpartition(".")[2]: n for n in names}
        close = [
            by_end[m] for m in difflib.get_close_matches(name.rpartition(".")[2], by_end, n=1, cutoff=0.8)
        ]
    return f"; did you mean {close[0]}?" if close else ""


def _keys() -> Iterator[str]:
    """Dotted names of every key of the shipped configuration, groups included."""
    import yaml

    def walk(value: Any, prefix: str) -> Iterator[str]:
        for key, inner in value.items() if isinstance(value, Mapping) else ():
            if key != "defaults":
                yield f"{prefix}{key}"
                yield from walk(inner, f"{prefix}{key}.")

    yield from walk(yaml.safe_load((CONF / "config.yaml").read_text()), "")
    for file in CONF.glob("*/**/*.yaml"):
        group = file.parent.relative_to(CONF).as_posix()
        yield group
        text = file.read_text()
        package = re.search(r"# @package (\S+)", text)
        prefix = (
            {"_global_": ""}.get(package[1], f"{package[1]}.") if package else f"{group.replace('/', '.')}."
        )
        yield from walk(yaml.safe_load(text), prefix)
