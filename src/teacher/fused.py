"""Several teachers as one: a weighted sum of their log-probabilities over the catalogue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax

from src.core.artifacts import fingerprint
from src.core.data_utils import InteractionData
from src.core.errors import UserError
from src.core.logging import get_logger
from src.core.run import Run, Stopwatch
from src.core.seed import numpy_stream
from src.teacher.classical import ClassicalTeacher
from src.teacher.config import FusedConfig

_FIT_VALUES = 2**27  # scores of all members held while the weights are fitted: 512 MiB
log = get_logger(__name__)


class FusedTeacher(ClassicalTeacher):
    """log p(i|u) = log softmax_i sum_m w_m log p_m(i|u), a log-linear pool of members that score the catalogue.

    The weights are few and fitted on validation samples, which no member learned from: fitted on training
    samples they would favour the member that remembers most.
    """

    config: FusedConfig

    def __init__(
        self,
        config: FusedConfig,
        data: InteractionData,
        train_ids: np.ndarray | None,
        members: Mapping[str, Any],
    ):
        super().__init__(config, data, train_ids)
        self.members = members

    def prepare(self, run: Run | None) -> Mapping[str, Any]:
        reports = {name: member.prepare(run) for name, member in self.members.items()}
        watch = Stopwatch()
        if self.config.weights is None:
            ids = self.data.splits["valid"]
            count = max(1, min(len(ids), _FIT_VALUES // (len(self.members) * self.data.n_items)))
            ids = np.sort(numpy_stream(self.config.seed, "fused").choice(ids, count, replace=False))
            scores = np.stack([self._scores(member, ids) for member in self.members.values()])
            fitted = fit_weights(scores, self.data.targets(ids) - 1)
            self.shares = dict(zip(self.members, fitted.tolist(), strict=True))
        else:
            self.shares = {name: float(self.config.weights[name]) for name in self.members}
        log.info("weights: %s", ", ".join(f"{name} {w:.3f}" for name, w in self.shares.items()))
        seconds = watch.seconds() + sum(float(t["train_seconds"]) for t in reports.values())
        reused = all(bool(t["reused"]) for t in reports.values())
        return {"train_seconds": round(seconds, 3), "reused": reused, "weights": self.shares}

    def score_all(self, sample_ids: np.ndarray) -> np.ndarray:
        total = np.zeros((len(sample_ids), self.data.n_items), np.float32)
        for name, member in self.members.items():
            if self.shares[name] > 0:
                total += np.float32(self.shares[name]) * self._scores(member, sample_ids)
        return log_softmax(total, axis=1)

    def _scores(self, member: Any, sample_ids: np.ndarray) -> np.ndarray:
        return np.concatenate([member.score_all(sample_ids[rows]) for rows in self._batches(len(sample_ids))])

    def weights(self) -> str:
        shares = {name: round(share, 6) for name, share in self.shares.items()}
        return fingerprint({name: (member.weights(), shares[name]) for name, member in self.members.items()})

    def item_embeddings(self) -> np.ndarray:
        """[N+1, D] the vectors of `embeddings`; several side by side, centred and scaled, so that none outweighs."""
        tables = [self.members[name].item_embeddings() for name in self.config.embeddings]
        if len(tables) == 1:
            return tables[0]
        return np.concatenate([_standardised(table) for table in tables], axis=1)

    def train_sample_ids(self) -> np.ndarray:
        """A sample is in sample where it is for any member."""
        known = [member.train_sample_ids() for member in self.members.values()]
        return np.unique(np.concatenate(known))


def _standardised(table: np.ndarray) -> np.ndarray:
    """[N+1, D] with centred rows of mean square length 1; row 0 stays zero."""
    out = np.zeros_like(table)
    centred = table[1:] - table[1:].mean(axis=0)
    length = np.sqrt((centred.astype(np.float64) ** 2).sum(axis=1).mean())
    out[1:] = centred / max(length, 1e-12)
    return out


def fit_weights(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """[M] weights >= 0 that minimise the pool's mean cross-entropy (convex in the weights).

    Args:
        scores: [M, n, N] log-probabilities of the members.
        targets: [n] columns of the true next items.

    Raises:
        UserError: a score that is not finite.
    """
    if not np.isfinite(scores).all():
        raise UserError("a member's scores are not finite", "finite scores", "teacher.members")
    members, n, n_items = scores.shape
    size = max(1, 2**24 // n_items)  # the double-precision work of one pass
    rows = [slice(i, i + size) for i in range(0, n, size)]

    def loss_and_gradient(weights: np.ndarray) -> tuple[float, np.ndarray]:
        loss, gradient = 0.0, np.zeros(members)
        for part in rows:
            truth = np.take_along_axis(scores[:, part], targets[None, part, None], axis=2)[:, :, 0]
            log_p = log_softmax(np.tensordot(weights, scores[:, part], axes=1), axis=1)
            loss -= np.take_along_axis(log_p, targets[part, None], axis=1).sum()
            gradient += np.einsum("bn,mbn->m", np.exp(log_p), scores[:, part]) - truth.sum(axis=1)
        return loss / n, gradient / n

    start = np.full(members, 1.0 / members)
    found = minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", bounds=[(0.0, None)] * members)
    if not found.success:
        raise RuntimeError(f"the weights of the fused teacher could not be fitted: {found.message}")
    return found.x
