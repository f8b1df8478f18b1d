"""The students' encoders: a history of item ids in, one vector per sequence out.

Letters: B batch, L columns of the history, N items, H width, D width of the sequence vector (H; wider
for Caser). Histories are [B, L] int64, newest item last, padded on the left with 0; every row has at
least one item (`datamodule.Samples` and `serving` check it).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.student.dropout import Dropout

_DENSE = 16  # a product over the catalogue costs less than gathering more than a 16th of its vectors


class ItemTables(NamedTuple):
    """Everything of a student that belongs to single items; distillation passes its own in place of it.

    Attributes:
        inputs: [N+1, H] vectors that histories read; row 0 (padding) is never read.
        outputs: [N, D] vectors that score the catalogue; row c belongs to item c + 1.
        bias: [N] added to the scores.
    """

    inputs: Tensor
    outputs: Tensor
    bias: Tensor


class Student(nn.Module):
    """What all students share: an input item table, and a linear output layer over the catalogue.

    `tables` arguments replace the student's own item tables for one call.

    Args:
        n_items: catalogue size N.
        max_history: most columns of a history.
        width: H.
        output_width: D.
        tie_output: score with the input table's rows (needs D == H).
        std: standard deviation of the initial item vectors.
    """

    def __init__(
        self, n_items: int, max_history: int, width: int, output_width: int, tie_output: bool, std: float
    ):
        super().__init__()
        self.n_items, self.max_history, self.width, self.output_width = (
            n_items,
            max_history,
            width,
            output_width,
        )
        self.items = nn.Embedding(n_items + 1, width, padding_idx=0)
        nn.init.normal_(self.items.weight, std=std)
        with torch.no_grad():
            self.items.weight[0] = 0
        # nn.Linear's own initialisation when untied, as in the official code.
        self.output = None if tie_output else nn.Linear(output_width, n_items)
        self.output_bias = nn.Parameter(torch.zeros(n_items)) if tie_output else None
        self.repeat: nn.Parameter | None = None

    def learn_repeats(self) -> None:
        """Give each position of the history a learned number that is added to the score of its item.

        Whether users come back to an item is a fact of the dataset that dot products express badly: tied
        item vectors draw the score of the newest items up, where nobody rates a film twice.
        """
        self.repeat = nn.Parameter(torch.zeros(self.max_history))  # last: the newest item

    def item_table(self) -> Tensor:
        """[N+1, H] input item vectors, row 0 zeros."""
        return self.items.weight

    def tables(self) -> ItemTables:
        """The student's own item tables."""
        inputs = self.items.weight
        if self.output is None:
            return ItemTables(inputs, inputs[1:], self.output_bias)
        return ItemTables(inputs, self.output.weight, self.output.bias)

    def output_start(self) -> Tensor | None:
        """[D, H] map of input item vectors under which a sequence vector scores the items most like its own; None
        where its layers have yet to learn in which space they answer."""
        return None

    def embed(self, history: Tensor, tables: ItemTables | None) -> Tensor:
        """[B, L, H] item vectors; zeros, and no gradient, at padding."""
        if history.shape[1] > self.max_history:
            raise ValueError(
                f"a history of {history.shape[1]} columns; this student has {self.max_history} positions"
            )
        vectors = F.embedding(history, self.items.weight if tables is None else tables.inputs, padding_idx=0)
        return vectors if tables is None else vectors * (history > 0).unsqueeze(-1)

    def encode(self, history: Tensor, tables: ItemTables | None = None) -> Tensor:
        """The sequence vector at the newest item, [B, D]."""
        raise NotImplementedError

    def states(self, history: Tensor, tables: ItemTables | None = None) -> Tensor:
        """The sequence vector at every item, [B, L, D], each from the items up to it; of causal students alone."""
        raise NotImplementedError

    def encode_at(self, inputs: Tensor, places: Tensor | None, tables: ItemTables | None = None) -> Tensor:
        """The sequence vectors [B, D] of a `SampleBatch`: of its histories, or at places [B] of its windows."""
        if places is None:
            return self.encode(inputs, tables)
        return self.states(inputs, tables).flatten(0, 1)[places]

    def score(
        self, hidden: Tensor, tables: ItemTables | None = None, history: Tensor | None = None
    ) -> Tensor:
        """Scores [B, N] of the whole catalogue; column c scores item c+1.

        Args:
            hidden: [B, D] of `encode`.
            history: [B, L] that `hidden` was made from; needed by a student that learns repeats.
        """
        _, vectors, bias = self.tables() if tables is None else tables
        scores = F.linear(hidden, vectors, bias)
        if self.repeat is None:
            return scores
        added = self._repeat_bias(history).to(scores.dtype)
        return scores.scatter_add_(1, (history - 1).clamp(min=0), added)  # nothing keeps the scores before

    def score_items(
        self, hidden: Tensor, items: Tensor, tables: ItemTables | None = None, history: Tensor | None = None
    ) -> Tensor:
        """Scores [B, K] of the item ids `items` [B, K], without scoring the others."""
        _, vectors, bias = self.tables() if tables is None else tables
        columns = items - 1
        if _DENSE * items.shape[1] > self.n_items:
            return self.score(hidden, tables, history).gather(1, columns)
        scores = (F.embedding(columns, vectors) * hidden.unsqueeze(1)).sum(-1) + bias[columns]
        if self.repeat is None:
            return scores
        return scores + (
            self._repeat_bias(history).unsqueeze(1) * (items.unsqueeze(2) == history.unsqueeze(1))
        ).sum(2)

    def _repeat_bias(self, history: Tensor | None) -> Tensor:
        """[B, L] what each position adds to its item's score, 0 at padding."""
        if history is None:
            raise ValueError("this student learns repeats: score needs the history")
        return self.repeat[self.max_history - history.shape[1] :] * (history > 0)

    def forward(self, history: Tensor, tables: ItemTables | None = None) -> Tensor:
        """Scores [B, N] of the catalogue after `history` [B, L]."""
        return self.score(self.encode(history, tables), tables, history)


class Block(nn.Module):
    """Pre-norm transformer block; `newest_only` computes (and returns) the newest position alone."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, Dropout(dropout)
        self.norm_attention, self.norm_ffn = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.project = nn.Linear(width, width)
        self.ffn = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor, newest_only: bool) -> Tensor:
        """x [B, L, H], mask [B, 1, L, L] True where a query may look -> [B, L, H] or [B, 1, H]."""
        normed = self.norm_attention(x)
        if newest_only:
            x, mask = x[:, -1:], mask[:, :, -1:]
        q = self._split(self.query(normed[:, -1:] if newest_only else normed))
        k, v = (self._split(t) for t in self.key_value(normed).chunk(2, dim=-1))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        x = x + self.dropout(self.project(attended))
        return x + self.dropout(self.ffn(self.norm_ffn(x)))

    def _split(self, x: Tensor) -> Tensor:
        """[B, L, H] -> [B, heads, L, H / heads]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class SASRec(Student):
    """SASRec (Kang and McAuley, ICDM 2018) in its modern form: pre-norm blocks, GELU, positions counted
    from the newest item, so that padding on the left changes nothing."""

    def __init__(
        self,
        n_items: int,
        max_history: int,
        width: int,
        blocks: int,
        heads: int,
        dropout: float,
        tie_output: bool,
    ):
        # Item vectors of about unit length, so that tied scores start near zero, yet not all alike.
        super().__init__(n_items, max_history, width, width, tie_output, std=width**-0.5)
        self.positions = nn.Parameter(
            torch.randn(max_history, width) * width**-0.5
        )  # last row: the newest item
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)

    def encode(self, history: Tensor, tables: ItemTables | None = None) -> Tensor:
        return self._states(history, tables, newest_only=True)[:, -1]

    def states(self, history: Tensor, tables: ItemTables | None = None) -> Tensor:
        return self._states(history, tables, newest_only=False)

    def _states(self, history: Tensor, tables: ItemTables | None, newest_only: bool) -> Tensor:
        columns = history.shape[1]
        x = self.dropout(self.embed(history, tables) + self.positions[self.max_history - columns :])
        place = torch.arange(columns, device=history.device)
        seen, itself = place[:, None] >= place, place[:, None] == place
        # A padding position looks at itself only: a row without any key would be NaN. Nobody looks at it.
        mask = ((seen & (history > 0)[:, None, :]) | itself).unsqueeze(1)
        for i, block in enumerate(self.blocks):
            x = block(x, mask, newest_only=newest_only and i == len(self.blocks) - 1)
        return self.norm(x)


class SASRecDLLM2Rec(Student):
    """SASRec exactly as DLLM2Rec's official code has it: one block, one head, norms after the residuals.

    x = Dropout(E[seq] + P); h = LN1(x); queries from h, keys and values from x; a = attention + h;
    g = LN2(a); f = LN_ff(Dropout(W2 relu(W1 g)) + g); z = LN3(f) at the newest item. Positions count
    from the oldest item. Only the newest query is computed: with one block no other reaches the output. For one
    query, q.(W x + b) = (W^T q).x + q.b and sum_l a_l (W x_l + b) = W sum_l a_l x_l + b sum_l a_l: keys and values
    are never made, [B, L, H] by [H, H] products become [B, H] by [H, H].
    """

    def __init__(self, n_items: int, max_history: int, width: int, dropout: float, tie_output: bool):
        super().__init__(n_items, max_history, width, width, tie_output, std=0.01)
        self.positions = nn.Embedding(max_history, width)
        self.dropout = Dropout(dropout)
        self.norm_1, self.norm_2, self.norm_ffn, self.norm_3 = (nn.LayerNorm(width) for _ in range(4))
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.ffn_in, self.ffn_out = nn.Linear(width, width), nn.Linear(width, width)

    def encode(self, history: Tensor, tables: ItemTables | None = None) -> Tensor:
        real = history > 0
        from_oldest = (real.long().cumsum(1) - 1).clamp(min=0)
        x = self.dropout(self.embed(history, tables) + self.positions(from_oldest)) * real.unsqueeze(-1)
        h = self.norm_1(x[:, -1])
        q = self.query(h)
        weights = (x @ (q @ self.key.weight).unsqueeze(-1)).squeeze(-1) + (q @ self.key.bias).unsqueeze(-1)
        weights = weights * self.width**-0.5
        weights = self.dropout(weights.masked_fill(~real, float("-inf")).softmax(dim=1))
        mixed = F.linear((weights.unsqueeze(1) @ x).squeeze(1), self.value.weight)
        g = self.norm_2(mixed + weights.sum(dim=1, keepdim=True) * self.value.bias + h)
        f = self.norm_ffn(self.dropout(self.ffn_out(F.relu(self.ffn_in(g)))) + g)
        return self.norm_3(f)


def oldest_first(history: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """Histories re-aligned to the left: [B, L] left padded -> ([B, columns] right padded, lengths [B])."""
    length = (history > 0).sum(1)
    source = torch.arange(columns, device=history.device) + (history.shape[1] - length).unsqueeze(1)
    past_end = source >= history.shape[1]
    aligned = history.gather(1, source.clamp(max=history.shape[1] - 1)).masked_fill(past_end, 0)
    return aligned, length


class GRU4Rec(Student):
    """GRU4Rec (Hidasi et al., ICLR 2016): the last hidden state of a GRU over the history.

    The GRU runs over the re-aligned history, so that it starts at the oldest item, and is read at the
    newest one: padding behind it cannot reach that state.
    """

    def __init__(
        self, n_items: int, max_history: int, width: int, layers: int, dropout: float, tie_output: bool
    ):
        super().__init__(n_items, max_history, width, width, tie_output, std=0.01)
        self.dropout = Dropout(dropout)
        self.gru = nn.GRU(width, width, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)

    def encode(self, history: Tensor, tables: ItemTables | None = None) -> Tensor:
        aligned, length = oldest_first(history, history.shape[1])
        states, _ = self.gru(self.dropout(self.embed(aligned, tables)))
        return self.dropout(states[torch.arange(states.shape[0], device=states.device), length - 1])

    def states(self, history: Tensor, tables: ItemTables | None = None) -> Tensor:
        columns = history.shape[1]
        aligned, length = oldest_first(history, columns)
        states, _ = self.gru(self.dropout(self.embed(aligned, tables)))
        source = torch.arange(columns, device=history.device) + (length - columns).unsqueeze(1)
        row = torch.arange(states.shape[0], device=states.device).unsqueeze(1)
        return self.dropout(states[row, source.clamp(min=0)])


class Caser(Student):
    """Caser (Tang and Wang, WSDM 2018) without user vectors and the layer that would mix them in.

    The history's vectors are an image [L, H]: horizontal filters of several heights with a maximum over time, and one
    vertical filter over the L positions (counted from the oldest item), a weighted sum of the item vectors. That sum
    starts with equal weights and is normed: its length would say how long the history is, and scores of short histories
    stay flat until those of long ones are learned by heart. Item vectors are dropped out, as by the other students.

    Args:
        official: as DLLM2Rec's official code has it: a vertical filter that starts at random, with a ReLU and without
            norm, and no dropout of item vectors.
    """

    HEIGHTS = (2, 3, 4)
    FILTERS = 16  # horizontal filters per height

    def __init__(self, n_items: int, max_history: int, width: int, dropout: float, official: bool = False):
        heights = [h for h in self.HEIGHTS if h <= max_history]
        super().__init__(n_items, max_history, width, self.FILTERS * len(heights) + width, False, std=0.01)
        # A filter over the whole width is a 1-d convolution with the width as its channels.
        self.horizontal = nn.ModuleList(nn.Conv1d(width, self.FILTERS, h) for h in heights)
        self.vertical = nn.Linear(max_history, 1)
        self.dropout, self.official = Dropout(dropout), official
        for layer in (*self.horizontal, self.vertical):
            nn.init.xavier_normal_(layer.weight)
            nn.init.constant_(layer.bias, 0.1)
        self.after_vertical: nn.Module = nn.ReLU() if official else nn.LayerNorm(width)
        if not official:
            nn.init.constant_(self.vertical.weight, 0.3)
            nn.init.zeros_(self.vertical.bias)

    def output_start(self) -> Tensor | None:
        if self.official:
            return None
        return torch.eye(self.output_width, self.width).roll(self.output_width - self.width, 0)

    def encode(self, history: Tensor, tables: ItemTables | None = None) -> Tensor:
        aligned, _ = oldest_first(history, self.max_history)
        items = self.embed(aligned, tables)
        image = (items if self.official else self.dropout(items)).transpose(1, 2)  # [B, H, L]
        across = [F.relu(conv(image)).amax(dim=-1) for conv in self.horizontal]
        down = self.after_vertical(self.vertical(image).squeeze(-1))
        return self.dropout(torch.cat([*across, down], dim=1))
