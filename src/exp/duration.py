"""How long a stage will take, from measurements of a second or two on this machine: rough on purpose.

A student is trained and evaluated on made-up samples of the dataset's sizes; an LLM is measured by one block of
its shape, and the tokens that training and export will read are counted.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from src.core.artifacts import is_complete, read_object
from src.core.paths import processed_dir
from src.exp.forecast import BYTES, TOKENS_PER_ITEM, Shape, llm_shape, prompt_tokens
from src.exp.settings import Settings
from src.student.config import StudentConfig
from src.teacher.config import IloraConfig, members_of

_DISTILL = 2.0  # a distilled epoch beside a baseline's: benchmarks/distill_speed.py
_PROBE_FLOPS = 1e10  # of one timed pass through a block
_PROBE_SCORES = 2e8  # of the student's timed epochs: samples x items


@dataclass(frozen=True)
class Sizes:
    """Samples of the splits and items of the catalogue; made-up round numbers before the data is prepared."""

    train: int
    valid: int
    test: int
    n_items: int
    known: bool


def sizes_of(settings: Settings) -> Sizes:
    folder = processed_dir(settings.dataset.name, settings.dataset_fp)
    if is_complete(folder):
        fields = read_object(folder / "manifest.json")
        n = fields["n_samples"]
        return Sizes(n["train"], n["valid"], n["test"], fields["n_items"], True)
    if (demo := settings.dataset.demo) is not None:
        shares = settings.dataset.split_ratio
        rows = demo.users * max(1, demo.interactions_per_user - settings.dataset.min_history)
        train, valid, test = (round(rows * share) for share in shares)
        return Sizes(train, valid, test, demo.items, True)
    return Sizes(100_000, 12_500, 12_500, 10_000, False)


def student_line(settings: Settings, sizes: Sizes, distilled: bool) -> str:
    seconds = _student_seconds(settings, settings.student, sizes) * (_DISTILL if distilled else 1.0)
    epochs = settings.student.max_epochs
    return f"time: at most {_shown(seconds)} of training, {epochs} epochs of {_shown(seconds / epochs)}{_of(sizes)}"


def teacher_line(settings: Settings, sizes: Sizes) -> str:
    """Training and export of the teacher, the frozen encoder included."""
    parts, rows = defaultdict[str, float](float), export_rows(settings, sizes)
    folds = getattr(settings.teacher, "folds", 1)
    trainings = folds + 1 if folds > 1 else 1
    for config in members_of(settings.teacher):
        if (encoder := getattr(config, "encoder", None)) is not None:
            parts["encoder, at most"] += trainings * _student_seconds(settings, encoder, sizes)
        if isinstance(config, IloraConfig):
            if (shape := llm_shape(config.llm)) is None:
                return "time of the LLM: not known before its configuration is on this machine"
            train, export = _llm_seconds(settings, config, shape, sizes, rows)
            parts["LLM"] += trainings * train
            parts[f"export of {rows} samples by {config.export.ranking}"] += export
    if not parts:
        return "time: seconds to minutes, nothing is trained by gradient"
    return f"time: about {', '.join(f'{name} {_shown(value)}' for name, value in parts.items())}{_of(sizes)}"


def export_rows(settings: Settings, sizes: Sizes) -> int:
    export = settings.teacher.export
    train = round(sizes.train * export.train_share)
    return sum(train if split == "train" else getattr(sizes, split) for split in export.splits)


def _of(sizes: Sizes) -> str:
    if sizes.known:
        return ""
    return (
        f" (the dataset is not prepared yet: for {sizes.train:,} training samples, {sizes.n_items:,} items)"
    )


def _shown(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 2 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _student_seconds(settings: Settings, config: StudentConfig, sizes: Sizes) -> float:
    """All epochs of a baseline, validation after each included."""
    from src.student.models import build_student, device_of
    from src.student.objective import BaselineObjective
    from src.student.trainer_baseline import fit

    steps = int(min(6, max(1, _PROBE_SCORES // (config.batch_size * sizes.n_items))))
    data = _made_up(steps * config.batch_size, sizes.n_items, settings.dataset.max_history)
    probe = replace(config, max_epochs=2, patience=2, compile=False)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        student = build_student(probe, data.n_items, data.max_history)
        objective = BaselineObjective(student, probe, data, 0).to(device_of(probe.device))
        done = fit(objective, data, probe, settings.eval, seed=0, folder=Path(folder), fingerprint="probe")
    n, rates = len(data.splits["train"]), [e["samples_per_s"] for e in done.history]
    valid = max(0.0, done.seconds - sum(n / r for r in rates)) / (len(rates) * len(data.splits["valid"]))
    return config.max_epochs * (sizes.train / rates[-1] + sizes.valid * valid)


def _made_up(rows: int, n_items: int, max_history: int):  # noqa: ANN202 (InteractionData, imported late)
    """A dataset of one long log with random items, as large as the measurement needs."""
    from src.core.data_utils import InteractionData

    held_out = 256
    total = rows + held_out + max_history
    items = np.random.default_rng(0).integers(1, n_items + 1, total).astype(np.int32)
    ids = np.arange(max_history, total, dtype=np.int64)
    splits = {"train": ids[:rows], "valid": ids[rows:], "test": ids[rows:]}
    names = ["", *map(str, range(1, n_items + 1))]
    ends = np.array([0, total], np.int64)
    times = np.zeros(total, np.int64)
    return InteractionData("probe", "probe", items, times, ends, splits, names, names, max_history, {})


@contextmanager
def _quiet() -> Iterator[None]:
    """The measurement's epochs are no news."""
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _llm_seconds(
    settings: Settings, config: IloraConfig, shape: Shape, sizes: Sizes, rows: int
) -> tuple[float, float]:
    """(training, export) of one teacher: tokens through all blocks."""
    train, export = config.train, config.export
    tokens = prompt_tokens(shape, settings.dataset.max_history)
    forward, both = _block_seconds(config, shape, tokens)
    forward, both = forward * shape.layers, both * shape.layers
    if config.llm.gradient_checkpointing:
        both += forward
    used = sizes.train if train.samples is None else min(train.samples, sizes.train)
    samples = used * train.epochs
    title = 1.5 * TOKENS_PER_ITEM  # with the words around it
    refreshes = samples / train.batch_size / config.objective.refresh_steps if config.objective.item else 0.0
    validated = train.evals_per_epoch * train.epochs * min(train.eval_samples, sizes.valid) * tokens
    training = samples * tokens * both + (refreshes * sizes.n_items * title + validated) * forward
    if (tiny := config.llm.tiny) is not None:
        training += tiny.epochs * tiny.samples * tokens * (both + forward)  # its weights have gradients too
    further = {
        "hidden": 0.0,
        "rerank": export.pool * TOKENS_PER_ITEM,
        "trie": export.beams * TOKENS_PER_ITEM,
        "grounding": export.beams * export.max_new_tokens,
        "exact": sizes.n_items * TOKENS_PER_ITEM,
    }
    return training, rows * (tokens + further[export.ranking]) * forward


def _block_seconds(config: IloraConfig, shape: Shape, tokens: int) -> tuple[float, float]:
    """Seconds per token of one block: forward alone, forward and backward to its input."""
    import torch
    from transformers import LlamaConfig, LlamaModel

    cuda = torch.cuda.is_available() and config.train.device != "cpu"
    device, dtype = torch.device("cuda" if cuda else "cpu"), getattr(torch, config.llm.dtype)
    heads = max(1, shape.hidden // 64)
    llama = LlamaConfig(
        vocab_size=8,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=1,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads * shape.kv // shape.hidden),
        head_dim=shape.hidden // heads,
        max_position_embeddings=shape.context,
    )
    with torch.device(device):
        block = LlamaModel._from_config(llama, dtype=dtype).requires_grad_(False).eval()
    flops = 2.0 * sum(p.numel() for p in block.parameters())  # per token, forward
    budget = _PROBE_FLOPS * (100 if cuda else 1) / flops
    length = int(min(tokens, max(8, budget)))
    count = int(max(1, min(config.train.micro_batch_size, budget // length)))
    inputs = torch.randn(count, length, shape.hidden, device=device, dtype=dtype)

    def timed(backward: bool) -> float:
        best = float("inf")
        for _ in range(6):  # the first warms up; the best, as other work on the machine only ever slows it
            started = time.perf_counter()
            with torch.set_grad_enabled(backward):
                out = block(inputs_embeds=inputs.requires_grad_(backward), use_cache=False).last_hidden_state
                if backward:
                    out.sum().backward()
            if cuda:
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - started)
        return best / (count * length)

    return timed(False), timed(True)


def export_bytes(settings: Settings, sizes: Sizes) -> int:
    """Of the finished store with its shards beside it for a moment, the embeddings, and the models."""
    from src.teacher.export import forecast_bytes

    export, store, width = settings.teacher.export, 0.0, 1
    for config in members_of(settings.teacher):
        if (encoder := getattr(config, "encoder", None)) is not None:
            store += student_bytes(encoder, sizes)
        width = max(width, encoder.width if encoder is not None else getattr(config, "dim", 1))
        if isinstance(config, IloraConfig) and (shape := llm_shape(config.llm)) is not None:
            store += 5 * 4 * shape.lora_parameters(config.lora.rank)  # the adapter, and a checkpoint of it
            if config.llm.tiny is not None:
                store += shape.parameters() * BYTES[config.llm.dtype]
    store += 2 * forecast_bytes(export_rows(settings, sizes), export.top_k, 0)
    store += 4 * (sizes.n_items + 1) * width
    return int(store)


def student_bytes(config: StudentConfig, sizes: Sizes) -> int:
    """Weights, and a checkpoint of weights, average, best and two moments."""
    tables = 1 if config.tie_output else 2
    return 6 * 4 * ((sizes.n_items + 1) * config.width * tables + config.blocks * 12 * config.width**2)
