"""The pictures: made from what was logged, in both formats, with the series that they should hold."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from src.core.paths import CONF
from src.core.run import Run
from src.core.tracking import logged
from src.exp.model_plots import _main_axes, plot_gates, plot_items, plot_training


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run.start(tmp_path / "run", "teacher", "fp")
    for step in range(1, 6):
        run.scalar("teacher/loss/item", 3.0 / step, step)
        run.scalar("teacher/valid", 0.1 * step, step)
        run.scalar("teacher/lr", 0.01, step)
        for expert, share in enumerate((0.5, 0.3, 0.2)):
            run.scalar(f"teacher/gate/load_{expert}", share, step)
    run.hparams({"seed": 1}, {"test NDCG@10": 0.5})
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


def test_gate_by_group_of_users(tmp_path: Path) -> None:
    """Two kinds of users with their own experts: the mean use of each group is written into its cell."""
    kind = np.arange(40) % 2
    gates = np.where(kind[:, None] == 0, [0.9, 0.1], [0.25, 0.75])
    vectors = np.stack([kind * 10.0, np.arange(40) * 1e-3], axis=1)
    plot_gates(tmp_path / "gate_users", gates, vectors, {"1–2": kind == 0, "3–4": kind == 1, "5+": kind == 2})
    text = (tmp_path / "gate_users.svg").read_text()
    cells = re.findall(r">(0\.\d\d)</text>", text)
    assert cells[-14:][:4] == ["0.90", "0.10", "0.25", "0.75"] and "history 1–2 (n 20)" in text
    assert "5+" not in text and "cluster 5" in text


def test_item_map_shows_the_main_axes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(50, 2)) @ rng.normal(size=(2, 6))  # two dimensions in six
    plot_items(tmp_path / "map", {"teacher": flat, "student": rng.normal(size=(50, 4))}, np.arange(50))
    text = (tmp_path / "map.svg").read_text()
    assert "teacher: 100% of the variance" in text and "training targets of the item" in text
    places, share = _main_axes(flat)
    assert share == pytest.approx(1) and np.cov(places.T)[0, 1] == pytest.approx(0, abs=1e-9)
    assert pdist(places) == pytest.approx(pdist(flat)), "a rotation keeps all distances"


def test_no_pictures_for_a_table() -> None:
    """matplotlib is imported by the first picture, not by the comparison's modules."""
    code = "import sys, src.exp.report, src.exp.page; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=CONF.parent, check=False).returncode == 0
