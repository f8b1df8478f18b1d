"""The bad-input corpus: one line with found, expected and key or file for each, and nothing half-written.

The table is in cases_*.py; a new bug report becomes a line there.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from src.core.data_utils import load_dataset
from src.core.errors import UserError
from tests.robustness.cases import Box, Case
from tests.robustness.cases_artifacts import artifact_cases
from tests.robustness.cases_config import config_cases
from tests.robustness.cases_csv import csv_cases
from tests.robustness.cases_llm import llm_cases
from tests.robustness.cases_raw import raw_cases
from tests.robustness.conftest import Artifacts
from tests.robustness.raw_files import SOURCES, write

CASES = [*raw_cases(), *csv_cases(), *config_cases(), *artifact_cases(), *llm_cases()]


@pytest.mark.parametrize("reader", SOURCES)
def test_the_undamaged_files_are_fine(reader: str, roots: Path) -> None:
    data = load_dataset(write(reader, roots / "raw", {}))
    assert all(len(ids) for ids in data.splits.values())


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_one_line(case: Case, roots: Path, artifacts: Artifacts) -> None:
    with pytest.raises(UserError) as caught:
        case.run(Box(roots, artifacts))
    line = str(caught.value)
    assert "\n" not in line and len(line) < 2000
    for part in case.says:
        assert part in line, line
    assert "expected " in line or "configuration: " in line, line
    assert not list((roots / "data").rglob("manifest.json")), "a result was left"


def test_size_of_the_corpus() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    assert len(names) >= 120
