"""Stage 1: train the teacher and fill the teacher-output store. `python -m src.exp.run_teacher [overrides]`"""

import sys


def main() -> None:
    from src.exp.usage import show_help

    if show_help("teacher"):
        return
    from src.exp.cli import run_stage

    run_stage("teacher")


if __name__ == "__main__":
    if not __package__:
        sys.stderr.write(
            "error: found a file, expected a module: python -m src.exp.run_teacher, in the repository\n"
        )
        sys.exit(2)
    from src.core.signals import end_quietly_on_signals

    end_quietly_on_signals()  # before the imports that take time
    main()
