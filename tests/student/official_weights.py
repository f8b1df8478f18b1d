"""The official DLLM2Rec weights in our layout, for the oracles."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_OFFICIAL_NAMES = {
    "item_embeddings.": "items.",
    "s_fc.": "output.",
    "positional_embeddings.": "positions.",
    "ln_1.": "norm_1.",
    "ln_2.": "norm_2.",
    "ln_3.": "norm_3.",
    "mh_attn.linear_q.": "query.",
    "mh_attn.linear_k.": "key.",
    "mh_attn.linear_v.": "value.",
    "feed_forward.w_1.": "ffn_in.",
    "feed_forward.w_2.": "ffn_out.",
    "feed_forward.layer_norm.": "norm_ffn.",
    "gru.": "gru.",
    "horizontal_cnn.": "horizontal.",
    "vertical_cnn.": "vertical.",
}


def from_official(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A state dict of the official DLLM2Rec students in our layout.

    The official item table is 0-based with the padding row last; ours is 1-based with zeros at row 0.

    Args:
        state: of the official SASRec, GRU or Caser (no output tying).

    Returns:
        the student's state dict, for a strict load; and the projector of the LLM embeddings
        (`weight` [H, E], `bias` [H]), empty where the state has none.

    Raises:
        KeyError: an unknown key.
    """
    student, projector = {}, {}
    for key, official in state.items():
        if key.startswith("fc_"):
            projector[key.rpartition(".")[2]] = official
            continue
        prefix = next((p for p in _OFFICIAL_NAMES if key.startswith(p)), None)
        if prefix is None:
            raise KeyError(key)
        name = _OFFICIAL_NAMES[prefix] + key.removeprefix(prefix)
        student[name] = _in_our_layout(name, official).contiguous()
    return student, projector


def _in_our_layout(name: str, official: Tensor) -> Tensor:
    if name == "items.weight":
        return torch.cat([torch.zeros_like(official[-1:]), official[:-1]])
    if name in ("ffn_in.weight", "ffn_out.weight"):
        return official.squeeze(-1)  # [H, H, 1]: convolutions of length one
    if name.startswith("horizontal.") and name.endswith("weight"):
        return official.squeeze(1).transpose(1, 2)  # [filters, 1, height, H] -> [filters, H, height]
    if name == "vertical.weight":
        return official.flatten(1)  # [1, 1, L, 1] -> [1, L]
    return official
