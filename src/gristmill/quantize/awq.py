"""AWQ (Lin et al., arXiv 2306.00978): scale the inputs that matter up before rounding, and undo it in what feeds them.

y = (W·s)(x/s) for any s > 0 per input. Columns that meet large activations round more finely when s is above 1
there; 1/s goes into the norm or the projection that makes x, so the network computes the same and costs the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gristmill.errors import WorkError
from gristmill.model import Block, Linear
from gristmill.model.attention import Attention, LatentAttention
from gristmill.model.layers import MLP, PlusOneRMSNorm
from gristmill.quantize.grid import encode, fit, group_width, round_to_nearest

_RATIOS = [step / 20 for step in range(20)]
_SHRINKS = [1 - step / 20 for step in range(10)]
_ROWS = 256  # of W at a time in the search for clips


@dataclass(frozen=True)
class ScalePair:
    """Layers of a block that read the same channels, and what makes these channels, linear in each of them.

    names: the consumers' within the block. judge: the module whose output tells whether a scale is good.
    """

    names: tuple[str, ...]
    producer: nn.Module
    consumers: tuple[Linear, ...]
    judge: nn.Module


def scale_pairs(block: Block) -> list[ScalePair]:
    """The pairs of a decoder block, in the order in which data passes them. A mixture of experts has none.

    Norm to projections wherever a norm stands before them (not in OLMo 2); v to o where every query head has a
    value head of its own; up to down where the MLP is linear in up (gated, and not gpt-oss's clamped form).
    """
    return [*_attention_pairs(block), *_mlp_pairs(block)]


def _attention_pairs(block: Block) -> Iterator[ScalePair]:
    attention, config = block.self_attn, block.config
    before = block.input_layernorm if config.norm_placement != "post" else None

    def pair(producer: nn.Module, *names: str, judge: nn.Module = attention) -> ScalePair:
        consumers = tuple(attention.get_submodule(name) for name in names)
        full = tuple(f"self_attn.{name}" for name in names)
        return ScalePair(full, producer, consumers, judge)  # pyright: ignore[reportArgumentType]

    if isinstance(attention, LatentAttention):
        assert config.latent is not None
        compressed = config.latent.query_rank is not None
        if before is not None:
            yield pair(before, "q_a_proj" if compressed else "q_proj", "kv_a_proj_with_mqa")
        if compressed:
            yield pair(attention.q_a_layernorm, "q_b_proj")
        yield pair(attention.kv_a_layernorm, "kv_b_proj")
        return
    assert isinstance(attention, Attention)
    if before is not None:
        yield pair(before, "q_proj", "k_proj", "v_proj")
    if config.num_kv_heads == config.num_heads:
        yield pair(attention.v_proj, "o_proj", judge=attention.o_proj)


def _mlp_pairs(block: Block) -> Iterator[ScalePair]:
    mlp, config = block.mlp, block.config
    if not isinstance(mlp, MLP):
        return
    both = config.norm_placement == "both"
    if config.norm_placement != "post":
        before = block.pre_feedforward_layernorm if both else block.post_attention_layernorm
        consumers = {"mlp.gate_proj": mlp.gate_proj, "mlp.up_proj": mlp.up_proj}
        found = {name: layer for name, layer in consumers.items() if layer is not None}
        yield ScalePair(tuple(found), before, tuple(found.values()), mlp)
    if mlp.gate_proj is not None and config.activation != "swiglu_clamped":
        down = mlp.down_proj
        yield ScalePair(("mlp.down_proj",), mlp.up_proj, (down,), down)


@torch.no_grad()
def fold(pair: ScalePair, scale: Tensor) -> None:
    """Multiply the consumers' columns by scale [in] and divide what makes their inputs by it, in place.

    The network computes what it did, to rounding. Weights keep their dtype: fold in fp32.
    """
    for consumer in pair.consumers:
        consumer.weight.copy_(consumer.weight * scale)
    weight, bias = pair.producer.weight, pair.producer.bias if _has_bias(pair.producer) else None
    assert isinstance(weight, Tensor)
    if isinstance(pair.producer, PlusOneRMSNorm):
        weight.copy_((1 + weight) / scale - 1)
    else:
        weight.copy_(weight / (scale if weight.ndim == 1 else scale[:, None]))
    if isinstance(bias, Tensor):
        bias.copy_(bias / scale)


def _has_bias(module: nn.Module) -> bool:
    return isinstance(getattr(module, "bias", None), Tensor)


@dataclass(frozen=True)
class Scales:
    """scale [in]; ratio: what the search settled on, None where no scaling was best; losses are mean squared
    differences of the judged output: with `scale`, and with plain rounding."""

    scale: Tensor
    ratio: float | None
    loss: float
    plain_loss: float


@torch.no_grad()
def search_scales(
    x_mean: Tensor,
    weights: Sequence[Tensor],
    forward: Callable[[Sequence[Tensor]], Tensor],
    *,
    bits: int = 4,
    group: int | None = 128,
    symmetric: bool = False,
    name: str = "the layer",
) -> Scales:
    """The scale of inputs with which rounding changes the judged output least.

    x_mean [in]: mean of |x|. weights: [out, in] each, of all layers that read x. forward: their replacements, in
    the same order, to the output that is judged. Tried are no scaling and, for r = 0, 0.05, … 0.95,
    s = x̄^r / (w̄^(1−r) + 1e-4) with w̄ the mean of |w| / absmax of its group; s is normalised so that its largest
    and least multiply to 1. Raises RequestError where `group` does not divide the inputs, WorkError where the
    judged output is not finite.
    """
    weights = [weight.float() for weight in weights]
    width = group_width(len(x_mean), group, name)
    joined = torch.cat([weight.reshape(len(weight), -1, width) for weight in weights]).abs_()
    w_mean = (joined / (joined.amax(-1, keepdim=True) + 1e-6)).mean(0).view(-1)
    expected = forward(weights).float()
    if not bool(expected.isfinite().all()):
        raise WorkError(
            f"the output judged for {name} holds NaN or infinity on the calibration text"
        )

    def loss(scale: Tensor) -> float:
        rounded = []
        for weight in weights:
            codes = round_to_nearest(
                weight * scale, bits=bits, group=width, symmetric=symmetric, name=name
            )
            rounded.append(codes.matrix() / scale)
        return (forward(rounded).float() - expected).square().mean().item()

    none = torch.ones_like(w_mean)
    plain = loss(none)
    best = Scales(none, None, plain, plain)
    for ratio in _RATIOS:
        scale = (x_mean.float() ** ratio / (w_mean ** (1 - ratio) + 1e-4)).clamp(min=1e-4)
        scale = scale / (scale.max() * scale.min()).sqrt()
        found = loss(scale)
        if found < best.loss:
            best = Scales(scale, ratio, found, plain)
    return best


@torch.no_grad()
def fewer_rows(x: Tensor) -> Tensor:
    """For inputs x [tokens, in] of a linear layer: at most `in` rows that judge its weights alike.

    The mean squared error of the layer's output is tr(ΔW H ΔWᵀ) with H = XᵀX over tokens and outputs: it knows x
    only by H, and the triangle R of X = QR has RᵀR = H (in fp32 nearer to it than XᵀX is). R is scaled so that the
    mean over its rows is the mean over tokens. This holds where the judged output *is* the layer's; behind attention
    or an activation it does not, and there `search_scales` runs the module, as published.
    """
    tokens, width = x.shape
    if tokens <= width:
        return x
    return torch.linalg.qr(x, mode="r").R * (width / tokens) ** 0.5


@torch.no_grad()
def search_clip(
    weight: Tensor,
    x: Tensor,
    *,
    bits: int = 4,
    group: int | None = 128,
    symmetric: bool = False,
    name: str = "the layer",
) -> Tensor:
    """For weight [out, in] and inputs x [tokens, in] (both scaled): the `shrink` [out, groups] of `round_to_nearest`
    with which each group's share of the output changes least, among 1, 0.95, … 0.55.

    Each group is judged alone: mean over tokens of (Δw·x)² = Δw (XᵀX / tokens) Δwᵀ over the group's inputs.
    """
    out, width = weight.shape
    group = group_width(width, group, name)
    x_NGi = x.float().reshape(len(x), -1, group)
    gram_Gii = torch.einsum("ngi,ngj->gij", x_NGi, x_NGi) / len(x)
    chosen = torch.ones(out, width // group, device=weight.device)
    for start in range(0, out, _ROWS):
        rows = slice(start, start + _ROWS)
        groups_RGi = weight[rows].float().reshape(-1, width // group, group)
        best = torch.full(groups_RGi.shape[:2], float("inf"), device=weight.device)
        for shrink in _SHRINKS:
            cut = torch.full_like(best, shrink)
            scale, zero = fit(groups_RGi, bits, symmetric, torch.float16, cut, name)
            q = encode(groups_RGi, scale, zero, bits).float()
            delta_RGi = (q - zero[..., None]) * scale.float()[..., None] - groups_RGi
            moved_RGi = torch.einsum("rgi,gij->rgj", delta_RGi, gram_Gii)
            error = (moved_RGi * delta_RGi).sum(-1)
            better = error < best
            best = torch.where(better, error, best)
            chosen[rows] = torch.where(better, shrink, chosen[rows])
    return chosen
