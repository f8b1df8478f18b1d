"""Bad command lines through the real entry points, the plan of every stage, and disks that refuse."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path

import pytest

from src.core.paths import data_root, result_root
from tests.exp.conftest import TINY, TINY_TEACHER, Stage

STAGES = ("run_teacher", "run_student_baseline", "run_distill", "run_eval_all")
COMMANDS = (
    ("run_teacher", ["teacher=gpt5"], "gpt5"),
    ("run_teacher", ["teacher/llm=nosuch"], "nosuch"),
    ("run_teacher", ["teacher.lora.rnak=3"], "rnak"),
    ("run_teacher", ["+teacher.extra=1"], "teacher.extra: unknown key"),
    (
        "run_teacher",
        ["teacher/llm=local", "teacher.llm.path=/nowhere/model", "teacher.export.top_k=20"],
        "/nowhere/model holds no config.json",
    ),
    ("run_student_baseline", ["seed=abc"], "config.seed: found 'abc', expected int"),
    ("run_student_baseline", ["~dry_run"], "config.dry_run: missing"),
    ("run_student_baseline", ["student.width"], "student.width"),
    ("run_student_baseline", ["student.width=[1"], "no viable alternative at input"),
    ("run_student_baseline", ["student.lr='${nosuch}'"], "nosuch"),
    ("run_student_baseline", ["+seed=1"], "seed"),
    ("run_student_baseline", ["dataset.name=../../tmp/x"], "dataset.name: found '../../tmp/x'"),
    ("run_distill", ["active=nosuch"], "nosuch"),
    ("run_distill", ["distill.top_k=500"], "distill.top_k: found 500, expected <= teacher.export.top_k"),
    ("run_eval_all", ["compare.runs={mine: /nowhere}"], "/nowhere/status.json is missing"),
    ("run_eval_all", ["compare.variants={x: [distill.lamb=0]}"], "lamb"),
    ("run_eval_all", ["compare.teachers=[nosuch]"], "nosuch"),
)


@pytest.mark.parametrize(("name", "overrides", "says"), COMMANDS, ids=lambda v: str(v)[:50])
def test_bad_command_line(stage: Stage, name: str, overrides: list[str], says: str) -> None:
    ended = stage(name, *TINY, *overrides)
    assert ended.code == 2, ended.err
    assert says in ended.error_line
    assert not list(data_root().rglob("teacher_outputs/*/*/*/manifest.json"))
    if ended.folder:
        status = json.loads((ended.folder / "status.json").read_text())
        assert status["state"] == "failed" and status["reason"] in ended.error_line
        assert not (ended.folder / "metrics" / "metrics.json").exists()


@pytest.mark.parametrize("name", STAGES)
def test_plan_of_every_stage(stage: Stage, name: str) -> None:
    started = time.monotonic()
    ended = stage(name, *TINY, *TINY_TEACHER, "dry_run=true")
    assert time.monotonic() - started < 20
    if name == "run_distill":
        assert ended.code == 2 and "no teacher outputs at" in ended.error_line
        return
    assert ended.folder is None, "a plan leaves no result"
    assert ended.code == 0 and "GiB free" in ended.err and "plan: time:" in ended.err
    if name == "run_teacher":
        assert "M parameters, about" in ended.err
        assert "no GPU" in ended.err or "GiB free;" in ended.err


def test_forecast_by_hand() -> None:
    from src.exp.forecast import Shape, _shape, memory

    # Llama-2-7B: 6.74 G parameters; ours leaves out the norms.
    seven = _shape(
        {
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "vocab_size": 32000,
        }
    )
    assert isinstance(seven, Shape) and seven.parameters() == pytest.approx(6.738e9, rel=1e-3)
    # peft counts 39,976,960 trainable parameters for rank 16 on all linears of this model.
    assert seven.lora_parameters(16) == 39_976_960
    from tests.robustness.cases_config import load

    settings = load({"teacher.llm.dtype": "bfloat16"})
    parts = memory(settings.teacher, seven, 10)
    assert parts["weights"] == pytest.approx(13.48e9, rel=1e-2)
    # 64 samples x 168 tokens x 4096 x 34 bytes x 32 blocks, and the answers' logits
    assert parts["activations"] == pytest.approx(64 * 168 * 4096 * 34 * 32 + 64 * 16 * 32000 * 8)


@pytest.mark.parametrize("root", ["ANYO_RESULT_ROOT", "ANYO_DATA_ROOT"])
@pytest.mark.parametrize("place", ["/sys/anyo", "file/below"])
def test_places_that_cannot_be_written(
    stage: Stage, root: str, place: str, tmp_path: Path, monkeypatch
) -> None:
    """Sysfs takes no folders, not even from root; a file has none below it."""
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv(root, str(tmp_path / place))
    ended = stage("run_student_baseline", *TINY)
    assert ended.code == 2 and str(tmp_path / place) in ended.error_line


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_in_the_middle_is_one_line_and_goes_on(
    stage: Stage, code: int, monkeypatch
) -> None:
    real, calls = os.replace, []

    def full(source, target, *args, **kwargs):
        calls.append(target)
        if str(target).endswith("checkpoint.pt"):
            raise OSError(code, os.strerror(code), str(target))
        return real(source, target, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        ended = stage("run_student_baseline", *TINY)
    assert ended.code == 2 and os.strerror(code) in ended.error_line and "checkpoint.pt" in ended.error_line
    assert "the same command goes on" in ended.error_line
    assert ended.folder and "Traceback" in (ended.folder / "run.log").read_text()
    assert not list(result_root().glob("*/metrics/metrics.json"))
    assert stage("run_student_baseline", *TINY).code == 0


def test_an_unexpected_error_is_one_line_and_code_1(stage: Stage, monkeypatch) -> None:
    from src.student import trainer_baseline

    def broken(*args, **kwargs):
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr(trainer_baseline, "train_student", broken)
    ended = stage("run_student_baseline", *TINY)
    assert ended.code == 1 and "ZeroDivisionError: two lines" in ended.error_line
    assert ended.folder and "Traceback" in (ended.folder / "run.log").read_text()
    assert json.loads((ended.folder / "status.json").read_text())["state"] == "failed"
