"""What a trained student recommends: `python -m src.exp.recommend run=result/... user=196`

run=FOLDER          a run of run_student_baseline or run_distill
user=ID             after all that this user of the dataset had, or
history=[A,B,...]   after these items, oldest first: raw ids or titles ("history=[50,Star Wars (1977)]")
k=10                length of the list
exclude_history=true  leave out the items of the history
search=int8         how the catalogue is searched: float32 | int8 (exact as well, for many items) | ann (approximate)
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from src.core import logging
from src.core.data_utils import InteractionData, open_dataset
from src.core.errors import UserError
from src.core.paths import processed_dir
from src.core.runs import RunRecord, read_run

_KEYS = ("run", "user", "history", "k", "exclude_history", "search")


def main(arguments: list[str] | None = None) -> int:
    return command(__doc__, lambda given: answer(parse(given)), arguments)


def command(usage: str | None, act: Callable[[list[str]], str], arguments: list[str] | None) -> int:
    """Print what `act` says about the arguments, or its one-line error; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or {"-h", "--help"} & set(arguments):
        sys.stdout.write(str(usage))
        return 0
    return logging.command(lambda: print(act(arguments), end=""))


def key_values(arguments: list[str], keys: Sequence[str]) -> dict[str, Any]:
    """`key=value` arguments, only `keys`; raises UserError."""
    values: dict[str, Any] = {}
    for argument in arguments:
        key, sign, text = argument.partition("=")
        if not sign or key not in keys:
            near = difflib.get_close_matches(key, keys, 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise UserError(f"{argument!r}", f"one of {', '.join(keys)} as key=value{hint}", "that argument")
        values[key] = text
    return values


def parse(arguments: list[str]) -> dict[str, Any]:
    """`key=value` arguments, checked; raises UserError."""
    defaults = {"k": "10", "exclude_history": "false", "search": "float32"}
    values: dict[str, Any] = defaults | key_values(arguments, _KEYS)
    if not values["k"].isdecimal():
        raise UserError(f"k={values['k']}", "a number of items", "k")
    if values["exclude_history"] not in ("true", "false"):
        raise UserError(f"exclude_history={values['exclude_history']}", "true or false", "exclude_history")
    values |= {"k": int(values["k"]), "exclude_history": values["exclude_history"] == "true"}
    if "history" in values:
        try:  # only parsed, never constructed: every entry is text, an id keeps its leading zeros
            node = yaml.compose(values["history"], yaml.BaseLoader)
        except yaml.YAMLError:
            raise UserError(
                f"history={values['history']}", "[A,B], titles with a comma in quotes", "history"
            ) from None
        values["history"] = _entries(node, values["history"])
    if "run" not in values or ("user" in values) == ("history" in values):
        raise UserError(
            " ".join(arguments), "run=FOLDER and either user=ID or history=[...]", "the arguments"
        )
    return values


def _entries(node: yaml.Node | None, text: str) -> list[str]:
    """The entries of a list; a title with ": " is a mapping to YAML, and its own text here."""
    if not isinstance(node, yaml.SequenceNode):
        return [text]
    return [
        n.value if isinstance(n, yaml.ScalarNode) else text[n.start_mark.index : n.end_mark.index].strip()
        for n in node.value
    ]


def answer(asked: dict[str, Any]) -> str:
    """The history and the list, with titles.

    Raises:
        UserError: not a student's run, an unknown user or item, or a list longer than the catalogue.
    """
    run = student_run(asked["run"])
    data = open_dataset(processed_dir(run.metrics["dataset"], run.metrics["dataset_fingerprint"]))
    history = _of_user(asked["user"], data) if "user" in asked else _items(asked["history"], data)
    from src.student.serving import load_student

    student = load_student(run.folder / "models" / "student", search=asked["search"])
    raw = [data.raw_items[i] for i in history]
    found = student.recommend(raw, asked["k"], asked["exclude_history"])
    seen = history[-data.max_history :]
    lines = [f"history ({len(history)} items, the newest {len(seen)} are read):"]
    lines += [f"      {data.titles[i]} [{data.raw_items[i]}]" for i in seen]
    lines += [f"{run.stage} of {run.folder.name} recommends:"]
    lines += [f"{n:4}. {r.title} [{r.raw_id}]  {r.score:.3f}" for n, r in enumerate(found, 1)]
    printable = ("".join(c if c.isprintable() else "?" for c in line) for line in lines)
    return "\n".join(printable) + "\n"


def student_run(folder: str) -> RunRecord:
    """The record of a run that made a student; raises UserError where it made none."""
    run = read_run(Path(folder))
    if run.stage not in ("student_baseline", "distill"):
        raise UserError(f"{run.folder} is a run of {run.stage}", "student_baseline or distill", "run")
    return run


def _of_user(user: str, data: InteractionData) -> list[int]:
    from src.exp.examples import raw_users

    users = raw_users(data)
    if user not in users:
        raise UserError(
            f"user {user!r}", f"one of {len(users)} users of {data.name}, e.g. {users[0]}", "user"
        )
    number = users.index(user)
    return [int(i) for i in data.items[data.offsets[number] : data.offsets[number + 1]]]


def _items(history: list[Any], data: InteractionData) -> list[int]:
    by_id = {raw: i for i, raw in enumerate(data.raw_items) if i}
    by_title = {title.casefold(): i for i, title in reversed(list(enumerate(data.titles))) if i}
    out = []
    for entry in history:
        text = str(entry).strip()
        item = by_id.get(text) or by_title.get(text.casefold())
        if item is None:
            near = difflib.get_close_matches(text.casefold(), by_title, 3, 0.4)
            hint = f" (near: {'; '.join(data.titles[by_title[t]] for t in near)})" if near else ""
            raise UserError(f"unknown item {text!r}", f"a raw id or a title of {data.name}{hint}", "history")
        out.append(item)
    return out


if __name__ == "__main__":
    sys.exit(main())
