"""Which training samples teach, and with which weights: the interface of all strategies (`conf/active`).

A strategy is one class in `src/distill/strategies/` with `@register("name")`, its settings as a nested `Options`,
and one file `conf/active/<name>.yaml` (docs/specification/09_selection.md has a worked example).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from src.core.config import build_or_raise, config_group
from src.core.errors import UserError
from src.core.seed import numpy_stream
from src.core.selection import Selection, chunks
from src.core.teacher_store import TeacherRows, locate
from src.distill.config import ActiveConfig


class Scorer(Protocol):
    """What a strategy may ask a student (`scoring.StudentScorer`)."""

    def vectors(self, sample_ids: np.ndarray) -> np.ndarray:
        """[n, D] float32 sequence vectors."""

    def measure(self, sample_ids: np.ndarray, name: str) -> np.ndarray:
        """[n] float32, one number per sample; `name` is one of `scoring.MEASURES`."""

    def gradients(self, sample_ids: np.ndarray) -> np.ndarray:
        """[n, D] float32 gradients of the loss of the student's own best item, at the sequence vector."""

    def log_probabilities(self, sample_ids: np.ndarray, items: np.ndarray) -> np.ndarray:
        """[n, K] float32 log-probabilities of `items` [n, K] over the catalogue."""


@dataclass(frozen=True)
class SelectionContext:
    """What there is to choose from, and to choose by.

    Attributes:
        sample_ids: [n] int64 ascending, the samples that may be selected.
        targets: [n] their target items.
        item_counts: [N+1] how often each item is a training target.
        seed: of the selection.
        users: [n] the user of each sample.
        histories: sample ids -> [m, L] item ids, 0 is padding.
        title_vectors: () -> [N+1, D] vectors of the titles, row 0 zeros.
        teacher: sample ids -> the teacher's rows; None before the export.
        score_kind: of those rows.
        scorer: a student (offline: the frozen encoder or a finished run); None where there is none.
    """

    sample_ids: np.ndarray
    targets: np.ndarray
    item_counts: np.ndarray
    seed: int
    users: np.ndarray | None = None
    histories: Callable[[np.ndarray], np.ndarray] | None = None
    title_vectors: Callable[[], np.ndarray] | None = None
    teacher: Callable[[np.ndarray], TeacherRows] | None = None
    score_kind: str | None = None
    scorer: Scorer | None = None

    def __len__(self) -> int:
        return len(self.sample_ids)


@config_group
class NoOptions:
    """A strategy without settings of its own."""


class SelectionPolicy:
    """Base of all strategies: exact counts, deterministic by seed, never an array of samples x items.

    Attributes:
        Options: settings below `active.options`.
        subset: whether it takes `share` or `count`.
        refreshable: whether a later epoch may select differently.
        needs: what it looks at: `student`, `teacher`. A refreshed strategy looks at the student in training, which
            knows nothing before the first epoch: that first selection is random.
        online: it learns from the epochs' losses, so it selects nothing but by chance before training.
        memory: [n] float32 that `update` writes and `choose` reads; checkpoints carry it.
    """

    Options: ClassVar[type] = NoOptions
    subset: ClassVar[bool] = True
    refreshable: ClassVar[bool] = False
    online: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, config: ActiveConfig, context: SelectionContext):
        self.config, self.context = config, context
        self.options: Any = build_or_raise(self.Options, config.options, "active.options")
        n = len(context)
        if config.count is not None and config.count > n:
            raise UserError(f"active.count={config.count}", f"<= {n} samples to choose from", "active.count")
        self.count = n if config.share is None else _rounded(config.share * n)
        if config.count is not None:
            self.count = config.count
        self.memory = np.full(n, np.nan, np.float32)

    def due(self, epoch: int) -> bool:
        """Whether to select before `epoch` (0-based): at the first, then every `refresh_every` epochs."""
        return epoch == 0 or bool(self.config.refresh_every and epoch % self.config.refresh_every == 0)

    def select(self, epoch: int) -> Selection:
        """The selection for `epoch` and those after it; a pure function of context, epoch and memory.

        `active.ratio` of the samples are the strategy's, the others are drawn from the rest.
        """
        blind = epoch == 0 and (
            self.online or ("student" in self.needs and self.config.refresh_every is not None)
        )
        own = 0 if blind else _rounded(self.config.ratio * self.count)
        chosen, score = (
            self.choose(epoch, own) if own else (np.empty(0, np.int64), np.ones(len(self.context)))
        )
        others = np.setdiff1d(np.arange(len(self.context)), chosen)
        drawn = self.stream(epoch, "mixed").permutation(others)[: self.count - len(chosen)]
        chosen = np.sort(np.concatenate([chosen, drawn]))
        if len(chosen) != self.count:
            raise RuntimeError(f"{self.config.policy} chose {len(chosen)} samples instead of {self.count}")
        weights = np.ones(len(chosen))
        if self.config.weighted and len(chosen):
            weights = np.maximum(np.asarray(score, np.float64)[chosen], 1e-6)
            weights /= weights.mean()
        return Selection(self.context.sample_ids[chosen].astype(np.int64), weights.astype(np.float32))

    def choose(self, epoch: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions [count] in `context.sample_ids`, the best first, and a score > 0 for all [n] samples."""
        raise NotImplementedError

    def update(self, epoch: int, sample_ids: np.ndarray, losses: np.ndarray) -> None:
        """The recommendation losses [m] of the samples seen in `epoch` (each at most once)."""

    def positions(self, sample_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the samples among `context.sample_ids`, and which of them stand there at all."""
        return locate(self.context.sample_ids, sample_ids)

    def stream(self, epoch: int, use: str = "choice") -> np.random.Generator:
        return numpy_stream(self.context.seed, "selection", self.config.policy, use, epoch)

    def need(self, name: str, expected: str) -> Any:
        """What the strategy looks at; UserError where it is not there."""
        if (value := getattr(self.context, name)) is None:
            raise UserError(f"active.policy={self.config.policy} without {name}", expected, "active.policy")
        return value

    def student(self) -> Scorer:
        return self.need("scorer", "a trained student (active.student, or a teacher with a frozen encoder)")

    def teacher_rows(self) -> Iterator[TeacherRows]:
        """The rows of all samples, some at a time."""
        rows_of = self.need("teacher", "the rows of an export (active.use=[distill])")
        return (rows_of(self.context.sample_ids[chunk]) for chunk in chunks(len(self.context)))


class ScoredPolicy(SelectionPolicy):
    """A strategy that takes the samples of the largest scores; equal scores are drawn by chance."""

    def scores(self) -> np.ndarray:
        """[n], larger is taken first."""
        raise NotImplementedError

    def choose(self, epoch: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        scores = np.asarray(self.scores(), np.float64)
        if not np.isfinite(scores).all():
            raise UserError(
                f"active.policy={self.config.policy}: a score is not finite", "a usable student or teacher"
            )
        return largest(scores, count, self.stream(epoch)), scores - scores.min() + 1e-3


POLICIES: dict[str, type[SelectionPolicy]] = {}


def register(name: str) -> Callable[[type[SelectionPolicy]], type[SelectionPolicy]]:
    def add(cls: type[SelectionPolicy]) -> type[SelectionPolicy]:
        POLICIES[name] = cls
        return cls

    return add


def largest(score: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Positions of the `count` largest scores, largest first; ties by chance (sample order has a meaning: one
    user after the other)."""
    count = min(count, len(score))
    if count == 0:
        return np.empty(0, np.int64)
    ties = rng.random(len(score))
    among = np.flatnonzero(score >= np.partition(score, -count)[-count])  # only these need an order
    return among[np.lexsort((ties[among], -score[among]))[:count]]


def _rounded(x: float) -> int:
    return int(x + 0.5)  # round() would take 2.5 to 2
