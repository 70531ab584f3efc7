"""What a layer keeps of its forward pass for the backward one: the list, tensor by tensor.

Every row is a tensor that autograd holds for `gristmill.model` as it runs: inputs of matrix products and of what bends
(norms, activations), queries, keys, values and results of attention. A test compares the list with what PyTorch
really holds. Three kinds of kernels differ. "cuda", PyTorch's there: RMSNorm keeps its input and a number a row.
"native", ours on CPUs: a gated MLP does not keep its bent gate either, and masks are a number a token. "cpu", PyTorch's
there: RMSNorm is made of small kernels that keep a copy in fp32 and the normed values too.

Shapes: D hidden_size, H heads, K key-value heads, C head_dim, F width of an MLP, T tokens of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gristmill.model import FULL, SLIDING, ModelConfig

Kernels = Literal["cuda", "native", "cpu"]
_QUERIES = 256  # that attention without a fused kernel takes at once (gristmill.model.scores)


@dataclass(frozen=True)
class Piece:
    """What a device computes at once. context: tokens of a row. width: bytes of an activation. apart: documents that
    share a row do not see each other, so that each row has a mask of its own."""

    rows: int
    context: int
    width: int
    kernels: Kernels = "cuda"
    apart: bool = False


@dataclass(frozen=True)
class Kept:
    """bytes: for each token of a micro-batch. product: a result that selective recomputation keeps (a matrix product or
    attention). split: whether tensor parallelism divides it; what it gathers for a matrix product it does not."""

    name: str
    bytes: float
    product: bool = False
    split: bool = True


def kept_by_layer(config: ModelConfig, layer: int, piece: Piece) -> list[Kept]:
    """Of one layer without recomputation."""
    D, width, kernels = config.hidden_size, piece.width, piece.kernels
    rows = _attention(config, layer, piece)
    rows += _mlp(config, layer, piece)
    placement = config.norm_placement
    if placement != "post":
        rows += _norm("norm before attention", config, D, width, kernels)
    if placement != "pre":
        rows += _norm("norm after attention", config, D, width, kernels, of_product=True)
    if not (placement == "pre" and config.parallel_residual):
        rows += _norm(
            "norm before the MLP" if placement != "post" else "norm after the MLP",
            config,
            D,
            width,
            kernels,
        )
    elif _copied(config, kernels):  # one input is kept once, its fp32 copies twice
        rows += _norm("norm before the MLP", config, D, width, kernels)
    if placement == "both":
        rows += _norm("norm after the MLP", config, D, width, kernels, of_product=True)
    return rows


def kept_at_the_end(config: ModelConfig, piece: Piece) -> list[Kept]:
    """Of the last norm and what the loss keeps: the gradient of its input."""
    width = piece.width
    end = Kept("gradient at the head", config.hidden_size * width, split=False)
    return [*_norm("last norm", config, config.hidden_size, width, piece.kernels), end]


def kept_by_all(config: ModelConfig, piece: Piece) -> list[Kept]:
    """What the layers share: token numbers; cosines, sines and a mask for each kind of layer."""
    kinds = set(config.layer_types) or {FULL}
    tables = config.rotated * piece.width * len(kinds) if config.positions == "rope" else 0
    masks = sum(_mask(config, kind, piece) for kind in kinds)
    return [
        Kept("tokens and positions", 16, split=False),
        Kept("cos and sin", tables, split=False),
        Kept("masks", masks, split=False),
    ]


def _mask(config: ModelConfig, kind: str, piece: Piece) -> float:
    """Bytes of its boolean mask for each token; 0 where attention is plainly causal."""
    window = config.sliding_window if kind == SLIDING else None
    masked = piece.apart or (window is not None and window < piece.context)
    return piece.context / (1 if piece.apart else piece.rows) if masked else 0.0


def _copied(config: ModelConfig, kernels: Kernels) -> bool:
    """Whether a norm keeps an fp32 copy of its input."""
    return config.norm == "rms_plus_one" or (config.norm == "rms" and kernels == "cpu")


def _norm(
    name: str,
    config: ModelConfig,
    size: int,
    width: int,
    kernels: Kernels,
    of_product: bool = False,
) -> list[Kept]:
    if config.norm == "layer":
        return [Kept(name, size * width + 2 * (4 if kernels == "cuda" else width))]
    copied = _copied(config, kernels)
    rows = [
        Kept(f"input of {name}", size * (4 if copied else width), product=of_product and not copied)
    ]
    if copied and kernels != "cuda":
        rows.append(Kept(f"normed by {name}", size * 4))
    return [*rows, Kept(f"scale of {name}", 4)]


def _attention(config: ModelConfig, layer: int, piece: Piece) -> list[Kept]:
    context, width, kernels = piece.context, piece.width, piece.kernels
    D, H, K, C = config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim
    V = config.value_head_dim
    rows = [Kept("input of attention", D * width, split=False)]
    latent = config.latent
    if latent is not None:
        down = latent.key_value_rank + config.rotated
        if latent.query_rank is not None:
            rows.append(Kept("normed queries' latent", latent.query_rank * width, split=False))
            rows += _norm(
                "norm of queries' latent", config, latent.query_rank, width, kernels, True
            )
        # A view of the whole product is kept, unless it is copied to fp32; ours takes no views.
        of_view: Kernels = "cuda" if kernels == "cuda" else "cpu"
        seen = down if width == 4 or kernels == "cuda" else latent.key_value_rank
        rows += _norm("norm of the latent", config, seen, width, of_view, True)
        rows.append(Kept("normed latent", latent.key_value_rank * width, split=False))
        K = H
    elif config.qk_norm:
        rows += _norm("norm of queries", config, H * C, width, kernels, True)
        rows += _norm("norm of keys", config, K * C, width, kernels, True)
    mask = _mask(config, config.layer_type(layer), piece)
    if kernels == "native" and width == 4:
        mask = min(mask, 1.0)  # only where each token begins to see
    in_the_open = config.attention_softcap is not None or config.attention_sinks
    turned = config.qk_norm or config.positions == "rope"  # then not the product itself is kept
    if in_the_open:
        blocks = -(-context // _QUERIES)
        scores = 4 * (2 if config.attention_softcap else 1) + (width if width < 4 else 0)
        rows += [
            Kept("queries", H * C * width),
            Kept("keys and values, spread over heads", blocks * H * (C + V) * width),
            Kept("scores", H * context * scores),
            Kept("what is masked", mask or context / piece.rows, split=False),
        ]
    elif latent is not None and kernels != "cuda":  # its heads' widths differ: no fused kernel
        rows += [
            Kept("queries", H * C * 4),
            Kept("keys", H * C * 4),
            Kept("values", H * V * 4),
            Kept("scores", H * context * 4),
        ]
    else:
        # Latent attention cuts its values out of a wider product, which stays whole.
        values = K * V if latent is None else H * (C - config.rotated + V)
        rows += [
            Kept("queries", H * C * width, product=not turned),
            Kept("keys", K * C * width, product=not turned),
            Kept("values", values * width, product=True),
            Kept("sums of scores", H * 4, product=True),
        ]
        if mask:  # as numbers that are added
            rows.append(Kept("mask", mask * width, split=False))
    return [*rows, Kept("result of attention", H * V * width, product=not in_the_open)]


def _mlp(config: ModelConfig, layer: int, piece: Piece) -> list[Kept]:
    D, moe, width = config.hidden_size, config.moe, piece.width
    bent, products = _bent(config, piece.kernels), 2 if config.gated else 1
    rows = [Kept("input of the MLP", D * width, split=False)]
    channels = config.intermediate_size
    if moe is not None and config.is_moe(layer):
        k, F = moe.experts_per_token, moe.intermediate_size
        router = 4 * moe.num_experts + 24 * k
        if moe.scoring == "sigmoid":  # in fp32
            router += 4 * D if width < 4 else 0
        rows += [
            Kept("router", router, split=False),
            Kept("inputs of experts", k * D * width),
            Kept("gates and channels of experts", k * 2 * F * width, product=True),
            Kept("activations of experts", k * (bent - 2) * F * width),
            Kept("results of experts", k * D * width, product=True),
            Kept("weighted results of experts", k * D * width),
        ]
        channels = moe.shared_intermediate_size
    if channels:
        rows += [
            Kept("gate and channels", products * channels * width, product=True),
            Kept("activations", (bent - products) * channels * width),
        ]
    return rows


def _bent(config: ModelConfig, kernels: Kernels) -> int:
    """Tensors of an MLP's width that are kept, the input of the last product among them."""
    if config.activation == "swiglu_clamped":
        return 7
    if not config.gated:
        return 2
    return 3 if kernels == "native" and config.activation == "silu" else 4
