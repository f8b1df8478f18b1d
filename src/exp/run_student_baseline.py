"""Stage 2: train the student without a teacher. `python -m src.exp.run_student_baseline [overrides]`"""

from __future__ import annotations

from typing import TYPE_CHECKING

from src.exp.cli import run_stage

if TYPE_CHECKING:
    from src.core.run import Run
    from src.exp.settings import Settings


def work(settings: Settings, run: Run) -> float | None:
    from src.exp import stages

    return stages.student_baseline(settings, run)


def main() -> None:
    run_stage("student_baseline", work)


if __name__ == "__main__":
    main()
