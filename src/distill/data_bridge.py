"""From a teacher-output store to tensors beside the student's samples, joined by sample id.

Everything is checked before the first step and prepared once, on the device: a training step gathers rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from src.core.data_utils import InteractionData
from src.core.errors import UserError
from src.core.geometry import geometry, principal_directions
from src.core.logging import get_logger
from src.core.seed import numpy_stream
from src.core.teacher_store import TeacherRows, TeacherStore, locate
from src.distill.config import DistillConfig
from src.distill.kd_losses import confidence_weights, scale_distances, sequence_confidence, weight_entropy

log = get_logger(__name__)
_ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class RankingSignals:
    """The teacher's rankings beside the training samples; row i belongs to the i-th training sample.

    Attributes:
        candidates: [n, K] int32 columns of the logits (item id - 1), best first.
        confidence: [n, K], or [n, 1] with `confidence=target`, float32.
        weights: [n] float32: 0 where the sample is not distilled, else its selection weight.
        gate: [n] float32: how far the teacher's ranking is followed, whatever the selection.
    """

    candidates: Tensor
    confidence: Tensor
    weights: Tensor
    gate: Tensor | None = None


def join_rows(
    store: TeacherStore, data: InteractionData, top_k: int, history_candidates: str = "keep"
) -> TeacherRows:
    """The store's training rows, ascending by sample id, cut to the K best.

    A store may lack samples only where its manifest says that a part was exported.

    Args:
        history_candidates: whether items of the sample's own history stay (DistillConfig).

    Raises:
        UserError: another catalogue or a shorter K, foreign or missing sample ids; and what the store
            itself refuses: duplicate ids, scores in the wrong order or not finite.
    """
    where = f"{store.folder}/train"
    check_catalogue(store, data)
    rows = store.rows("train")
    if top_k > store.top_k:
        raise UserError(
            f"distill.top_k={top_k}",
            f"<= {store.top_k}, the length of the rankings in {store.folder}",
            "distill.top_k or teacher.export.top_k",
        )
    train, ids = data.splits["train"], np.asarray(rows.sample_ids)
    _, known = locate(train, ids)
    if not known.all():
        raise UserError(
            f"{where}: sample {ids[~known][0]} is no training sample ({int((~known).sum())} such rows)",
            f"the {len(train)} training samples of {data.name}/{data.fingerprint}",
            "teacher, and export again",
        )
    exported = store.manifest["n_samples"]["train"]
    declared = store.manifest.get("n_train_split")
    if len(ids) != exported or (len(ids) < len(train) and declared != len(train)):
        first = train[~np.isin(train, ids)]
        raise UserError(
            f"{where}: {len(ids)} rows" + (f", none for sample {first[0]}" if len(first) else ""),
            f"{exported} as the manifest says; fewer than the {len(train)} training samples only where the manifest "
            f"says n_train_split={len(train)} (it says {declared})",
            "teacher, and export again",
        )
    if history_candidates == "auto":
        repeats = sum(int(among.sum()) for _, among in _in_history(data, train, data.targets(train)[:, None]))
        history_candidates = "keep" if repeats else "drop"
        log.info(
            "%d of %d training targets stand in their history: the teacher's history items are %s",
            repeats,
            len(train),
            "kept" if repeats else "dropped",
        )
    if history_candidates == "drop":
        return _outside_history(rows, data, top_k, where)
    cut = {"rankings": rows.rankings[:, :top_k], "scores": rows.scores[:, :top_k]}
    return TeacherRows(**{name: np.array(values) for name, values in {**vars(rows), **cut}.items()})


def _in_history(
    data: InteractionData, ids: np.ndarray, items: np.ndarray
) -> Iterator[tuple[slice, np.ndarray]]:
    """Which of `items` [n, M] stand in the history of their sample: pieces of rows, and [rows, M] bool."""
    for start in range(0, len(ids), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        yield rows, (items[rows, :, None] == data.histories(ids[rows])[:, None, :]).any(axis=2)


def _outside_history(rows: TeacherRows, data: InteractionData, top_k: int, where: str) -> TeacherRows:
    """Each sample's K best candidates that do not stand in its history."""
    ids = np.array(rows.sample_ids)
    # At most L candidates can fall away.
    width = min(rows.rankings.shape[1], top_k + data.max_history)
    rankings, scores = (np.empty((len(ids), top_k), dtype) for dtype in (np.int32, np.float32))
    for part, among in _in_history(data, ids, rows.rankings[:, :width]):
        left = width - among.sum(axis=1)
        if (left < top_k).any():
            raise UserError(
                f"{where}: sample {ids[part][left < top_k][0]} has {left.min()} candidates outside its history",
                f"distill.top_k={top_k}",
                "distill.top_k, distill.history_candidates or teacher.export.top_k",
            )
        best = np.argsort(among, axis=1, kind="stable")[:, :top_k]  # the others first, in their order
        rankings[part] = np.take_along_axis(rows.rankings[part, :width], best, axis=1)
        scores[part] = np.take_along_axis(rows.scores[part, :width], best, axis=1)
    return TeacherRows(ids, rankings, scores, np.array(rows.target_scores))


def check_catalogue(store: TeacherStore, data: InteractionData) -> None:
    """Raises UserError unless the store is about this catalogue."""
    if store.manifest["n_items"] != data.n_items:
        raise UserError(
            f"{store.folder}: teacher outputs over {store.manifest['n_items']} items",
            f"{data.n_items}, the catalogue of {data.name}/{data.fingerprint}",
            "teacher or dataset",
        )


def ranking_signals(
    rows: TeacherRows,
    train_ids: np.ndarray,
    score_kind: str,
    config: DistillConfig,
    seed: int,
    device: torch.device,
    gate: np.ndarray | None = None,
) -> RankingSignals:
    """Tensors for the ranking distillation, for all training samples; those without a row weigh 0.

    Args:
        rows: from `join_rows`.
        train_ids: [n] the training samples in the order in which the student's batches index them.
        seed: of the control that shuffles rankings among samples.
        gate: [n] of the training samples (ranking_gate); None follows every ranking.
    """
    shuffled = config.control in ("shuffle_rankings", "both")
    count = len(rows.sample_ids)
    source = numpy_stream(seed, "control", "rankings").permutation(count) if shuffled else slice(None)
    sign = 1.0 if score_kind == "distance" else -1.0  # a log-likelihood enters as d = -log p
    scaling, temperature = config.confidence_scaling, config.confidence_temperature
    k = rows.rankings.shape[1]
    if config.confidence == "candidate":
        distances = sign * torch.from_numpy(rows.scores[source])
        confidence = confidence_weights(scale_distances(distances, scaling, temperature))
        entropy = weight_entropy(confidence)
        log.info("teacher confidence: entropy of the weights %.3f of log K (1: all equal)", entropy.mean())
    else:
        distances = sign * torch.from_numpy(rows.target_scores[source])
        confidence = sequence_confidence(scale_distances(distances, scaling, temperature), k)[:, None]
        entropy = weight_entropy(confidence.squeeze(1))
        log.info("teacher confidence: entropy over the samples %.3f of log n (1: all equal)", entropy)
    columns = torch.from_numpy(rows.rankings[source] - 1)
    if count < len(train_ids):
        log.info(
            "teacher rows for %d of %d training samples; the others train on their target",
            count,
            len(train_ids),
        )
    position, found = locate(rows.sample_ids, train_ids)
    found_t, position_t = torch.from_numpy(found), torch.from_numpy(position)
    # Samples without a row point at any valid row; their weight is 0.
    return RankingSignals(
        candidates=columns[position_t].to(device, torch.int32),
        confidence=confidence[position_t].to(device, torch.float32),
        weights=found_t.to(device, torch.float32),
        gate=None if gate is None else torch.from_numpy(gate).to(device),
    )


def teacher_item_vectors(
    store: TeacherStore, data: InteractionData, config: DistillConfig, seed: int
) -> Tensor:
    """[N+1, D] float32 teacher vectors for the projector, row 0 zeros: scaled, and permuted by the control.

    Raises:
        UserError: another catalogue, or vectors that are all alike (the store checks width and finiteness).
    """
    check_catalogue(store, data)
    items = scaled_vectors(np.array(store.item_embeddings()[1:], np.float32), config, str(store.folder))
    if config.control in ("permute_embeddings", "both"):
        items = items[numpy_stream(seed, "control", "embeddings").permutation(len(items))]
    return torch.from_numpy(np.concatenate([np.zeros((1, items.shape[1]), np.float32), items]))


def scaled_vectors(items: np.ndarray, config: DistillConfig, where: str) -> np.ndarray:
    """[N, D] vectors as `config.embedding_scaling` says, [N, D'] float32; their geometry goes into the log.

    With `pca`, D' = min(pca_dim, rank), and all is at unit mean square. A power of 1/2 lies between the teacher's own
    geometry, often a few directions, and whitening, where noise counts as much.

    Raises:
        UserError: vectors that are all alike.
    """
    if config.embedding_scaling == "none":
        return items
    if config.embedding_scaling == "pca":
        log.info("teacher vectors of %s: %s", where, geometry(items))
        items = principal(items, config.pca_dim, config.pca_power)
    else:
        items = items - items.mean(axis=0, keepdims=True)
    size = float(np.sqrt(np.mean(np.square(items, dtype=np.float64)))) if items.size else 0.0
    if size == 0.0:
        raise UserError(f"{where}: all item embeddings are equal", "vectors that differ", "the teacher")
    return (items / size).astype(np.float32)


def principal(items: np.ndarray, dim: int, power: float) -> np.ndarray:
    """U_k S_k^power [N, k] float64 of the centred vectors [N, D], k = min(dim, rank)."""
    left, values = principal_directions(items)
    return left[:, :dim] * values[:dim] ** power
