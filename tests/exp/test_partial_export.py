"""`teacher.export.samples=active`: the teacher ranks what the policy selects, distillation masks the rest."""

from __future__ import annotations

import numpy as np
import pytest

from src.core.artifacts import read_json
from src.core.paths import data_root
from tests.exp.conftest import TINY, Stage

PARTIAL = (*TINY, "teacher.export.samples=active", "teacher.export.top_k=20", "active.share=0.4")


@pytest.mark.parametrize(
    "options",
    [
        ("teacher=knn", "active=random"),
        (
            "teacher=sasrec",
            "teacher.encoder.max_epochs=1",
            "active=student_uncertainty",
            "active.refresh_every=null",
        ),
    ],
)
def test_only_selected_samples_are_ranked_and_distilled(stage: Stage, options: tuple[str, ...]) -> None:
    teacher = stage("run_teacher", *PARTIAL, *options)
    assert teacher.code == 0, teacher.err
    (store,) = (
        m.parent for m in (data_root() / "teacher_outputs").rglob("manifest.json") if "quality" not in str(m)
    )
    (selection,) = (data_root() / "work" / "selection").glob("*/sample_ids.npy")
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
        (("active=teacher_confidence",), "a policy that does not need the teacher's rows"),
        (("active=student_uncertainty", "active.refresh_every=null"), "which has no SASRec"),
        (("active=random", "active.refresh_every=1"), "null for a selection that the export can use"),
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
    assert list((data_root() / "work" / "selection").glob("*/sample_ids.npy"))
    assert stage("run_teacher", *TINY, "teacher=knn").code == 0
    refused = stage("run_distill", *TINY, "teacher=knn", "active=diversity")
    assert refused.code == 2 and "which has no SASRec" in refused.error_line
