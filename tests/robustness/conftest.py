"""Artifacts of every kind in small, made once, for tests that damage copies of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from src.core.artifacts import write_manifest
from src.core.data_utils import DatasetConfig, InteractionData, load_dataset
from src.core.paths import processed_dir
from src.core.store_writer import StoreWriter
from src.core.teacher_store import TeacherRows, TeacherStore
from tests.compose import composed
from tests.conftest import make_dataset_config
from tests.exp.conftest import stage  # noqa: F401  (a fixture)

DEMO = (
    "dataset.demo.users=40",
    "dataset.demo.items=30",
    "dataset.demo.groups=3",
    "dataset.demo.interactions_per_user=8",
)
D = 4  # width of the item vectors
K = 10


@dataclass(frozen=True)
class Artifacts:
    """Folders of complete artifacts; tests copy them."""

    root: Path
    config: DatasetConfig
    data: InteractionData
    dataset: Path
    store: Path
    student: Path
    selection: Path


def rank(data: InteractionData) -> Callable[[np.ndarray], TeacherRows]:
    """A fixed ranking per sample id: the items from the sample's number on."""

    def rows(ids: np.ndarray) -> TeacherRows:
        rankings = (ids[:, None] + np.arange(K)) % data.n_items + 1
        scores = np.tile(-np.arange(K, dtype=np.float32), (len(ids), 1))
        return TeacherRows(ids, rankings.astype(np.int32), scores, np.full(len(ids), -9.0, np.float32))

    return rows


def item_vectors(data: InteractionData) -> np.ndarray:
    table = np.random.default_rng(0).normal(size=(data.n_items + 1, D)).astype(np.float32)
    table[0] = 0
    return table


def make_store(folder: Path, data: InteractionData) -> TeacherStore:
    writer = StoreWriter(folder, data.n_items, "log_likelihood", shard_size=64)
    for split, ids in data.splits.items():
        writer.export(split, ids, rank(data))
    fields = {
        "dataset": data.name,
        "dataset_fingerprint": data.fingerprint,
        "teacher": "fixed",
        "n_train_split": len(data.splits["train"]),
        "in_sample": {},
        "trained": {"train_seconds": 1.0},
        "export_seconds": 1.0,
    }
    return writer.finish(data.splits, item_vectors(data), fields)


def make_student(folder: Path, data: InteractionData) -> None:
    from src.core.config import build_or_raise
    from src.student.checkpoint import save_student
    from src.student.config import StudentConfig
    from src.student.models import build_student

    values = student_values()
    config = build_or_raise(StudentConfig, values, "student")
    student = build_student(config, data.n_items, data.max_history)
    save_student(folder, student, config, data, {"fingerprint": "s" * 12, "seed": 0})


def student_values() -> dict:
    """`conf/student/sasrec.yaml` as a mapping, in small."""
    return composed("student", "student.width=8", "student.blocks=1", "student.heads=1")


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Artifacts]:
    from src.core.selection import Selection
    from src.distill.selection import write_selection

    root = tmp_path_factory.mktemp("artifacts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANYO_DATA_ROOT", str(root / "data"))
        config = make_dataset_config("demo", *DEMO)
        data = load_dataset(config)
        dataset = processed_dir(data.name, data.fingerprint)
    store, student, selection = root / "store", root / "student", root / "selection"
    make_store(store, data)
    make_student(student, data)
    ids = data.splits["train"][::2]
    fields = {"dataset_fingerprint": data.fingerprint, "dataset": data.name}
    write_selection(selection, Selection(ids, np.ones(len(ids), np.float32)), fields)
    yield Artifacts(root, config, data, dataset, store, student, selection)


def copy_of(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


def reseal(folder: Path, **changes: object) -> None:
    """Give a changed folder a manifest that fits its files again (a forger, or another program)."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest.pop("files")
    write_manifest(folder, {**manifest, **changes})
