"""What each objective of the teacher is good for: validation NDCG@10 and training time, one row per variant.

    python -m benchmarks.teacher_objectives                                          # demo
    python -m benchmarks.teacher_objectives --raw ../shared/data/ml-100k --seeds 1 --train 6000 --rows 500

Every variant is trained with `conf/teacher/ilora.yaml` (embedded LLM) and differs in the objective and in the
prompt that its ranking method reads. All rank the same validation samples over the whole catalogue, history items
included; `rerank` orders the frozen SASRec's first 20 and cannot find what is not among them. The frozen SASRec
stands beside them, on the same samples. Training time is the teacher's alone (without encoder and embedded LLM, which all share).
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.teacher_export import composed
from src.core.data_utils import load_dataset
from src.core.logging import get_logger, setup_logging
from src.core.metrics import MISSED, per_sample
from src.core.seed import numpy_stream
from src.teacher.encoder import frozen_encoder
from src.teacher.ilora_teacher import IloraTeacher
from src.teacher.ranking import make_ranker
from src.teacher.ranking.base import Context

POOL = 20
SASREC = "frozen SASRec"
TITLES = ("teacher.export.embedding.source=text", "teacher.objective.prior=none")
# name: (overrides, ranking methods)
VARIANTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "item, prior none": (("teacher.objective.lm=0", "teacher.objective.prior=none"), ("hidden",)),
    "item, prior sasrec": (("teacher.objective.lm=0",), ("hidden",)),
    "lm, no list": (
        ("teacher.objective.item=0", "teacher.objective.lm=1", "teacher.export.ranking=trie", *TITLES),
        ("trie", "rerank"),
    ),
    "lm, list of 20": (
        (
            *("teacher.objective.item=0", "teacher.objective.lm=1", "teacher.export.ranking=rerank", *TITLES),
            f"teacher.prompt.candidates={POOL}",
        ),
        ("rerank",),
    ),
    "item + lm, prior none": (
        ("teacher.objective.lm=1", "teacher.objective.prior=none"),
        ("hidden", "trie"),
    ),
    "item + 0.1 lm, prior sasrec": (("teacher.objective.lm=0.1",), ("hidden", "trie")),
}
log = get_logger("benchmark")


def ndcg10(rankings: np.ndarray, targets: np.ndarray) -> float:
    """NDCG@10 of [n, K] rankings; a target outside its list misses."""
    hit = rankings == targets[:, None]
    ranks = np.where(hit.any(axis=1), hit.argmax(axis=1) + 1, MISSED)
    return float(per_sample(ranks, "NDCG@10").mean())


def measure(dataset: list[str], seed: int, train: int, rows: int, only: list[str]) -> dict[str, list[float]]:
    """{"variant | ranking": [NDCG@10, training seconds, ranking samples/s]} of one seed."""
    common = [f"seed={seed}", f"teacher.train.samples={train}", "teacher.export.top_k=20"]
    common += ["teacher.export.pool=20"]
    data_config, config = composed(*dataset, *common)
    data = load_dataset(data_config)
    ids = data.splits["valid"]
    if rows < len(ids):
        ids = np.sort(numpy_stream(0, "benchmark_rows").choice(ids, rows, replace=False))
    targets = data.targets(ids)
    log_p = frozen_encoder(config.encoder, data, config.seed).log_probabilities(data.histories(ids))
    best = torch.topk(log_p, 20, dim=1).indices.numpy() + 1
    found = {SASREC: [ndcg10(best, targets), float("nan"), float("nan")]}
    for name, (overrides, rankings) in VARIANTS.items():
        if only and name not in only:
            continue
        config = composed(*dataset, *common, *overrides)[1]
        teacher = IloraTeacher(config, data)
        report = teacher.prepare(None)
        seconds = report["train_seconds"] - report["encoder_seconds"] - report["llm_seconds"]
        for ranking in rankings:
            export = replace(
                config.export, ranking=ranking, batch_size=64, beams=20, pool=POOL, exclude_history=False
            )
            ranker = make_ranker(Context(teacher.model, teacher.source, export, teacher.hybrid, config.seed))
            started = time.perf_counter()
            made = ranker.rank(ids, 20)
            rate = len(ids) / (time.perf_counter() - started)
            found[f"{name} | {ranking}"] = [ndcg10(made.rankings, targets), seconds, rate]
            log.info(
                "%s, seed %d, %d validation samples: %s by %s: NDCG@10 %.4f, %.0f s of training, "
                "%.1f samples/s (best step %d of %d)",
                data.name, seed, len(ids), name, ranking, found[f"{name} | {ranking}"][0], seconds, rate,
                report["best_step"], report["steps"],
            )  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--raw", help="folder of raw ML-100K files; the demo without")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--train", type=int, default=6000, help="training samples (4 epochs)")
    parser.add_argument("--rows", type=int, default=1000, help="validation samples")
    parser.add_argument("--only", nargs="*", default=[], help=f"names of variants ('{SASREC}': it alone)")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    setup_logging(None)
    with tempfile.TemporaryDirectory() as root:
        os.environ.setdefault("ANYO_DATA_ROOT", root)
        raw = ["dataset=movielens", f"dataset.raw_dir={Path(args.raw).resolve()}"] if args.raw else []
        runs = [measure(raw, seed, args.train, args.rows, args.only) for seed in args.seeds]
    log.info("| objective, ranking | NDCG@10 per seed | mean | training s | ranking samples/s |")
    for name in runs[0]:
        values, seconds, rates = zip(*(run[name] for run in runs), strict=True)
        log.info(
            "| %s | %s | %.4f | %.0f | %.0f |",
            name, ", ".join(f"{v:.4f}" for v in values), statistics.mean(values),
            statistics.mean(seconds), statistics.mean(rates),
        )  # fmt: skip


if __name__ == "__main__":
    main()
