"""The teacher's item vectors inside the student's item tables.

An item's vector is what the teacher says of it, projected to the student's width, and beside it a part of its own
that starts at zero and counts by how much was seen of the item: n / (n + shrinkage) for n training targets, the
weight that an empirical Bayes estimate gives to an item's own mean against its prior. An item that is never a
target has no part of its own: it is scored by what the teacher knows of it. (A free vector of such an item only
ever learns to be wrong: as a negative it is pushed away from every history.) An output layer of its own reads the fused
input vectors through a small linear map: a second map from the teacher's vectors learns them by heart within five epochs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from src.distill.config import DistillConfig
from src.student.architectures import ItemTables, Student

EXCLUDED = -1e4  # added to a score: exp of it is 0 in float32, and no gradient passes


class TeacherProjection(nn.Module):
    """Teacher item vectors [N+1, D] (a buffer) -> [rows, H] through a trained linear map or MLP.

    The projection is taken of table rows, once per step, never of a [B, L, D] tensor of the batch.

    Args:
        table: [N+1, D] teacher vectors, row 0 zeros.
        width: H.
        config: `projector`, `projector_width` and `projection_dtype`; bfloat16 halves the table's memory and
            rounds it, parameters stay float32.
        unit_rows: start so that vectors of unit mean square become rows of about unit length (linear map without
            a bias); else as PyTorch starts a linear layer, which the official code does.
    """

    def __init__(self, table: Tensor, width: int, config: DistillConfig, unit_rows: bool):
        super().__init__()
        dim, hidden = table.shape[1], config.projector_width
        if config.projector == "mlp":
            self.map: nn.Module = nn.Sequential(
                nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, width, bias=not unit_rows)
            )
        else:
            self.map = nn.Linear(dim, width, bias=not unit_rows)
            if unit_rows:
                nn.init.normal_(self.map.weight, std=(dim * width) ** -0.5)
        self.low_precision = config.projection_dtype == "bf16"
        self.register_buffer("table", table.bfloat16() if self.low_precision else table, persistent=False)

    def forward(self, rows: Tensor | None = None) -> Tensor:
        """[M, H] float32 for the item ids `rows` [M], or [N+1, H] for all; row 0 (padding) is never read."""
        vectors = self.table if rows is None else self.table.index_select(0, rows)
        if not self.low_precision:
            return self.map(vectors)
        with torch.autocast(vectors.device.type, torch.bfloat16):
            return self.map(vectors).float()


class FusedItems(nn.Module):
    """The item tables of a student that reads a teacher's vectors: `config.own_*`, `ed_weight`, `fuse_output`.

    Args:
        student: its item vectors start at zero here with `own_start=zero`.
        vectors: [N+1, D] teacher vectors, row 0 zeros.
        counts: [N+1] training targets of each item.
        excluded: [N] bool, columns that no training sample asks for; None keeps all as negatives.
    """

    def __init__(
        self,
        student: Student,
        vectors: Tensor,
        counts: Tensor,
        excluded: Tensor | None,
        config: DistillConfig,
    ):
        super().__init__()
        self.config, self.n_items = config, student.n_items
        learned = config.own_start == "zero"
        self.inputs = TeacherProjection(vectors, student.width, config, learned)
        self.outputs = None
        if config.fuse_output:
            if student.output is not None:
                self.outputs = nn.Linear(student.width, student.output_width, bias=False)
                start = student.output_start()
                if start is None:
                    nn.init.orthogonal_(self.outputs.weight)  # rows keep their length
                else:
                    with torch.no_grad():
                        self.outputs.weight.copy_(start)
            self.bias_of_unseen = nn.Parameter(torch.zeros(()))
        counts = counts.float()
        share = counts / (counts + config.own_shrinkage) if config.own_shrinkage else torch.ones_like(counts)
        self.register_buffer("share", share, persistent=False)
        mask = None if excluded is None else excluded.float() * EXCLUDED
        self.register_buffer("excluded", mask, persistent=False)
        if learned:
            with torch.no_grad():
                for own in student.tables()[: 3 if config.fuse_output else 1]:
                    own.zero_()

    def forward(self, student: Student, training: bool = False) -> ItemTables:
        """The tables as evaluated, or for a training step, in which the excluded items are no negatives."""
        own = student.tables()
        inputs = self.fuse(own.inputs, self.inputs(), self.share)
        if not self.config.fuse_output:
            return ItemTables(inputs, inputs[1:] if student.output is None else own.outputs, own.bias)
        share = self.share[1:]
        outputs = inputs[1:]
        if self.outputs is not None:
            outputs = self.outputs(outputs) + share.unsqueeze(1) * own.outputs
        bias = torch.lerp(self.bias_of_unseen, own.bias, share)
        if training and self.excluded is not None:
            bias = bias + self.excluded
        return ItemTables(inputs, outputs, bias)

    def input_rows(self, student: Student, rows: Tensor) -> Tensor:
        """[M, H] the fused input vectors of the item ids `rows` [M] alone."""
        own = nn.functional.embedding(rows, student.items.weight, padding_idx=0)
        return self.fuse(own, self.inputs(rows), self.share[rows])

    def fuse(self, own: Tensor, projected: Tensor, share: Tensor) -> Tensor:
        """[M, H]: the own vectors times their `share` [M] + ed_weight * the projected teacher's."""
        fused = self.config.ed_weight * projected
        return fused if not self.config.offset else fused + share.unsqueeze(1) * own
