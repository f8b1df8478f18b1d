"""Every key with its meaning, default and allowed values: `python -m src.exp.explain [KEY ...] [override ...]`

`python -m src.exp.explain teacher.train` lists a group, `teacher=knn teacher` another choice's; without a key the
groups. Defaults are those of the choices given.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from src.core.config import did_you_mean, fields_of, group_of, rules_of
from src.core.errors import UserError
from src.core.logging import command
from src.exp.settings import GROUPS, Settings


def explain(keys: list[str], overrides: list[str]) -> str:
    """Two lines per key below `keys` (all where there are none): value and what is allowed; the meaning.

    Raises:
        UserError: a key that does not exist with these choices, or overrides that are wrong.
    """
    settings = Settings.compose(overrides, strict=False)
    groups = {name: getattr(settings, name) for name in ("teacher", *GROUPS)}
    entries = list(_entries(settings.root, type(settings.root), ""))
    for name, group in groups.items():
        entries += _entries(group, type(group), f"{name}.")
    known = {key for key, _ in entries} | {key.rpartition(".")[0] for key, _ in entries}
    for key in keys:
        if key not in known:
            raise UserError(
                f"{key}: unknown key{did_you_mean(key, known)}", "a key or group of keys", "the key"
            )
    return "\n".join(
        text
        for key, text in entries
        if not keys or any(key == wanted or key.startswith(f"{wanted}.") for wanted in keys)
    )


def _entries(group: Any, cls: type, prefix: str) -> Iterator[tuple[str, str]]:
    """(key, text) of every key of a group; `group` is None where the choices have none (its keys are shown)."""
    for name, field in fields_of(cls).items():
        if not field.description:  # what this kind does not have
            continue
        key, value = f"{prefix}{name}", getattr(group, name, None)
        inner = type(value) if fields_of(value) else group_of(cls, name)
        if inner is not None:
            yield from _entries(value, inner, f"{key}.")
        elif isinstance(value, dict) and any(fields_of(v) for v in value.values()):
            for member, settings in value.items():
                yield from _entries(settings, type(settings), f"{key}.{member}.")
        else:
            default = "" if group is None else f" = {_shown(value)}"
            rules = rules_of(cls, name)
            allowed = rules["allowed"] or ("true | false" if field.annotation is bool else "")
            when = " and ".join(
                f"{k}={'|'.join(map(str, v))}" if v is not True else f"{k} > 0"
                for k, v in rules["when"].items()
            )
            notes = "; ".join(part for part in (allowed, f"read with {when}" if when else "") if part)
            yield key, f"{key}{default}{f'   ({notes})' if notes else ''}\n    {field.description}"


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple):
        return f"[{', '.join(map(_shown, value))}]" if not any(map(fields_of, value)) else "(see the file)"
    return repr(value) if isinstance(value, str) and (not value.strip() or "\n" in value) else str(value)


def main() -> int:
    given = sys.argv[1:]
    if {"-h", "--help"} & set(given):
        sys.stdout.write(str(__doc__))
        return 0
    overrides = [a for a in given if "=" in a or a.startswith("~")]
    keys = [a for a in given if a not in overrides]
    return command(lambda: print(explain(keys, overrides)))


if __name__ == "__main__":
    sys.exit(main())
