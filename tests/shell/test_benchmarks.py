"""The guard over the benchmarks' ratios: what it marks, and what it records."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import all as guard
from benchmarks.scale import exponent


@pytest.mark.parametrize(
    ("name", "now", "last", "slower"),
    [
        ("serving_int8", 8.0, 10.0, True),  # more is better: a fifth less is 25 % slower
        ("serving_int8", 9.0, 10.0, False),
        ("serving_int8", 20.0, 10.0, False),
        ("student_step", 1.2, 1.0, True),  # less is better
        ("student_step", 1.1, 1.0, False),
        ("student_step", 0.5, 1.0, False),
    ],
)
def test_what_got_slower_is_marked(name: str, now: float, last: float, slower: bool) -> None:
    before = {name: {"date": "2026-01-01", "machine": "m", "commit": "c", "value": str(last)}}
    row, worse = guard.compared(name, now, before)
    assert worse == slower and ("SLOWER" in row) == slower
    assert guard.compared(name, now, {}) == ([*row[:3], "-", "-", ""], False)


def test_the_last_record_counts(tmp_path: Path) -> None:
    file = tmp_path / "ratios.csv"
    assert guard.recorded(file) == {}
    guard.record(file, {"prepare": 4.0, "evaluation": 2.0})
    guard.record(file, {"prepare": 3.0})
    found = guard.recorded(file)
    assert (found["prepare"]["value"], found["evaluation"]["value"]) == ("3.000", "2.000")
    assert tuple(found["prepare"]) == guard.HEAD and "cores" in found["prepare"]["machine"]


def test_every_ratio_is_recorded() -> None:
    assert set(guard.recorded(guard.CSV)) == set(guard.RATIOS)


def test_quick_says_so_and_ends_with_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setattr(guard, "CSV", tmp_path / "ratios.csv")
    monkeypatch.setitem(guard.RATIOS, "prepare", guard.Ratio("made", lambda: 2.0, more_is_better=False))
    asked = ["--quick", "--only", "prepare", "--record"]
    assert guard.main(asked) == 0
    monkeypatch.setitem(guard.RATIOS, "prepare", guard.Ratio("made", lambda: 2.5, more_is_better=False))
    assert guard.main(asked[:-1]) == 1
    assert "| prepare | made | 2.50 | 2.00 |" in capsys.readouterr().out


def test_a_growth_law_is_fitted_to_the_last_decade() -> None:
    sizes = np.array([1e3, 1e4, 1e5, 1e6])
    p, c = exponent(sizes, np.array([9.0, 9.0, 3e-4 * 1e5**1.5, 3e-4 * 1e6**1.5]))
    assert p == pytest.approx(1.5) and c == pytest.approx(3e-4)
