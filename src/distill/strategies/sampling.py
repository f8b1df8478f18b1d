"""Strategies that look at the data alone: all, random, by popularity, by coverage."""

from __future__ import annotations

import numpy as np

from src.core.config import config_group, setting
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
        items = np.concatenate(
            [self.need("histories", "a dataset")(ids), self.context.targets[pool, None]], axis=1
        )
        users = self.need("users", "a dataset")[pool] + len(self.context.item_counts)
        elements = [set(row[row > 0].tolist()) | {int(user)} for row, user in zip(items, users, strict=True)]
        return pool[_greedy_cover(elements, count)], np.ones(len(self.context))


def _greedy_cover(elements: list[set[int]], count: int) -> np.ndarray:
    """Positions [count] by greedy maximum coverage. Gains only fall, so a sample is looked at again only when its
    last known gain is the largest (lazy greedy), and gains are small integers: one list per gain."""
    chosen: list[int] = []
    left = list(range(len(elements)))
    while len(chosen) < count:
        covered: set[int] = set()
        by_gain: dict[int, list[int]] = {}
        for i in reversed(left):
            by_gain.setdefault(len(elements[i]), []).append(i)
        picked: set[int] = set()
        while by_gain and len(chosen) < count:
            best = max(by_gain)
            i = by_gain[best].pop()
            if not by_gain[best]:
                del by_gain[best]
            gain = len(elements[i] - covered)
            if gain == best:
                covered |= elements[i]
                chosen.append(i)
                picked.add(i)
            elif gain > 0:
                by_gain.setdefault(gain, []).append(i)
        left = [i for i in left if i not in picked]
    return np.array(chosen)
