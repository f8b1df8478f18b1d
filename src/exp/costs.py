"""Hours and memory of a stage before it starts: counted from the models' own parameters, rough on purpose.

Time is work over speed. The work of an LLM is its floating-point operations: 2 per weight and token forward, as much
again for the gradient of its input, and what checkpointing computes twice. The speed is measured here by three steps
of one of its blocks, or, for a device by name (`plan.device`), its peak at a stated utilisation. A student's steps
are measured themselves, on samples of the dataset's sizes.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from src.core.artifacts import is_complete, read_object
from src.core.data_utils import InteractionData, raw_folder
from src.core.paths import processed_dir, resolve
from src.exp.settings import Settings
from src.student.config import StudentConfig
from src.teacher.config import IloraConfig, members_of
from src.teacher.config_parts import LLMConfig

GIB = 2**30
UTILISATION = 0.4  # of a named device's peak; well-tuned training of a 7B model reaches .4 to .5
TOKENS_PER_ITEM, _TOKENS_AROUND = 12, 48  # of a title with its placeholder; of the instruction and the cue
_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
_BYTES_4BIT = 0.55  # nf4 with double quantisation
_DISTILL = 2.0  # a distilled epoch beside a baseline's: benchmarks/distill_speed.py
_PROBE_FLOPS = 1e10  # of one measured step of an LLM's block
_PROBE_SCORES = 2e8  # of the student's measured epochs: samples x items
_COUNTED_AT_ONCE = 256 * 2**20  # bytes of raw files; larger ones are guessed before they are prepared


@dataclass(frozen=True)
class Device:
    """Peak operations per second in half and in single precision (dense), and memory, from NVIDIA's data sheets."""

    half: float
    single: float
    memory_gib: int

    def speed(self, dtype: str) -> float:
        return UTILISATION * (self.single if dtype == "float32" else self.half)


DEVICES = {
    "a100": Device(312e12, 19.5e12, 80),
    "h100": Device(989e12, 67e12, 80),
    "l4": Device(121e12, 30.3e12, 24),
}


@dataclass(frozen=True)
class Sizes:
    """Samples of the splits and items of the catalogue; `how` says where the numbers come from."""

    train: int
    valid: int
    test: int
    n_items: int
    how: str


def sizes_of(settings: Settings) -> Sizes:
    """From the prepared dataset, or from its raw files, which are read and left unprepared."""
    folder = processed_dir(settings.dataset.name, settings.dataset_fp)
    if is_complete(folder):
        return _sizes(folder, "prepared")
    raw = raw_folder(settings.dataset)
    if raw.is_dir() and sum(f.stat().st_size for f in raw.rglob("*") if f.is_file()) > _COUNTED_AT_ONCE:
        return Sizes(
            1_000_000, 100_000, 100_000, 50_000, "guessed: the raw files are large, prepare them first"
        )
    from src.core.datasets.prepare import prepare

    with tempfile.TemporaryDirectory() as scratch, quiet():
        prepare(settings.dataset, raw, settings.dataset_fp, Path(scratch) / "prepared")
        return _sizes(Path(scratch) / "prepared", "counted in the raw files")


def _sizes(folder: Path, how: str) -> Sizes:
    fields = read_object(folder / "manifest.json")
    n = fields["n_samples"]
    return Sizes(n["train"], n["valid"], n["test"], fields["n_items"], how)


def language_model(config: LLMConfig, layers: int | None = None) -> Any:
    """The LLM on PyTorch's meta device: every shape, no weights; None where its config.json is not on this machine.

    Args:
        layers: blocks to build; None: all. Built on the current device then, with random weights.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

    if (tiny := config.tiny) is not None:
        sizes = {"hidden_size": tiny.hidden_size, "intermediate_size": tiny.intermediate_size}
        heads = {"num_attention_heads": tiny.heads, "num_key_value_heads": tiny.heads}
        length = {"vocab_size": tiny.vocab_size, "max_position_embeddings": tiny.context}
        found: Any = LlamaConfig(**sizes, **heads, **length, num_hidden_layers=tiny.layers)
    else:
        path: Any = resolve(str(config.path)) if config.kind in ("local", "gguf") else config.path
        where = {"gguf_file": path.name} if config.kind == "gguf" else {"revision": config.revision}
        try:
            source = str(path.parent if config.kind == "gguf" else path)
            code = config.trust_remote_code
            found = AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=code, **where)
        except OSError:
            return None
    found = deepcopy(found)
    if layers is not None:
        found.num_hidden_layers = layers
    with torch.device("meta") if layers is None else torch.device(torch.get_default_device()):
        return AutoModelForCausalLM.from_config(found, trust_remote_code=config.trust_remote_code)


@dataclass(frozen=True)
class LLMSize:
    """Of one LLM: parameters, those in its blocks, those of its LoRA, width H, blocks, vocabulary V, context."""

    parameters: int
    in_blocks: int
    lora: int
    width: int
    blocks: int
    vocabulary: int
    context: int


def llm_size(model: Any, rank: int) -> LLMSize:
    """Counted in the model itself; LoRA on all linears of the blocks is rank x (inputs + outputs) each."""
    from torch import nn

    from src.teacher.llm import find_blocks

    blocks = find_blocks(model)
    linears = [m for m in blocks.modules() if isinstance(m, nn.Linear)]
    config = model.config.get_text_config()
    return LLMSize(
        sum(p.numel() for p in model.parameters()),
        sum(p.numel() for p in blocks.parameters()),
        sum(rank * (m.in_features + m.out_features) for m in linears),
        config.hidden_size,
        len(blocks),
        config.vocab_size,
        getattr(config, "max_position_embeddings", None) or 2048,
    )


def prompt_tokens(size: LLMSize, max_history: int) -> int:
    return min(size.context, _TOKENS_AROUND + TOKENS_PER_ITEM * max_history)


def memory(config: IloraConfig, size: LLMSize, max_history: int) -> dict[str, float]:
    """Bytes by use: frozen weights, trained parts with Adam, activations of one micro-batch.

    Activations by Korthikanti et al. (2022), 34 B x T x H per block in half precision without the attention
    matrix, which fused attention does not keep; with checkpointing 2 B x T x H per block and one block whole.
    """
    width = _BYTES[config.llm.dtype]
    weights = size.parameters * (_BYTES_4BIT if config.llm.quantization == "4bit" else width)
    tokens = config.train.largest_pass * prompt_tokens(size, max_history)
    unit = tokens * size.width * width / 2
    kept = 2.0 * size.blocks + 34.0 if config.llm.gradient_checkpointing else 34.0 * size.blocks
    answers = config.train.largest_pass * 16 * size.vocabulary * 8.0 if config.objective.lm > 0 else 0.0
    # Trained: weight, gradient and two moments in float32
    return {"weights": weights, "trained": size.lora * 16.0, "activations": unit * kept + answers}


def llm_work(
    settings: Settings, config: IloraConfig, size: LLMSize, sizes: Sizes, rows: int
) -> tuple[float, float]:
    """Floating-point operations of (training, export of `rows` samples)."""
    train, export, tiny = config.train, config.export, config.llm.tiny
    tokens = prompt_tokens(size, settings.dataset.max_history)
    forward = 2.0 * size.in_blocks  # per token; the frozen weights get no gradient, their inputs do
    both = forward * (3 if config.llm.gradient_checkpointing else 2)
    samples = min(sizes.train if train.samples is None else train.samples, sizes.train) * train.epochs
    every = config.objective.refresh_steps
    refreshes = train.epochs if every is None else samples / train.batch_size / every
    if config.objective.titles == "base":
        refreshes = 1.0  # read once, and kept
    refreshes = refreshes if config.objective.item else 0.0
    titles = refreshes * sizes.n_items * 1.5 * TOKENS_PER_ITEM  # with the words around each
    validated = train.evals_per_epoch * train.epochs * min(train.eval_samples, sizes.valid) * tokens
    training = samples * tokens * both + (titles + validated) * forward
    if tiny is not None:  # its pre-training: every weight has a gradient
        training += tiny.epochs * tiny.samples * tokens * 3 * forward
    further = {
        "hidden": 0.0,
        "rerank": export.pool * TOKENS_PER_ITEM,
        "trie": export.beams * TOKENS_PER_ITEM,
        "grounding": export.beams * export.max_new_tokens,
    }
    return training, rows * (tokens + further.get(export.ranking, 0.0)) * forward


def speed_here(config: IloraConfig, tokens: int) -> float:
    """Operations per second of this machine: the best of three steps, forward and backward, of one block of the LLM."""
    import torch

    cuda = torch.cuda.is_available() and config.train.device != "cpu"
    device, dtype = "cuda" if cuda else "cpu", getattr(torch, config.llm.dtype)
    with quiet():
        model = language_model(config.llm, layers=1).to(device, dtype).requires_grad_(False).eval()
    body = model.base_model
    weights = sum(p.numel() for n, p in body.named_parameters() if "embed" not in n)
    count = max(1, int(_PROBE_FLOPS * (100 if cuda else 1) / (4.0 * weights * tokens)))
    inputs = torch.randn(
        count, tokens, model.config.get_text_config().hidden_size, device=device, dtype=dtype
    )
    best = float("inf")
    for _ in range(4):  # the first warms up; the best, as other work on the machine only ever slows it
        started = time.perf_counter()
        body(inputs_embeds=inputs.requires_grad_(), use_cache=False).last_hidden_state.sum().backward()
        if cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 4.0 * weights * count * tokens / best


def teacher_seconds(settings: Settings, sizes: Sizes, device: str) -> dict[str, float] | None:
    """Seconds by part of training and export; None where an LLM's shape is not known here."""
    parts, rows = defaultdict[str, float](float), export_rows(settings, sizes)
    folds = getattr(settings.teacher, "folds", 1)
    trainings = folds + 1 if folds > 1 else 1
    for config in members_of(settings.teacher):
        encoder = getattr(config, "encoder", None)
        if encoder is not None and getattr(config, "encoder_run", None) is None:
            parts["encoder, at most"] += trainings * student_seconds(settings, encoder, sizes)
        if isinstance(config, IloraConfig):
            if (model := language_model(config.llm)) is None:
                return None
            size = llm_size(model, config.lora.rank)
            tokens = prompt_tokens(size, settings.dataset.max_history)
            named = DEVICES.get(device)
            speed = named.speed(config.llm.dtype) if named else speed_here(config, tokens)
            training, export = llm_work(settings, config, size, sizes, rows)
            parts["LLM"] += trainings * training / speed
            parts[f"export of {rows} samples by {config.export.ranking}"] += export / speed
    return parts


def export_rows(settings: Settings, sizes: Sizes) -> int:
    """Samples that get a row of the store."""
    export = settings.teacher.export
    share = (settings.active.share or 1.0) if settings.selects("export") else export.train_share
    train = round(sizes.train * share)
    return sum(train if split == "train" else getattr(sizes, split) for split in export.splits)


def student_seconds(
    settings: Settings, config: StudentConfig, sizes: Sizes, distilled: bool = False
) -> float:
    """All epochs, validation after each included: two epochs on a made-up log are measured on this machine."""
    from src.student.trainer_baseline import train_student

    steps = int(min(6, max(1, _PROBE_SCORES // (config.batch_size * sizes.n_items))))
    data = _made_up(steps * config.batch_size, sizes.n_items, settings.dataset.max_history)
    probe = replace(config, max_epochs=2, patience=2, compile=False)
    with tempfile.TemporaryDirectory() as scratch, quiet():
        _, done = train_student(
            probe, data, settings.eval, seed=0, folder=Path(scratch), fingerprint="probe", run=None
        )
    n, rates = len(data.splits["train"]), [e["samples_per_s"] for e in done.history]
    valid = max(0.0, done.seconds - sum(n / r for r in rates)) / (len(rates) * len(data.splits["valid"]))
    seconds = config.max_epochs * (sizes.train / rates[-1] + sizes.valid * valid)
    return seconds * (_DISTILL if distilled else 1.0)


def _made_up(rows: int, n_items: int, max_history: int) -> InteractionData:
    """One long log of random items, as large as the measurement needs."""
    held_out = 256
    total = rows + held_out + max_history
    items = np.random.default_rng(0).integers(1, n_items + 1, total).astype(np.int32)
    ids = np.arange(max_history, total, dtype=np.int64)
    splits = {"train": ids[:rows], "valid": ids[rows:], "test": ids[rows:]}
    names = ["", *map(str, range(1, n_items + 1))]
    ends, times = np.array([0, total], np.int64), np.zeros(total, np.int64)
    return InteractionData("probe", "probe", items, times, ends, splits, names, names, max_history, {})


def export_bytes(settings: Settings, sizes: Sizes) -> int:
    """Of the store with its shards beside it for a moment, and of the models."""
    from src.teacher.export import forecast_bytes

    total, width = 2.0 * forecast_bytes(export_rows(settings, sizes), settings.teacher.export.top_k), 1
    for config in members_of(settings.teacher):
        encoder = getattr(config, "encoder", None)
        total += student_bytes(encoder, sizes) if encoder is not None else 0
        width = max(width, encoder.width if encoder is not None else getattr(config, "dim", 1))
        if isinstance(config, IloraConfig) and (model := language_model(config.llm)) is not None:
            size = llm_size(model, config.lora.rank)
            total += 5 * 4 * size.lora  # the adapter, and a checkpoint of it
            total += size.parameters * _BYTES[config.llm.dtype] if config.llm.tiny is not None else 0
    return int(total + 4 * (sizes.n_items + 1) * width)


def student_bytes(config: StudentConfig, sizes: Sizes) -> int:
    """Weights, and a checkpoint of weights, average, best and two moments."""
    tables = 1 if config.tie_output else 2
    return 6 * 4 * ((sizes.n_items + 1) * config.width * tables + config.blocks * 12 * config.width**2)


@contextmanager
def quiet() -> Iterator[None]:
    """What a measurement logs is no news."""
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
