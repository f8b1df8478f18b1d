"""All stages in one process: teacher, control teacher (knn), baseline, distillation, comparison.

`python -m src.exp.run_all [overrides]`; finished stages are skipped, unless skip_if_done=false says otherwise.
"""

import re
import sys

_OF_A_TEACHER = re.compile(r"[+~]{0,2}teacher([./@=]|$)")


def main() -> int:
    from src.exp.cli import launch

    mine = sys.argv[1:]
    control = ["teacher=knn", *(a for a in mine if not _OF_A_TEACHER.match(a))]
    stages = (
        ("teacher", "teacher", mine),
        ("control teacher (knn)", "teacher", control),
        ("student baseline", "student_baseline", mine),
        ("distillation", "distill", mine),
        ("comparison", "eval_all", mine),
    )
    for number, (title, stage, arguments) in enumerate(stages, 1):
        sys.stderr.write(f"== {number}/{len(stages)} {title}\n")
        # Hydra takes the last value of a key: the user's own skip_if_done wins.
        code = launch(stage, ["skip_if_done=true", *arguments], "bash cmd/run_all.sh")
        if code:
            sys.stderr.write(f"run_all: {title} ended with exit status {code}\n")
            return code
    return 0


if __name__ == "__main__":
    if not __package__:
        sys.stderr.write(
            "error: found a file, expected a module: python -m src.exp.run_all, in the repository\n"
        )
        sys.exit(2)
    from src.core.signals import end_quietly_on_signals

    end_quietly_on_signals()  # before the imports that take time
    sys.exit(main())
