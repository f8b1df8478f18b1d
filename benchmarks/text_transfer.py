"""What titles bring to a student: word vectors and LLM vectors fused, their controls, and each lever by itself.

    python -m benchmarks.text_transfer OUT run  [--students sasrec gru4rec] [--arms baseline tfidf ...] [--seeds 1 2 3]
                                                [--split valid] [--llm FOLDER] [--set KEY=VALUE ...]
    python -m benchmarks.text_transfer OUT show [--split test] [--against baseline]

An arm is `baseline`, or vectors (`tfidf`, `text` of --llm, `tfidf+text`) with distillation settings behind commas:
`tfidf,own_start=random`, `tfidf,control=permute_embeddings`. `run` trains what OUT does not have yet (one process may be
stopped and another go on) and keeps the ranks of the validation rows, and of the test rows with `--split test`: levers
are chosen on valid, test is read once.
`show` prints one row per student and arm: mean and deviation over seeds, the difference with its interval over users
and seeds, and NDCG@20 by the number of training targets of the row's item.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.comparison_level import paired_difference
from src.core.data_utils import load_dataset
from src.core.metrics import per_sample
from src.distill.data_bridge import principal
from src.distill.ranking_gate import SLICES, popularity_slice
from src.distill.trainer_distill import train_distilled
from src.exp.settings import Settings
from src.student.evaluator import rank_samples
from src.student.trainer_baseline import train_student
from src.teacher.factory import build_teacher


@dataclass(frozen=True)
class Vectors:
    """As much of a teacher-output store as a student without rankings reads."""

    table: np.ndarray
    folder: str

    splits = ()

    @property
    def manifest(self) -> dict[str, Any]:
        return {"n_items": len(self.table) - 1}

    def item_embeddings(self) -> np.ndarray:
        return self.table


@cache
def vectors(sources: str, llm: str | None, settings: tuple[str, ...]) -> Vectors:
    """Of one teacher, or of several side by side, each with half-whitened directions of unit mean square."""
    data, tables = load_dataset(Settings.compose(list(settings)).dataset), []
    for source in sources.split("+"):
        own = ["teacher=text", f"teacher.llm.path={llm}"] if source == "text" else [f"teacher={source}"]
        teacher = build_teacher(Settings.compose([*settings, *own]).teacher, data)
        teacher.prepare(None)
        table = teacher.item_embeddings()[1:].astype(np.float64)
        if "+" in sources:
            table = principal(table, len(table), 0.5)
            table /= np.sqrt(np.square(table).mean())
        tables.append(table)
    joined = np.concatenate(tables, axis=1).astype(np.float32)
    return Vectors(np.concatenate([np.zeros_like(joined[:1]), joined]), sources)


def train(arguments: argparse.Namespace, student: str, arm: str, seed: int) -> None:
    sources, *changes = arm.split(",")
    changes = [
        *(["pca_power=1.0"] if "+" in sources else []),
        *changes,
    ]  # side by side they are whitened already
    common = [*arguments.set, "eval.candidates=null"]
    own = [] if sources == "baseline" else [f"distill.{c}" for c in changes]
    s = Settings.compose([*common, f"student={student}", *own], strict=False)
    data = load_dataset(s.dataset)
    with tempfile.TemporaryDirectory() as folder:
        keys: dict[str, Any] = {"seed": seed, "folder": Path(folder), "fingerprint": "study"}
        if sources == "baseline":
            model, result = train_student(s.student, data, s.eval, **keys)
        else:
            store: Any = vectors(sources, arguments.llm, tuple(common))
            model, result, _ = train_distilled(s.student, s.distill, s.active, data, store, s.eval, **keys)
    for split in dict.fromkeys(("valid", arguments.split)):
        ids = data.splits[split]
        np.savez(
            path_of(arguments, split, student, arm, seed),
            ranks=rank_samples(model, data, ids, s.eval.batch_size, torch.device("cpu")).ranked,
            users=data.users_of(ids),
            slices=popularity_slice(data.train_counts()[data.targets(ids)]),
            best_epoch=result.best_epoch,
        )


def path_of(arguments: argparse.Namespace, split: str, student: str, arm: str, seed: int) -> Path:
    return arguments.out / split / f"{student}@{arm}@{seed}.npz"


def run(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    for split in ("valid", arguments.split):
        (arguments.out / split).mkdir(parents=True, exist_ok=True)
    for seed in arguments.seeds:
        for student in arguments.students:
            for arm in arguments.arms:
                claim = path_of(arguments, arguments.split, student, arm, seed).with_suffix(".claim")
                try:
                    claim.touch(exist_ok=False)
                except FileExistsError:
                    continue
                try:
                    train(arguments, student, arm, seed)
                except BaseException:
                    claim.unlink()
                    raise
                sys.stdout.write(f"{student} {arm} {seed}\n")
                sys.stdout.flush()


def found(arguments: argparse.Namespace) -> Iterator[tuple[str, str, list[Any]]]:
    """(student, arm, files by seed), the baseline of each student first."""
    groups = defaultdict(list)
    for path in sorted((arguments.out / arguments.split).glob("*.npz")):
        student, arm, _ = path.stem.split("@")
        groups[student, arm].append(np.load(path))
    for (student, arm), files in sorted(
        groups.items(), key=lambda g: (g[0][0], g[0][1] != "baseline", g[0][1])
    ):
        yield student, arm, files


def show(arguments: argparse.Namespace) -> None:
    names = " | ".join(SLICES)
    print(f"| student | arm | seeds | NDCG@10 | difference (95 %) | HR@10 | NDCG@20 | {names} |")
    print("|" + "---|" * (7 + len(SLICES)))
    groups = {(student, arm): files for student, arm, files in found(arguments)}
    for (student, arm), files in groups.items():
        by_metric = {
            m: [per_sample(f["ranks"], m) for f in files] for m in ("NDCG@10", "Recall@10", "NDCG@20")
        }
        means = [x.mean() for x in by_metric["NDCG@10"]]
        other, difference = groups.get((student, arguments.against)), ""
        if other is not None and arm != arguments.against:
            a = np.stack([per_sample(f["ranks"], "NDCG@10") for f in other])
            d = paired_difference(
                a, np.stack(by_metric["NDCG@10"]), files[0]["users"], np.random.default_rng(0), 2000
            )
            difference = f"{d.mean:+.4f} ({d.low:.4f}..{d.high:.4f})"
        at, gains = files[0]["slices"], np.mean(by_metric["NDCG@20"], axis=0)
        slices = [f"{gains[at == i].mean():.3f}" if (at == i).any() else "-" for i in range(len(SLICES))]
        print(
            f"| {student} | {arm} | {len(files)} | {np.mean(means):.4f} ± {np.std(means):.4f} | {difference} "
            f"| {np.mean(by_metric['Recall@10']):.4f} | {gains.mean():.4f} | {' | '.join(slices)} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("what", choices=("run", "show"))
    parser.add_argument("--students", nargs="+", default=["sasrec"])
    parser.add_argument("--arms", nargs="+", default=["baseline", "tfidf"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--split", choices=("valid", "test"), default="valid")
    parser.add_argument("--llm", help="folder of the language model or encoder of `text`")
    parser.add_argument("--against", default="baseline")
    parser.add_argument("--set", nargs="+", default=[], help="overrides, of the dataset above all")
    arguments = parser.parse_args()
    (run if arguments.what == "run" else show)(arguments)


if __name__ == "__main__":
    main()
