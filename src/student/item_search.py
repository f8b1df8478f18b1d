"""The items whose vectors score best with a sequence vector: every item looked at, or an index asked.

Letters: B sequences, N items, D width, C items returned. Scores are h . w_i + b_i. What is found is ranked by exact
float32 scores; the ways differ in what they read, and `ANNSearch` alone can miss an item.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from src.core.errors import UserError

_BLOCK = 64  # items whose largest score stands for them
_SCORES = 2**20  # scores at once: 4 MiB, which stay in the caches


class FloatSearch:
    """Scores every item in float32: exact. Only each block's largest score is kept; the best blocks are scored again.

    Args:
        vectors: [N, D] float32.
        bias: [N].
    """

    more = 1  # blocks that are scored again, times the count; every other one has a smaller largest score

    def __init__(self, vectors: Tensor, bias: Tensor):
        self.vectors, self.bias = vectors, bias

    def best(self, hidden: Tensor, count: int) -> Tensor:
        """Columns [B, count] of the best items for `hidden` [B, D], best first."""
        n_items, taken = len(self.vectors), self.more * count
        if 16 * taken * _BLOCK > n_items:  # few items: sorting all costs as much
            return F.linear(hidden, self.vectors, self.bias).topk(count).indices
        width = max(_BLOCK, _SCORES // len(hidden) // _BLOCK * _BLOCK)
        upper = torch.cat(list(self._maxima(hidden, width)), dim=1)
        while True:
            bounds, blocks = upper.topk(taken + 1)
            columns = (blocks[:, :-1, None] * _BLOCK + torch.arange(_BLOCK, device=blocks.device)).flatten(1)
            inside = columns.clamp(max=n_items - 1)
            rows = F.embedding(inside, self.vectors)
            exact = torch.bmm(rows, hidden.unsqueeze(2)).squeeze(2) + self.bias[inside]
            values, places = exact.masked_fill(columns >= n_items, float("-inf")).topk(count)
            if self.more == 1 or bool((values[:, -1] >= bounds[:, -1]).all()):
                return columns.gather(1, places)
            taken *= 8
            if taken >= upper.shape[1]:
                return F.linear(hidden, self.vectors, self.bias).topk(count).indices

    def _maxima(self, hidden: Tensor, width: int) -> Iterator[Tensor]:
        """The largest value [B, width / 64] of each block of items: of `bounds`, for `width` items at a time."""
        asked = self.prepare(hidden)
        for start in range(0, len(self.vectors), width):
            found = self.bounds(asked, slice(start, start + width))
            found = F.pad(found, (0, -found.shape[1] % _BLOCK), value=float("-inf"))
            yield found.unflatten(1, (-1, _BLOCK)).amax(dim=2)

    def prepare(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """What `bounds` needs of the sequence vectors."""
        return (hidden,)

    def bounds(self, asked: tuple[Tensor, ...], items: slice) -> Tensor:
        """[B, m] numbers that the scores of `items` do not exceed: here the scores."""
        return F.linear(asked[0], self.vectors[items], self.bias[items])


class Int8Search(FloatSearch):
    """Exact as well, from a table of a quarter of the size: int8 products and a bound of their error.

    With rows w = s q + r (q int8, r the rest) and a vector h = t p + e (p int8), Cauchy and Schwarz bound what the
    product of integers leaves out: |h . w - s t p . q| <= |h| |r| + |e| |s q|. Blocks are taken by the upper bound of
    their scores; once the count-th best float32 score is no smaller than the upper bounds of all blocks that were not
    taken, none of their items can belong to the result. Otherwise more blocks are taken.
    """

    more = 4

    def __init__(self, vectors: Tensor, bias: Tensor):
        super().__init__(vectors, bias)
        scale = vectors.abs().amax(dim=1, keepdim=True).clamp(min=1e-30) / 127
        codes = (vectors / scale).round()
        rest = (vectors - codes * scale).norm(dim=1)
        rest += 1e-5 * vectors.norm(
            dim=1
        )  # float32 rounding of all that is added here and in the exact scores
        self.codes, self.scale = codes.to(torch.int8), scale.squeeze(1)
        self.constants = torch.stack([bias, rest, (codes * scale).norm(dim=1)])

    def prepare(self, hidden: Tensor) -> tuple[Tensor, ...]:
        step = hidden.abs().amax(dim=1, keepdim=True).clamp(min=1e-30) / 127
        codes = (hidden / step).round()
        length, error = hidden.norm(dim=1, keepdim=True), (hidden - codes * step).norm(dim=1, keepdim=True)
        return codes.to(torch.int8), step, torch.cat([torch.ones_like(step), length, error], dim=1) / step

    def bounds(self, asked: tuple[Tensor, ...], items: slice) -> Tensor:
        codes, step, factors = asked
        products = torch._int_mm(codes, self.codes[items].t())
        # In units of `step`, so that the integers are read once.
        return torch.addcmul(factors @ self.constants[:, items], products, self.scale[items]).mul_(step)


class ANNSearch:
    """An inverted-file index of faiss (optional group `ann`): approximate, it reads `probes` of about sqrt(N) lists.

    The bias is one more column of the vectors, so that the inner product is the score.

    Raises:
        UserError: faiss is not installed.
    """

    def __init__(self, vectors: Tensor, bias: Tensor, probes: int = 32):
        try:
            import faiss
        except ImportError:
            raise UserError("search=ann without faiss", "poetry install --with ann", "search") from None
        table = torch.cat([vectors, bias.unsqueeze(1)], dim=1).numpy()
        self.lists = max(1, min(int(len(table) ** 0.5), len(table) // 40))
        self.probes = min(probes, self.lists)
        index: Any = faiss.index_factory(table.shape[1], f"IVF{self.lists},Flat", faiss.METRIC_INNER_PRODUCT)
        index.cp.max_points_per_centroid = 64  # of k-means: more train no better lists
        index.train(table)
        index.add(table)
        self.index = index

    def best(self, hidden: Tensor, count: int) -> Tensor:
        """Columns [B, count] of the best items found for `hidden` [B, D], best first."""
        asked = F.pad(hidden, (0, 1), value=1.0).numpy()
        self.index.nprobe = self.probes
        while True:
            columns = self.index.search(asked, count)[1]
            if (columns >= 0).all() or self.index.nprobe == self.lists:
                return torch.from_numpy(columns)
            self.index.nprobe = min(2 * self.index.nprobe, self.lists)  # the lists held too few items
