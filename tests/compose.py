"""The one place where tests compose the shipped configuration."""

from __future__ import annotations

import copy
from typing import Any

from src.exp.overrides import compose_values


def composed(group: str, *overrides: str) -> dict[str, Any]:
    """The values of one group of `conf/config.yaml` with overrides: composed("student", "student=caser")."""
    return copy.deepcopy(compose_values(overrides)[group])
