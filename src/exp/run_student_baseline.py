"""Stage 2: train the student without a teacher. `python -m src.exp.run_student_baseline [overrides]`"""

from __future__ import annotations

from typing import TYPE_CHECKING

from src.exp.cli import run_stage

if TYPE_CHECKING:
    from src.core.run import Run
    from src.exp.settings import Settings


def work(settings: Settings, run: Run) -> float | None:
    from src.core.candidates import load_candidates
    from src.core.data_utils import load_dataset
    from src.exp.results import done_before, record_student, training_folder
    from src.student.trainer_baseline import train_student

    if done_before(settings, run, settings.baseline_fp):
        return None
    data = load_dataset(settings.dataset)
    candidates = load_candidates(settings.eval.candidates, data)
    with training_folder(run) as folder:
        student, result = train_student(
            settings.student,
            data,
            settings.eval,
            seed=settings.seed,
            folder=folder,
            fingerprint=settings.baseline_fp,
            run=run,
        )
        run.write_times(student_baseline_train_time=result.seconds)
        return record_student(run, data, settings, student, result, candidates)


def main() -> None:
    run_stage("student_baseline", work)


if __name__ == "__main__":
    main()
