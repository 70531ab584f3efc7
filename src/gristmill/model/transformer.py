"""The Transformer: embeddings, blocks of attention and MLP, a head. Trainer and engine run this.

Parameter names are those of Hugging Face's Llama, Gemma and OLMo, so that most checkpoints map one to one;
`formats.families` maps the others.

Shapes: B batch, T tokens, D hidden_size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gristmill.errors import RequestError
from gristmill.model.attention import Attention, Context, LatentAttention, visible
from gristmill.model.cache import Cache
from gristmill.model.config import SLIDING, ModelConfig
from gristmill.model.layers import MLP, Embedding, Linear, norm
from gristmill.model.moe import MoE
from gristmill.model.rope import rope_tables


class Block(nn.Module):
    """Attention and MLP, each added to the residual stream, with norms before, after, or on both sides."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        size = config.hidden_size
        self.self_attn = (LatentAttention if config.latent else Attention)(config, layer)
        if config.is_moe(layer):
            assert config.moe is not None
            self.mlp = MoE(config, config.moe)
        else:
            self.mlp = MLP(config, config.intermediate_size)
        if config.norm_placement != "post":
            self.input_layernorm = norm(config, size)
        self.post_attention_layernorm = norm(config, size)
        if config.norm_placement == "both":
            self.pre_feedforward_layernorm = norm(config, size)
        if config.norm_placement != "pre":
            self.post_feedforward_layernorm = norm(config, size)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        config = self.config
        if config.norm_placement == "pre":
            attended = self.self_attn(self.input_layernorm(x), context)
            if config.parallel_residual:
                return x + attended + self.mlp(self.post_attention_layernorm(x))
            x = x + attended
            return x + self.mlp(self.post_attention_layernorm(x))
        if config.norm_placement == "post":
            x = x + self.post_attention_layernorm(self.self_attn(x, context))
            return x + self.post_feedforward_layernorm(self.mlp(x))
        attended = self.self_attn(self.input_layernorm(x), context)
        x = x + self.post_attention_layernorm(attended)
        return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))


class Decoder(nn.Module):
    """Everything below the head; its name on disk is `model`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        if config.positions == "learned":
            self.embed_positions = Embedding(config.max_seq_len, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_layers))
        self.norm = norm(config, config.hidden_size)


class Transformer(nn.Module):
    """Decoder-only language model. Parameters are uninitialized until `initialize` or a checkpoint fills them.

    A part of it runs too (a stage of a pipeline): blocks, embeddings and norm that live elsewhere are None.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.visible = visible
        self.model = Decoder(config)
        if not config.tie_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size)

    @property
    def head(self) -> Any:  # a Linear or an Embedding, or what was put in its place
        """The output projection: the embedding itself when tied, which projects by `project`."""
        return self.model.embed_tokens if self.config.tie_embeddings else self.lm_head

    def hidden(
        self,
        tokens_BT: Tensor,
        *,
        cache: Cache | None = None,
        positions_BT: Tensor | None = None,
        segments_BT: Tensor | None = None,
        lengths_B: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Final normed activations [B, T, D] in `dtype` (default: that of the weights).

        Without a cache, attention is causal over the T given tokens at positions 0..T-1. With one, each token
        stands at its `positions_BT` and sees every slot up to it. `segments_BT` numbers the documents that
        share a row (packing, or padding as a segment of its own): a token sees only its own document, and
        positions begin anew in each; not with a cache. `lengths_B` are the lengths of the whole sequences that the
        rows belong to, where positions do not tell (LongRoPE). Raises RequestError past max_seq_len.
        """
        config = self.config
        B, T = tokens_BT.shape[:2]
        if cache is not None and segments_BT is not None:
            raise RequestError(
                "documents packed in a row (segments) cannot be cached; give a row each"
            )
        if cache is None and positions_BT is None and config.max_seq_len < T:
            raise RequestError(
                f"{T} tokens do not fit the model's context of {config.max_seq_len}; shorten the text"
            )
        if positions_BT is None:
            positions_BT = torch.arange(T, device=tokens_BT.device).expand(B, T)
            if segments_BT is not None:
                positions_BT = positions_BT - _starts(segments_BT)
        # In a later part of a pipeline they are activations.
        begins = self.model.embed_tokens is not None
        x = self._embed(tokens_BT, positions_BT, dtype) if begins else tokens_BT
        contexts: dict[str, Context] = {}
        for kind in {config.layer_type(layer) for layer in range(config.num_layers)}:
            rope = None
            if config.positions == "rope":
                cos, sin = rope_tables(config, kind, positions_BT, x.dtype, lengths_B)
                rope = (cos[:, :, None], sin[:, :, None])  # the same for all heads
            window = config.sliding_window if kind == SLIDING else None
            mask = None
            if cache is None:
                mask = self.visible(window, positions_BT, segments_BT)
            contexts[kind] = Context(rope, mask, positions_BT, segments_BT, window, cache)
        for layer, block in enumerate(self.model.layers):
            if block is not None:
                x = block(x, contexts[config.layer_type(layer)])
        return x if self.model.norm is None else self.model.norm(x)

    def _embed(self, tokens_BT: Tensor, positions_BT: Tensor, dtype: torch.dtype | None) -> Tensor:
        config = self.config
        x = self.model.embed_tokens(tokens_BT)
        x = x.to(dtype) if dtype is not None else x
        if config.embedding_scale != 1.0:
            # Rounded to the dtype of the activations, as Gemma was trained.
            x = x * torch.tensor(config.embedding_scale, dtype=x.dtype, device=x.device)
        if config.positions == "learned":
            x = x + self.model.embed_positions(positions_BT).to(x.dtype)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits of final activations [..., D]: [..., V] in fp32."""
        tied = self.config.tie_embeddings
        logits = (self.head.project if tied else self.head)(hidden).float()
        cap = self.config.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def forward(
        self,
        tokens_BT: Tensor,
        *,
        cache: Cache | None = None,
        positions_BT: Tensor | None = None,
        segments_BT: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Next-token logits, FloatTensor [B, T, V] in fp32. Arguments as in `hidden`."""
        return self.logits(
            self.hidden(
                tokens_BT,
                cache=cache,
                positions_BT=positions_BT,
                segments_BT=segments_BT,
                dtype=dtype,
            )
        )


def meta_network(config: ModelConfig) -> Transformer:
    """The network without memory: names, shapes and modules only."""
    with torch.device("meta"):
        return Transformer(config)


def _starts(segments_BT: Tensor) -> Tensor:
    """For each token the index at which its run of equal segment numbers begins, [B, T]."""
    index = torch.arange(segments_BT.shape[1], device=segments_BT.device).expand_as(segments_BT)
    begins = torch.ones_like(segments_BT, dtype=torch.bool)
    begins[:, 1:] = segments_BT[:, 1:] != segments_BT[:, :-1]
    return torch.where(begins, index, 0).cummax(dim=1).values
