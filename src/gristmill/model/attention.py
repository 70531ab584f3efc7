"""Causal attention: grouped queries, windows, soft caps, sinks, and DeepSeek's latent form.

Shapes: B batch, T tokens, S key slots, D hidden_size, H heads, K key-value heads, C head_dim.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from gristmill.errors import RequestError
from gristmill.kernels.training import attend_causally, attends_causally, rotate
from gristmill.model.cache import Cache
from gristmill.model.config import ModelConfig
from gristmill.model.layers import Linear, RMSNorm, norm
from gristmill.model.scores import attend, causal

_LATENT_EPS = 1e-6  # of the norms inside latent attention, whatever rms_norm_eps says


class Context(NamedTuple):
    """What the layers of one type share in a pass."""

    rope: tuple[Tensor, Tensor] | None  # cos and sin, [B, T, 1, R/2]; None: positions are learned
    mask_BxTS: (
        Tensor | None
    )  # True where a query sees a key, [B or 1, 1, T, S]; None: plainly causal
    positions_BT: Tensor
    segments_BT: Tensor | None
    window: int | None  # tokens that a query sees, its own included; None: all before it
    cache: Cache | None


def visible(window: int | None, positions_BT: Tensor, segments_BT: Tensor | None) -> Tensor | None:
    """The mask without a cache, [B or 1, 1, T, S]; None where the plain causal one holds."""
    T = positions_BT.shape[1]
    if segments_BT is None and (window is None or window >= T):
        return None
    places = torch.arange(T, device=positions_BT.device)
    mask = causal(places[None], places, window)
    if segments_BT is not None:
        mask = mask & (segments_BT[:, None, :, None] == segments_BT[:, None, None, :])
    return mask


def first_seen(context: Context) -> Tensor | None:
    """The first token that each token sees, int32 [B, T], of what `visible` masks; None where it masks nothing, or
    where a segment's number comes again later in its row."""
    if context.mask_BxTS is None:
        return None
    B, T = context.positions_BT.shape
    places = torch.arange(T, device=context.positions_BT.device).expand(B, T)
    first = torch.zeros_like(places)
    if context.segments_BT is not None:
        steps = context.segments_BT.diff(dim=1)
        if (steps < 0).any():
            return None
        first[:, 1:] = torch.where(steps > 0, places[:, 1:], 0)
        first = first.cummax(dim=1).values
    if context.window is not None:
        first = first.maximum(places - context.window + 1)
    return first.int().contiguous()


class Attention(nn.Module):
    """Grouped-query attention; the norm of queries and keys is over each head, or over the projection."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.attend = attend_locally
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
        self.attend = attend_locally
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
        latent = self.kv_a_layernorm(latent)
        q_turned = rotate(q_turned, *context.rope)
        k_turned = rotate(k_turned[:, :, None], *context.rope)
        if context.cache is not None:
            return self.o_proj(self._over_latents(q_turned, q_plain, k_turned, latent, context))
        expanded = self.kv_b_proj(latent).view(B, T, H, -1)
        k_plain, v = expanded.split((self.unrotated, config.value_head_dim), dim=-1)
        q = torch.cat((q_turned, q_plain), dim=-1)
        k = torch.cat((k_turned.expand(-1, -1, H, -1), k_plain), dim=-1)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        return self.o_proj(_remember_and_attend(self, q, k, v, context, None))

    def _over_latents(
        self, q_turned: Tensor, q_plain: Tensor, k_turned: Tensor, latent: Tensor, context: Context
    ) -> Tensor:
        """The same without expanding what is cached: kv_b's rows are applied to queries and results instead.

        (q · W_k c = W_kᵀ q · c, and Σ p (W_v c) = W_v Σ p c: section 2.1.2 of the DeepSeek-V2 paper.)
        """
        config = self.config
        assert config.latent is not None
        rank = config.latent.key_value_rank
        if self.kv_b_proj._forward_hooks:  # an adapter: it acts on what goes through the layer
            raise RequestError(
                "an adapter on kv_b_proj cannot generate, because its weight is used as a matrix; merge it first"
            )
        weight_HER = self.kv_b_proj.matrix(latent.dtype).view(config.num_heads, -1, rank)
        to_keys, to_values = weight_HER.split((self.unrotated, config.value_head_dim), dim=1)
        q_latent = torch.einsum("bthe,her->bthr", q_plain, to_keys)
        q = torch.cat((q_turned, q_latent), dim=-1).transpose(1, 2)
        k = torch.cat((k_turned, latent[:, :, None]), dim=-1).transpose(1, 2)
        seen = _remember_and_attend(self, q, k, latent[:, None], context, None)
        seen_BTHR = seen.view(*seen.shape[:2], config.num_heads, rank)
        return torch.einsum("bthr,hvr->bthv", seen_BTHR, to_values).flatten(-2)


def attend_locally(
    q_BHTC: Tensor,
    k_BKTC: Tensor,
    v_BKTC: Tensor,
    context: Context,
    config: ModelConfig,
    sinks_H: Tensor | None,
) -> Tensor:
    """`attend` where all tokens of the rows are here: what a layer calls as `attend`, unless other is put there."""
    softcap, scale = config.attention_softcap, config.score_scale
    q, k, v = q_BHTC.transpose(1, 2), k_BKTC.transpose(1, 2), v_BKTC.transpose(1, 2)
    if softcap is None and sinks_H is None and attends_causally(q, k, v):
        first_BT = first_seen(context)
        if context.mask_BxTS is None or first_BT is not None:
            return attend_causally(q, k, v, scale, first_BT).transpose(1, 2)
    return attend(q_BHTC, k_BKTC, v_BKTC, context.mask_BxTS, scale, softcap, sinks_H)


def _remember_and_attend(
    layer: Attention | LatentAttention,
    q_BHTC: Tensor,
    k_BKTC: Tensor,
    v_BKTC: Tensor,
    context: Context,
    sinks_H: Tensor | None,
) -> Tensor:
    """Put keys and values into the cache, if there is one, and attend to all that are visible: [B, T, H·C]."""
    config, cache = layer.config, context.cache
    B, _, T, _ = q_BHTC.shape
    qkv = (q_BHTC, k_BKTC, v_BKTC)
    if cache is not None:
        out = cache.attend(layer.layer, *qkv, context.positions_BT, sinks_H)
    else:
        out = layer.attend(*qkv, context, config, sinks_H)
    return out.transpose(1, 2).reshape(B, T, -1)
