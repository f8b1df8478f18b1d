"""Stage 3: train the student with the teacher's outputs. `python -m src.exp.run_distill [overrides]`"""

from __future__ import annotations

from typing import TYPE_CHECKING

from src.exp.cli import run_stage

if TYPE_CHECKING:
    from src.core.run import Run
    from src.exp.settings import Settings


def work(settings: Settings, run: Run) -> float | None:
    from src.core.artifacts import fingerprint
    from src.core.candidates import load_candidates
    from src.core.data_utils import load_dataset
    from src.core.teacher_store import TeacherStore
    from src.distill.trainer_distill import train_distilled
    from src.exp.results import done_before, record_student, store_note, training_folder
    from src.exp.select import selected_samples

    if done_before(settings, run, settings.distill_fp):
        return None
    data = load_dataset(settings.dataset)
    candidates = load_candidates(settings.eval.candidates, data)
    store = TeacherStore(settings.teacher_dir, data.fingerprint)
    with training_folder(run) as folder:
        student, result = train_distilled(
            settings.student,
            settings.distill,
            settings.active,
            data,
            store,
            settings.eval,
            seed=settings.seed,
            folder=folder,
            # A store exported anew may come from a teacher trained anew: no checkpoint mixes the two.
            fingerprint=f"{settings.distill_fp}/{fingerprint(store.manifest.get('weights'))}",
            run=run,
            selection=selected_samples(settings, data),
        )
        run.write_times(distill_student_train_time=result.seconds)
        fields = {"store": str(store.folder), "note": store_note(store, data)}
        fields["control"] = settings.distill.control
        return record_student(run, data, settings, student, result, candidates, **fields)


def main() -> None:
    run_stage("distill", work)


if __name__ == "__main__":
    main()
