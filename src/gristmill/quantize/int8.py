"""8-bit weights by rounding to nearest: one symmetric scale an output channel, activations untouched (W8A16).

Every linear layer inside the decoder blocks is quantized; embeddings, head and norms stay as they are. The
result is a Hugging Face directory in compressed-tensors' `int-quantized` format, so transformers loads it too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gristmill.errors import RequestError, WorkError
from gristmill.formats import Model, resolve
from gristmill.kernels import Int8Linear, replace_int8
from gristmill.model import Transformer
from gristmill.stage import Progress, Result, StageConfig, quiet

_PROBE = """\
Return a list with the n largest elements from the dataset defined by iterable. The key, if provided, specifies
a function of one argument that is used to extract a comparison key from each element in iterable.

import heapq

def top(scores, n=3):
    return heapq.nlargest(n, scores.items(), key=lambda item: item[1])
"""


class Int8Config(StageConfig):
    """probe: the text on which the logits before and after are compared."""

    probe: str = _PROBE


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [out, in] -> (int8 [out, in], scale [out, 1] float32), with weight ≈ int8 · scale.

    scale = absmax / 127 of the row, and 1 for a row of zeros. Rounds half to even.
    """
    absmax = weight.float().abs().amax(dim=1, keepdim=True)
    scale = torch.where(absmax > 0, absmax / 127, torch.ones_like(absmax))
    return (weight.float() / scale).round().clamp(-127, 127).to(torch.int8), scale


def rounded_weights(network: Transformer) -> dict[str, Tensor]:
    """The weights [out, in] that `quantize_network` rounds, by name."""
    return {
        name: weight
        for name, weight in network.named_parameters()
        if name.startswith("model.layers.")
        and weight.ndim == 2
        and ".router." not in name  # it is small, and a rounded one sends tokens elsewhere
    }


@torch.no_grad()
def quantize_network(network: Transformer) -> list[str]:
    """Put 8-bit layers in place of every linear layer of the decoder blocks; returns their names.

    Raises WorkError, naming the layer, where a weight is not finite.
    """
    tensors: dict[str, Tensor] = {}
    for name, weight in rounded_weights(network).items():
        if not bool(weight.isfinite().all()):
            raise WorkError(f"{name} holds NaN or infinity and cannot be quantized")
        tensors[name], tensors[name.removesuffix("weight") + "weight_scale"] = quantize_rows(weight)
    names = replace_int8(network, tensors)
    network.load_state_dict(tensors, strict=False)
    return names


def run(
    config: Int8Config, inputs: dict[str, Path], out_dir: Path, progress: Progress = quiet
) -> Result:
    """Quantize the model inputs["model"] into the directory out_dir/model.

    Raises RequestError for what is no model or is quantized already, WorkError for weights that are not finite.
    """
    source, target = resolve(inputs["model"]), Path(out_dir) / "model"
    model = Model.load(source, dtype="auto")
    if any(isinstance(module, Int8Linear) for module in model.network.modules()):
        raise RequestError(
            f"{source} is quantized already. Give the full-precision model it was made from"
        )
    layers = quantize_network(model.network)
    card = source / "README.md"
    model.save(target, card=card.read_text(encoding="utf-8") if card.is_file() else None)
    del model
    progress(1, 2)
    metrics = {
        "quantized_layers": len(layers),
        "bytes_before": _weight_bytes(source),
        "bytes_after": _weight_bytes(target),
        **_difference(Model.load(source), Model.load(target), config.probe),
    }
    progress(2, 2)
    return Result({"model": target}, metrics)


def _weight_bytes(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))


def _difference(full: Model, quantized: Model, probe: str) -> dict[str, Any]:
    """How far the logits moved on the probe, and how often the likeliest next token stayed the same."""
    tokens = torch.tensor([full.tokenizer.encode(probe)[: full.config.max_seq_len]])
    expected, found = full(tokens), quantized(tokens)
    difference = (found - expected).abs()
    return {
        "probe_tokens": tokens.shape[1],
        "max_logit_difference": difference.max().item(),
        "mean_logit_difference": difference.mean().item(),
        "same_top_token": (found.argmax(-1) == expected.argmax(-1)).float().mean().item(),
    }
