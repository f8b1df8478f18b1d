"""What the documents say of the repository, as far as it can be looked up: commands, tables, counts, words."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from benchmarks import results_table
from src.exp.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
READMES = ("README.md", "README.ja.md")
STAGES = re.compile(
    r"(?:-m src\.exp\.run_(?:teacher|student_baseline|distill|eval_all)|cmd/run_\w+\.sh) ?(.*)"
)


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def commands(text: str) -> list[str]:
    """Lines of the bash blocks, continued lines joined, comments dropped."""
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL))
    lines = re.sub(r"\\\n", " ", blocks).splitlines()
    return [line for line in (re.sub(r"(^|\s)#.*", "", line).strip() for line in lines) if line]


def as_one_job(argument: str) -> str:
    """The first of a sweep's values."""
    return argument.split(",", maxsplit=1)[0] if re.fullmatch(r"[\w.]+=\w+(,\w+)+", argument) else argument


@pytest.mark.parametrize("name", READMES)
def test_results_are_those_of_the_csv(name):
    assert read(name) == results_table.updated(read(name)), "run: python -m benchmarks.results_table"


def test_both_readmes_have_the_same_commands():
    english, japanese = map(commands, map(read, READMES))
    assert english == japanese


@pytest.mark.parametrize("name", READMES)
def test_named_modules_and_scripts_exist(name):
    text = read(name)
    modules = re.findall(r"-m ((?:src|benchmarks)[\w.]*\w)", text)
    files = [f"{m.replace('.', '/')}.py" for m in modules] + re.findall(
        r"bash ((?:cmd|env_shell)/\S+\.sh)", text
    )
    assert len(files) > 20
    assert [f for f in files if not (ROOT / f).is_file()] == []
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert [f for f in links if not (ROOT / f).exists()] == []


def test_named_overrides_are_accepted():
    """Every command of a stage composes: its groups and keys exist, are read, and contradict nothing."""
    composed = 0
    for command in commands(read("README.md")):
        if (found := STAGES.search(command)) and "run_table" not in command:
            arguments = [a for a in shlex.split(found[1]) if not a.startswith(("--", "hydra"))]
            Settings.compose([as_one_job(a) for a in arguments])
            composed += 1
    assert composed > 20
