"""Ways to rank the catalogue with an LLM teacher (`teacher.export.ranking`).

hidden     one forward pass of the prompt, its last state against the item vectors; whole catalogue
rerank     a pool retrieved by the frozen SASRec, ordered by the log-likelihood of the titles
exact      log-likelihood of every title of the catalogue
trie       beam search that can only write titles; log-likelihoods
grounding  BIGRec: a text is generated freely; items by the L2 distance of their texts' states to its own
"""

from src.teacher.ranking.base import SCORE_KIND, Ranker, make_ranker
from src.teacher.ranking.hidden import catalogue_scores, item_vectors, ndcg, rank_catalogue

__all__ = [
    "SCORE_KIND",
    "Ranker",
    "catalogue_scores",
    "item_vectors",
    "make_ranker",
    "ndcg",
    "rank_catalogue",
]
