"""conf/experiment: every choice composes, alone and as a column of a table."""

from __future__ import annotations

import pytest

from src.core.paths import CONF
from src.exp.settings import Settings
from src.exp.table.reading import read_table

NAMES = sorted(p.stem for p in (CONF / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_composes(name):
    settings = Settings.compose([f"+experiment={name}"])
    first, command = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()[:2]
    assert first == "# @package _global_" and f"+experiment={name}" in command
    assert (settings.teacher.llm.kind == "tiny") == (name == "smoke")
    assert (settings.teacher.llm.quantization != "none") == (name == "colab_l4")


def test_a_column_chooses_experiments_and_others_change_them(tmp_path):
    (tmp_path / "t.csv").write_text("experiment,student.max_epochs\nsmoke,\nsmoke,3\n")
    rows = read_table(tmp_path / "t.csv").rows
    assert [Settings.compose(r.overrides).student.max_epochs for r in rows] == [2, 3]
