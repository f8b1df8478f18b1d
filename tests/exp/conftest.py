"""Entry points called in this process, as `python -m src.exp.<stage>` would run them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

from src.core.paths import result_root

# The whole pipeline in seconds: sizes only, no other settings.
TINY = (
    "dataset.demo.users=60",
    "dataset.demo.items=40",
    "dataset.demo.groups=4",
    "dataset.demo.interactions_per_user=8",
    "student.max_epochs=2",
    "eval.ks=[1,10,20]",
    "compare.draws=200",
)
TINY_TEACHER = (
    "teacher.train.epochs=1",
    "teacher.train.samples=64",
    "teacher.train.eval_samples=32",
    "teacher.encoder.max_epochs=2",
    "teacher.llm.tiny.layers=1",
    "teacher.llm.tiny.hidden_size=32",
    "teacher.llm.tiny.heads=2",
    "teacher.llm.tiny.vocab_size=300",
    "teacher.llm.tiny.epochs=1",
    "teacher.llm.tiny.words.epochs=1",
    "teacher.llm.tiny.words.texts=40",
    "teacher.export.top_k=30",
)


@dataclass(frozen=True)
class Ended:
    """How a stage ended: exit code, what it wrote to stderr and stdout, and its result folder."""

    code: int
    err: str
    out: str
    folder: Path | None

    @property
    def error_line(self) -> str:
        """The one line about the failure; there must be exactly one, and no traceback."""
        assert "Traceback" not in self.err, self.err
        lines = [line for line in self.err.splitlines() if "error: " in line]
        assert len(lines) == 1, self.err
        return lines[0]


Stage = Callable[..., Ended]


@pytest.fixture
def stage(roots: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Stage:
    """`stage("run_teacher", *overrides)` with data and results in a temporary folder."""

    def run(name: str, *overrides: str) -> Ended:
        before = set(result_root().glob("*"))
        monkeypatch.setattr(sys, "argv", [name, *overrides])
        monkeypatch.chdir(roots)
        capfd.readouterr()
        try:
            import_module(f"src.exp.{name}").main()
            code = 0
        except SystemExit as e:
            code = int(e.code or 0)
        captured = capfd.readouterr()
        new = sorted(set(result_root().glob("*")) - before)
        return Ended(code, captured.err, captured.out, new[-1] if new else None)

    return run
