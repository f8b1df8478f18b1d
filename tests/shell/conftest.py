"""Scaffolding for the script tests: a copy of the repository and stub tools that record their calls."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
COPIED = ("env_shell", "cmd", "Dockerfile", "pyproject.toml", "poetry.lock")
HERMETIC_PREFIXES = ("ANYO_", "POETRY_", "PIP_", "HF_", "VIRTUAL_ENV")


@dataclass
class Sandbox:
    """A copy of the scripts, a PATH of recording stubs, and an environment free of the caller's settings."""

    root: Path
    stubs: Path
    calls_file: Path
    env: dict[str, str] = field(default_factory=dict)

    def stub(self, name: str, body: str = "", directory: Path | None = None) -> Path:
        """A tool that appends `name<TAB>argument<TAB>...` to the record, then runs `body`."""
        path = (directory or self.stubs) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # One write a call: set-up runs pip beside Poetry, and two records must not mix.
        record = f'printf \'%s\\n\' "{name}$(printf \'\\t%s\' "$@")" >>"{self.calls_file}"\n'
        path.write_text(f"#!/usr/bin/env bash\n{record}{body}\n")
        path.chmod(0o755)
        return path

    def calls(self, name: str | None = None) -> list[list[str]]:
        if not self.calls_file.exists():
            return []
        rows = [line.split("\t") for line in self.calls_file.read_text().splitlines()]
        return [row for row in rows if name is None or row[0] == name]

    def run(self, script: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", script, *arguments],
            cwd=self.root,
            env=self.env | env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    root = tmp_path / "repo"
    root.mkdir()
    for name in COPIED:
        source = REPOSITORY / name
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, root / name)
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    env = {k: v for k, v in os.environ.items() if not k.startswith(HERMETIC_PREFIXES)}
    env["PATH"] = f"{stubs}:{env['PATH']}"
    return Sandbox(root, stubs, tmp_path / "calls.tsv", env)


@pytest.fixture
def fake_venv(sandbox: Sandbox) -> Callable[[str], Path]:
    """Gives the sandbox a .venv whose python runs `body` first, and else is this test's own interpreter."""

    def make(body: str) -> Path:
        venv = sandbox.root / ".venv"
        sandbox.stub("python", f'{body}\nexec "{sys.executable}" "$@"', venv / "bin")
        (venv / "pyvenv.cfg").touch()
        return venv

    return make
