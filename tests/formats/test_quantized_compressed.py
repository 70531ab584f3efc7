"""compressed-tensors beside the library of that name: bytes, rules for layers, and directories of either."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from compressed_tensors.compressors import ModelCompressor, PackedQuantizationCompressor
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStatus,
    apply_quantization_config,
)
from compressed_tensors.utils.match import match_targets
from safetensors.torch import load_file

from gristmill.formats import load_network, save_hf
from gristmill.formats.quantized.compressed import Packed, first_match
from gristmill.formats.quantized.layers import layer_of, quantized_layers
from gristmill.formats.quantized.scheme import Int8Rows
from gristmill.kernels import Int8Linear, QuantizedLinear
from gristmill.model import Linear
from tests.families import saved, theirs
from tests.formats.rounded import exact, nearest, quantize, random_codes

TOKENS = torch.randint(3, 320, (2, 40), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return saved("llama, biases", tmp_path_factory.getbasetemp() / "families")[1]


def scheme_of(bits: int, group: int, symmetric: bool) -> QuantizationScheme:
    grid = dict(strategy="channel") if group == -1 else dict(strategy="group", group_size=group)
    weights = QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, **grid)
    return QuantizationScheme(targets=["Linear"], weights=weights)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("out", "width", "group"), [(8, 32, 32), (48, 96, 32), (13, 60, -1), (20, 44, 4), (64, 128, 64)]
)
def test_bytes_in_both_directions(out, width, group, bits, symmetric):
    codes = random_codes(out, width, width if group == -1 else group, bits, symmetric)
    zero = (codes.zero.int() - 2 ** (bits - 1)).to(torch.int8)
    given = dict(weight=codes.matrix(), weight_scale=codes.scale.float(), weight_zero_point=zero)
    scheme = scheme_of(bits, group, symmetric)
    expected = PackedQuantizationCompressor.compress(given, scheme)
    ours = Packed(bits, group, symmetric)
    packed = ours.pack(codes)
    assert packed.keys() == expected.keys()
    for name, tensor in packed.items():
        if name != "weight_scale":  # which they were given as fp32
            assert tensor.dtype == expected[name].dtype and torch.equal(tensor, expected[name])
    again = ours.unpack(expected)
    assert torch.equal(again.q, codes.q) and torch.equal(again.zero, codes.zero)
    unpacked = PackedQuantizationCompressor.decompress({**expected}, scheme)["weight"]
    assert torch.equal(unpacked, again.matrix())


@pytest.mark.parametrize(
    "targets",
    [
        ["Linear"],
        ["re:.*q_proj$", "Linear"],
        ["Linear", "re:.*q_proj$", "model.layers.0.self_attn.q_proj"],
        ["re:model.*", "re:.*q_proj"],
        ["re:q_proj", "lm_head"],
        ["Conv1d"],
        [],
    ],
)
def test_which_rule_is_for_a_layer(targets):
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj", "lm_head"):
        expected = match_targets(name, torch.nn.Linear(1, 1), targets)
        assert first_match(name, targets) == (expected[0] if expected else None)


def their_directory(path: Path, groups: dict, format: str) -> dict[str, torch.Tensor]:
    """A Llama that the library itself compressed; the weights that every layer then stands for."""
    model = theirs("llama, biases")
    ignore = ["lm_head", "model.layers.1.mlp.down_proj"]
    config = QuantizationConfig(config_groups=groups, ignore=ignore, format=format)
    apply_quantization_config(model, config)
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is None:
            continue
        args = module.quantization_scheme.weights
        group = args.group_size if args.strategy == "group" else -1
        codes = nearest(module.weight.detach(), args.num_bits, group, args.symmetric)
        module.weight.data = codes.matrix()
        module.weight_scale.data = codes.scale.float()
        if not args.symmetric:
            zero = codes.zero.int() - 2 ** (args.num_bits - 1)
            module.weight_zero_point.data = zero.to(torch.int8)
        module.quantization_status = QuantizationStatus.FROZEN
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    compressor = ModelCompressor.from_pretrained_model(model, format)
    compressor.compress_model(model)
    model.save_pretrained(path)
    compressor.update_config(path)
    return weights


INT4 = dict(num_bits=4, symmetric=False, strategy="group", group_size=32)
INT8 = dict(num_bits=8, symmetric=True, strategy="channel")
TOKEN = dict(num_bits=8, symmetric=True, strategy="token", dynamic=True)


@pytest.mark.parametrize(
    ("format", "groups", "activation_bits"),
    [
        ("pack-quantized", {"group_0": dict(targets=["Linear"], weights=INT4)}, None),
        ("pack-quantized", {"group_0": dict(targets=["Linear"], weights=INT8)}, None),
        ("int-quantized", {"group_0": dict(targets=["Linear"], weights=INT8)}, None),
        (
            "int-quantized",
            {"group_0": dict(targets=["Linear"], weights=INT8, input_activations=TOKEN)},
            8,
        ),
        (
            "pack-quantized",
            {
                "group_0": dict(targets=["re:.*self_attn.*"], weights=INT8),
                "group_1": dict(targets=["Linear"], weights=INT4),
            },
            None,
        ),
    ],
)
def test_we_read_what_the_library_writes(tmp_path, format, groups, activation_bits):
    expected = their_directory(tmp_path, groups, format)
    network = load_network(tmp_path)
    layers = quantized_layers(network)
    assert len(layers) == 13 and "model.layers.1.mlp.down_proj" not in layers
    assert {isinstance(layer, Int8Linear) for layer in layers.values()} == {format[0] == "i"}
    for name, module in network.named_modules():
        if isinstance(module, Linear | Int8Linear | QuantizedLinear):
            assert torch.equal(module.matrix(torch.float32), expected[f"{name}.weight"]), name
    # And written again: the same bytes, and the same meaning.
    save_hf(network, tmp_path / "again")
    first, second = (load_file(p / "model.safetensors") for p in (tmp_path, tmp_path / "again"))
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)
    reread = quantized_layers(load_network(tmp_path / "again"))
    assert {getattr(layer, "activation_bits", None) for layer in reread.values()} == {
        activation_bits
    }


@torch.no_grad()
def test_transformers_reads_several_kinds_in_one_directory(llama, tmp_path):
    """4 and 8 bits, by group and by channel, 8-bit rows and a plain layer."""
    from transformers import AutoModelForCausalLM

    network = quantize(load_network(llama), keep=("model.layers.0.mlp.up_proj",), group=32)
    plain = load_network(llama)
    for name, layer in quantized_layers(network).items():
        weight = plain.get_submodule(name).matrix(torch.float32)
        if name.endswith("down_proj"):
            codes = nearest(weight, bits=8)
            rows = Int8Rows((codes.q.int() - 128).to(torch.int8), codes.scale)
            network.set_submodule(name, layer_of(rows, layer.bias))
        elif name.endswith(("q_proj", "k_proj")):
            codes = nearest(weight, bits=8 if name.endswith("q_proj") else 4)
            network.set_submodule(name, QuantizedLinear.from_codes(codes, bias=layer.bias))
    save_hf(exact(network), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert config["format"] == "mixed-precision" and len(config["config_groups"]) == 4
    assert torch.equal(exact(load_network(tmp_path))(TOKENS), network(TOKENS))
    expected = AutoModelForCausalLM.from_pretrained(tmp_path)(TOKENS).logits
    assert (network(TOKENS) - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
@torch.no_grad()
def test_transformers_reads_asymmetric_grids(llama, tmp_path):
    """transformers 5.24 reads packed zeros only where it widens the weights, also of the library's own files."""
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    network = load_network(llama)
    for name, module in list(network.named_modules()):
        if name.endswith("_proj"):
            codes = nearest(module.weight.detach(), group=32, symmetric=False)
            codes = replace(codes, scale=codes.scale.float())  # or they would round the weights
            network.set_submodule(name, QuantizedLinear.from_codes(codes, bias=module.bias))
    save_hf(exact(network), tmp_path)
    widened = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=CompressedTensorsConfig(dequantize=True)
    )
    expected = widened(TOKENS).logits
    assert (network(TOKENS) - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_scales_keep_their_dtype(llama, tmp_path):
    network = quantize(load_network(llama, torch.bfloat16), group=32)
    for name, layer in quantized_layers(network).items():
        codes = layer.codes()
        codes = replace(codes, scale=codes.scale.bfloat16())
        network.set_submodule(name, QuantizedLinear.from_codes(codes, bias=layer.bias))
    save_hf(network, tmp_path / "first")
    hf = json.loads((tmp_path / "first" / "config.json").read_text())
    # As older files say that nothing is sparse.
    hf["quantization_config"]["sparsity_config"] = {"format": "dense", "global_sparsity": 0.1}
    (tmp_path / "first" / "config.json").write_text(json.dumps(hf))
    save_hf(load_network(tmp_path / "first", "auto"), tmp_path / "second")
    first, second = (load_file(tmp_path / n / "model.safetensors") for n in ("first", "second"))
    assert {t.dtype for n, t in first.items() if n.endswith("weight_scale")} == {torch.bfloat16}
    assert all(t.dtype == second[n].dtype and t.equal(second[n]) for n, t in first.items())
