"""Strategies that ask a student: how unsure, how wrong, how strongly pulled it is by a sample."""

from __future__ import annotations

import numpy as np

from src.core.config import config_group, setting
from src.core.seed import derive
from src.core.selection import chunks
from src.distill.selection_policy import ScoredPolicy, SelectionPolicy, largest, register
from src.distill.strategies.geometry import cluster_turns

_STUDENT = frozenset({"student"})


class _Measured(ScoredPolicy):
    """The samples with the largest value of one measure of the student (`scoring.MEASURES`)."""

    refreshable = True
    needs = _STUDENT
    measured: str

    def scores(self) -> np.ndarray:
        return self.student().measure(self.context.sample_ids, self.measured)


@register("entropy")
class Entropy(_Measured):
    """Largest entropy of the student's distribution over the catalogue (Settles 2009, section 3.1)."""

    measured = "entropy"


@register("margin")
class Margin(_Measured):
    """Smallest gap between the two best probabilities (Settles 2009, section 3.1)."""

    measured = "margin"


@register("least_confidence")
class LeastConfidence(_Measured):
    """Smallest probability of the best item (Settles 2009, section 3.1)."""

    measured = "least_confidence"


@register("gradient_norm")
class GradientNorm(_Measured):
    """Largest gradient of the loss at the output layer, as GraNd (Paul et al. 2021) restricted to that layer."""

    measured = "gradient_norm"


@register("loss")
class Loss(_Measured):
    """Largest loss of the true next item. When refreshed, the last epoch's training losses are taken: no extra pass."""

    measured = "loss"

    def scores(self) -> np.ndarray:
        return super().scores() if np.isnan(self.memory).any() else self.memory

    def update(self, epoch: int, sample_ids: np.ndarray, losses: np.ndarray) -> None:
        position, found = self.positions(sample_ids)
        self.memory[position[found]] = losses[found]


@register("error_rank")
class ErrorRank(_Measured):
    """Samples whose target the student ranks worst."""

    measured = "rank"


@register("proximal_rank")
class ProximalRank(ScoredPolicy):
    """Samples whose target is nearly found: ranks low..high first (by chance), then the nearest to that band."""

    refreshable = True
    needs = _STUDENT

    @config_group
    class Options:
        low: int = setting("best rank of the band", ge=1)
        high: int = setting("worst rank of the band", ge=1)

        def problems(self) -> list[str]:
            return [] if self.low <= self.high else [f"low: found {self.low}, expected <= high={self.high}"]

    def scores(self) -> np.ndarray:
        rank = np.log(self.student().measure(self.context.sample_ids, "rank"))
        low, high = np.log(self.options.low), np.log(self.options.high)
        return -np.maximum(np.maximum(low - rank, rank - high), 0.0)


@register("confident_error")
class ConfidentError(ScoredPolicy):
    """Samples where the student is wrong and sure of it: its best item is not the target, by its probability."""

    refreshable = True
    needs = _STUDENT

    def scores(self) -> np.ndarray:
        ids = self.context.sample_ids
        wrong = self.student().measure(ids, "best_item") != self.context.targets
        return np.where(wrong, 1.0 - self.student().measure(ids, "least_confidence"), -1.0)


@register("target_logit")
class TargetLogit(ScoredPolicy):
    """Samples whose target scores below a threshold (by chance), then the lowest of the others."""

    refreshable = True
    needs = _STUDENT

    @config_group
    class Options:
        below: float = setting("score of the true next item, as the student gives it")

    def scores(self) -> np.ndarray:
        logit = self.student().measure(self.context.sample_ids, "target_logit")
        return -np.maximum(logit - self.options.below, 0.0)


@register("semantic_loss")
class SemanticLoss(ScoredPolicy):
    """Samples whose best item reads least like the target: 1 - cosine of the two titles' vectors."""

    refreshable = True
    needs = _STUDENT

    def scores(self) -> np.ndarray:
        titles = self.need("title_vectors", "titles")()
        titles = titles / np.maximum(np.linalg.norm(titles, axis=1, keepdims=True), 1e-12)
        best = self.student().measure(self.context.sample_ids, "best_item").astype(np.int64)
        pairs = ((titles[best[c]], titles[self.context.targets[c]]) for c in chunks(len(best)))
        return 1.0 - np.concatenate([np.einsum("nd,nd->n", a, b) for a, b in pairs])


@register("entropy_diversity")
class EntropyDiversity(SelectionPolicy):
    """The most uncertain samples, spread: `narrow` times the count by entropy, then equally from k-means clusters."""

    refreshable = True
    needs = _STUDENT

    @config_group
    class Options:
        narrow: float = setting("uncertain samples considered, times the count", ge=1)
        clusters: int = setting("number of k-means clusters", ge=2)

    def choose(self, epoch: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        rng, ids = self.stream(epoch), self.context.sample_ids
        entropy = self.student().measure(ids, "entropy").astype(np.float64)
        unsure = largest(entropy, int(self.options.narrow * count), rng)
        seed = derive(self.context.seed, "k-means", epoch)
        student, clusters = self.student(), self.options.clusters
        turn, _ = cluster_turns(lambda p: student.vectors(ids[unsure[p]]), len(unsure), clusters, seed, rng)
        return unsure[largest(-turn.astype(float), count, rng)], entropy - entropy.min() + 1e-3


@register("forgetting")
class Forgetting(ScoredPolicy):
    """Samples that training forgets most often (Toneva et al. 2019).

    A sample counts as known while its loss lies below the epoch's median (a recommender is seldom simply right),
    and each epoch that turns it unknown is a forgetting event. The memory holds events + .5 where it is known.
    """

    refreshable = True
    online = True

    def scores(self) -> np.ndarray:
        return np.floor(np.nan_to_num(self.memory))

    def update(self, epoch: int, sample_ids: np.ndarray, losses: np.ndarray) -> None:
        position, found = self.positions(sample_ids)
        losses = losses[found]
        before = np.nan_to_num(self.memory[position[found]])
        known = losses < np.median(losses)
        forgotten = (before % 1 > 0) & ~known
        self.memory[position[found]] = np.floor(before) + forgotten + 0.5 * known
