"""`rerank`: the frozen SASRec retrieves a pool, the LLM orders it by the likelihood of the titles."""

from __future__ import annotations

import numpy as np
import torch

from src.core.errors import UserError
from src.core.seed import numpy_stream
from src.core.teacher_store import TeacherRows
from src.teacher.prompts import Example
from src.teacher.ranking.base import Context, prefixes
from src.teacher.ranking.tree import TitleTree, require_tree_support, tree_scores
from src.teacher.rows import rank_items, top_k

_POOLS_AT_ONCE = 512


class RerankRanker:
    """The prompt lists the pool, each title once and in an order drawn by seed, when the teacher was trained
    with candidate lists (`teacher.prompt.candidates`); a teacher that never saw a list gets none.

    The target has no privilege: it is in the pool or it is not. Its score is computed beside the others'.
    """

    def __init__(self, context: Context):
        require_tree_support(context, "rerank")
        self.context, self.builder = context, context.source.builder
        data, export = context.source.data, context.export
        room = data.n_items - (data.max_history if export.exclude_history else 0)
        if export.pool > room:
            raise UserError(
                f"teacher.export.pool={export.pool}",
                f"at most {room} items" + (" outside a history" if export.exclude_history else ""),
                "teacher.export.pool",
            )

    def pools(self, sample_ids: np.ndarray) -> np.ndarray:
        """[n, pool] items in the order of the frozen SASRec's scores."""
        data, out = self.context.source.data, []
        for start in range(0, len(sample_ids), _POOLS_AT_ONCE):
            histories = data.histories(sample_ids[start : start + _POOLS_AT_ONCE])
            scores = self.context.source.encoder.log_probabilities(histories).numpy()
            if self.context.export.exclude_history:
                row, column = np.nonzero(histories)
                scores[row, histories[row, column] - 1] = -np.inf
            out.append(top_k(scores, self.context.export.pool) + 1)
        return np.concatenate(out)

    def prompt(self, sample_id: int, history: np.ndarray, pool: np.ndarray) -> Example:
        """The evaluation's wording, with the pool listed where the teacher knows lists."""
        if not self.builder.config.candidates:
            return self.builder.build(history)
        # Two items of one title cannot be told apart in a list: the better one stands for both.
        _, first = np.unique([self.builder.titles[i] for i in pool], return_index=True)
        listed = pool[np.sort(first)].astype(np.int64)
        order = numpy_stream(self.context.seed, "rerank_order", int(sample_id)).permutation(len(listed))
        return self.builder.build(history, candidates=listed[order])

    @torch.no_grad()
    def rank(self, sample_ids: np.ndarray, k: int) -> TeacherRows:
        data, titles, key = self.context.source.data, self.builder.answers, "teacher.export.pool"
        pools, targets = self.pools(sample_ids), data.targets(sample_ids)
        histories = data.histories(sample_ids)
        examples = [self.prompt(*row) for row in zip(sample_ids.tolist(), histories, pools, strict=True)]
        answers = [[titles[i] for i in (*pool, t)] for pool, t in zip(pools, targets, strict=True)]
        room, nodes = max(len(t) for a in answers for t in a), max(sum(map(len, a)) for a in answers)
        values = np.empty((len(sample_ids), self.context.export.pool + 1))  # the target's is the last
        for rows, prefix in prefixes(self.context, sample_ids, examples, room, nodes, key):
            values[rows] = tree_scores(prefix, [TitleTree.of(answers[r]) for r in rows])
        return rank_items(sample_ids, list(pools), list(values[:, :-1]), values[:, -1], k, key)
