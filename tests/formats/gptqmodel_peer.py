"""Run as a program: what GPTQModel packs and unpacks. It changes transformers as it is imported, so not in pytest.

In the first directory named codes.safetensors (q, scale, zero, group_of of layers like gptq.4.N and awq.4.N) becomes
packed.safetensors; each model directory of the other arguments gets logits.safetensors, on the tokens beside it.
"""

import os
import sys
from pathlib import Path

os.environ |= {"TORCHDYNAMO_DISABLE": "1", "HF_HUB_OFFLINE": "1"}

import torch
from gptqmodel import BACKEND, GPTQModel
from gptqmodel.nn_modules.qlinear.torch import TorchLinear
from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear
from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm
from gptqmodel.quantization.config import QuantizeConfig
from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AwqConfig


def pack(kind, bits, q, scale, zero, group_of):
    """The tensors of a layer, and the weights that they stand for."""
    (out, width), groups = q.shape, scale.shape[1]
    spread = [t[:, group_of.long()] for t in (scale.float(), zero.float())]
    linear = torch.nn.Linear(width, out, bias=False)
    linear.weight.data = (q.float() - spread[1]) * spread[0]
    shape = dict(in_features=width, out_features=out, bias=False)
    made = dict(bits=bits, group_size=width // groups, sym=False, desc_act=False, **shape)
    if kind == "awq":
        layer = AwqTorchLinear(**made)
        layer.pack(linear, scale.float(), zero.int())
        return {name: layer.state_dict()[name] for name in ("qweight", "qzeros", "scales")}
    layer = TorchLinear(**made)
    layer.pack_original(linear, scale.float(), zero.int(), group_of)
    found = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    layer.post_init()
    found["weight"] = layer.dequantize_weight().T.contiguous()
    convert_gptq_v2_to_v1_format_module(layer, QuantizeConfig(bits=bits))
    return found | {"qzeros_v1": layer.qzeros.clone()}


def logits(directory, tokens):
    """In float32: GPTQ's layers compute in the dtype of their scales; AWQ's are unpacked here by the same library."""
    if '"awq"' in (directory / "config.json").read_text():  # transformers replaces the layers
        config = AwqConfig(backend="torch_awq")
        model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float16, device_map="cpu", quantization_config=config
        )
    else:
        model = GPTQModel.load(
            str(directory), backend=BACKEND.GPTQ_TORCH, device="cpu", dtype=torch.float16
        ).model
    stored = load_file(directory / "model.safetensors")
    if "embed_out.weight" in stored:  # GPT-NeoX's head, whose new name GPTQModel 7.7 does not know
        model.lm_head.weight.data = stored["embed_out.weight"]
    model = torch.nn.Module.float(model)  # transformers' own refuses
    for name, layer in list(model.named_modules()):
        if isinstance(layer, AwqTorchLinear):
            linear = torch.nn.Linear(layer.in_features, layer.out_features, bias=False)
            parts = layer.qweight, layer.qzeros, layer.scales.float(), layer.bits, layer.group_size
            linear.weight.data = dequantize_gemm(*parts).T
            linear.bias = None if layer.bias is None else torch.nn.Parameter(layer.bias.float())
            model.set_submodule(name, linear)
    with torch.no_grad():
        return model(tokens).logits


root = Path(sys.argv[1])
given, packed = load_file(root / "codes.safetensors"), {}
for name in sorted({key.rpartition(".")[0] for key in given}):
    kind, bits, _ = name.split(".")
    parts = [given[f"{name}.{part}"] for part in ("q", "scale", "zero", "group_of")]
    packed |= {f"{name}.{part}": t for part, t in pack(kind, int(bits), *parts).items()}
save_file({name: t.contiguous() for name, t in packed.items()}, root / "packed.safetensors")
tokens = load_file(root / "tokens.safetensors")["tokens"]
for directory in map(Path, sys.argv[2:]):
    save_file({"logits": logits(directory, tokens)}, directory / "logits.safetensors")
