"""Everything that the losses read from a score matrix [B, N], with one pass over it and one dense gradient.

B batch, N items, M chosen columns per sample. The recommendation loss, the ranking distillation and the DRO
terms of target and candidates all need values at a few columns, and sums over the catalogue. Taken one by one,
each costs passes over [B, N] in both directions (17,408 items, batch 256: 18 MB each). Here the rows are
worked on in pieces that stay in the processor's cache, and the gradient of the sums is prepared on the way.

DROS's robust term of an item i (Yang et al., WWW 2023; DLLM2Rec's L_dro), with a_j = s_j^2 ps_j / beta and
b_i = (s_i - 1)^2 ps_i / beta, is l(i) = log(sum over j != i of exp(a_j), + exp(b_i)). exp(a_i) may be subtracted
from the whole sum only where it is at most half of it: the one item per row that can hold more is summed around
(in float32 the difference is 0 for a target's score of 14, and its log -inf).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_CACHED = 2**19  # elements of a piece: 2 MiB of float32


class CatalogueTerms(NamedTuple):
    """What the losses need of a score matrix.

    Attributes:
        values: [B, M] scores at the chosen columns.
        log_z: [B] logsumexp of the scores, or None.
        dro: [B, M] DRO terms of the chosen columns, or None.
    """

    values: Tensor
    log_z: Tensor | None
    dro: Tensor | None


def catalogue_terms(
    scores: Tensor,
    columns: Tensor,
    *,
    log_z: bool = False,
    propensity: Tensor | None = None,
    beta: float = 1.0,
) -> CatalogueTerms:
    """Scores at `columns` [B, M], and on request logsumexp and DRO terms, all differentiable.

    Args:
        scores: [B, N].
        columns: [B, M] int64; an item may stand in a row more than once.
        log_z: whether logsumexp is wanted.
        propensity: [N] ps of the DRO terms; None where they are not wanted.
        beta: robustness radius of the DRO terms.
    """
    if torch.compiler.is_compiling() or not (log_z or propensity is not None):
        return plain_terms(scores, columns, log_z=log_z, propensity=propensity, beta=beta)
    scale = None if propensity is None else (propensity / beta).to(scores.dtype)
    values, total, dro = _Terms.apply(scores, columns, log_z, scale)
    return CatalogueTerms(values, total if log_z else None, dro if scale is not None else None)


def in_full_precision(scores: Tensor) -> Tensor:
    """Scores whose sums over the catalogue can be taken: those need more than the 8 bits of bfloat16."""
    return scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores


def plain_terms(
    scores: Tensor,
    columns: Tensor,
    *,
    log_z: bool = False,
    propensity: Tensor | None = None,
    beta: float = 1.0,
) -> CatalogueTerms:
    """The same from separate operations: for torch.compile, which fuses them itself, and for tests."""
    values, dro = scores.gather(1, columns), None
    if propensity is not None:
        scale = (propensity / beta).to(scores.dtype)
        a = scores.square() * scale
        a_top, top = a.max(dim=1, keepdim=True)
        rest = a.scatter(1, top, float("-inf")).logsumexp(dim=1, keepdim=True)
        whole, is_top = torch.logaddexp(rest, a_top), columns == top
        # For the top itself any value with a finite gradient.
        log_share = torch.where(is_top, -1.0, a.gather(1, columns) - whole)
        without = torch.where(is_top, rest, whole + torch.log1p(-log_share.exp()))
        dro = torch.logaddexp(without, (values - 1).square() * scale[columns])
    return CatalogueTerms(values, scores.logsumexp(dim=1) if log_z else None, dro)


class _Terms(torch.autograd.Function):
    """Forward leaves, for each kind of sum, the dense part of its gradient up to one factor per row.

    DRO with a_j = s_j^2 c_j, c = ps / beta, and t the chosen column whose a is largest in its row: with
    m = max_{j != t} a_j and R = sum_{j != t} exp(a_j - m) >= 1, the sum without item i is R for i = t and
    R - exp(a_i - m) + exp(a_t - m) for the others, at least R / 2: nothing cancels, whichever item
    dominates. With l_i = log(that sum + exp(b_i - m)) + m: d l_i / d a_j = exp(a_j - l_i) for j != i.
    """

    @staticmethod
    def forward(ctx, scores: Tensor, columns: Tensor, want_z: bool, scale: Tensor | None):
        batch, n_items = scores.shape
        values, log_z = scores.gather(1, columns), scores.new_empty(batch, 1)
        ctx.softmax = torch.empty_like(scores) if want_z else None
        ctx.dense = torch.empty_like(scores) if scale is not None else None
        if scale is not None:
            chosen_scale = scale[columns]
            a = values.square() * chosen_scale
            a_top, at = a.max(dim=1, keepdim=True)
            top = columns.gather(1, at)
            low, rest = torch.empty_like(a_top), torch.empty_like(a_top)
        piece = batch if scores.is_cuda else max(1, _CACHED // n_items)
        for rows in (slice(start, start + piece) for start in range(0, batch, piece)):
            s = scores[rows]
            if want_z:
                highest = s.amax(dim=1, keepdim=True)
                e = torch.sub(s, highest, out=ctx.softmax[rows]).exp_()
                total = e.sum(dim=1, keepdim=True)
                e.div_(total)
                log_z[rows] = highest + total.log()
            if scale is not None:
                half_slope = torch.mul(s, scale, out=ctx.dense[rows])  # da_j / ds_j / 2
                e = (s * half_slope).scatter_(1, top[rows], float("-inf"))
                low[rows] = highest = e.amax(dim=1, keepdim=True)
                rest[rows] = e.sub_(highest).exp_().sum(dim=1, keepdim=True)
                half_slope.mul_(e)
        if scale is None:
            ctx.save_for_backward(columns)
            return values, log_z.squeeze(1), values.new_empty(0)
        is_top = columns == top
        others = (rest - (a - low).clamp(max=0.0).exp()).clamp_min_(0.0)
        without = torch.where(is_top, rest.log(), torch.logaddexp(others.log(), a_top - low)) + low
        b = (values - 1).square() * chosen_scale
        dro = torch.logaddexp(without, b)
        ctx.save_for_backward(columns, values, chosen_scale, a, b, dro, low, a_top, at, top, is_top)
        return values, log_z.squeeze(1), dro

    @staticmethod
    def backward(ctx, grad_values: Tensor, grad_z: Tensor, grad_dro: Tensor):
        columns, *saved = ctx.saved_tensors
        if ctx.softmax is None and ctx.dense is None:
            raise RuntimeError("catalogue_terms: its buffers serve one backward pass")
        gradient = None if ctx.softmax is None else ctx.softmax.mul_(grad_z[:, None])
        if saved:
            values, scale, a, b, dro, low, a_top, at, top, is_top = saved
            slope = 2.0 * values * scale
            factor = 2.0 * (grad_dro * (low - dro).exp()).sum(dim=1, keepdim=True)
            gradient = ctx.dense.mul_(factor) if gradient is None else gradient.addcmul_(ctx.dense, factor)
            # Item i is in every sum but its own; t is in no dense part, but in all other items' sums.
            own = torch.where(is_top, 0.0, (a - dro).exp())
            grad_values = grad_values + grad_dro * (
                (b - dro).exp() * 2.0 * (values - 1.0) * scale - own * slope
            )
            of_top = torch.where(is_top, 0.0, grad_dro * (a_top - dro).exp()).sum(dim=1, keepdim=True)
            gradient.scatter_add_(1, top, of_top * slope.gather(1, at))
        ctx.softmax = ctx.dense = None
        return gradient.scatter_add_(1, columns, grad_values), None, None, None
