"""Who imports whom, read from the syntax trees: also what is imported inside a function or for type checkers only."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from src.core.paths import ROOT

ALLOWED = {
    "core": {"core"},
    "student": {"core", "student"},
    "teacher": {"core", "student", "teacher"},
    "distill": {"core", "student", "distill"},
    "exp": {"core", "student", "teacher", "distill", "exp"},
}
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "src").rglob("*.py"))
}


def imports_of(module: str, path: Path) -> set[str]:
    """The modules of this project that `module` imports, anywhere in its text; itself left out."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base]).rstrip(".")
            # `from a import b`: b may be a module or a name in a
            found |= {name if (name := f"{base}.{a.name}") in FILES else base for a in node.names}
    return {name for name in found if name in FILES} - {module}


GRAPH = {module: imports_of(module, path) for module, path in FILES.items()}


def test_the_graph_is_read() -> None:
    assert len(GRAPH) > 80 and "src.core.paths" in GRAPH["src.core.config"] | GRAPH["src.core.run"]
    assert "src.core.artifacts" in GRAPH["src.exp.settings"]


def test_no_circles() -> None:
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as e:
        pytest.fail(f"imports in a circle: {' <- '.join(e.args[1])}")


def test_no_import_upwards() -> None:
    """core <- student <- teacher, distill <- exp; teacher and distill do not know each other."""
    wrong = [
        f"{module} imports {name}"
        for module, names in GRAPH.items()
        for name in sorted(names)
        if module != "src" and name != "src" and name.split(".")[1] not in ALLOWED[module.split(".")[1]]
    ]
    assert not wrong
