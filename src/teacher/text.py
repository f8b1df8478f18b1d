"""Teachers that know only what titles say: TF-IDF, and title states of a language model as it is.

Nothing is trained, so every row is out of sample. A history is the recency-weighted mean of cosines:

    log p(i | u) = log softmax_i( mean_h cos(h, i) / temperature + popularity * log(1 + count_i) )

`teacher=tfidf` is the baseline of every language model: one that does not beat it adds nothing to the words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import log_softmax

from src.core.artifacts import fingerprint
from src.core.config import determining
from src.core.errors import UserError
from src.core.geometry import geometry, principal_directions
from src.core.logging import get_logger
from src.core.run import Run, Stopwatch
from src.teacher.classical import NONE, ClassicalTeacher, Own, truncated_svd
from src.teacher.config import TextConfig, TfidfConfig
from src.teacher.kept_states import kept_states

_ONE_DIRECTION = 0.99  # share of the variance beyond which all titles have the same vector but for its length
log = get_logger(__name__)


class SimilarityTeacher(ClassicalTeacher):
    """Ranks by similarity of title vectors to the history's; subclasses give the vectors."""

    config: TfidfConfig | TextConfig

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.leave_one_out = True  # popularity is counted without a training sample's own target

    def vectors(self) -> np.ndarray:
        """[N, D] float32 of the titles, as they are."""
        raise NotImplementedError

    def _fit(self, run: Run | None) -> None:
        self._vectors = self.vectors()
        shape = geometry(self._vectors)
        log.info("title vectors: %s", shape)
        if shape.largest > _ONE_DIRECTION:
            raise UserError(
                f"title vectors with {shape.largest:.1%} of their variance in one direction ({shape})",
                f"at most {_ONE_DIRECTION:.0%}: such vectors cannot tell titles apart",
                "teacher.text.layers or pooling, or the items' titles",
            )
        settings = self.config.similarity
        left, values = principal_directions(self._vectors)
        space = left[:, : settings.dim] * values[: settings.dim] ** (1.0 - settings.whiten)
        length = np.linalg.norm(space, axis=1, keepdims=True)
        self._unit = np.divide(space, length, out=np.zeros_like(space), where=length > 0).astype(np.float32)
        self._counts = np.bincount(self.data.targets(self._train_ids) - 1, minlength=self.data.n_items)

    def log_probabilities(self, histories: np.ndarray, own: Own = NONE) -> np.ndarray:
        settings = self.config.similarity
        age = histories.shape[1] - 1 - np.arange(histories.shape[1])
        weight = np.where(histories > 0, settings.decay**age, 0.0)
        weight = (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32)
        users = np.einsum("bl,bld->bd", weight, self._unit[np.maximum(histories - 1, 0)])
        prior = settings.popularity * np.log1p(self._counts)
        logits = (users @ self._unit.T / settings.temperature + prior).astype(np.float32)
        counts = self._counts[own[1]]
        logits[own] += settings.popularity * (np.log(counts) - np.log(counts + 1.0))  # log(1 + count - 1)
        return log_softmax(logits, axis=1)

    def item_embeddings(self) -> np.ndarray:
        return np.concatenate([np.zeros((1, self._vectors.shape[1]), np.float32), self._vectors])


class TfidfTeacher(SimilarityTeacher):
    """Words and word sequences of the titles: sublinear TF-IDF, truncated SVD."""

    config: TfidfConfig

    def vectors(self) -> np.ndarray:
        from sklearn.feature_extraction.text import TfidfVectorizer

        c = self.config
        terms = TfidfVectorizer(
            ngram_range=(1, c.words), min_df=c.least_items, sublinear_tf=True, dtype=np.float64
        )
        try:
            self._terms = terms.fit_transform(self.data.titles[1:])
        except ValueError as e:  # scikit-learn's: no words
            found, fix = (
                f"the titles hold no words in {c.least_items} items: {e}",
                "dataset, or teacher.least_items",
            )
            raise UserError(found, "titles with words in common", fix) from None
        left, values = truncated_svd(self._terms, c.dim)
        return (left * values).astype(np.float32)

    def fitted(self) -> list[np.ndarray]:
        return [self._terms.data, self._terms.indices, self._terms.indptr, self._counts]


class TextTeacher(SimilarityTeacher):
    """Title states of an encoder or causal language model."""

    config: TextConfig

    def prepare(self, run: Run | None) -> Mapping[str, Any]:
        watch = Stopwatch()
        self._fit(run)
        states = self._states
        # The states cost what they cost the run that computed them.
        seconds = round(watch.seconds() + (states.seconds if states.reused else 0.0), 3)
        return {"train_seconds": seconds, "reused": states.reused, "llm": states.model}

    def vectors(self) -> np.ndarray:
        """The states; raises UserError as `kept_states` and `title_states.title_states` do."""

        def compute() -> tuple[np.ndarray, Mapping[str, Any]]:
            from src.teacher.title_states import title_states  # torch, where there is something to compute

            return title_states(self.config, self.data.titles)

        llm = fingerprint(self.config.llm.identity())  # a local one by the hash of its files
        self._states = kept_states(self.data, llm, determining(self.config.text), compute)
        return self._states.table

    def fitted(self) -> list[np.ndarray]:
        return [self._vectors, self._counts]
