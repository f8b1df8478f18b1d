"""The embedded language model: needs no download, fits two CPU cores, and is a real causal LM.

A byte-level BPE tokenizer is trained on the catalogue's titles, the prompt's wordings and the sentences, a small
Llama is pre-trained as a plain language model on sentences about words (what they have in common, as any text of the
world may tell; src/core/datasets/demo.py) and on prompts with answers (titles only, no item vectors) of a part of the
training split, then frozen. Validation and test rows are never read. Teachers with the same settings share it.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from src.core.artifacts import artifact_folder, is_complete, load_manifest, lock, write_manifest
from src.core.data_utils import InteractionData
from src.core.datasets.demo import sentences
from src.core.errors import UserError
from src.core.logging import get_logger, progress
from src.core.paths import model_dir
from src.core.run import Stopwatch
from src.core.seed import numpy_stream, seed_everything
from src.core.signals import check_stop
from src.teacher.config import llm_fingerprint
from src.teacher.config_parts import PromptConfig, TinyLLMConfig, TinyWordsConfig
from src.teacher.prompts import PLACEHOLDER, PromptBuilder

FORMAT_VERSION = 2  # the manifest names its own fingerprint
BOS, EOS, PAD = "<s>", "</s>", "<pad>"
log = get_logger(__name__)


def tiny_llm_folder(
    config: TinyLLMConfig,
    prompt: PromptConfig,
    data: InteractionData,
    seed: int,
    device: torch.device,
    train_ids: np.ndarray | None = None,
) -> Path:
    """The folder of the embedded model for these settings, made now if it is not there.

    Args:
        train_ids: samples whose text it may read (a fold leaves some out); None: the training split.
    """
    fp = llm_fingerprint(config, prompt, seed, data.fingerprint, train_ids)
    if train_ids is not None:
        data = replace(data, splits={**data.splits, "train": train_ids})
    folder = model_dir(data.name, "tiny_llm", fp)
    identity = {
        "format_version": FORMAT_VERSION,
        "dataset_fingerprint": data.fingerprint,
        "fingerprint": fp,
    }
    with lock(folder, log.info):
        if not is_complete(folder):
            watch = Stopwatch()
            with artifact_folder(folder) as tmp:
                loss = _make(config, prompt, data, seed, device, tmp)
                write_manifest(tmp, {**identity, "loss": loss, "train_seconds": watch.seconds()})
    load_manifest(folder, identity, f"delete {folder}")
    return folder


def train_tokenizer(texts: list[str], vocab_size: int, context: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE: any text can be written, words of the titles are mostly one token."""
    core = Tokenizer(models.BPE())
    # A word and the space before it are one unit, so that " (1995)" can become one token.
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\S+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[PAD, BOS, EOS],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=PAD, bos_token=BOS, eos_token=EOS, model_max_length=context
    )


def _make(
    config: TinyLLMConfig,
    prompt: PromptConfig,
    data: InteractionData,
    seed: int,
    device: torch.device,
    folder: Path,
) -> float | None:
    wordings = [w for t in (*prompt.train, prompt.evaluation) for w in (t.prefix, t.choice)]
    titles = [" " + t.strip() for t in data.titles[1:]]
    passes = range(config.words.epochs)
    read = [text for epoch in passes for text in _sentences(config.words, data, seed, epoch)]
    tokenizer = train_tokenizer([*titles, *wordings, *read], config.vocab_size, config.context)
    seed_everything(seed, "tiny_llm")
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            max_position_embeddings=config.context,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            initializer_range=0.05,  # the library's 0.02 is meant for widths in the thousands
        )
    ).to(device)
    builder = PromptBuilder(prompt, tokenizer, data.titles, config.context, seed)
    loss = _pretrain(model, builder, config, data, seed, device)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return loss


def _sentences(config: TinyWordsConfig, data: InteractionData, seed: int, epoch: int) -> list[str]:
    """What a pass reads about the words of the titles, of whose users it says nothing; of real titles: nothing."""
    known = {word for title in data.titles[1:] for word in title.split()}
    rng = numpy_stream(seed, "tiny_llm_sentences", epoch)
    return [f" {text}" for text in sentences(known, config.texts, rng)]


def _texts(
    builder: PromptBuilder, data: InteractionData, ids: np.ndarray, epoch: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Prompts with answers as plain text, placeholders left out: token ids [T], and [T] which are learned.

    Where the teacher's prompts list candidates these do, too: a list is read, not learned to be written, as its
    titles are random.
    """
    histories, targets = data.histories(ids), data.targets(ids)
    count, texts = builder.config.candidates, []
    for sample, history, target in zip(ids, histories, targets, strict=True):
        listed = builder.candidates(int(sample), history, int(target), count, epoch) if count else None
        example = builder.build(history, builder.wording(int(sample), epoch), listed, int(target))
        at = np.arange(len(example.ids))
        learned = (at < example.prefix) | (at >= example.answer)
        words = example.ids != PLACEHOLDER
        texts.append((example.ids[words], learned[words]))
    return texts


def _padded(texts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [B, T] and what is learned [B, T] of some texts, padded on the right with 0 and False."""
    longest = max(len(ids) for ids, _ in texts)
    ids = torch.zeros(len(texts), longest, dtype=torch.long)
    learned = torch.zeros(len(texts), longest, dtype=torch.bool)
    for row, (text, wanted) in enumerate(texts):
        ids[row, : len(text)], learned[row, : len(text)] = torch.from_numpy(text), torch.from_numpy(wanted)
    return ids, learned


def _pretrain(
    model: LlamaForCausalLM,
    builder: PromptBuilder,
    config: TinyLLMConfig,
    data: InteractionData,
    seed: int,
    device: torch.device,
) -> float | None:
    """Plain next-token cross-entropy; returns the mean loss of the last pass."""
    train, about_words = data.splits["train"], len(_sentences(config.words, data, seed, 0))
    plan = config.words if about_words else config
    per_epoch = min(plan.samples, len(train))
    steps_per_epoch = math.ceil((per_epoch + about_words) / plan.batch_size)
    total, step, mean = plan.epochs * steps_per_epoch, 0, None
    warmup = max(1, total // 20)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, betas=(0.9, 0.98), weight_decay=0.01)
    model.train()
    for epoch in range(plan.epochs):
        started, tokens, losses = time.monotonic(), 0, 0.0
        chosen = numpy_stream(seed, "tiny_llm", epoch).permutation(train)[:per_epoch]
        texts = _texts(builder, data, chosen, epoch)
        for text in _sentences(config.words, data, seed, epoch):
            ids = np.array([*builder.tokens.start, *builder.tokens.of(text)][: config.context])
            texts.append((ids, np.ones(len(ids), bool)))
        # Neighbours in length share a batch; the batches come in random order.
        order = np.argsort([len(t) for t, _ in texts], kind="stable")
        batches = [order[i : i + plan.batch_size] for i in range(0, len(order), plan.batch_size)]
        numpy_stream(seed, "tiny_llm_order", epoch).shuffle(batches)
        for rows in progress(batches, f"tiny LLM pass {epoch + 1}/{plan.epochs}"):
            ids, real = (tensor.to(device) for tensor in _padded([texts[row] for row in rows]))
            rate = min(1.0, (step + 1) / warmup)
            if step >= warmup:
                rate = 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
            for group in optimizer.param_groups:
                group["lr"] = config.lr * rate
            # Padding is on the right, where causal attention keeps real tokens from seeing it.
            states = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
            wanted = real[:, 1:]
            loss = F.cross_entropy(model.lm_head(states[wanted]).float(), ids[:, 1:][wanted])
            if not torch.isfinite(loss):
                raise UserError(
                    f"tiny LLM: loss {loss.item()} at step {step}", "a finite loss", "teacher.llm.tiny.lr"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            tokens += int(real.sum())
            losses += float(loss.detach())
            check_stop()
        mean = losses / len(batches)
        rate_s = tokens / (time.monotonic() - started)
        log.info("tiny LLM pass %d: loss %.3f per token, %.0f tokens/s", epoch + 1, mean, rate_s)
    model.eval()
    return mean
