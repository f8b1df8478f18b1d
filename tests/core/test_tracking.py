"""Loggers: what they wrote is read back with their own readers; no network."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from src.core.errors import ConfigError
from src.core.run import Run
from src.core.tracking import logged
from src.exp.settings import Settings

SECRET = "hf_" + "abcdefgh12345678"


def _log(run: Run) -> None:
    for step, value in ((1, 3.0), (2, 1.5)):
        run.scalar("train/loss", value, step)
        run.within("encoder").scalar("valid/NDCG@10", value / 10, step)
        run.scalar("train/lr", 0.1, step)
    run.hparams({"seed": 1}, {"test NDCG@10": 0.5})
    run.close()


def test_tensorboard_opens_on_the_curves(roots: Path) -> None:
    run = Run.start(None, "distill", "f", name="demo_ilora_sasrec_seed1")
    _log(run)
    run.spread("confidence/entropy", np.array([0.25, 0.75]), 0)
    run.close()
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    found = EventMultiplexer().AddRunsFromDirectory(str(run.dir.parent)).Reload()
    (name,) = (n for n in found.Runs() if not n.startswith("latest/"))
    assert name == f"{run.dir.name}/tensorboard/demo_ilora_sasrec_seed1"
    tags = found.Runs()[name]["scalars"]
    assert sorted(tags)[:2] == ["1_curves/encoder/valid/NDCG@10", "1_curves/train/loss"]
    assert set(tags) == {
        *sorted(tags)[:2],
        "2_gate/confidence/entropy",
        "3_run/train/lr",
        "4_final/test NDCG@10",
    }
    series = logged(run.dir / "tensorboard")
    assert series["train/loss"][0].tolist() == [1, 2] and series["confidence/entropy"][1].tolist() == [0.5]


def test_a_resumed_run_continues_the_curves_of_the_stopped_one(roots: Path) -> None:
    first = Run.start(None, "teacher", "f", name="a")
    for step in (1, 2, 3):
        first.scalar("teacher/loss/item", 1 / step, step)
    for epoch in range(1, 9):
        first.within("encoder").scalar("train/loss", 1 / epoch, epoch)
    first.close()
    first.status("interrupted", "SIGINT")
    other = Run.start(None, "teacher", "g", name="a")
    other.scalar("teacher/loss/item", 99.0, 1)
    other.close()
    second = Run.start(None, "teacher", "f", name="a")
    second.continue_curves("teacher/", 2)  # the checkpoint knows two steps
    second.scalar("teacher/loss/item", 0.3, 3)
    second.close()
    series = logged(second.dir / "tensorboard")
    assert series["teacher/loss/item"][0].tolist() == [1, 2, 3]
    assert series["teacher/loss/item"][1] == pytest.approx([1, 0.5, 0.3])
    assert series["encoder/train/loss"][0].tolist() == list(range(1, 9))


def test_wandb_offline_and_mlflow_files(roots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    mlflow = pytest.importorskip("mlflow")
    for name in ("WANDB_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    run = Run.start(None, "distill", "f", loggers=("tensorboard", "wandb", "mlflow"), name="demo_sasrec")
    _log(run)
    assert logged(run.dir / "tensorboard")["train/loss"][1].tolist() == [3.0, 1.5]

    client = mlflow.MlflowClient(tracking_uri=(run.dir.parent / "mlruns").as_uri())
    (kept,) = client.search_runs([client.get_experiment_by_name("anyo").experiment_id])
    assert kept.info.run_name == "demo_sasrec" and kept.info.status == "FINISHED"
    assert kept.data.params == {"seed": "1"} and kept.data.metrics["4_final/test NDCG_at_10"] == 0.5
    losses = client.get_metric_history(kept.info.run_id, "1_curves/train/loss")
    assert [(m.step, m.value) for m in losses] == [(1, 3.0), (2, 1.5)]

    (file,) = (run.dir / "wandb").glob("offline-run-*/run-*.wandb")
    rows = [row for row in _wandb_rows(file) if "1_curves/train/loss" in row]
    assert [(row["step"], row["1_curves/train/loss"]) for row in rows] == [(1, 3.0), (2, 1.5)]
    for path in (
        p for folder in ("wandb", "tensorboard") for p in (run.dir / folder).rglob("*") if p.is_file()
    ):
        assert SECRET.encode() not in path.read_bytes(), path


def _wandb_rows(file: Path) -> list[dict]:
    """The history of an offline run: protobuf records in LevelDB's log format (blocks of 32 KiB, 7 bytes of head)."""
    from wandb.proto import wandb_internal_pb2

    data, at, parts, rows = file.read_bytes(), 7, b"", []
    assert data.startswith(b":W&B")
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # the block's end holds nothing
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts, at = parts + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                rows.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items})
    return rows


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ("logger=[wand]", "config.logger: found 'wand', expected one of tensorboard, wandb, mlflow"),
        (
            "logger=[tensorboard,wandb]",
            "logger: found wandb, which is not installed; expected `poetry install --with loggers`",
        ),
    ],
)
def test_unknown_or_missing_loggers_are_one_line(
    overrides: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("src.core.tracking.find_spec", lambda name: None if name == "wandb" else name)
    with pytest.raises(ConfigError) as found:
        Settings.compose([overrides])
    assert line in str(found.value) and "\n" not in str(found.value)
