"""Strategies that look at the data alone: all, random, by popularity, by coverage."""

from __future__ import annotations

import numpy as np

from src.core.config import config_group, setting
from src.core.selection import chunks
from src.distill.selection_policy import SelectionPolicy, largest, register


@register("all")
class All(SelectionPolicy):
    """Every sample."""

    subset = False

    def choose(self, epoch: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        n = len(self.context)
        return np.arange(n)[:count], np.ones(n)


@register("random")
class Random(SelectionPolicy):
    """Uniform without replacement; with `refresh_every` another draw each time."""

    refreshable = True

    def choose(self, epoch: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        n = len(self.context)
        return self.stream(epoch).permutation(n)[:count], np.ones(n)


@register("popularity_inverse")
class PopularityInverse(SelectionPolicy):
    """Without replacement, probability ~ (training count of the target) ** -power (Gumbel top-k)."""

    refreshable = True

    @config_group
    class Options:
        power: float = setting("0 is random, 1 makes every target item equally likely", ge=0)

    def choose(self, epoch: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        counts = np.maximum(self.context.item_counts[self.context.targets], 1).astype(float)
        log_p = -self.options.power * np.log(counts)
        rng = self.stream(epoch)
        return largest(log_p + rng.gumbel(size=len(log_p)), count, rng), np.exp(log_p)


@register("coverage")
class Coverage(SelectionPolicy):
    """Greedy maximum coverage: the next sample is one that adds most items (history and target) and users that no
    chosen sample has yet; when nothing is left to add, the covering starts again with the others.

    The greedy choice is within 1 - 1/e of the best cover (Nemhauser, Wolsey and Fisher 1978).
    """

    @config_group
    class Options:
        pool: int = setting("samples it chooses among, drawn by seed: bounds time and memory", ge=1)

    def choose(self, epoch: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        rng = self.stream(epoch)
        pool = rng.permutation(len(self.context))[: max(self.options.pool, count)]
        ids = self.context.sample_ids[pool]
        histories = self.need("histories", "a dataset")
        n_items = len(self.context.item_counts)
        users = self.need("users", "a dataset")[pool, None] + n_items
        rows = [
            np.concatenate([histories(ids[c]), self.context.targets[pool[c], None], users[c]], axis=1)
            for c in chunks(len(pool))
        ]
        return pool[_greedy_cover(np.concatenate(rows).astype(np.int32), count)], np.ones(len(self.context))


def _greedy_cover(elements: np.ndarray, count: int) -> np.ndarray:
    """Positions [count] by greedy maximum coverage of what the rows [m, E] hold; 0 is nothing. Gains only fall, so a
    row is looked at again only when its last known gain is the largest (lazy greedy), and gains are small integers:
    one list per gain."""
    chosen: list[int] = []
    left = np.arange(len(elements))
    while len(chosen) < count:
        covered = bytearray(int(elements.max()) + 1)
        gains = np.concatenate([_distinct(elements[left[c]]) for c in chunks(len(left))])
        by_gain = {int(g): left[gains == g][::-1].tolist() for g in np.unique(gains)}
        picked = np.zeros(len(elements), bool)
        while by_gain and len(chosen) < count:
            best = max(by_gain)
            i = by_gain[best].pop()
            if not by_gain[best]:
                del by_gain[best]
            new = {e for e in elements[i].tolist() if e and not covered[e]}
            if len(new) == best:
                for e in new:
                    covered[e] = 1
                chosen.append(i)
                picked[i] = True
            elif new:
                by_gain.setdefault(len(new), []).append(i)
        left = left[~picked[left]]
    return np.array(chosen)


def _distinct(rows: np.ndarray) -> np.ndarray:
    """How many different numbers > 0 each row [m, E] holds."""
    ordered = np.sort(rows, axis=1)
    return (ordered[:, :1] > 0).sum(axis=1) + ((ordered[:, 1:] > 0) & (np.diff(ordered, axis=1) > 0)).sum(
        axis=1
    )
