"""Ways to rank the catalogue with an LLM teacher (`teacher.export.ranking`).

hidden     one forward pass of the prompt, its last state against the item vectors; whole catalogue
rerank     a pool retrieved by the frozen SASRec, ordered by the log-likelihood of the titles
trie       beam search that can only write titles; log-likelihoods, of all titles where there are as many beams
grounding  BIGRec: a text is generated freely; items by the L2 distance of their texts' states to its own
"""

from collections.abc import Callable

from src.teacher.ranking.base import Context, Ranker
from src.teacher.ranking.grounding import GroundingRanker
from src.teacher.ranking.hidden import HiddenRanker, catalogue_scores, item_vectors, ndcg
from src.teacher.ranking.rerank import RerankRanker
from src.teacher.ranking.trie import TrieRanker

__all__ = [
    "SCORE_KIND",
    "Ranker",
    "catalogue_scores",
    "item_vectors",
    "make_ranker",
    "ndcg",
]

_METHODS: dict[str, Callable[[Context], Ranker]] = {
    "hidden": HiddenRanker,
    "rerank": RerankRanker,
    "trie": TrieRanker,
    "grounding": GroundingRanker,
}
SCORE_KIND = {name: "distance" if name == "grounding" else "log_likelihood" for name in _METHODS}


def make_ranker(context: Context) -> Ranker:
    """The method that `teacher.export.ranking` names."""
    return _METHODS[context.export.ranking](context)
