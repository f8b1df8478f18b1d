"""How good is a teacher's store? Its rankings next to SASRec's and popularity's on the same samples.

Samples that the teacher was trained on are shown apart: a teacher that repeats its training rows looks
good on them and teaches nothing new. Written beside the store as `<fp>.quality/`: JSON, Markdown, a plot.

All figures are one long table of (group, model, metric, slice, value); tables and plot are cuts of it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from src.core.artifacts import (
    MANIFEST,
    artifact_folder,
    fingerprint,
    is_complete,
    lock,
    read_object,
    write_json,
    write_manifest,
    write_text,
)
from src.core.data_utils import InteractionData
from src.core.errors import ConfigError, UserError
from src.core.logging import get_logger
from src.core.metrics import ranking_metrics, ranks_in_lists, shortest_list
from src.core.paths import CONF
from src.core.seed import numpy_stream
from src.core.teacher_store import TeacherRows, TeacherStore
from src.student.config import StudentConfig
from src.teacher.config import ExportConfig, PopularityConfig, SasrecConfig
from src.teacher.factory import build_teacher, build_teacher_config
from src.teacher.interfaces import Teacher
from src.teacher.quality_report import KS, markdown, plot

FORMAT_VERSION = 3
_COUNTS = (0, 1, 5, 20)  # where slices by the target's training count begin
_FLOOR = 1e-8  # as in the confidence weights of `distill`
log = get_logger(__name__)


def references(
    data: InteractionData, export: ExportConfig, seed: int, encoder: StudentConfig | None
) -> dict[str, Teacher]:
    """SASRec (where its settings are known), popularity and (where titles share words) TF-IDF, prepared.

    All learned from the training split. SASRec with the settings and the seed of an iLoRA teacher's encoder is that
    encoder: nothing is trained again. TF-IDF is what the words of the titles alone know: a language model has to beat it.
    """
    problems: list[str] = []
    shipped: Any = OmegaConf.to_container(OmegaConf.load(CONF / "teacher" / "tfidf.yaml"))
    shipped = {key: value for key, value in shipped.items() if key != "defaults"} | {"export": export}
    if (tfidf := build_teacher_config(shipped, "teacher", problems)) is None:
        raise ConfigError(problems)
    common: dict[str, Any] = {"seed": seed, "export": export}
    configs = {"popularity": PopularityConfig(name="popularity", kind="popularity", **common), "tfidf": tfidf}
    if encoder is not None:
        sasrec = SasrecConfig(
            name="sasrec", kind="sasrec", encoder=encoder, encoder_run=None, folds=1, **common
        )
        configs = {"sasrec": sasrec, **configs}
    made = {}
    for name, config in configs.items():
        made[name] = build_teacher(config, data)
        try:
            made[name].prepare(None)
        except UserError as e:
            if name != "tfidf":
                raise
            log.info("no TF-IDF reference: %s", e)  # titles that are ids, or share no word
            del made[name]
    return made


def quality_report(
    store: TeacherStore,
    data: InteractionData,
    train_ids: np.ndarray,
    others: Mapping[str, Teacher],
    *,
    confidence_k: int,
    max_rows: int,
    seed: int,
) -> dict[str, Any]:
    """Figures of the store's rankings, group by group.

    A group is a split's samples that the teacher was (`train, in sample`) or was not trained on. The
    other models' lists are as long as the store's, so every figure compares like with like.

    Args:
        train_ids: samples the teacher was trained on (`Teacher.train_sample_ids`).
        others: models to compare with, by name, prepared; overlap is taken with `sasrec` where it is one.
        confidence_k: candidates K whose confidence weights are looked at (`distill` uses as many).
        max_rows: samples per group at most; a larger group is drawn from by seed.

    Returns:
        `groups` {name: {n: samples looked at, of: samples there are}}, `figures`
        [[group, model, metric, slice, value]], and what they are about.

    Raises:
        UserError: `confidence_k` exceeds the store's lists.
    """
    if confidence_k > store.top_k:
        raise UserError(
            f"confidence_k={confidence_k}", f"<= top_k {store.top_k} of the store", "distill.top_k"
        )
    teacher, groups, figures = str(store.manifest["teacher"]), {}, []
    for group, split, rows, total in _groups(store, train_ids, max_rows, seed):
        lists = {teacher: rows}
        for other in others.keys() - lists.keys():
            lists[other] = others[other].rank(split, rows.sample_ids, store.top_k)
        log.info("quality: %s, %d of %d samples", group, len(rows.sample_ids), total)
        groups[group] = {"n": len(rows.sample_ids), "of": total}
        for model in dict.fromkeys([teacher, *others]):
            found = _figures(lists[model], data, lists.get("sasrec"))
            figures += [[group, model, *figure] for figure in found]
        confidence = _confidence(rows.scores[:, :confidence_k], store.score_kind)
        figures += [[group, teacher, *figure] for figure in confidence]
    return {
        "format_version": FORMAT_VERSION,
        "dataset": data.name,
        "dataset_fingerprint": data.fingerprint,
        "teacher": teacher,
        "store": store.folder.name,
        "store_files": _files(store),
        "score_kind": store.score_kind,
        "top_k": store.top_k,
        "confidence_k": confidence_k,
        "trained_on": len(train_ids),
        "groups": groups,
        "figures": figures,
    }


def _groups(
    store: TeacherStore, train_ids: np.ndarray, max_rows: int, seed: int
) -> Iterator[tuple[str, str, TeacherRows, int]]:
    """(name, split, rows drawn, rows there are) of every group that is not empty."""
    for split in store.manifest["n_samples"]:
        rows = store.rows(split)
        known = np.isin(rows.sample_ids, train_ids)
        for part, chosen in (("in sample", known), ("out of sample", ~known)):
            at = np.flatnonzero(chosen)
            total = len(at)
            if total > max_rows:
                at = np.sort(numpy_stream(seed, "quality", split, part).choice(at, max_rows, replace=False))
            if total:
                arrays = (rows.sample_ids, rows.rankings, rows.scores, rows.target_scores)
                yield f"{split}, {part}", split, TeacherRows(*(np.asarray(a[at]) for a in arrays)), total


def _figures(
    rows: TeacherRows, data: InteractionData, sasrec: TeacherRows | None
) -> Iterator[tuple[str, str, float]]:
    """(metric, slice, value); history items are ranked like all others except in the slice `excl.`."""
    targets, histories = data.targets(rows.sample_ids), data.histories(rows.sample_ids)
    k = rows.rankings.shape[1]
    ranked, excluded = (ranks_in_lists(rows.rankings, rows.scores, targets, h) for h in (None, histories))
    yield from ((m, "", v) for m, v in ranking_metrics(ranked, KS, k).items())
    shortest = shortest_list(rows.rankings, histories)
    yield from ((m, "excl.", v) for m, v in ranking_metrics(excluded, KS, shortest).items())
    yield "contains target", "", float((ranked <= k).mean())
    yield "mean target score", "", float(rows.target_scores.astype(np.float64).mean())
    if sasrec is not None:
        for n in sorted({min(10, k), k}):
            yield f"overlap{n} with sasrec", "", overlap(rows.rankings[:, :n], sasrec.rankings[:, :n])
    yield from _by_popularity(ranked, data.train_counts()[targets], k)


def _by_popularity(ranked: np.ndarray, counts: np.ndarray, k: int) -> Iterator[tuple[str, str, float]]:
    """NDCG@20 (or of the whole list where it is shorter) by how often the target is a training target."""
    at = min(20, k)
    for low, high in zip(_COUNTS, (*_COUNTS[1:], None), strict=True):
        chosen = (counts >= low) & (True if high is None else counts < high)
        name = f"{low}+" if high is None else str(low) if high == low + 1 else f"{low}–{high - 1}"
        if chosen.any():
            value = ranking_metrics(ranked[chosen], (at,), k)[f"NDCG@{at}"]
            yield f"NDCG@{at} by training count of the target", f"{name} (n {chosen.sum()})", value


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Mean share of the items of `a` [n, K] that stand in the same row of `b` [n, K]."""
    span = int(max(a.max(), b.max())) + 1
    row = np.arange(len(a), dtype=np.int64)[:, None] * span
    return float(np.isin(row + a, row + b).mean())


def confidence_entropy(scores: np.ndarray, score_kind: str, scaling: str) -> np.ndarray:
    """[n] entropy of DLLM2Rec's confidence weights as a share of log K; 1: all candidates count alike.

    q = (exp(-d) + 1e-8) / sum, with d the distance, or -log p, of a candidate.

    Args:
        scores: [n, K] of the best K candidates.
        scaling: `minmax` (d scaled to [0, 1] per row) or `none`.
    """
    d = scores.astype(np.float64) * (-1.0 if score_kind == "log_likelihood" else 1.0)
    if scaling == "minmax":
        low, high = d.min(axis=1, keepdims=True), d.max(axis=1, keepdims=True)
        d = (d - low) / np.where(high > low, high - low, 1.0)
    q = np.exp(-d) + _FLOOR
    q /= q.sum(axis=1, keepdims=True)
    return -(q * np.log(q)).sum(axis=1) / np.log(max(q.shape[1], 2))


def _confidence(scores: np.ndarray, score_kind: str) -> Iterator[tuple[str, str, float]]:
    for scaling in ("minmax", "none"):
        entropy, metric = confidence_entropy(scores, score_kind, scaling), f"confidence entropy, {scaling}"
        yield metric, "", float(entropy.mean())
        for name, at in (("p05", 0.05), ("p50", 0.5), ("p95", 0.95)):
            yield metric, name, float(np.quantile(entropy, at))


def ensure_quality(
    store: TeacherStore,
    data: InteractionData,
    train_ids: np.ndarray,
    export: ExportConfig,
    seed: int,
    encoder: StudentConfig | None,
    *,
    confidence_k: int = 10,
    max_rows: int = 20_000,
) -> Path:
    """The folder of the store's report, written now if none is there about just these rows; arguments as above.

    Args:
        export, seed, encoder: of `references`.
    """
    folder = quality_folder(store.folder)
    with lock(folder, log.info):
        if is_complete(folder):
            written = read_object(folder / MANIFEST)
            if (written.get("format_version"), written.get("store_files")) != (FORMAT_VERSION, _files(store)):
                log.info("%s is of an earlier form or about other rows: it is written again", folder)
                shutil.rmtree(folder)
        if not is_complete(folder):
            others = references(data, export, seed, encoder)
            sizes = {"confidence_k": min(confidence_k, store.top_k), "max_rows": max_rows}
            write_quality(folder, quality_report(store, data, train_ids, others, **sizes, seed=seed))
    log.info("quality of the teacher's rankings: %s/quality.md", folder)
    return folder


def _files(store: TeacherStore) -> str:
    """Tells a store from one that was exported anew under the same fingerprint."""
    return fingerprint(store.manifest["files"])


def quality_folder(store_folder: Path) -> Path:
    """Where the report of a store lies."""
    return store_folder.with_name(store_folder.name + ".quality")


def write_quality(folder: Path, report: Mapping[str, Any]) -> None:
    """`quality.json`, `quality.md`, the plot and a manifest."""
    with artifact_folder(folder) as tmp:
        write_json(tmp / "quality.json", report)
        write_text(tmp / "quality.md", markdown(report))
        plot(tmp / "quality", report)
        keys = ("format_version", "dataset", "dataset_fingerprint", "teacher", "store", "store_files")
        write_manifest(tmp, {key: report[key] for key in keys})
