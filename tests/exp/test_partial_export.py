"""A selection in its three places: what the teacher learns from, what it ranks, what is distilled."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from src.core.artifacts import read_json
from src.core.paths import data_root
from src.core.selection import Selection
from src.distill.selection import write_selection
from tests.exp.conftest import TINY, Stage

PARTIAL = (*TINY, "active.use=[export,distill]", "teacher.export.top_k=20", "active.share=0.4")


@pytest.mark.parametrize(
    "options",
    [
        ("teacher=knn", "active=random"),
        (
            "teacher=sasrec",
            "teacher.encoder.max_epochs=1",
            "active=entropy",
        ),
    ],
)
def test_only_selected_samples_are_ranked_and_distilled(stage: Stage, options: tuple[str, ...]) -> None:
    teacher = stage("run_teacher", *PARTIAL, *options)
    assert teacher.code == 0, teacher.err
    (store,) = (
        m.parent for m in (data_root() / "teacher_outputs").rglob("manifest.json") if "quality" not in str(m)
    )
    (selection,) = (data_root() / "selections").glob("*/*/sample_ids.npy")
    chosen = np.load(selection)
    manifest = read_json(store / "manifest.json")
    assert len(chosen) == int(0.4 * manifest["n_train_split"] + 0.5)
    np.testing.assert_array_equal(np.load(store / "train" / "sample_ids.npy"), chosen)
    distilled = stage("run_distill", *PARTIAL, *options)
    assert distilled.code == 0, distilled.err
    # another policy needs another store
    other = stage("run_distill", *PARTIAL, *options, "active.share=0.3")
    assert other.code == 2 and "manifest.json" in other.error_line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("active=teacher_confidence",),
            "expected [distill]: teacher_confidence looks at the teacher's rows",
        ),
        (("active=entropy",), "which has no SASRec, and no baseline"),
        (("active=random", "active.refresh_every=1"), "expected null, or use=[distill]"),
        (("active=random", "active.use=[teacher_train]"), "expected teacher.kind=ilora"),
        (("active=random", "active.use=[distill,distill]"), "each once"),
        (("active=random", "active.use=[distil]"), "expected one of teacher_train, export, distill"),
        (("active=random", "teacher.export.train_share=0.5"), "expected 1.0: active chooses"),
        (("active=random", "active.share=null", "active.count=1000000"), "active.count=1000000; expected <="),
    ],
)
def test_policies_that_cannot_choose_before_the_export(
    stage: Stage, options: tuple[str, ...], message: str
) -> None:
    ended = stage("run_teacher", *PARTIAL, "teacher=knn", *options)
    assert ended.code == 2 and message in ended.error_line


def test_a_policy_that_looks_at_a_student_once_gets_the_encoder(stage: Stage) -> None:
    """`active=diversity` as shipped: the student of the distillation knows nothing yet."""
    teacher = (*TINY, "teacher=sasrec", "teacher.encoder.max_epochs=1", "active=diversity")
    assert stage("run_teacher", *teacher).code == 0
    distilled = stage("run_distill", *teacher)
    assert distilled.code == 0, distilled.err
    assert list((data_root() / "selections").glob("*/*/sample_ids.npy"))


def test_without_an_encoder_the_baseline_is_asked(stage: Stage) -> None:
    knn = (*TINY, "teacher=knn", "active=loss")
    assert stage("run_teacher", *knn).code == 0
    refused = stage("run_distill", *knn)
    assert refused.code == 2 and "no baseline" in refused.error_line
    assert stage("run_student_baseline", *TINY).code == 0
    distilled = stage("run_distill", *knn)
    assert distilled.code == 0, distilled.err


def test_a_student_of_another_dataset_is_not_asked(stage: Stage) -> None:
    """As many items, other interactions: its scores would be about other items."""
    assert (other := stage("run_student_baseline", *TINY, "dataset.demo.seed=8")).code == 0
    ended = stage("run_teacher", *PARTIAL, "teacher=knn", "active=loss", f"active.student={other.folder}")
    assert ended.code == 2 and "models/student: dataset_fingerprint is" in ended.error_line


@pytest.mark.parametrize(
    ("weights", "changes", "message"),
    [
        (0.0, {}, "weights 0.0..0.0; expected finite weights > 0"),
        (-1.0, {}, "weights -1.0..-1.0; expected finite weights > 0"),
        (1.0, {"dataset_fingerprint": "other"}, "dataset_fingerprint is 'other'"),
    ],
)
def test_a_selection_that_cannot_be_is_refused(
    stage: Stage, weights: float, changes: dict, message: str
) -> None:
    options = (*PARTIAL, "teacher=knn", "active=random")
    assert stage("run_teacher", *options).code == 0
    (folder,) = (f.parent for f in (data_root() / "selections").glob("*/*/sample_ids.npy"))
    ids, fields = np.load(folder / "sample_ids.npy"), read_json(folder / "manifest.json")
    shutil.rmtree(folder)
    selection = Selection(ids, np.full(len(ids), weights, np.float32))
    write_selection(folder, selection, {"dataset_fingerprint": fields["dataset_fingerprint"], **changes})
    ended = stage("run_distill", *options)
    assert ended.code == 2 and message in ended.error_line


@pytest.mark.parametrize("count", [0, 40])
def test_the_llm_is_trained_on_the_selection(stage: Stage, count: int) -> None:
    """0 is an untrained teacher; the encoder learns from all samples either way."""
    options = ("active=random", "active.use=[teacher_train]", "active.share=null", f"active.count={count}")
    made = stage("run_teacher", *TINY, *options)
    assert made.code == 0, made.err
    (teacher,) = (data_root() / "models").glob("*/teacher/*/manifest.json")
    assert read_json(teacher)["training"]["train_samples"] == count
    (store,) = (
        m for m in (data_root() / "teacher_outputs").rglob("manifest.json") if "quality" not in str(m)
    )
    assert read_json(store)["n_samples"]["train"] == read_json(store)["n_train_split"]
