"""A trained student in use: raw item ids of a history in, the best catalogue items out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from src.core.artifacts import read_object
from src.core.errors import UserError
from src.student.architectures import Student
from src.student.checkpoint import load_student_model
from src.student.models import device_of


@dataclass(frozen=True)
class Recommendation:
    """One item of a ranking."""

    raw_id: str
    title: str
    score: float


class StudentRecommender:
    """Ranks the catalogue for histories of raw item ids; made by `load_student`.

    Args:
        student: in eval mode.
        raw_ids, titles: [N] of items 1..N.
    """

    def __init__(self, student: Student, raw_ids: Sequence[str], titles: Sequence[str]):
        self.student, self.raw_ids, self.titles = student, list(raw_ids), list(titles)
        self._item_of = {raw_id: item for item, raw_id in enumerate(self.raw_ids, start=1)}
        self._device = next(student.parameters()).device

    @torch.inference_mode()
    def recommend(
        self, history: Sequence[str | int], k: int = 10, exclude_history: bool = False
    ) -> list[Recommendation]:
        """The k best items after `history`, best first.

        Args:
            history: raw item ids, oldest first; the newest `max_history` are used.
            k: length of the ranking.
            exclude_history: leave out every item of `history` (the convention of `eval.exclude_history`).

        Raises:
            UserError: an empty history, an unknown raw id, or a k that the catalogue cannot fill.
        """
        items = [self._item(raw_id) for raw_id in history]
        if not items:
            raise UserError("an empty history", "at least one raw item id", "the history")
        left = len(self.raw_ids) - (len(set(items)) if exclude_history else 0)
        if not 1 <= k <= left:
            raise UserError(f"k={k}", f"1..{left}, the items that can be recommended", "k")
        newest = items[-self.student.max_history :]
        scores = self.student(torch.tensor([newest], device=self._device))[0]
        if exclude_history:
            scores[torch.tensor(items, device=self._device) - 1] = float("-inf")
        values, columns = scores.topk(k)
        return [
            Recommendation(self.raw_ids[c], self.titles[c], s)
            for c, s in zip(columns.tolist(), values.tolist(), strict=True)
        ]

    def _item(self, raw_id: str | int) -> int:
        item = self._item_of.get(str(raw_id))
        if item is None:
            raise UserError(f"unknown item {raw_id!r}", "a raw item id of the catalogue", "the history")
        return item


def load_student(folder: Path | str, device: str = "cpu") -> StudentRecommender:
    """The recommender in a folder that `checkpoint.save_student` wrote.

    Raises:
        UserError: not a complete folder, or one that was changed.
    """
    folder = Path(folder)
    student, _ = load_student_model(folder, device_of(device))
    file = folder / "catalogue.json"
    catalogue = read_object(file)
    for key in ("raw_ids", "titles"):
        values = catalogue.get(key)
        if not isinstance(values, list) or len(values) != student.n_items:
            raise UserError(
                f"{file} lists no {key} of {student.n_items} items", "one per item", f"train {folder} again"
            )
    return StudentRecommender(student, catalogue["raw_ids"], catalogue["titles"])
