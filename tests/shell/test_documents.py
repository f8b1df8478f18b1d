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
OVERVIEW = "docs/specification/00_overview.md"
WORDS = (
    *(
        "円盤",
        "浸漬",
        "切片",
        "学生",
        "てこ",
        "平易な教師",
        "断片",
        "目録",
        "保管庫",
        "商品",
        "余白",
        "埋め草",
    ),
    *("詰め物", "乱数種", "埋め込みのデモ", "埋め込み LLM", "組み込みの LLM"),
)
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
    argument = re.sub(r"=interval\((.+),.+\)$", r"=\1", argument)
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


def prose() -> list[tuple[str, int, str]]:
    """(file, line number, line) of the documents and READMEs, without code blocks."""
    lines = []
    for path in sorted((ROOT / "docs").rglob("*.md")) + [ROOT / name for name in READMES]:
        code = False
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            code ^= line.startswith("```")
            if not code:
                lines.append((path.name, number, line))
    return lines


def test_named_files_exist():
    """Source files and tests that the documents name, by path or by name."""
    names = {
        p.name for d in ("src", "tests", "benchmarks", "cmd", "env_shell") for p in (ROOT / d).rglob("*.*")
    }
    named = [(f, n, m) for f, n, line in prose() for m in re.findall(r"`(?:[\w.]+/)*(\w+\.(?:py|sh))`", line)]
    assert len(named) > 100
    assert [entry for entry in named if entry[2] not in names | {"run_x.py"}] == []


def test_lines_are_short():
    """Below 120 characters, tables apart."""
    assert [(f, n) for f, n, line in prose() if len(line) >= 120 and not line.lstrip().startswith("|")] == []


def test_one_glossary():
    """No literal translation, and one word for one thing."""
    pattern = re.compile("|".join([*WORDS, r"標本(?![外内])"]))
    assert [(f, n, m[0]) for f, n, line in prose() if (m := pattern.search(line))] == []


def test_every_document_is_listed():
    listed = set(re.findall(r"^\| `(0\d_\w+\.md)` \|", read(OVERVIEW), re.MULTILINE))
    assert listed == {p.name for p in (ROOT / "docs" / "specification").glob("*.md")}


def test_every_module_is_listed():
    section = read(OVERVIEW).split("\n## 3. ")[1].split("\n## ")[0]
    listed, package = set(), ""
    for first, second in re.findall(r"^\| (`[\w/]+`)? ?\| ((?:`\w+` ?)+)\|", section, re.MULTILINE):
        package = first.strip("`") or package
        listed |= {f"{package}/{name}" for name in re.findall(r"\w+", second)}
    modules = {str(p.relative_to(ROOT / "src").with_suffix("")) for p in (ROOT / "src").rglob("*.py")}
    assert listed == {m for m in modules if not m.endswith("__init__")}


def test_choices_are_counted():
    """The number of choices of each group; those that are named exist, and all are where the table says no `ほか`."""
    rows = re.findall(r"^\| `([\w/]+)` \| (\d+) \| (.*) \|$", read(OVERVIEW), re.MULTILINE)
    assert len(rows) > 8
    for group, count, text in rows:
        choices = {p.stem for p in (ROOT / "conf" / group).glob("[!_]*.yaml")}
        assert (group, int(count)) == (group, len(choices))
        if not re.search("ほか|hub の名", text):
            assert (group, choices - set(re.findall(r"`(\w+)`", text))) == (group, set())
