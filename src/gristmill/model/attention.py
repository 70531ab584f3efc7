"""Causal attention: grouped queries, windows, soft caps, sinks, and DeepSeek's latent form.

Shapes: B batch, T tokens, S key slots, D hidden_size, H heads, K key-value heads, C head_dim.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gristmill.model.cache import KVCache
from gristmill.model.config import SLIDING, ModelConfig
from gristmill.model.layers import Linear, RMSNorm, norm
from gristmill.model.rope import rotate

_QUERIES = 256  # at once, where scores are computed in the open
_LATENT_EPS = 1e-6  # of the norms inside latent attention, whatever rms_norm_eps says


class Context(NamedTuple):
    """What the layers of one type share in a pass."""

    rope: tuple[Tensor, Tensor] | None  # cos and sin, [B, T, 1, R/2]; None: positions are learned
    mask_BxTS: (
        Tensor | None
    )  # True where a query sees a key, [B or 1, 1, T, S]; None: plainly causal
    positions_BT: Tensor
    cache: KVCache | None


def visible(
    config: ModelConfig,
    layer_type: str,
    positions_BT: Tensor,
    cache: KVCache | None,
    segments_BT: Tensor | None,
) -> Tensor | None:
    """The mask of layers of one type, [B or 1, 1, T, S]; None where the plain causal one holds."""
    T = positions_BT.shape[1]
    window = config.sliding_window if layer_type == SLIDING else None
    if cache is not None and not (T > 1 and bool((positions_BT[:, 0] == 0).all())):
        seen = int(positions_BT.max()) + 1
        queries = positions_BT[:, None, :, None]  # a slot's index is its position
        keys = torch.arange(seen, device=positions_BT.device)
    elif segments_BT is None and (window is None or window >= T):
        return None
    else:
        keys = torch.arange(T, device=positions_BT.device)
        queries = keys[None, None, :, None]
    mask = keys <= queries
    if window is not None:
        mask = mask & (queries - keys < window)
    if segments_BT is not None:
        mask = mask & (segments_BT[:, None, :, None] == segments_BT[:, None, None, :])
    return mask


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


class Attention(nn.Module):
    """Grouped-query attention; the norm of queries and keys is over each head, or over the projection."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        d, c, bias = config.hidden_size, config.head_dim, config.attention_bias
        queries, keys = config.num_heads * c, config.num_kv_heads * c
        self.q_proj = Linear(d, queries, bias)
        self.k_proj = Linear(d, keys, bias)
        self.v_proj = Linear(d, keys, bias)
        self.o_proj = Linear(queries, d, config.output_bias)
        if config.qk_norm:
            per_head = config.qk_norm_over == "head"
            self.q_norm = norm(config, c if per_head else queries)
            self.k_norm = norm(config, c if per_head else keys)
        if config.attention_sinks:
            self.sinks = nn.Parameter(torch.empty(config.num_heads))

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        config = self.config
        B, T, _ = x_BTD.shape
        per_head = (B, T, -1, config.head_dim)
        q, k, v = self.q_proj(x_BTD), self.k_proj(x_BTD), self.v_proj(x_BTD)
        if config.qk_norm and config.qk_norm_over == "projection":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = q.view(per_head), k.view(per_head), v.view(per_head).transpose(1, 2)
        if config.qk_norm and config.qk_norm_over == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        if context.rope is not None:
            q, k = rotate(q, *context.rope), rotate(k, *context.rope)
        sinks = self.sinks if config.attention_sinks else None
        out = _remember_and_attend(self, q.transpose(1, 2), k.transpose(1, 2), v, context, sinks)
        return self.o_proj(out)


class LatentAttention(nn.Module):
    """Multi-head latent attention (DeepSeek-V2): low-rank queries; keys and values from one small vector.

    A head's query and key are [no position | rotary] as DeepSeek has them; here the rotary part comes first,
    where `rotate` looks for it. Scores do not depend on the order.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        assert config.latent is not None
        self.config, self.layer = config, layer
        d, latent, bias = config.hidden_size, config.latent, config.attention_bias
        queries = config.num_heads * config.head_dim
        if latent.query_rank is None:
            self.q_proj = Linear(d, queries)
        else:
            self.q_a_proj = Linear(d, latent.query_rank, bias)
            self.q_a_layernorm = RMSNorm(latent.query_rank, _LATENT_EPS)
            self.q_b_proj = Linear(latent.query_rank, queries)
        self.kv_a_proj_with_mqa = Linear(d, latent.key_value_rank + config.rotated, bias)
        self.kv_a_layernorm = RMSNorm(latent.key_value_rank, _LATENT_EPS)
        self.unrotated = config.head_dim - config.rotated
        expanded = config.num_heads * (self.unrotated + latent.value_head_dim)
        self.kv_b_proj = Linear(latent.key_value_rank, expanded)
        self.o_proj = Linear(config.num_heads * latent.value_head_dim, d, config.output_bias)

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        config = self.config
        assert config.latent is not None and context.rope is not None
        B, T, _ = x_BTD.shape
        H, rotated = config.num_heads, config.rotated
        if config.latent.query_rank is None:
            q = self.q_proj(x_BTD)
        else:
            q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_BTD)))
        q_plain, q_turned = q.view(B, T, H, -1).split((self.unrotated, rotated), dim=-1)
        shared = self.kv_a_proj_with_mqa(x_BTD)
        latent, k_turned = shared.split((config.latent.key_value_rank, rotated), dim=-1)
        expanded = self.kv_b_proj(self.kv_a_layernorm(latent)).view(B, T, H, -1)
        k_plain, v = expanded.split((self.unrotated, config.value_head_dim), dim=-1)
        k_turned = rotate(k_turned[:, :, None], *context.rope).expand(-1, -1, H, -1)
        q = torch.cat((rotate(q_turned, *context.rope), q_plain), dim=-1)
        k = torch.cat((k_turned, k_plain), dim=-1)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        return self.o_proj(_remember_and_attend(self, q, k, v, context, None))


def _remember_and_attend(
    layer: Attention | LatentAttention,
    q_BHTC: Tensor,
    k_BKTC: Tensor,
    v_BKTC: Tensor,
    context: Context,
    sinks_H: Tensor | None,
) -> Tensor:
    """Put keys and values into the cache, if there is one, and attend to all that are visible: [B, T, H·C]."""
    config, cache, mask = layer.config, context.cache, context.mask_BxTS
    B, _, T, _ = q_BHTC.shape
    k, v = k_BKTC, v_BKTC
    if cache is not None:
        cache.update(layer.layer, k, v, context.positions_BT)
        seen = mask.shape[-1] if mask is not None else T
        k, v = cache.keys[layer.layer, :, :, :seen], cache.values[layer.layer, :, :, :seen]
    out = attend(q_BHTC, k, v, mask, config.score_scale, config.attention_softcap, sinks_H)
    return out.transpose(1, 2).reshape(B, T, -1)
