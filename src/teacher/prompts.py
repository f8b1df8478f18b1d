"""Prompts as token ids: prefix (instruction, history, cue), optional candidate list, answer.

A chat template's frame (`chat.py`) stands around all but the answer; the read-out stays at the cue, so that the
prefix is the same with and without a candidate list.

Each text piece is tokenised once and pieces are joined as ids. A placeholder is the sentinel
`PLACEHOLDER` in the ids, never an entry of the tokenizer, so that no tokenizer can split it and the
LLM's embedding matrix stays as it is; the model overwrites its embedding.

Every title and entry is tokenised as it reads after a space; spaces that end a piece are dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from src.core.candidates import CandidateSampler
from src.core.errors import UserError
from src.core.seed import derive
from src.teacher.chat import ChatFrame, chat_frame
from src.teacher.config_parts import PromptConfig, Template
from src.teacher.prompt_tokens import PromptTokens, readable_titles

PLACEHOLDER = -1
IGNORE = -100


@dataclass(frozen=True)
class Example:
    """One sample as tokens.

    Attributes:
        ids: [T] int64 token ids; PLACEHOLDER where an item vector goes.
        items: [P] int64 the items of the placeholders, in order.
        prefix: number of tokens up to and including the cue (the read-out is the last of them); without candidates
            only the end of a chat template's frame stands between it and the answer.
        answer: index of the first answer token; T when there is no answer.
    """

    ids: np.ndarray
    items: np.ndarray
    prefix: int
    answer: int


@dataclass(frozen=True)
class PromptBatch:
    """Examples padded on the right.

    Attributes:
        ids: [B, T] token ids, 0 at placeholders and padding.
        items: [B, T] item id at placeholders, 0 elsewhere.
        mask: [B, T] bool, real tokens.
        readout: [B] index of the last prefix token.
        labels: [B, T] the answer's token ids at their own positions, IGNORE elsewhere.
    """

    ids: Tensor
    items: Tensor
    mask: Tensor
    readout: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> PromptBatch:
        return PromptBatch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))

    def __len__(self) -> int:
        return len(self.ids)


def collate(examples: Sequence[Example]) -> PromptBatch:
    """Pad on the right, to the longest example.

    Raises:
        UserError: an example has another number of placeholders than items.
    """
    longest = max(len(e.ids) for e in examples)
    shape = (len(examples), longest)
    ids, items = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    mask, labels = np.zeros(shape, bool), np.full(shape, IGNORE, np.int64)
    readout = np.empty(len(examples), np.int64)
    for row, e in enumerate(examples):
        span, slots = slice(len(e.ids)), e.ids == PLACEHOLDER
        if int(slots.sum()) != len(e.items) or (e.items < 1).any():
            found = f"a prompt has {int(slots.sum())} placeholders and {len(e.items)} items"
            raise UserError(found, "one item (not padding) per placeholder", "teacher.prompt")
        ids[row, span] = np.where(slots, 0, e.ids)
        items[row, span][slots] = e.items
        mask[row, span] = True
        readout[row] = e.prefix - 1
        labels[row, e.answer : len(e.ids)] = e.ids[e.answer :]
    return PromptBatch(*(torch.from_numpy(a) for a in (ids, items, mask, readout, labels)))


class _Wording:
    """A template's literal pieces as ids."""

    def __init__(self, template: Template, tokens: PromptTokens, chat: ChatFrame | None):
        before, after = template.prefix.split("{history}")
        if chat is None:
            self.before = tokens.start + tokens.of(before, first=True, control=True)
        else:  # the frame brings its own begin token
            self.before = tokens.of(chat.before + before, first=True, control=True)
        self.cue = tokens.of(after, control=True)
        before, after = template.choice.split("{candidates}")
        self.choice, self.ask = (tokens.of(piece, control=True) for piece in (before, after))


class PromptBuilder:
    """Makes examples from histories.

    Args:
        config: wordings and candidate count.
        tokenizer: of the LLM.
        titles: [N+1] item titles, entry 0 unused.
        context: longest example in tokens.
        seed: of the choice of wording and candidates.

    Attributes:
        answers: [N+1] token ids of every title as an answer, with its end; entry 0 is empty.
        end_ids: what ends every answer.
        stop_ids: tokens that end a generated answer: the first of those (a newline) and the tokenizer's own.

    Raises:
        UserError: an empty or over-long title, or more candidates than the catalogue can give.
    """

    def __init__(
        self,
        config: PromptConfig,
        tokenizer: PreTrainedTokenizerBase,
        titles: Sequence[str],
        context: int,
        seed: int,
    ):
        self.config, self.context, self.seed, self.n_items = config, context, seed, len(titles) - 1
        self.tokens = tokens = PromptTokens(tokenizer)
        self.chat = chat = chat_frame(tokenizer, config.chat)
        self.titles = readable_titles(tokens, titles, config.title_tokens)
        self._entries = [np.empty(0, np.int64), *(self._with_slot(config.entry, t) for t in self.titles[1:])]
        self._texts = [np.empty(0, np.int64), *(self._with_slot(config.item, t) for t in self.titles[1:])]
        eos = tokenizer.eos_token_id
        if chat is not None and chat.end:
            end = tokens.of(chat.end, control=True)
        else:
            end = tokens.of(config.end, control=True) + ([] if eos is None else [eos])
        self.stop_ids = {*end[:1], *([] if eos is None else [eos])}
        self.end_ids = end
        self._frame_end = [] if chat is None else tokens.of(chat.after, control=True)
        # An assistant that begins a new line begins it with the title, without a space.
        space, after = ("", "\n") if chat is not None and chat.after.endswith("\n") else (" ", ":")
        self.answers = [
            np.empty(0, np.int64),
            *(np.array(tokens.of(space + t, after=after) + end, np.int64) for t in self.titles[1:]),
        ]
        self._separator = np.array(tokens.of(config.separator, control=True), np.int64)
        self._train = [_Wording(t, tokens, chat) for t in config.train]
        self._evaluation = _Wording(config.evaluation, tokens, chat)
        self._sampler = CandidateSampler(self.titles, seed, "teacher.prompt.candidates")
        if config.candidates > (most := self._sampler.n_titles):
            found = f"{config.candidates} candidates from {most} titles"
            raise UserError(found, f"at most {most}", "teacher.prompt.candidates")
        self._check_lengths()

    def _with_slot(self, text: str, title: str) -> np.ndarray:
        body = text.removesuffix("{item}").replace("{title}", title)
        return np.array([*self.tokens.of(" " + body.strip(" ")), PLACEHOLDER], np.int64)

    def _check_lengths(self) -> None:
        entry = np.array([len(e) for e in self._entries])
        answer = np.array([len(a) for a in self.answers])
        choice = 0
        if n := self.config.candidates:
            choice = int(np.sort(entry)[-n:].sum()) + n * len(self._separator)
            choice += max(len(w.choice) + len(w.ask) for w in (*self._train, self._evaluation))
        fixed = max(len(w.before) + len(w.cue) for w in (*self._train, self._evaluation)) + choice
        worst = fixed + len(self._frame_end) + int(entry.max()) + int(answer.max())
        if worst > self.context:
            raise UserError(
                f"a prompt with one history item needs up to {worst} tokens (longest title: item {int(entry.argmax())})",
                f"at most {self.context}, the LLM's context",
                "teacher.prompt, or an LLM with a longer context",
            )

    def candidates(
        self, sample_id: int, history: np.ndarray, target: int, n: int, draw: int = 0
    ) -> np.ndarray:
        """[n] items in shown order: see `core.candidates.CandidateSampler.draw`."""
        return self._sampler.draw(sample_id, history, target, n, draw)

    def wording(self, sample_id: int, epoch: int) -> _Wording:
        return self._train[derive(self.seed, "wording", epoch, int(sample_id)) % len(self._train)]

    def build(
        self,
        history: np.ndarray,
        wording: _Wording | None = None,
        candidates: np.ndarray | None = None,
        answer: int | None = None,
        reserve: int = 0,
    ) -> Example:
        """One example; the history loses its oldest items where the context is too short.

        Args:
            history: [L] item ids, newest last, 0 is padding.
            wording: a training wording; None is the evaluation's.
            candidates: items listed before the answer; None lists none.
            answer: the item whose title ends the example; None ends it where the answer would begin.
            reserve: tokens of the context that stay free behind the example.
        """
        wording = wording or self._evaluation
        items = history[history > 0].astype(np.int64)
        tail: list[np.ndarray | list[int]] = []
        if candidates is not None:
            tail = [wording.choice, *self._listed(candidates), wording.ask]
        tail.append(self._frame_end)
        if answer is not None:
            tail.append(self.answers[answer])
        tail_length = sum(map(len, tail))
        room = self.context - len(wording.before) - len(wording.cue) - tail_length - reserve
        while len(items) > 1 and self._listed_length(items) > room:
            items = items[1:]
        head: list[Any] = [wording.before, *self._listed(items), wording.cue]
        prefix = sum(len(part) for part in head)
        ids = np.concatenate([np.asarray(p, np.int64) for p in (*head, *tail)])
        slots = items if candidates is None else np.concatenate([items, candidates])
        answer_length = 0 if answer is None else len(self.answers[answer])
        return Example(ids, slots, prefix, len(ids) - answer_length)

    def item_text(self, item: int) -> Example:
        """The text whose last state stands for the item."""
        ids = np.concatenate([np.array(self.tokens.start, np.int64), self._texts[item]])
        return Example(ids, np.array([item], np.int64), len(ids), len(ids))

    def _listed(self, items: Iterable[int]) -> list[np.ndarray]:
        pieces: list[np.ndarray] = []
        for item in items:
            if pieces:
                pieces.append(self._separator)
            pieces.append(self._entries[item])
        return pieces

    def _listed_length(self, items: np.ndarray) -> int:
        return sum(len(self._entries[i]) for i in items) + (len(items) - 1) * len(self._separator)
