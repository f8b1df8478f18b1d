"""Which training samples are distilled, and with which weights (`conf/active`).

To add a policy: write one class here (or anywhere imported by then) with `@register("name")`, its settings as
a nested `Options` dataclass, and one file `conf/active/<name>.yaml`. It gets the samples to choose from, what
it asks for lazily (teacher rows, student vectors, uncertainties), and after each epoch the samples' losses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from src.core.config import build, build_or_raise, config_group, did_you_mean, setting
from src.core.errors import UserError
from src.core.seed import derive, numpy_stream
from src.core.selection import Selection
from src.core.teacher_store import TeacherRows, locate
from src.distill.config import ActiveConfig

MEASURES = ("entropy", "margin", "least_confidence", "loss")


class Scorer(Protocol):
    """What a policy may ask a student (src/distill/scoring.py has one)."""

    def vectors(self, sample_ids: np.ndarray) -> np.ndarray:
        """[n, H] float32 sequence vectors."""

    def uncertainty(self, sample_ids: np.ndarray, measure: str) -> np.ndarray:
        """[n] float32, larger is less sure; `measure` is one of MEASURES."""


@dataclass(frozen=True)
class SelectionContext:
    """What there is to choose from, and to choose by.

    Attributes:
        sample_ids: [n] int64 ascending, the samples that may be selected.
        targets: [n] their target items.
        item_counts: [N+1] how often each item is a training target.
        seed: of the run.
        teacher: sample ids -> the teacher's rows; None before the export.
        score_kind: of those rows.
        scorer: a student (offline: the trained baseline or the teacher's encoder); None where there is none.
    """

    sample_ids: np.ndarray
    targets: np.ndarray
    item_counts: np.ndarray
    seed: int
    teacher: Callable[[np.ndarray], TeacherRows] | None = None
    score_kind: str | None = None
    scorer: Scorer | None = None


@config_group
class NoOptions:
    """A policy without settings of its own."""


class SelectionPolicy:
    """Base of all policies: exact counts, deterministic, one float per sample of memory.

    Attributes:
        Options: dataclass of the settings below `active.options`.
        subset: whether it takes `share` or `count`.
        refreshable: whether a later epoch may select differently.
        by_student: whether it looks at the student. One that is refreshed looks at the student in
            training, which knows nothing before the first epoch: that selection is drawn by chance.
        memory: [n] float32 that `update` may write and `choose` read; checkpoints carry it.
    """

    Options: ClassVar[type] = NoOptions
    subset: ClassVar[bool] = True
    refreshable: ClassVar[bool] = False
    by_student: ClassVar[bool] = False

    def __init__(self, config: ActiveConfig, context: SelectionContext):
        self.config, self.context = config, context
        self.options: Any = build_or_raise(self.Options, config.options, "active.options")
        n = len(context.sample_ids)
        if config.count is not None and config.count > n:
            raise UserError(f"active.count={config.count}", f"<= {n} samples to choose from", "active.count")
        # Rounded half up by hand: round() would take 2.5 to 2.
        self.count = config.count or (n if config.share is None else max(1, int(config.share * n + 0.5)))
        self.memory = np.full(n, np.nan, np.float32)

    def due(self, epoch: int) -> bool:
        """Whether to select before `epoch` (0-based): at the first, then every `refresh_every` epochs."""
        return epoch == 0 or bool(self.config.refresh_every and epoch % self.config.refresh_every == 0)

    def select(self, epoch: int) -> Selection:
        """The selection for `epoch` and those after it; a pure function of context, epoch and memory."""
        blind = self.by_student and self.config.refresh_every is not None and epoch == 0
        chosen, score = self.draw(epoch) if blind else self.choose(epoch)
        chosen = np.sort(chosen)
        if len(chosen) != self.count or len(np.unique(chosen)) != self.count:
            raise RuntimeError(f"{self.config.policy} chose {len(chosen)} samples instead of {self.count}")
        weights = np.ones(len(chosen))
        if self.config.weighted:
            weights = np.maximum(np.asarray(score, np.float64)[chosen], 1e-6)
        return Selection(
            self.context.sample_ids[chosen].astype(np.int64), (weights / weights.mean()).astype(np.float32)
        )

    def choose(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions [count] in `context.sample_ids`, in any order, and a score > 0 for all [n] samples."""
        raise NotImplementedError

    def draw(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Uniform without replacement."""
        n = len(self.context.sample_ids)
        return self.stream(epoch).permutation(n)[: self.count], np.ones(n)

    def update(self, epoch: int, sample_ids: np.ndarray, losses: np.ndarray) -> None:
        """The recommendation losses [m] of the samples seen in `epoch` (each at most once)."""

    def stream(self, epoch: int) -> np.random.Generator:
        return numpy_stream(self.context.seed, "selection", self.config.policy, epoch)

    def need(self, name: str, where: str) -> Any:
        value = getattr(self.context, name)
        if value is None:
            raise UserError(f"active.policy={self.config.policy} has no {name}", where, "active.policy")
        return value


POLICIES: dict[str, type[SelectionPolicy]] = {}


def register(name: str) -> Callable[[type[SelectionPolicy]], type[SelectionPolicy]]:
    def add(cls: type[SelectionPolicy]) -> type[SelectionPolicy]:
        POLICIES[name] = cls
        return cls

    return add


def active_problems(config: ActiveConfig) -> list[str]:
    """What contradicts the chosen policy, as lines of a ConfigError."""
    policy = POLICIES.get(config.policy)
    if policy is None:
        close = did_you_mean(config.policy, POLICIES)
        return [f"active: policy: found {config.policy!r}, expected one of {', '.join(POLICIES)}{close}"]
    out: list[str] = []
    given = [name for name in ("share", "count") if getattr(config, name) is not None]
    if len(given) != (1 if policy.subset else 0):
        wanted = "exactly one of share, count" if policy.subset else "neither share nor count"
        out.append(f"active: share, count: found {' and '.join(given) or 'neither'}, expected {wanted}")
    if config.refresh_every is not None and not policy.refreshable:
        out.append(
            f"active: refresh_every: found {config.refresh_every}, expected null: {config.policy} never changes"
        )
    if config.weighted and config.policy in ("all", "random"):
        out.append(
            f"active: weighted: found true, expected false: {config.policy} gives every sample one score"
        )
    build(policy.Options, config.options, "active: options", out)
    return out


def largest(score: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Positions of the `count` largest scores; equal scores are drawn by chance (sample order has a
    meaning: one user after the other)."""
    return np.lexsort((rng.random(len(score)), -score))[:count]


@register("all")
class All(SelectionPolicy):
    """Every sample."""

    subset = False

    def choose(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        n = len(self.context.sample_ids)
        return np.arange(n), np.ones(n)


@register("random")
class Random(SelectionPolicy):
    """Uniform without replacement; with `refresh_every` another draw each time."""

    refreshable = True

    def choose(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        return self.draw(epoch)


@register("popularity_inverse")
class PopularityInverse(SelectionPolicy):
    """Without replacement, probability ~ (training count of the target) ** -power (Gumbel top-k)."""

    refreshable = True

    @config_group
    class Options:
        power: float = setting("0 is random, 1 makes every target item equally likely", ge=0)

    def choose(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        counts = np.maximum(self.context.item_counts[self.context.targets], 1).astype(float)
        log_p = -self.options.power * np.log(counts)
        rng = self.stream(epoch)
        return largest(log_p + rng.gumbel(size=len(log_p)), self.count, rng), np.exp(log_p)


@register("teacher_confidence")
class TeacherConfidence(SelectionPolicy):
    """The samples whose true next item the teacher scores best (or worst)."""

    @config_group
    class Options:
        prefer: str = setting("which end of the scale", choices=("confident", "unsure"))

    def choose(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        rows = self.need("teacher", "the rows of an export")(self.context.sample_ids)
        good = rows.target_scores.astype(float) * (-1 if self.context.score_kind == "distance" else 1)
        signed = good if self.options.prefer == "confident" else -good
        # As a weight: the rank, because scores have no common unit (0 the last, 1 the first).
        rank = np.empty(len(signed))
        rank[np.argsort(signed, kind="stable")] = np.arange(1, len(signed) + 1) / len(signed)
        return largest(signed, self.count, self.stream(epoch)), rank


@register("student_uncertainty")
class StudentUncertainty(SelectionPolicy):
    """The samples that the student is least sure of (entropy, margin, least confidence) or loses most on.

    `loss`, when refreshed, takes what the training steps gave, so it costs no pass over the samples;
    everything else scores all of them once per selection.
    """

    refreshable = True
    by_student = True

    @config_group
    class Options:
        measure: str = setting("what uncertainty is", choices=MEASURES)

    def choose(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        if self.options.measure == "loss" and not np.isnan(self.memory).any():
            score = self.memory
        else:
            scorer = self.need("scorer", "a trained student, or active.refresh_every")
            score = scorer.uncertainty(self.context.sample_ids, self.options.measure)
        return largest(score, self.count, self.stream(epoch)), score - score.min() + 1e-3

    def update(self, epoch: int, sample_ids: np.ndarray, losses: np.ndarray) -> None:
        position, found = locate(self.context.sample_ids, sample_ids)
        self.memory[position[found]] = losses[found]


@register("diversity")
class Diversity(SelectionPolicy):
    """Round-robin over k-means clusters of sequence vectors: equally many samples from each, as far as
    they reach, drawn by chance within a cluster."""

    refreshable = True
    by_student = True
    BATCH = 4096

    @config_group
    class Options:
        clusters: int = setting("number of clusters", ge=2)

    def choose(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        from sklearn.cluster import MiniBatchKMeans
        from threadpoolctl import threadpool_limits

        scorer = self.need("scorer", "a trained student, or active.refresh_every")
        vectors = scorer.vectors(self.context.sample_ids)
        rng = self.stream(epoch)
        kmeans = MiniBatchKMeans(
            n_clusters=min(self.options.clusters, len(vectors)),
            batch_size=self.BATCH,
            n_init=1,
            random_state=derive(self.context.seed, "k-means", epoch) % 2**32,
        )
        with threadpool_limits(limits=1):  # several threads add in varying order
            cluster = kmeans.fit_predict(vectors)
        sizes = np.bincount(cluster)
        shuffled = rng.permutation(len(cluster))
        by_cluster = shuffled[np.argsort(cluster[shuffled], kind="stable")]
        turn = np.empty(len(cluster), np.int64)  # the how-manieth of its cluster a sample is
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        turn[by_cluster] = np.arange(len(cluster)) - np.repeat(starts, sizes)
        return largest(-turn.astype(float), self.count, rng), 1.0 / sizes[cluster]


def make_policy(config: ActiveConfig, context: SelectionContext) -> SelectionPolicy:
    """The policy that `active.policy` names.

    Raises:
        UserError: it asks for more samples than there are.
    """
    return POLICIES[config.policy](config, context)
