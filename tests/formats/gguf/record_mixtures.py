"""What llama.cpp's quantizer makes of small models of many shapes, recorded for `test_mixtures.py`.

The quantizer (`llama_model_quantize`) is in no wheel that runs here: xllamacpp leaves it out, llama-cpp-py-sync
needs glibc 2.38. The npm package @node-llama-cpp/linux-x64 has it (recorded with its 3.22.1, llama.cpp v0.5.0). To
record again, with any libllama:

    npm pack @node-llama-cpp/linux-x64 && tar xzf node-llama-cpp-linux-x64-*.tgz
    python -m tests.formats.gguf.record_mixtures package/bins/linux-x64/libllama.*.so
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from gristmill.formats.gguf import FILE_TYPES, GGMLType, GGUFFile, write_gguf

RECORDED = Path(__file__).with_name("mixtures.json")
# One letter a tensor keeps the record small.
LETTERS = {"F32": "f", "F16": "h", "BF16": "b", "Q8_0": "8", "Q4_0": "4", "Q5_0": "5", "Q5_1": "1"}
LETTERS |= {"Q4_K": "K", "Q5_K": "L", "Q6_K": "M"}

Shapes = list[tuple[str, tuple[int, ...]]]


def llama(
    layers: int = 8,
    hidden: int = 256,
    ffn: int = 512,
    arch: str = "llama",
    kv_heads: int = 2,
    experts: int = 0,
    tied: bool = False,
    qkv: bool = False,
    extra: tuple[str, ...] = (),
    more: dict[str, Any] | None = None,
) -> tuple[dict[str, Any], Shapes]:
    """Metadata and tensors of a model of the Llama kind; matrices have two rows, which no rule looks at.

    `extra`: further tensors of each layer, vectors if they are norms or biases.
    """
    metadata = {
        "general.architecture": arch,
        f"{arch}.context_length": 64,
        f"{arch}.embedding_length": hidden,
        f"{arch}.block_count": layers,
        f"{arch}.feed_forward_length": ffn,
        f"{arch}.attention.head_count": 4,
        f"{arch}.attention.head_count_kv": kv_heads,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{arch}.attention.layer_norm_epsilon": 1e-5,
        f"{arch}.vocab_size": 2,
        **{f"{arch}.{key}": value for key, value in (more or {}).items()},
    }
    if experts:
        metadata |= {f"{arch}.expert_count": experts, f"{arch}.expert_used_count": 2}
    tensors: Shapes = [("token_embd.weight", (2, hidden)), ("output_norm.weight", (hidden,))]
    tensors += [] if tied else [("output.weight", (2, hidden))]
    stack, suffix = ((experts,), "_exps") if experts else ((), "")
    attention = ["attn_qkv"] if qkv else ["attn_q", "attn_k", "attn_v"]
    for layer in range(layers):
        block: Shapes = [("attn_norm.weight", (hidden,)), ("ffn_norm.weight", (hidden,))]
        block += [(f"{name}.weight", (2, hidden)) for name in [*attention, "attn_output"]]
        block += [(f"ffn_{way}{suffix}.weight", (*stack, 2, hidden)) for way in ("gate", "up")]
        block += [(f"ffn_down{suffix}.weight", (*stack, 2, ffn))]
        block += [("ffn_gate_inp.weight", (experts, hidden))] if experts else []
        block += [
            (name, (hidden,) if "norm" in name or "bias" in name else (2, hidden)) for name in extra
        ]
        tensors += [(f"blk.{layer}.{name}", shape) for name, shape in block]
    return metadata, tensors


def backwards(metadata: dict[str, Any], tensors: Shapes) -> tuple[dict[str, Any], Shapes]:
    return metadata, tensors[::-1]


def with_tensors(model: tuple[dict[str, Any], Shapes], *more: tuple[str, tuple[int, ...]]):
    return model[0], [*model[1], *more]


MLA = {"attention.q_lora_rank": 256, "attention.kv_lora_rank": 256, "leading_dense_block_count": 1}
MLA |= {"expert_feed_forward_length": 256, "expert_shared_count": 1, "expert_weights_scale": 1.0}
MLA |= {"rope.dimension_count": 32}

CASES = {
    "llama": llama(),
    "1 layer": llama(layers=1),
    "5 layers": llama(layers=5),
    "33 layers": llama(layers=33),
    "tied": llama(layers=9, tied=True),
    "backwards in the file": backwards(*llama(layers=12)),
    "llama 70B": llama(layers=80),
    "llama 65B": llama(layers=80, kv_heads=4),
    "qwen2 72B": llama(layers=80, arch="qwen2", kv_heads=4, extra=("attn_q.bias", "attn_k.bias")),
    "qwen3 80 layers": llama(layers=80, arch="qwen3", extra=("attn_q_norm.weight",)),
    "8 experts": llama(layers=10, experts=8),
    "8 experts, 80 layers": llama(layers=80, experts=8),
    "4 experts": llama(layers=9, experts=4),
    "qwen3moe": llama(layers=9, arch="qwen3moe", experts=16),
    "shared expert": llama(
        arch="qwen2moe", experts=4, extra=("ffn_down_shexp.weight", "ffn_up_shexp.weight")
    ),
    "a row": with_tensors(llama(layers=2), ("blk.0.ffn_gate_inp_shexp.weight", (1, 256))),
    "gemma2": llama(arch="gemma2", tied=True, extra=("post_ffw_norm.weight",), more={"attention.sliding_window": 16}),
    "gemma3": llama(arch="gemma3", tied=True, more={"attention.sliding_window": 16}),
    "phi3": with_tensors(
        llama(layers=12, arch="phi3", qkv=True), ("rope_factors_long.weight", (32,))
    ),
    "gpt2": with_tensors(
        llama(layers=12, arch="gpt2", qkv=True, tied=True, kv_heads=4, extra=("attn_qkv.bias",)),
        ("position_embd.weight", (64, 256)),
    ),
    "gptneox": llama(arch="gptneox", qkv=True, kv_heads=4, more={"use_parallel_residual": True}),
    "olmo2": llama(arch="olmo2", extra=("post_attention_norm.weight",)),
    "deepseek2": llama(
        layers=9, arch="deepseek2", experts=4, kv_heads=4, more=MLA,
        extra=("attn_kv_b.weight", "attn_q_a.weight", "attn_kv_a_mqa.weight", "ffn_down_shexp.weight",
               "exp_probs_b.bias"),
    ),
    "gpt-oss": llama(
        layers=9, arch="gpt-oss", experts=4, extra=("attn_output.bias",),
        more={"attention.sliding_window": 16, "expert_feed_forward_length": 512},
    ),
    "rows of 96": llama(layers=5, hidden=96, ffn=256),
    "rows of 96, tied": llama(layers=5, hidden=96, ffn=96, tied=True),
    "down rows of 96": llama(layers=5, ffn=96),
    "down rows of 80": llama(layers=5, ffn=80),
    "rows of 80": llama(layers=2, hidden=80, ffn=256),
    "8 experts, rows of 96": llama(layers=5, hidden=96, ffn=96, experts=8),
}  # fmt: skip


def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32 in about −0.5..0.5: the same on any machine, different for each name."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
    spread = (np.arange(np.prod(shape), dtype=np.uint64) + np.uint64(seed)) * np.uint64(2654435761)
    return ((spread % np.uint64(1 << 20)).astype(np.float32) / (1 << 20) - 0.5).reshape(shape)


def digest(file: GGUFFile) -> str:
    """Of every tensor's name and bytes, whatever their order."""
    total = hashlib.sha256()
    for name in sorted(file.tensors):
        total.update(name.encode() + b"\0" + file.raw(name).tobytes())
    return total.hexdigest()[:16]


class Parameters(ctypes.Structure):
    """llama_model_quantize_params; changes now and then: compare with llama.h."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("threads", "ftype", "output_type", "embedding_type")),
        *((name, ctypes.c_bool) for name in ("requantize", "quantize_output", "only_copy", "pure")),
        *((name, ctypes.c_bool) for name in ("split", "dry_run")),
        *((name, ctypes.c_void_p) for name in ("imatrix", "overrides", "types", "prune")),
        ("buffer_bytes", ctypes.c_size_t),
    ]


def record(library: str) -> dict[str, Any]:
    """Case -> mixture -> types (one letter a tensor, in the case's order) and digest; None: llama.cpp failed."""
    llama_cpp = ctypes.CDLL(library)
    llama_cpp.llama_model_quantize_default_params.restype = Parameters
    llama_cpp.llama_model_quantize.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "a.gguf", Path(folder) / "b.gguf"
        for case, (metadata, tensors) in CASES.items():
            entries = [(name, shape, GGMLType.F32, values(name, shape)) for name, shape in tensors]
            write_gguf(source, metadata, entries)
            found[case] = {}
            for mixture, number in FILE_TYPES.items():
                parameters = llama_cpp.llama_model_quantize_default_params()
                parameters.threads, parameters.ftype = 1, number
                if llama_cpp.llama_model_quantize(
                    bytes(source), bytes(target), ctypes.byref(parameters)
                ):
                    found[case][mixture] = None
                    continue
                file = GGUFFile.open(target)
                types = "".join(LETTERS[file.tensors[name].type.name] for name, _ in tensors)
                keys = ("general.file_type", "general.quantization_version")
                found[case][mixture] = [types, digest(file), [file.metadata[key] for key in keys]]
    return found


if __name__ == "__main__":
    lines = (f"{json.dumps(case)}: {json.dumps(of)}" for case, of in record(sys.argv[1]).items())
    RECORDED.write_text("{" + ",\n".join(lines) + "}\n")
