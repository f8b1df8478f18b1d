"""Strategies that spread the choice over a space: sequence vectors, title vectors, gradients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from src.core.config import config_group, setting
from src.core.seed import derive
from src.core.selection import chunks
from src.distill.selection_policy import SelectionPolicy, largest, register

_BATCH, _FITTED = 4096, 2**18


def cluster_turns(
    space: Callable[[np.ndarray], np.ndarray], n: int, clusters: int, seed: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The turn [n] of each sample in its k-means cluster (0 for the first, order by chance), and the sizes [n] of
    the samples' clusters. Taking small turns first takes equally from all clusters, as far as they reach.

    Args:
        space: positions -> their vectors [m, D]. The centres are fitted to at most 262,144 of them, drawn by seed,
            and the others are assigned some at a time: memory does not grow with n x D.
    """
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    kmeans = MiniBatchKMeans(
        n_clusters=min(clusters, n), batch_size=_BATCH, n_init=1, random_state=seed % 2**32
    )
    everything = np.arange(n)
    with threadpool_limits(limits=1):  # several threads add in varying order
        if n <= _FITTED:
            cluster = kmeans.fit_predict(space(everything))
        else:
            drawn = np.random.default_rng(seed).choice(n, _FITTED, replace=False, shuffle=False)
            kmeans.fit(space(np.sort(drawn)))
            cluster = np.concatenate([kmeans.predict(space(everything[c])) for c in chunks(n)])
    sizes = np.bincount(cluster)
    shuffled = rng.permutation(n)
    by_cluster = shuffled[np.argsort(cluster[shuffled], kind="stable")]
    starts = np.cumsum(sizes) - sizes
    turn = np.empty(n, np.int64)
    turn[by_cluster] = np.arange(n) - np.repeat(starts, sizes)
    return turn, sizes[cluster]


class _Clustered(SelectionPolicy):
    """Equally many samples from every k-means cluster of some vectors."""

    @config_group
    class Options:
        clusters: int = setting("number of k-means clusters", ge=2)

    def space(self) -> Callable[[np.ndarray], np.ndarray]:
        """Positions -> vectors [m, D] of those samples."""
        raise NotImplementedError

    def choose(self, epoch: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        rng, seed = self.stream(epoch), derive(self.context.seed, "k-means", epoch)
        turn, sizes = cluster_turns(self.space(), len(self.context), self.options.clusters, seed, rng)
        return largest(-turn.astype(float), count, rng), 1.0 / sizes


@register("diversity")
class Diversity(_Clustered):
    """Round-robin over k-means clusters of the student's sequence vectors."""

    refreshable = True
    needs = frozenset({"student"})

    def space(self) -> Callable[[np.ndarray], np.ndarray]:
        student = self.student()
        return lambda positions: student.vectors(self.context.sample_ids[positions])


@register("semantic_clusters")
class SemanticClusters(_Clustered):
    """Round-robin over k-means clusters of the targets' title vectors: what is recommended, in words."""

    def space(self) -> Callable[[np.ndarray], np.ndarray]:
        titles = self.need("title_vectors", "titles")()
        return lambda positions: titles[self.context.targets[positions]]


class _Spread(SelectionPolicy):
    """One sample after the other, by its distance to those already chosen, among a pool that bounds the cost:
    O(pool x count) distances, one number per pooled sample."""

    refreshable = True
    needs = frozenset({"student"})

    @config_group
    class Options:
        pool: int = setting("samples it chooses among, drawn by seed: bounds time and memory", ge=1)

    def space(self, sample_ids: np.ndarray) -> np.ndarray:
        """[m, D] vectors of samples."""
        raise NotImplementedError

    def first(self, vectors: np.ndarray, rng: np.random.Generator) -> int:
        raise NotImplementedError

    def following(self, squared: np.ndarray, rng: np.random.Generator) -> int:
        """The next one, by squared distances [m] to the nearest chosen sample."""
        raise NotImplementedError

    def choose(self, epoch: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        rng = self.stream(epoch)
        pool = rng.permutation(len(self.context))[: max(self.options.pool, count)]
        vectors = self.space(self.context.sample_ids[pool]).astype(np.float32)
        squared, chosen = np.full(len(pool), np.inf, np.float32), np.empty(count, np.int64)
        for i in range(count):
            chosen[i] = self.following(squared, rng) if i else self.first(vectors, rng)
            squared = np.minimum(squared, ((vectors - vectors[chosen[i]]) ** 2).sum(axis=1))
            squared[chosen[: i + 1]] = -1.0  # never twice, also where all distances are 0
        return pool[chosen], np.ones(len(self.context))


@register("coreset")
class Coreset(_Spread):
    """Greedy k-center: the sample farthest from all chosen ones (Sener and Savarese 2018, Algorithm 1)."""

    def space(self, sample_ids: np.ndarray) -> np.ndarray:
        return self.student().vectors(sample_ids)

    def first(self, vectors: np.ndarray, rng: np.random.Generator) -> int:
        return int(((vectors - vectors.mean(axis=0)) ** 2).sum(axis=1).argmin())

    def following(self, squared: np.ndarray, rng: np.random.Generator) -> int:
        return int(squared.argmax())


@register("badge")
class Badge(_Spread):
    """k-means++ over gradients: uncertain and different samples (BADGE, Ash et al. 2020, Algorithm 1).

    The gradient is that at the sequence vector, [D]: the paper's, at the output layer, would be [N, D] a sample.
    """

    def space(self, sample_ids: np.ndarray) -> np.ndarray:
        return self.student().gradients(sample_ids)

    def first(self, vectors: np.ndarray, rng: np.random.Generator) -> int:
        return int((vectors**2).sum(axis=1).argmax())

    def following(self, squared: np.ndarray, rng: np.random.Generator) -> int:
        mass = np.cumsum(np.maximum(squared, 0.0), dtype=np.float64)
        if mass[-1] == 0.0:  # only copies of chosen samples are left
            return int(rng.choice(np.flatnonzero(squared >= 0)))
        return int(np.searchsorted(mass, rng.random() * mass[-1], side="right"))
