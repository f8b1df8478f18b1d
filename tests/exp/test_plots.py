"""The pictures: made from what was logged, in both formats, with the series that they should hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from src.core.paths import CONF
from src.core.run import Run
from src.exp.plots import logged, plot_training


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run.start(tmp_path / "run", "teacher", "fp")
    for step in range(1, 6):
        run.scalar("teacher/loss/item", 3.0 / step, step)
        run.scalar("teacher/valid", 0.1 * step, step)
        run.scalar("teacher/lr", 0.01, step)
        for expert, share in enumerate((0.5, 0.3, 0.2)):
            run.scalar(f"teacher/gate/load_{expert}", share, step)
    run.hparams({"seed": 1}, {"final/test NDCG@10": 0.5})
    run.close()
    return run


def test_curves_and_gates_are_what_was_logged(run: Run) -> None:
    series = logged(run.dir / "tensorboard")
    steps, values = series["teacher/loss/item"]
    assert steps.tolist() == [1, 2, 3, 4, 5] and values == pytest.approx(3.0 / np.arange(1, 6), rel=1e-6)
    plot_training(run.dir / "plots", series)
    curves = (run.dir / "plots" / "learning_curves.svg").read_text()
    assert "teacher/loss/item" in curves and "teacher/valid" in curves and "teacher/lr" not in curves
    gates = (run.dir / "plots" / "gates.svg").read_text()
    assert "expert" in gates and "<image" in gates
    again = run.dir / "again"
    plot_training(again, series)
    assert (again / "learning_curves.svg").read_bytes() == curves.encode(), "equal pictures are equal files"


def test_nothing_is_drawn_of_single_points(run: Run) -> None:
    points = {tag: (s[:1], v[:1]) for tag, (s, v) in logged(run.dir / "tensorboard").items()}
    plot_training(run.dir / "plots", points)
    assert not list((run.dir / "plots").iterdir())


def test_no_pictures_for_a_table() -> None:
    """matplotlib is imported by the first picture, not by the comparison's modules."""
    code = "import sys, src.exp.report, src.exp.page; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=CONF.parent, check=False).returncode == 0
