"""Students by configuration."""

from __future__ import annotations

import torch

from src.core.errors import UserError
from src.student.architectures import Caser, GRU4Rec, ItemTables, SASRec, SASRecDLLM2Rec, Student
from src.student.config import StudentConfig


def build_student(config: StudentConfig, n_items: int, max_history: int) -> Student:
    """A student with fresh weights (from PyTorch's global generator: seed it first).

    Args:
        n_items: catalogue size N.
        max_history: most items of a history, L.
    """
    c = config
    if c.architecture == "sasrec":
        student = SASRec(n_items, max_history, c.width, c.blocks, c.heads, c.dropout, c.tie_output)
    elif c.architecture == "sasrec_dllm2rec":
        student = SASRecDLLM2Rec(n_items, max_history, c.width, c.dropout, c.tie_output)
    elif c.architecture == "gru4rec":
        student = GRU4Rec(n_items, max_history, c.width, c.blocks, c.dropout, c.tie_output)
    else:
        official = c.architecture == "caser_dllm2rec"
        student = Caser(n_items, max_history, c.width, c.dropout, official)
    if c.learn_repeats:
        student.learn_repeats()
    return student


def device_of(name: str) -> torch.device:
    """The device that `student.device` names.

    Raises:
        UserError: cuda is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("student.device=cuda and no CUDA device", "auto or cpu", "student.device")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


@torch.no_grad()
def fold_item_tables(student: Student, tables: ItemTables) -> None:
    """Make `tables` the student's own: serving needs nothing of what made them, and the scores stay."""
    own = student.tables()
    own.inputs.copy_(tables.inputs)
    own.inputs[0] = 0
    if student.output is not None:
        own.outputs.copy_(tables.outputs)
    own.bias.copy_(tables.bias)
