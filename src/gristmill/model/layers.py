"""What the blocks are made of: linear maps, norms, activations.

Weights keep their own dtype and are cast to the dtype of the activations where they are used: fp32 weights
with bf16 activations are the usual mixed precision of training, without autocast.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gristmill.kernels import training
from gristmill.model.config import ModelConfig


class Linear(nn.Linear):
    """y = x Wᵀ + b; W is [out_features, in_features], both cast to the dtype of x."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias)

    def reset_parameters(self) -> None:
        """Nothing: `initialize` or a checkpoint fills them."""

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """W in `dtype`. Quantized layers have it too."""
        return self.weight.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class Embedding(nn.Embedding):
    """Rows [num_embeddings, embedding_dim] of tokens; `project` is the head that is tied to them."""

    def __init__(self, rows: int, size: int) -> None:
        super().__init__(rows, size, _weight=torch.empty(rows, size))

    def project(self, x: Tensor) -> Tensor:
        """x [..., size] -> [..., rows]."""
        return F.linear(x, self.weight.to(x.dtype))


class RMSNorm(nn.Module):
    """x / rms(x) · weight over the last dimension (Zhang & Sennrich 2019); statistics in fp32 or wider."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(size))

    def forward(self, x: Tensor) -> Tensor:
        return training.rms_norm(x, self.weight, self.eps)


class PlusOneRMSNorm(RMSNorm):
    """x / rms(x) · (1 + weight), whole in fp32 (Gemma): a weight near 0 in bf16 is finer than one near 1."""

    def forward(self, x: Tensor) -> Tensor:
        weight = 1.0 + self.weight.float()
        return F.rms_norm(x.float(), weight.shape, weight, self.eps).to(x.dtype)


class LayerNorm(nn.Module):
    """(x - mean) / std · weight + bias over the last dimension (Ba et al. 2016)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(size))
        self.bias = nn.Parameter(torch.empty(size))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.layer_norm(x, weight.shape, weight, bias, self.eps)


_NORMS = {"rms": RMSNorm, "rms_plus_one": PlusOneRMSNorm, "layer": LayerNorm}


def norm(config: ModelConfig, size: int) -> RMSNorm | LayerNorm:
    """The family's kind of norm over the last `size` elements."""
    return _NORMS[config.norm](size, config.norm_eps)


def activate(kind: str, x: Tensor) -> Tensor:
    """The nonlinearity of an MLP that has no gate."""
    if kind == "silu":
        return F.silu(x)
    return F.gelu(x, approximate="tanh" if kind == "gelu_tanh" else "none")


def activate_gated(kind: str, gate: Tensor, up: Tensor) -> Tensor:
    """act(gate) · up (Shazeer 2020); "swiglu_clamped" is gpt-oss's, whose constants are fixed."""
    if kind == "swiglu_clamped":
        gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
        return gate * torch.sigmoid(1.702 * gate) * (up + 1.0)
    if kind == "silu":
        return training.swiglu(gate, up)
    return activate(kind, gate) * up


class MLP(nn.Module):
    """down(act(gate(x)) · up(x)), or down(act(up(x))) where the family has no gate."""

    def __init__(self, config: ModelConfig, intermediate_size: int) -> None:
        super().__init__()
        self.activation = config.activation
        hidden, bias = config.hidden_size, config.mlp_bias
        self.gate_proj = Linear(hidden, intermediate_size, bias) if config.gated else None
        self.up_proj = Linear(hidden, intermediate_size, bias)
        self.down_proj = Linear(intermediate_size, hidden, bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate_proj is None:
            return self.down_proj(activate(self.activation, self.up_proj(x)))
        return self.down_proj(activate_gated(self.activation, self.gate_proj(x), self.up_proj(x)))
