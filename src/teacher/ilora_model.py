"""The iLoRA recommender: prompt with item vectors -> gated LoRA experts -> LLM -> two read-outs.

    h_seq = SASRec(history)                     frozen, [B, 64]
    g     = softmax(router(h_seq))              [B, K], one gate for all layers and tokens of the sequence
    x     = LLM embeddings, x[placeholder of item i] = projector(E_sasrec[i])
    z     = LLM(x) with every adapted linear W0 x + (alpha/r) B (K rep(g) * A x)

The `lm` objective reads z at the answer's tokens, the `item` objective at the last token of the prefix
(causal attention: what follows the prefix is not visible there). (arXiv 2408.10159; 2312.02445 for the
hybrid prompt)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from src.teacher.config import IloraConfig
from src.teacher.gating import GateControl, build_router, refuse_merge
from src.teacher.llm import LoadedLLM, add_lora, backbone
from src.teacher.prompts import PromptBatch


class ItemProjector(nn.Sequential):
    """SASRec's item space -> the LLM's embedding space: Linear(E, H), GELU, Linear(H, H)."""

    def __init__(self, width: int, hidden: int):
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden))

    @torch.no_grad()
    def match_scale(self, vectors: Tensor, rms: float) -> None:
        """Scale the last layer so that `vectors` [N, E] come out with the root mean square `rms`."""
        ratio = rms / float(self(vectors).pow(2).mean().sqrt())
        self[2].weight.mul_(ratio)
        self[2].bias.mul_(ratio)


class ItemHead(nn.Module):
    """Maps LLM states to user and item vectors of one space.

    score(u, i) = u . v_i / (sqrt(D) * temperature) + b_i (+ prior(u, i)) with u = LN(W_u z_u), v_i = W_i LN(z_i): the
    user side is normalised, the norm of an item vector is free (it can carry popularity).

    Args:
        hidden: width H of the LLM's states.
        dim: width D of the vectors.
        n_items: catalogue size N.
        temperature: divides the scores.
        train_counts: [N] how often each item is a training target; b starts at their log, centred.
        residual: the scores are added to a prior: item vectors and b start at 0, so that the first scores
            are the prior's.
    """

    def __init__(
        self,
        hidden: int,
        dim: int,
        n_items: int,
        temperature: float,
        train_counts: Tensor,
        residual: bool = False,
    ):
        super().__init__()
        self.user, self.user_norm = nn.Linear(hidden, dim), nn.LayerNorm(dim)
        self.item_norm, self.item = nn.LayerNorm(hidden), nn.Linear(hidden, dim)
        log_counts = torch.log(train_counts.float() + 1.0)
        self.bias = nn.Parameter(torch.zeros(n_items) if residual else log_counts - log_counts.mean())
        if residual:
            nn.init.zeros_(self.item.weight)
            nn.init.zeros_(self.item.bias)
        self.scale = 1.0 / (dim**0.5 * temperature)

    def users(self, states: Tensor) -> Tensor:
        """Read-out states [B, H] -> user vectors [B, D]."""
        return self.user_norm(self.user(states.float()))

    def items(self, states: Tensor) -> Tensor:
        """States of the item texts [M, H] -> item vectors [M, D]."""
        return self.item(self.item_norm(states.float()))

    def scores(self, users: Tensor, items: Tensor, columns: Tensor | None = None) -> Tensor:
        """[B, D] x [M, D] -> [B, M]; `columns` [M] are the catalogue columns of `items` (None: all N)."""
        bias = self.bias if columns is None else self.bias[columns]
        return users @ items.T * self.scale + bias


class IloraModel(nn.Module):
    """Frozen LLM with gated LoRA, router, projector and item head.

    Args:
        config: the teacher's settings.
        llm: a frozen model; it is wrapped in place.
        item_table: [N+1, E] the frozen SASRec's item vectors, row 0 unused.
        train_counts: [N+1] training targets per item.

    Initial weights come from PyTorch's global generator: seed it first.
    """

    def __init__(self, config: IloraConfig, llm: LoadedLLM, item_table: Tensor, train_counts: Tensor):
        super().__init__()
        self.bidirectional = llm.bidirectional
        self.supports_trees = False  # until `ranking.tree` has measured it
        embedding = llm.model.get_input_embeddings()
        width, hidden = item_table.shape[1], llm.width
        self.llm = add_lora(llm.model, config.lora)
        self.experts = config.lora.experts
        self.gates = GateControl(self.experts)
        self.adapted = self.gates.attach(self.llm)
        refuse_merge(self.llm)
        self.router = build_router(config.gate, width, self.experts)
        self.projector = ItemProjector(width, hidden)
        self.projector.requires_grad_(config.train.train_projector)
        objective = config.objective
        n_items = len(item_table) - 1
        self.head = ItemHead(
            hidden,
            objective.dim,
            n_items,
            objective.temperature,
            train_counts[1:],
            residual=objective.prior != "none",
        )
        self.head.requires_grad_(objective.item > 0)
        self.register_buffer("item_table", item_table.float().clone(), persistent=False)
        # Embeddings of some families are scaled inside their module: measure what it returns.
        with torch.no_grad():
            some = embedding(torch.arange(min(4096, embedding.weight.shape[0]))).float()
        self.register_buffer("neutral", some.mean(dim=0), persistent=False)
        self.projector.match_scale(self.item_table[1:], float(some.pow(2).mean().sqrt()))

    @property
    def n_items(self) -> int:
        return len(self.item_table) - 1

    @property
    def device(self) -> torch.device:
        return self.item_table.device

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """Trained parameters by part: lora, gate, projector, head."""
        groups = {
            "lora": [p for p in self.llm.parameters() if p.requires_grad],
            "gate": list(self.router.parameters()),
            "projector": list(self.projector.parameters()),
            "head": list(self.head.parameters()),
        }
        return {name: [p for p in group if p.requires_grad] for name, group in groups.items()}

    def gate(self, h_seq: Tensor) -> Tensor:
        """Expert weights [B, K] of the sequences [B, E]."""
        return self.router(h_seq)

    def embed(self, batch: PromptBatch, hybrid: bool = True) -> Tensor:
        """Input vectors [B, T, H]: token embeddings, placeholders overwritten.

        Args:
            hybrid: placeholders carry the projected vectors of their items; else the neutral vector.
        """
        x = self.llm.get_input_embeddings()(batch.ids)
        slots = batch.items > 0
        if hybrid:
            vectors = self.projector(self.item_table[batch.items[slots]])
        else:
            vectors = self.neutral.expand(int(slots.sum()), -1)
        return x.masked_scatter(slots.unsqueeze(-1), vectors.to(x.dtype))

    def states(self, batch: PromptBatch, hybrid: bool = True) -> Tensor:
        """Final hidden states [B, T, H]; call it inside `self.gates.use(...)` or `.uniform()`.

        Batches are padded on the right: under causal attention no real token sees the padding, so no
        mask is needed (and the attention kernel is the fast one). A bidirectional LLM gets the mask.
        """
        mask = batch.mask.long() if self.bidirectional else None
        extra = {} if self.bidirectional else {"use_cache": False}
        return backbone(self.llm)(
            inputs_embeds=self.embed(batch, hybrid), attention_mask=mask, **extra
        ).last_hidden_state

    def readout(self, states: Tensor, batch: PromptBatch) -> Tensor:
        """[B, H] the state that stands for a text: its last prefix token, or the mean (bidirectional)."""
        if self.bidirectional:
            weights = batch.mask.unsqueeze(-1).to(states.dtype)
            return (states * weights).sum(1) / weights.sum(1)
        return states[torch.arange(len(batch), device=states.device), batch.readout]

    @torch.no_grad()
    def item_states(self, batches: list[PromptBatch], hybrid: bool = True) -> Tensor:
        """States [M, H] of item texts, in their order, under the uniform gate and without dropout."""
        was_training = self.training
        self.eval()
        try:
            with self.gates.uniform():
                parts = (b.to(self.device) for b in batches)
                return torch.cat([self.readout(self.states(b, hybrid), b) for b in parts])
        finally:
            self.train(was_training)
