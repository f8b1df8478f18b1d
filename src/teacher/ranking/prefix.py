"""One prefill of the prompts, then any number of continuations against the same KV cache.

A continuation is a set of tokens (nodes) that hang on each other as a tree: every node sees its prompt,
its ancestors and itself, at the position that it would have in its own text. So all titles of a sample
are read in one forward pass, and shared beginnings once. Prompts are padded on the right; the padding is
never seen.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from src.teacher.ilora_model import IloraModel
from src.teacher.llm import backbone, token_logits
from src.teacher.prompts import PromptBatch

_LOGITS_AT_ONCE = 32_000_000  # elements of a [M, V] block in float32: 128 MB


class SharedPrefix:
    """B prompts in a cache. Use it inside `model.gates.use(...)` of these prompts' gates.

    Args:
        model: the teacher in eval mode.
        batch: prompts padded on the right, without answers.
        hybrid: see `IloraModel.embed`.

    Attributes:
        last: [B, H] states of the last prompt tokens: they predict the first token of a continuation.
    """

    def __init__(self, model: IloraModel, batch: PromptBatch, hybrid: bool):
        self.model, self.lengths, self.width = model, batch.mask.sum(dim=1), batch.ids.shape[1]
        # Full layers, whatever the model's own windows: padding would push real tokens out of a window.
        self.cache = DynamicCache()
        states = self._read(inputs_embeds=model.embed(batch, hybrid))
        self.last = states[torch.arange(len(batch), device=states.device), self.lengths - 1]
        columns = torch.arange(self.width, device=states.device)[None]
        self._prompt = columns < self.lengths[:, None]
        self._positions = columns.expand(len(batch), -1)  # [B, S] of what the cache holds

    def extend(self, tokens: Tensor, depth: Tensor, visible: Tensor) -> Tensor:
        """States [B, F, H] of further nodes, which stay in the cache behind those of earlier calls.

        Args:
            tokens: [B, F] token ids; anything at unused places.
            depth: [B, F] tokens between the prompt and the node.
            visible: [B, F, S + F] bool, which of the S nodes in the cache and of the F new ones a node sees;
                itself included. Unused places see nothing here.
        """
        b, f = tokens.shape
        seen = torch.cat([self._prompt[:, None].expand(b, f, -1), visible], dim=2)
        positions = self.lengths[:, None] + depth
        self._positions = torch.cat([self._positions, positions], dim=1)
        return self._read(
            inputs_embeds=self.model.llm.get_input_embeddings()(tokens),
            attention_mask=self._masks(seen, positions),
            position_ids=positions,
        )

    def _masks(self, seen: Tensor, positions: Tensor) -> Tensor | dict[str, Tensor]:
        """What transformers takes as it is: one additive mask [B, 1, F, S + F], or one per kind of layer.

        A layer with a sliding window sees the last `sliding_window` positions, itself included. The cache's
        columns are no positions here, so that the model cannot cut its window itself.

        Args:
            seen: [B, F, S + F] bool; positions: [B, F] of the new nodes.
        """
        dtype = self.model.llm.get_input_embeddings().weight.dtype

        def additive(seen: Tensor) -> Tensor:
            mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
            return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]

        config = self.model.llm.get_base_model().config
        kinds, window = getattr(config, "layer_types", None), getattr(config, "sliding_window", None)
        if window is None or (kinds and "sliding_attention" not in kinds):
            return additive(seen)
        near = seen & (positions[:, :, None] - self._positions[:, None, :] < window)
        if not kinds:  # all layers have it
            return additive(near)
        return {"full_attention": additive(seen), "sliding_attention": additive(near)}

    # A cache grows with every call, and each layer has its own: compiled code would be made for each of them.
    @torch.compiler.set_stance("force_eager")
    def _read(self, **inputs: Tensor) -> Tensor:
        return backbone(self.model.llm)(
            **inputs, past_key_values=self.cache, use_cache=True
        ).last_hidden_state

    def rewind(self) -> None:
        """Forget all continuations."""
        for layer in self.cache.layers:
            layer.keys = layer.keys[..., : self.width, :]
            layer.values = layer.values[..., : self.width, :]
        self._positions = self._positions[:, : self.width]


def log_probs(model: IloraModel, states: Tensor, row: Tensor, token: Tensor) -> Tensor:
    """Log-probabilities [E] of `token[e]` after the state `states[row[e]]`.

    Args:
        states: [M, H]; the vocabulary is only ever opened for a block of them.
        row, token: [E].
    """
    vocabulary = model.llm.get_base_model().get_output_embeddings().weight.shape[0]
    size = max(1, _LOGITS_AT_ONCE // vocabulary)
    out = torch.empty(len(row), dtype=torch.float32, device=states.device)
    for start in range(0, len(states), size):
        inside = (row >= start) & (row < start + size)
        if bool(inside.any()):
            logits = token_logits(model.llm, states[start : start + size])
            picked = logits[row[inside] - start, token[inside]]
            out[inside] = picked - torch.logsumexp(logits, dim=1)[row[inside] - start]
    return out


def likeliest(model: IloraModel, states: Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities and ids [M, count] of the likeliest next tokens after `states` [M, H]."""
    vocabulary = model.llm.get_base_model().get_output_embeddings().weight.shape[0]
    size, values, tokens = max(1, _LOGITS_AT_ONCE // vocabulary), [], []
    for part in states.split(size):
        top = torch.log_softmax(token_logits(model.llm, part), dim=1).topk(min(count, vocabulary), dim=1)
        values.append(top.values.cpu().numpy())
        tokens.append(top.indices.cpu().numpy())
    if not values:
        return np.empty((0, count), np.float32), np.empty((0, count), np.int64)
    return np.concatenate(values), np.concatenate(tokens)
