"""What several stages share, without the stages: `python -m src.exp.run_part PART [overrides]`

PART is `dataset`, `encoder` (the teacher's frozen SASRec), `llm` (the embedded one), or `training` (of the teacher,
without its export).
"""

import sys

PARTS = ("dataset", "encoder", "llm", "training")


def main() -> None:
    from src.exp.cli import launch

    part = sys.argv[1] if len(sys.argv) > 1 else None
    if part not in PARTS:
        sys.stderr.write(f"error: found {part}, expected one of {', '.join(PARTS)}\n")
        sys.exit(2)
    sys.exit(launch(part, sys.argv[2:], f"python -m src.exp.run_part {part}"))


if __name__ == "__main__":
    from src.core.signals import end_quietly_on_signals

    end_quietly_on_signals()  # before the imports that take time
    main()
