"""A trained student as an ONNX file, which serves without PyTorch."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from src.core.artifacts import writing
from src.core.errors import UserError
from src.student.architectures import Student

TOLERANCE = 1e-4  # of a score, relative to the largest: the order of additions differs


def write_onnx(student: Student, path: Path) -> float:
    """Write `student`, in eval mode and on the CPU, and compare onnxruntime's scores with its own.

    The model's input is `history` [B, max_history] int64, newest item last, padded on the left with 0; its output
    `scores` [B, N] float32, column c for item c + 1.

    Returns:
        the largest difference of a score, relative to the largest score.

    Raises:
        UserError: onnx or onnxruntime is not installed, or the scores differ by more than TOLERANCE.
    """
    try:
        import onnx  # noqa: F401 (torch needs it)
        import onnxruntime
    except ImportError as e:
        raise UserError(str(e), "poetry install --with onnx", "the environment") from None
    shape = (3, student.max_history)
    histories = torch.randint(1, student.n_items + 1, shape, generator=torch.Generator().manual_seed(0))
    histories[1, : student.max_history // 2] = histories[2, :-1] = 0  # shorter ones; the last has one item
    with writing(path) as tmp:
        with (
            warnings.catch_warnings()
        ):  # the exporter of the locked torch that needs no onnxscript is called old
            warnings.simplefilter("ignore")
            torch.onnx.export(
                student,
                (histories[:2],),
                tmp,
                input_names=["history"],
                output_names=["scores"],
                dynamic_axes={"history": {0: "batch"}, "scores": {0: "batch"}},
                opset_version=17,
                dynamo=False,
            )
        session = onnxruntime.InferenceSession(tmp, providers=["CPUExecutionProvider"])
        found = torch.from_numpy(session.run(None, {"history": histories.numpy()})[0])
        with torch.inference_mode():
            own = student(histories)
        difference = float((found - own).abs().max() / own.abs().max())
        if not difference <= TOLERANCE:
            raise UserError(f"scores of {path} differ by {difference:.1e}", f"<= {TOLERANCE}", "the student")
    return difference
