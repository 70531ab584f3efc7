"""The Transformer: embeddings, pre-norm blocks of attention and SwiGLU, a head. Trainer and engine run this.

Parameter names are those of Hugging Face's Llama and Qwen3, so a checkpoint's tensors map one to one.
Weights keep their own dtype and are cast to the dtype of the activations where they are used: fp32 weights
with `dtype=torch.bfloat16` are the usual mixed precision of training, without autocast.

Shapes: B batch, T tokens, S cache slots, D hidden_size, H heads, K key-value heads, C head_dim, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gristmill.errors import RequestError
from gristmill.model.config import ModelConfig


class Linear(nn.Module):
    """y = x Wᵀ without bias; W is [out_features, in_features], cast to the dtype of x."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class RMSNorm(nn.Module):
    """x / rms(x) · weight over the last dimension (Zhang & Sennrich 2019); statistics in fp32 or wider."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class KVCache:
    """Keys and values of earlier positions, [layers, B, K, S, C] each; slot index == position.

    A query at position p sees slots 0..p of its own row. So rows of unequal length are padded on the right:
    what lies beyond a row's length is never seen, and is overwritten when the row grows.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (config.num_layers, batch, config.num_kv_heads, capacity, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    def select(self, rows: list[int] | Tensor) -> None:
        """Keep only the given rows of the batch, in the given order."""
        index = torch.as_tensor(rows, device=self.keys.device)
        self.keys, self.values = self.keys[:, index], self.values[:, index]

    def update(self, layer: int, k_BKTC: Tensor, v_BKTC: Tensor, positions_BT: Tensor) -> None:
        index = positions_BT[:, None, :, None].expand_as(k_BKTC)
        self.keys[layer].scatter_(2, index, k_BKTC)
        self.values[layer].scatter_(2, index, v_BKTC)


def rope_tables(
    config: ModelConfig, positions: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """cos and sin of position · theta^(-2i/C), [..., C/2]; computed in fp32 (Su et al. 2021)."""
    half = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=positions.device)
    inverse_frequency = 1.0 / (config.rope_theta ** (half / config.head_dim))
    angles = positions[..., None].float() * inverse_frequency
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (x[i], x[i + C/2]): the half-split layout of Llama checkpoints in HF form."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Attention(nn.Module):
    """Causal grouped-query attention; Qwen3's per-head RMSNorm of queries and keys where configured."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        d, c = config.hidden_size, config.head_dim
        self.q_proj = Linear(d, config.num_heads * c)
        self.k_proj = Linear(d, config.num_kv_heads * c)
        self.v_proj = Linear(d, config.num_kv_heads * c)
        self.o_proj = Linear(config.num_heads * c, d)
        if config.qk_norm:
            self.q_norm = RMSNorm(c, config.rms_norm_eps)
            self.k_norm = RMSNorm(c, config.rms_norm_eps)

    def forward(
        self,
        x_BTD: Tensor,
        rope: tuple[Tensor, Tensor],
        cache: KVCache | None,
        positions_BT: Tensor | None,
        mask: Tensor | None,
    ) -> Tensor:
        config = self.config
        B, T, _ = x_BTD.shape
        q = self.q_proj(x_BTD).view(B, T, config.num_heads, config.head_dim)
        k = self.k_proj(x_BTD).view(B, T, config.num_kv_heads, config.head_dim)
        v = self.v_proj(x_BTD).view(B, T, config.num_kv_heads, config.head_dim).transpose(1, 2)
        if config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, *rope).transpose(1, 2), rotate(k, *rope).transpose(1, 2)
        if cache is not None:
            assert positions_BT is not None
            cache.update(self.layer, k, v, positions_BT)
            seen = mask.shape[-1] if mask is not None else T
            k, v = cache.keys[self.layer, :, :, :seen], cache.values[self.layer, :, :, :seen]
        out = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=mask is None and T > 1,
            enable_gqa=config.num_heads != config.num_kv_heads,
        )
        return self.o_proj(out.transpose(1, 2).reshape(B, T, -1))


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020): down(silu(gate(x)) · up(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        cache: KVCache | None,
        positions: Tensor | None,
        mask: Tensor | None,
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, cache, positions, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Everything below the head; its name on disk is `model`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(
            config.vocab_size,
            config.hidden_size,
            _weight=torch.empty(config.vocab_size, config.hidden_size),
        )
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Transformer(nn.Module):
    """Decoder-only language model. Parameters are uninitialized until `initialize` or a checkpoint fills them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        if not config.tie_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size)

    @property
    def head_weight(self) -> Tensor:
        """[V, D]: the output projection, which is the embedding itself when tied."""
        return self.model.embed_tokens.weight if self.config.tie_embeddings else self.lm_head.weight

    def hidden(
        self,
        tokens_BT: Tensor,
        *,
        cache: KVCache | None = None,
        positions_BT: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Final normed activations [B, T, D] in `dtype` (default: that of the weights).

        Without a cache, attention is causal over the T given tokens at positions 0..T-1. With one, each token
        stands at its `positions_BT` and sees every slot up to it. Raises RequestError past max_seq_len.
        """
        B, T = tokens_BT.shape
        if cache is None and positions_BT is None and self.config.max_seq_len < T:
            raise RequestError(
                f"{T} tokens do not fit the model's context of {self.config.max_seq_len}; shorten the text"
            )
        x = self.model.embed_tokens(tokens_BT)
        x = x.to(dtype) if dtype is not None else x
        mask = None
        if positions_BT is None:
            positions_BT = torch.arange(T, device=tokens_BT.device).expand(B, T)
        if cache is not None and not (T > 1 and bool((positions_BT[:, 0] == 0).all())):
            seen = int(positions_BT.max()) + 1
            slots = torch.arange(seen, device=tokens_BT.device)
            mask = slots <= positions_BT[:, None, :, None]  # [B, 1, T, S]
        cos, sin = rope_tables(self.config, positions_BT, x.dtype)
        rope = (cos[:, :, None], sin[:, :, None])  # over heads: [B, T, 1, C/2]
        for block in self.model.layers:
            x = block(x, rope, cache, positions_BT, mask)
        return self.model.norm(x)

    def forward(
        self,
        tokens_BT: Tensor,
        *,
        cache: KVCache | None = None,
        positions_BT: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Next-token logits, FloatTensor [B, T, V] in fp32. Arguments as in `hidden`."""
        x = self.hidden(tokens_BT, cache=cache, positions_BT=positions_BT, dtype=dtype)
        return F.linear(x, self.head_weight.to(x.dtype)).float()
