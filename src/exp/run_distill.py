"""Stage 3: train the student with the teacher's outputs. `python -m src.exp.run_distill [overrides]`"""

import sys


def main() -> None:
    from src.exp.usage import show_help

    if show_help("distill"):
        return
    from src.exp.cli import run_stage

    run_stage("distill")


if __name__ == "__main__":
    if not __package__:
        sys.stderr.write(
            "error: found a file, expected a module: python -m src.exp.run_distill, in the repository\n"
        )
        sys.exit(2)
    from src.core.signals import end_quietly_on_signals

    end_quietly_on_signals()  # before the imports that take time
    main()
