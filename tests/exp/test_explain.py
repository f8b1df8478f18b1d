"""Every key has its meaning, and help takes no time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from src.core.errors import UserError
from src.core.paths import CONF, ROOT
from src.exp.explain import explain
from src.exp.overrides import compose_values
from src.exp.settings import Settings
from src.exp.usage import _STAGES

CHOICES = [
    (f"{group}={path.stem}",) for group in ("teacher", "student") for path in (CONF / group).glob("*.yaml")
]
CHOICES = [(*c, *(["teacher.llm.path=/x"] if c == ("teacher=text",) else [])) for c in CHOICES]
CHOICES += [
    ("dataset=csv",),
    ("dataset=lastfm_ilora",),
    ("dataset=steam",),
    ("compare=study",),
    ("eval.candidates=null",),
]
CHOICES += [("active=diversity",), ("distill=dllm2rec_official",)]


def keys_of(values: dict, prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        nested = isinstance(value, dict) and name not in ("options", "variants", "evaluation")
        yield from keys_of(value, f"{prefix}{name}.") if nested else (f"{prefix}{name}",)


@pytest.mark.parametrize("overrides", CHOICES, ids=" ".join)
def test_every_key_of_the_yaml_files_is_explained(overrides: tuple[str, ...]) -> None:
    lines = explain([], list(overrides)).splitlines()
    shown = {line.split(" ")[0] for line in lines[::2]}
    assert all(line.startswith("    ") and len(line) > 8 for line in lines[1::2]), "a meaning each"
    missing = {key for key in keys_of(compose_values(overrides)) if key not in shown}
    missing = {key for key in missing if not any(s.startswith(f"{key}.") for s in shown)}
    assert not missing


def test_values_bounds_and_conditions_are_shown() -> None:
    text = explain(["teacher.train", "student.negatives"], ["teacher.train.lr=0.5"])
    assert "teacher.train.lr = 0.5   (> 0.0)\n    peak learning rate" in text
    assert "teacher.train.optimizer = adamw   (adam | adamw)" in text
    assert "student.negatives = 256   (>= 1; read with base_loss=gbce)" in text
    assert "teacher.gate" not in text


@pytest.mark.parametrize("key", ["teacher.trian", "nosuch", "student.lrr"])
def test_an_unknown_key_is_one_line(key: str) -> None:
    with pytest.raises(UserError, match="unknown key"):
        explain([key], [])


@pytest.mark.parametrize("stage", _STAGES)
def test_help_comes_first_and_loads_nothing(stage: str) -> None:
    script = (
        f"import sys; sys.argv = ['run', '--help']\nfrom src.exp.run_{stage} import main; main()\n"
        "print('loaded', {'torch', 'hydra', 'pydantic', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    first, *_, last = done.stdout.splitlines()
    assert first.startswith("Stage ") and last == "loaded set()"
    assert f"usage: python -m src.exp.run_{stage} " in done.stdout


@pytest.mark.parametrize("stage", _STAGES)
def test_the_examples_are_right(stage: str) -> None:
    for example, _ in _STAGES[stage][1]:
        overrides = [o for o in example.split() if not o.startswith("--") and "1,2,3" not in o or "[" in o]
        if "compare.runs" not in example:
            Settings.compose(overrides)
