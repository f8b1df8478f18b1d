"""Stage 2: train the student without a teacher. `python -m src.exp.run_student_baseline [overrides]`"""

import sys


def main() -> None:
    from src.exp.usage import show_help

    if show_help("student_baseline"):
        return
    from src.exp.cli import run_stage

    run_stage("student_baseline")


if __name__ == "__main__":
    if not __package__:
        sys.stderr.write(
            "error: found a file, expected a module: python -m src.exp.run_student_baseline, in the repository\n"
        )
        sys.exit(2)
    from src.core.signals import end_quietly_on_signals

    end_quietly_on_signals()  # before the imports that take time
    main()
