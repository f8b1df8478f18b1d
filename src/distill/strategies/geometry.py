"""Strategies that spread the choice over a space: sequence vectors, title vectors, gradients."""

from __future__ import annotations

import numpy as np

from src.core.config import config_group, setting
from src.core.seed import derive
from src.distill.selection_policy import SelectionPolicy, largest, register

_BATCH = 4096


def cluster_turns(
    vectors: np.ndarray, clusters: int, seed: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The turn [n] of each sample in its k-means cluster (0 for the first, order by chance), and the sizes [n] of
    the samples' clusters. Taking small turns first takes equally from all clusters, as far as they reach."""
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    kmeans = MiniBatchKMeans(
        n_clusters=min(clusters, len(vectors)), batch_size=_BATCH, n_init=1, random_state=seed % 2**32
    )
    with threadpool_limits(limits=1):  # several threads add in varying order
        cluster = kmeans.fit_predict(vectors)
    sizes = np.bincount(cluster)
    shuffled = rng.permutation(len(cluster))
    by_cluster = shuffled[np.argsort(cluster[shuffled], kind="stable")]
    starts = np.cumsum(sizes) - sizes
    turn = np.empty(len(cluster), np.int64)
    turn[by_cluster] = np.arange(len(cluster)) - np.repeat(starts, sizes)
    return turn, sizes[cluster]


class _Clustered(SelectionPolicy):
    """Equally many samples from every k-means cluster of some vectors."""

    @config_group
    class Options:
        clusters: int = setting("number of k-means clusters", ge=2)

    def space(self) -> np.ndarray:
        """[n, D] vectors of the samples."""
        raise NotImplementedError

    def choose(self, epoch: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        rng = self.stream(epoch)
        turn, sizes = cluster_turns(
            self.space(), self.options.clusters, derive(self.context.seed, "k-means", epoch), rng
        )
        return largest(-turn.astype(float), count, rng), 1.0 / sizes


@register("diversity")
class Diversity(_Clustered):
    """Round-robin over k-means clusters of the student's sequence vectors."""

    refreshable = True
    needs = frozenset({"student"})

    def space(self) -> np.ndarray:
        return self.student().vectors(self.context.sample_ids)


@register("semantic_clusters")
class SemanticClusters(_Clustered):
    """Round-robin over k-means clusters of the targets' title vectors: what is recommended, in words."""

    def space(self) -> np.ndarray:
        return self.need("title_vectors", "titles")()[self.context.targets]


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
