"""The state of the source tree, as every run records it."""

from __future__ import annotations

import subprocess
from typing import Any

from src.core.paths import ROOT


def git_info() -> dict[str, Any]:
    """Commit, branch and changed paths; all None where the tree is no git checkout.

    Remote addresses are left out on purpose: they can carry credentials.
    """

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *args], cwd=ROOT, capture_output=True, text=True, timeout=20, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.rstrip("\n") if done.returncode == 0 else None

    status = git("status", "--porcelain")
    return {
        "commit": git("rev-parse", "HEAD"),
        "branch": git("rev-parse", "--abbrev-ref", "HEAD"),
        "dirty": None if status is None else bool(status),
        "changed": None if status is None else [line[3:] for line in status.splitlines()][:100],
    }
