"""Bad command lines through the real entry points, the plan of every stage, and disks that refuse."""

from __future__ import annotations

import errno
import json
import os
import re
from collections import namedtuple
from dataclasses import replace
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
    ended = stage(name, *TINY, *TINY_TEACHER, "dry_run=true")
    if name == "run_distill":
        assert ended.code == 2 and "no teacher outputs at" in ended.error_line
        return
    assert ended.folder is None, "a plan leaves no result"
    assert ended.code == 0 and "GiB free" in ended.err and "plan: time:" in ended.err
    if name == "run_teacher":
        assert "M parameters, about" in ended.err
        assert "no GPU" in ended.err or "GiB free;" in ended.err
        assert re.search(
            r"time: about encoder, at most .* LLM .*, export of 370 samples by hidden", ended.err
        )
    if name == "run_student_baseline":
        assert re.search(r"time: at most [\d.]+ m?i?n?s? ?of training, 2 epochs of", ended.err)
    if name != "run_eval_all":
        assert re.search(r"bytes: about [\d.]+ MiB", ended.err)


def test_a_plan_checks_hashes_and_room(stage: Stage, monkeypatch) -> None:
    assert stage("run_student_baseline", *TINY).code == 0
    ended = stage("run_student_baseline", *TINY, "dry_run=true")
    assert "hashes checked" in ended.err and "done already" in ended.err
    (dataset,) = data_root().glob("processed/*/[!.]*")
    with monkeypatch.context() as patch:
        patch.setattr("src.exp.plan.shutil.disk_usage", lambda path: namedtuple("u", "free")(1000))
        full = stage("run_student_baseline", *TINY, "dry_run=true")
    assert full.code == 2 and "0.00 MiB free at" in full.error_line
    blob = bytearray((dataset / "items.npy").read_bytes())
    blob[-1] ^= 1
    (dataset / "items.npy").write_bytes(blob)
    damaged = stage("run_student_baseline", *TINY, "dry_run=true")
    assert damaged.code == 2 and "items.npy does not have the hash" in damaged.error_line


def test_a_plan_fetches_nothing(stage: Stage, monkeypatch) -> None:
    from src.core.datasets import download

    monkeypatch.setattr(download, "fetch", lambda *a: pytest.fail("a plan is no download"))
    ended = stage("run_teacher", "dataset=movielens_1m", "dry_run=true")
    assert ended.code == 0 and "would be fetched first: https://" in ended.err
    assert not data_root().exists()


def test_time_of_a_student_grows_with_its_samples_and_epochs() -> None:
    from src.exp.costs import Sizes, student_seconds
    from tests.robustness.cases_config import load

    settings = load({"student.device": "cpu", "student.width": 16, "student.max_epochs": 10})
    small, large = (
        student_seconds(settings, settings.student, Sizes(n, n // 8, n // 8, 50, "")) for n in (10**4, 10**7)
    )
    assert 0 < 20 * small < large


def test_work_of_an_export_by_method() -> None:
    """Two operations per weight and token of the blocks: 168 tokens of the prompt, 12 per title."""
    from src.exp import costs
    from tests.robustness.cases_config import load

    settings = load({"teacher.objective.lm": 1.0, "teacher.export.pool": 20, "teacher.export.top_k": 10})
    size = costs.llm_size(costs.language_model(settings.teacher.llm), settings.teacher.lora.rank)
    assert size.blocks == 2
    sizes, found, token = costs.Sizes(12000, 2000, 100, 50, ""), {}, 2.0 * size.in_blocks
    for ranking in ("hidden", "rerank"):
        config = replace(settings.teacher, export=replace(settings.teacher.export, ranking=ranking))
        training, found[ranking] = costs.llm_work(settings, config, size, sizes, 7)
    assert found == {
        "hidden": 7 * 168 * token,
        "rerank": 7 * (168 + 240) * token,
    }
    # 12,000 x 4 samples, forward and back; 15 refreshes of 50 titles; 8 validations of 1,000; 4 x 6,000 texts of
    # pre-training, whose weights have gradients too
    assert training == token * (48000 * 168 * 2 + 15 * 50 * 18 + 8000 * 168 + 24000 * 168 * 3)


def test_sizes_and_memory_by_hand(tmp_path: Path) -> None:
    from src.exp import costs
    from tests.robustness.cases_config import load

    llama = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
    llama |= {"num_attention_heads": 32, "vocab_size": 32000}
    (tmp_path / "config.json").write_text(json.dumps(llama))
    settings = load({"teacher.llm.dtype": "bfloat16"})
    seven = replace(settings.teacher.llm, kind="local", path=str(tmp_path), tiny=None)
    size = costs.llm_size(costs.language_model(seven), 16)
    # Llama-2-7B; peft counts as many trainable parameters for rank 16 on all linears of this model.
    assert (size.parameters, size.lora) == (6_738_415_616, 39_976_960)
    parts = costs.memory(settings.teacher, size, 10)
    assert parts["weights"] == 2 * 6_738_415_616 and parts["trained"] == 16 * 39_976_960
    # 64 samples x 168 tokens x 4096 x 34 bytes x 32 blocks, and the answers' logits
    assert parts["activations"] == pytest.approx(24 * 168 * 4096 * 34 * 32 + 24 * 16 * 32000 * 8)
    assert size.in_blocks == 6_738_415_616 - 2 * 32000 * 4096 - 4096  # tables and the last norm
    assert costs.DEVICES["a100"].speed("bfloat16") == pytest.approx(0.4 * 312e12)


def test_a_plan_for_a_named_device_and_an_unprepared_dataset(stage: Stage) -> None:
    """The raw files are counted, not guessed, and stay unprepared."""
    ended = stage("run_teacher", *TINY, *TINY_TEACHER, "dry_run=true", "plan.device=h100")
    assert ended.code == 0 and "296 training samples and 39 items (counted in the raw files)" in ended.err
    assert "h100 at 40% of its peak" in ended.err and "h100: 80 GiB" in ended.err
    assert not data_root().exists()


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
    from src.exp import stages

    def broken(*args, **kwargs):
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr(stages, "train_student", broken)
    ended = stage("run_student_baseline", *TINY)
    assert ended.code == 1 and "ZeroDivisionError: two lines" in ended.error_line
    assert ended.folder and "Traceback" in (ended.folder / "run.log").read_text()
    assert json.loads((ended.folder / "status.json").read_text())["state"] == "failed"
