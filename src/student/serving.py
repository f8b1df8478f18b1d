"""A trained student in use: raw item ids of histories in, the best catalogue items out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence

from src.core.artifacts import read_object
from src.core.errors import UserError
from src.student.architectures import Student
from src.student.checkpoint import load_student_model
from src.student.item_search import ANNSearch, FloatSearch, Int8Search
from src.student.models import device_of

SEARCHES = {"float32": FloatSearch, "int8": Int8Search, "ann": ANNSearch}
"""Ways through the catalogue: `float32` and `int8` are exact, `ann` is approximate (item_search.py)."""


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
        search: out of SEARCHES; all but float32 need a student on the CPU.
    """

    def __init__(
        self, student: Student, raw_ids: Sequence[str], titles: Sequence[str], search: str = "float32"
    ):
        self.student, self.raw_ids, self.titles = student, list(raw_ids), list(titles)
        self._item_of = {raw_id: item for item, raw_id in enumerate(self.raw_ids, start=1)}
        self._device = next(student.parameters()).device
        if search not in SEARCHES:
            raise UserError(f"search={search}", f"one of {', '.join(SEARCHES)}", "search")
        if search != "float32" and self._device.type != "cpu":
            raise UserError(f"search={search} on {self._device}", "float32, or device=cpu", "search")
        _, vectors, bias = student.tables()
        self._search = SEARCHES[search](vectors.detach(), bias.detach())
        # Histories at once: the scores [B, N] of more would fall out of the caches.
        self._batch = max(16, min(256, 2**22 // student.n_items))

    def recommend(
        self, history: Sequence[str | int], k: int = 10, exclude_history: bool = False
    ) -> list[Recommendation]:
        """The k best items after `history`, best first; arguments as in `recommend_many`."""
        return self.recommend_many([history], k, exclude_history)[0]

    @torch.inference_mode()
    def recommend_many(
        self, histories: Sequence[Sequence[str | int]], k: int = 10, exclude_history: bool = False
    ) -> list[list[Recommendation]]:
        """The k best items after each history, best first.

        Args:
            histories: raw item ids, oldest first; the newest `max_history` of each are used.
            k: length of the rankings.
            exclude_history: leave out every item of the history (the convention of `eval.exclude_history`).

        Raises:
            UserError: an empty history, an unknown raw id, or a k that the catalogue cannot fill.
        """
        known = [[self._item(raw_id) for raw_id in history] for history in histories]
        for items in known:
            if not items:
                raise UserError("an empty history", "at least one raw item id", "the history")
            left = len(self.raw_ids) - (len(set(items)) if exclude_history else 0)
            if not 1 <= k <= left:
                raise UserError(f"k={k}", f"1..{left}, the items that can be recommended", "k")
        out = []
        for start in range(0, len(known), self._batch):
            out += self._rank(known[start : start + self._batch], k, exclude_history)
        return out

    def _rank(self, histories: list[list[int]], k: int, exclude_history: bool) -> list[list[Recommendation]]:
        """Without the history's own items the score is a product of vectors, which the search ranks; those items,
        to which a student may add (`learn_repeats`), are scored beside what it finds."""
        newest = [torch.tensor(items[-self.student.max_history :]) for items in histories]
        history = pad_sequence(newest, batch_first=True, padding_side="left").to(self._device)
        own = [torch.tensor(sorted(set(items))) for items in histories]
        seen = pad_sequence(own, batch_first=True).to(self._device)
        hidden = self.student.encode(history)
        found = self._search.best(hidden, min(k + seen.shape[1], len(self.raw_ids))) + 1
        unusable = (found.unsqueeze(2) == seen.unsqueeze(1)).any(2) | (found == 0)
        items = torch.cat([found, seen], dim=1).clamp(min=1)
        scores = self.student.score_items(hidden, items, None, history)
        unusable = torch.cat([unusable, (seen == 0) | exclude_history], dim=1)
        values, places = scores.masked_fill(unusable, float("-inf")).topk(k)
        return [
            [Recommendation(self.raw_ids[i - 1], self.titles[i - 1], s) for i, s in zip(*row, strict=True)]
            for row in zip(items.gather(1, places).tolist(), values.tolist(), strict=True)
        ]

    def _item(self, raw_id: str | int) -> int:
        item = self._item_of.get(str(raw_id))
        if item is None:
            raise UserError(f"unknown item {raw_id!r}", "a raw item id of the catalogue", "the history")
        return item


def load_student(folder: Path | str, device: str = "cpu", search: str = "float32") -> StudentRecommender:
    """The recommender in a folder that `checkpoint.save_student` wrote.

    Args:
        search: how the catalogue is searched, out of SEARCHES.

    Raises:
        UserError: not a complete folder, one that was changed, or a search that is not to be had here.
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
    return StudentRecommender(student, catalogue["raw_ids"], catalogue["titles"], search)
