"""A trained student as an ONNX file: `python -m src.exp.export_onnx run=result/... [out=FOLDER]`

run=FOLDER   a run of run_student_baseline or run_distill
out=FOLDER   a new folder for student.onnx and catalogue.json; without it `onnx` in the run's folder

The model reads `history` [B, L] int64: item numbers from 1, newest last, padded on the left with 0; L is printed. It
gives `scores` [B, N]; column c belongs to raw_ids[c] of catalogue.json, whose item number is c + 1.
Needs `poetry install --with onnx`.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from src.core.artifacts import artifact_folder, write_manifest
from src.core.errors import UserError
from src.exp.recommend import command, key_values, student_run

_KEYS = ("run", "out")


def export(arguments: list[str]) -> str:
    """Write the folder; returns a line about it.

    Raises:
        UserError: not a student's run, a folder that is there already, or scores that differ.
    """
    values = key_values(arguments, _KEYS)
    if "run" not in values:
        raise UserError(" ".join(arguments) or "no arguments", "run=FOLDER", "the arguments")
    run = student_run(values["run"])
    out = Path(values.get("out", run.folder / "onnx"))
    if out.exists():
        raise UserError(f"{out} exists", "a new folder", "out")
    from src.student.checkpoint import load_student_model
    from src.student.onnx_export import write_onnx

    saved = run.folder / "models" / "student"
    student, _ = load_student_model(saved)
    with artifact_folder(out) as tmp:
        difference = write_onnx(student, tmp / "student.onnx")
        shutil.copyfile(saved / "catalogue.json", tmp / "catalogue.json")
        write_manifest(tmp, {"run": run.folder.name, "fingerprint": run.fingerprint})
    return (
        f"{out / 'student.onnx'}: history [B, {student.max_history}] -> scores [B, {student.n_items}]; "
        f"largest difference to PyTorch {difference:.1e} of the largest score\n"
    )


def main(arguments: list[str] | None = None) -> int:
    return command(__doc__, export, arguments)


if __name__ == "__main__":
    sys.exit(main())
