"""Speed and memory of the teacher's export; ratios come from one run, on the same machine.

    python -m benchmarks.teacher_export                         # all parts, demo data
    python -m benchmarks.teacher_export --part methods --raw ../shared/data/ml-100k
    python -m benchmarks.teacher_export --part base --shape 7b --raw ../shared/data/ml-100k   # needs a GPU

prefix: `rerank` with one shared prefill against one text per title (20 titles of 8 tokens, no shared beginnings,
    behind 250 tokens); required >= 8x. methods: samples/s of every ranking method with the embedded LLM's sizes
    (weights are not trained: speed does not depend on them). base: the same for a base of random weights in bf16
    in the shape of Llama-2-7B on a GPU; without one the same path in a tiny shape, whose figures mean nothing.
    memory: peak RSS of 1,000,000 samples of a stub teacher; required <= 1 GiB above the process before it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.measuring import peak_gib
from src.core.data_utils import DatasetConfig, load_dataset
from src.core.logging import get_logger, setup_logging
from src.core.store_writer import StoreWriter
from src.core.teacher_store import TeacherRows
from src.exp.settings import Settings
from src.teacher.config import IloraConfig
from src.teacher.config_parts import LLMConfig

if TYPE_CHECKING:
    from src.teacher.ilora_teacher import IloraTeacher

log = get_logger("benchmark")


def composed(*overrides: str) -> tuple[DatasetConfig, IloraConfig]:
    settings = Settings.compose(overrides)
    return settings.dataset, settings.teacher


def prefix(hidden: int, layers: int, rounds: int) -> float:
    """Times naive and shared scoring of the same titles; returns the ratio of their best times."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from src.teacher.ilora_model import IloraModel
    from src.teacher.llm import LoadedLLM
    from src.teacher.prompts import Example, collate
    from src.teacher.ranking.prefix import SharedPrefix
    from src.teacher.ranking.tree import TitleTree, naive_scores, tree_scores

    torch.manual_seed(0)
    llm = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=4096, hidden_size=hidden, intermediate_size=hidden * 11 // 4, num_hidden_layers=layers,
            num_attention_heads=hidden // 32, num_key_value_heads=hidden // 32, max_position_embeddings=512,
        )  # fmt: skip
    ).requires_grad_(False)
    _, config = composed()
    counts = torch.ones(101, dtype=torch.long)
    model = IloraModel(config, LoadedLLM(llm, None, False, 512, {}), torch.randn(101, 64), counts).eval()
    rng = np.random.default_rng(0)
    prompt = Example(rng.integers(3, 4096, 250), np.empty(0, np.int64), 250, 250)
    titles = [np.array([3 + i, *rng.integers(3, 4096, 7)]) for i in range(20)]
    gate = torch.full((1, config.lora.experts), 1.0 / config.lora.experts)

    def shared() -> np.ndarray:
        with model.gates.use(gate):
            return tree_scores(SharedPrefix(model, collate([prompt]), True), [TitleTree.of(titles)])[0]

    def naive() -> np.ndarray:
        return naive_scores(model, [prompt], [titles], gate, True)[0]

    best = {"shared": np.inf, "naive": np.inf}
    with torch.no_grad():
        difference = np.abs(shared() - naive()).max()
        for _ in range(rounds):  # turn by turn: other load on the machine hits both
            for name, call in (("naive", naive), ("shared", shared)):
                started = time.perf_counter()
                call()
                best[name] = min(best[name], time.perf_counter() - started)
    ratio = best["naive"] / best["shared"]
    log.info(
        "prefix: hidden %d, %d layers, %d thread(s): naive %.1f ms, shared %.1f ms per sample, ratio %.1fx, "
        "largest difference of scores %.1e",
        hidden, layers, torch.get_num_threads(), 1e3 * best["naive"], 1e3 * best["shared"], ratio, difference,
    )  # fmt: skip
    return ratio


# Every method with its settings, and the share of the samples that it is given: rates differ by orders.
METHODS = (
    ("hidden", {}, 1),
    ("rerank", {"pool": 20}, 2),
    ("grounding", {"beams": 1}, 4),
    ("grounding", {"beams": 4}, 4),
    ("trie", {"beams": 20}, 8),
)


def prepared(raw: str | None, *overrides: str) -> IloraTeacher:
    """An untrained teacher, prompts with 20 candidates, on the data it is asked about."""
    from src.teacher.ilora_teacher import IloraTeacher

    dataset = ["dataset=movielens", f"dataset.raw_dir={Path(raw).resolve()}"] if raw else ["dataset=demo"]
    small = [
        "teacher.llm.tiny.epochs=0",
        "teacher.llm.tiny.words.epochs=0",
        "teacher.encoder.max_epochs=1",
        "teacher.prompt.candidates=20",
    ]
    data_config, config = composed(*dataset, *small, *overrides)
    teacher = IloraTeacher(config, load_dataset(data_config))
    teacher.open()
    teacher.model.eval()
    return teacher


def methods(teacher: IloraTeacher, samples: int, batch_size: int) -> None:
    """samples/s of every method: one thread count, one teacher, the same samples; a table at the end."""
    from src.teacher.ranking import make_ranker
    from src.teacher.ranking.base import Context

    data, cuda = teacher.data, teacher.model.device.type == "cuda"
    lines = ["| method | samples/s | ms per sample | 100,000 samples, hours |", "|---|---|---|---|"]
    for ranking, options, divisor in METHODS:
        export = replace(teacher.config.export, ranking=ranking, batch_size=batch_size, **options)
        ranker = make_ranker(Context(teacher.model, teacher.source, export, True, 1))
        ids = data.splits["test"][: max(samples // divisor, 4)]
        ranker.rank(ids[:2], 10)
        started = time.perf_counter()
        ranker.rank(ids, 10)  # ends with the rows on the host: nothing is left running on a GPU
        rate = len(ids) / (time.perf_counter() - started)
        name = ranking + "".join(f", {key} {value}" for key, value in options.items())
        lines.append(f"| {name} | {rate:.1f} | {1e3 / rate:.1f} | {1e5 / rate / 3600:.2f} |")
    llm = sum(p.numel() for p in teacher.model.llm.get_base_model().parameters())
    where = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} thread(s)"
    peak = f", peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if cuda else ""
    log.info(
        "methods: %s, %d items, LLM of %.1f M parameters (%s), %s, batch %d%s\n%s",
        data.name, data.n_items, llm / 1e6, teacher.config.llm.dtype, where, batch_size, peak, "\n".join(lines),
    )  # fmt: skip


# Width, width of the MLP, blocks, heads, vocabulary, context.
SHAPES = {"7b": (4096, 11008, 32, 32, 32000, 2048), "tiny": (64, 176, 2, 4, 4096, 512)}


def base(raw: str | None, samples: int, shape: str | None) -> None:
    """Every method behind a Llama of random weights in bf16; titles are read by the embedded tokenizer."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from src.teacher.llm import LoadedLLM

    gpu = torch.cuda.is_available()
    if shape is None:
        shape = "7b" if gpu else "tiny"
    if shape == "7b" and not gpu:
        raise SystemExit(
            "base: --shape 7b needs a GPU, and there is none; --shape tiny runs the same path on CPU"
        )
    if not gpu:
        log.info("base: no GPU; a tiny shape in bf16 on CPU, only to run the path: its rates mean nothing")
    width, inner, blocks, heads, vocabulary, context = SHAPES[shape]
    llama = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=inner, num_hidden_layers=blocks,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=context,
    )  # fmt: skip

    def random_base(config: LLMConfig, folder: Path | None) -> LoadedLLM:
        with torch.device("cuda" if gpu else "cpu"):
            model = LlamaForCausalLM._from_config(llama, dtype=torch.bfloat16).requires_grad_(False)
        return LoadedLLM(model, AutoTokenizer.from_pretrained(folder), False, context, {})

    with patch("src.teacher.ilora_teacher.load_llm", random_base):
        teacher = prepared(raw, "teacher.llm.dtype=bfloat16")
    methods(teacher, samples, 32 if gpu else 4)


def memory(samples: int, top_k: int) -> float:
    """Peak RSS in GiB above the process before the export."""
    n_items = 20_000

    def rank(ids: np.ndarray) -> TeacherRows:
        first = (ids[:, None] * 7919 + np.arange(top_k)[None]) % n_items + 1
        scores = np.tile(-np.arange(top_k, dtype=np.float32), (len(ids), 1))
        return TeacherRows(ids, first.astype(np.int32), scores, scores[:, 0] - 1)

    ids = np.arange(samples, dtype=np.int64)
    table = np.zeros((n_items + 1, 64), np.float32)
    before = peak_gib()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        writer = StoreWriter(Path(folder) / "store", n_items, "log_likelihood", 8192)
        writer.export("train", ids, rank)
        fields = {"dataset": "stub", "dataset_fingerprint": "stub", "teacher": "stub"}
        store = writer.finish({"train": ids}, table, fields, {"train": ids})
        size = sum(p.stat().st_size for p in store.folder.rglob("*"))
    peak = peak_gib() - before
    log.info(
        "memory: %d samples, K=%d: store %.2f GiB, peak RSS %.3f GiB above the start, %.0f s",
        samples, top_k, size / 2**30, peak, time.perf_counter() - started,
    )  # fmt: skip
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=("prefix", "methods", "base", "memory"))
    parser.add_argument(
        "--raw", help="folder of raw ML-100K files for `methods` and `base`; the demo without"
    )
    parser.add_argument("--shape", choices=tuple(SHAPES), help="of `base`; 7b where there is a GPU")
    parser.add_argument("--batch-size", type=int, default=32, help="samples per forward pass of `methods`")
    parser.add_argument("--samples", type=int, default=128, help="samples of the fastest methods")
    parser.add_argument("--stub-samples", type=int, default=1_000_000)
    args = parser.parse_args()
    setup_logging(None)
    with tempfile.TemporaryDirectory() as root:
        os.environ.setdefault("ANYO_DATA_ROOT", root)
        failed = []
        if args.part in (None, "memory") and memory(args.stub_samples, 100) > 1.0:
            failed.append("memory: more than 1 GiB")
        if args.part in (None, "prefix"):
            ratios = {(h, n): prefix(h, n, 5) for h, n in ((64, 2), (256, 4))}
            if ratios[256, 4] < 8.0:
                failed.append(f"prefix: ratio {ratios[256, 4]:.1f} < 8")
        if args.part in (None, "methods"):
            methods(prepared(args.raw), args.samples, args.batch_size)
        if args.part in (None, "base"):
            base(args.raw, args.samples, args.shape)
    if failed:
        raise SystemExit("; ".join(failed))


if __name__ == "__main__":
    main()
