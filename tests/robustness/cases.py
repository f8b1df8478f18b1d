"""What a case of the bad-input corpus is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.robustness.conftest import Artifacts


@dataclass(frozen=True)
class Box:
    """What a case may use: a fresh folder, and complete artifacts to copy and damage."""

    folder: Path
    good: Artifacts


@dataclass(frozen=True)
class Case:
    """One bad input.

    Attributes:
        name: what is wrong.
        run: makes the input and uses it as a run would.
        says: what the one line must hold: the value found, what was expected, the key or file.
    """

    name: str
    run: Callable[[Box], object]
    says: tuple[str, ...]
