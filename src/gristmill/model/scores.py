"""softmax(scale · q kᵀ) v, with what some families add to it.

Shapes: B batch, T tokens, S key slots, H heads, K key-value heads, C head_dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_QUERIES = 256  # at once, where scores are computed in the open


def causal(queries_BT: Tensor, keys_S: Tensor, window: int | None) -> Tensor:
    """True where a query at a position sees a key at another: not later, and within the window. [B, 1, T, S]"""
    queries = queries_BT[:, None, :, None]
    mask = keys_S <= queries
    return mask if window is None else mask & (queries - keys_S < window)


def attend(
    q_BHTC: Tensor,
    k_BKSC: Tensor,
    v_BKSC: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float | None,
    sinks_H: Tensor | None,
) -> Tensor:
    """softmax(scale · q kᵀ) v, [B, H, T, C of v]. Without a mask T == S and attention is causal.

    `softcap` bends scores into ±softcap (Gemma 2); a sink is one more score for each head, which takes its
    share of the softmax and gives no value (gpt-oss). Neither is known to torch's fused attention.
    """
    H, T = q_BHTC.shape[1:3]
    if softcap is None and sinks_H is None:
        return F.scaled_dot_product_attention(
            q_BHTC,
            k_BKSC,
            v_BKSC,
            attn_mask=mask,
            is_causal=mask is None and T > 1,
            scale=scale,
            enable_gqa=k_BKSC.shape[1] != H,
        )
    if mask is None:
        mask = torch.ones(T, T, dtype=torch.bool, device=q_BHTC.device).tril()[None, None]
    # Block by block: the scores of all queries at once would be gigabytes in long prompts.
    blocks = [
        _attend_plainly(q, k_BKSC, v_BKSC, m, scale, softcap, sinks_H)
        for q, m in zip(q_BHTC.split(_QUERIES, 2), mask.split(_QUERIES, 2), strict=True)
    ]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=2)


def _attend_plainly(
    q_BHTC: Tensor,
    k_BKSC: Tensor,
    v_BKSC: Tensor,
    mask: Tensor,
    scale: float,
    softcap: float | None,
    sinks_H: Tensor | None,
) -> Tensor:
    """`attend` as it is defined, in fp32."""
    B, H, T, C = q_BHTC.shape
    K, S = k_BKSC.shape[1:3]
    q_BKGTC = q_BHTC.reshape(B, K, H // K, T, C)
    scores = (q_BKGTC @ k_BKSC[:, :, None].transpose(-1, -2)).float() * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~mask[:, :, None], float("-inf"))
    if sinks_H is not None:
        sinks = sinks_H.float().view(1, K, H // K, 1, 1).expand(B, -1, -1, T, 1)
        scores = torch.cat((scores, sinks), dim=-1)
    shares = scores.softmax(-1)[..., :S].to(v_BKSC.dtype)
    return (shares @ v_BKSC[:, :, None]).reshape(B, H, T, -1)
