"""Pieces of prompts as token ids. Titles are text: nothing in them becomes a control token."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

from transformers import PreTrainedTokenizerBase

from src.core.candidates import normal_title
from src.core.errors import UserError
from src.core.logging import get_logger

log = get_logger(__name__)


class PromptTokens:
    """The tokenizer's part of prompts.

    Attributes:
        start: ids that begin a text: the begin token, or none.
        unknown: id of the unknown token; None where there is none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
        self.start: list[int] = [] if begin is None else [begin]
        self.unknown: int | None = tokenizer.unk_token_id
        # White space that was added to a vocabulary is text.
        added = {i: t.content for i, t in tokenizer.added_tokens_decoder.items() if t.content.strip()}
        added.pop(self.unknown, None)
        self._controls = set(added)
        longest_first = sorted(added.values(), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) if added else r"(?!)")
        self._anchors = {text: self._ids(text) for text in (":", "\n")}

    def of(self, text: str, first: bool = False, after: str = ":", control: bool = False) -> list[int]:
        """Ids of a piece as it is tokenised inside a text.

        Args:
            first: it begins the text.
            after: what stands before it otherwise, ":" or a new line.
            control: `<|im_end|>` and the like in it are control tokens (templates), not text (titles).
        """
        text = text.rstrip(" ")
        if not text:
            return []
        if not first:
            # Tokenizers of the SentencePiece family put a space before a text that stands alone.
            ids, anchor = self._ids(after + text, split_special_tokens=not control), self._anchors[after]
            n = len(anchor)
            if ids[:n] == anchor and (control or self._controls.isdisjoint(ids[n:])):
                return ids[n:]
        return self._ids(text) if control else self._plain(text)

    def _ids(self, text: str, **options: bool) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, **options)["input_ids"])

    def _plain(self, text: str) -> list[int]:
        """Ids of `text` without any control token.

        `split_special_tokens` leaves added tokens that are not special; words that still become one are tokenised in
        two parts.
        """
        ids = self._ids(text, split_special_tokens=True)
        if len(text) < 2 or self._controls.isdisjoint(ids):
            return ids
        inside = [m.start() + 1 for m in self._control.finditer(text) if m.end() - m.start() > 1]
        cuts = [0, *(inside or range(1, len(text))), len(text)]
        first, *parts = (text[a:b] for a, b in pairwise(cuts))
        return self._plain(first) + [i for part in parts for i in self.of(part)]


def readable_titles(tokens: PromptTokens, titles: Sequence[str], most: int | None) -> list[str]:
    """The titles as prompts show them, entry 0 unused: without blanks around, and cut to `most` tokens.

    Raises:
        UserError: a title that is empty, or has no known token.
    """
    readable: list[str] = [titles[0]]
    tokens_of: list[tuple[int, ...]] = [()]
    for item, title in enumerate(map(str.strip, titles[1:]), start=1):
        if not title:
            raise UserError(f"the title of item {item} is empty", "a title per item", "the items file")
        ids = tokens.of(" " + title)
        if not ids or set(ids) == {tokens.unknown}:
            raise UserError(
                f"the title of item {item} ({title!r}) has no tokens{' but the unknown one' if ids else ''}",
                "at least one token per title",
                "the items file, or an LLM whose tokenizer knows these characters",
            )
        if most is not None and len(ids) > most:
            readable.append(_beginning(tokens, title, most))
            ids = tokens.of(" " + readable[item])
        else:
            readable.append(title)
        tokens_of.append(tuple(ids))
    cut = [item for item, title in enumerate(titles) if item and title.strip() != readable[item]]
    if cut:
        what = f"teacher.prompt.title_tokens={most}: {len(cut)} of {len(titles) - 1} titles are cut"
        log.info("%s, first item %d to %r", what, cut[0], readable[cut[0]])
    _warn_same_tokens(readable, tokens_of)
    return readable


def _beginning(tokens: PromptTokens, title: str, most: int) -> str:
    """The longest beginning of `title` that has at most `most` tokens, and at least one character."""
    fits = bisect_right(range(1, len(title)), most, key=lambda n: len(tokens.of(" " + title[:n])))
    return title[: max(1, fits)].strip()


def _warn_same_tokens(titles: Sequence[str], tokens_of: Sequence[tuple[int, ...]]) -> None:
    """Log the titles that differ for people, not for the tokenizer."""
    first_with: dict[tuple[int, ...], int] = {}
    alike = []
    for item in range(1, len(titles)):
        first = first_with.setdefault(tokens_of[item], item)
        if normal_title(titles[first]) != normal_title(titles[item]):
            alike.append((item, titles[item], first, titles[first]))
    if alike:
        log.warning(
            "%d titles have the tokens of another: item %d (%r) those of item %d (%r)", len(alike), *alike[0]
        )
