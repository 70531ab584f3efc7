"""Quantized directories that are broken, foreign or beyond a format: one sentence with the file and the layer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gristmill.errors import RequestError
from gristmill.formats import load_network, save_hf
from gristmill.formats.quantized.layers import layer_of, quantized_layers
from gristmill.formats.quantized.scheme import Int8Rows
from gristmill.kernels import QuantizedLinear
from gristmill.model import Linear
from tests.families import saved
from tests.formats.rounded import exact, nearest, quantize

Q = "model.layers.0.self_attn.q_proj"
TOKENS = torch.randint(3, 320, (1, 20), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return saved("llama, yarn", tmp_path_factory.getbasetemp() / "families")[1]


@pytest.fixture
def write(plain, tmp_path):
    """A quantized directory, changed."""

    def make(format: str, tensors=None, delete=(), config=None, **grid) -> Path:
        network = quantize(load_network(plain), **{"group": 32, **grid})
        save_hf(network, tmp_path / format, quantization=format)
        file = tmp_path / format / "config.json"
        hf = json.loads(file.read_text())
        hf["quantization_config"] |= config or {}
        file.write_text(json.dumps(hf))
        weights = tmp_path / format / "model.safetensors"
        held = load_file(weights) | (tensors or {})
        save_file({n: t for n, t in held.items() if n not in delete}, weights)
        return tmp_path / format

    return make


@pytest.mark.parametrize(
    ("format", "config", "says"),
    [
        ("gptq", dict(quant_method=["gptq"]), r"quantized by \['gptq'\] are not read"),
        ("compressed-tensors", dict(ignore=["re:("]), r"config\.json: 're:\(' is no pattern"),
        ("compressed-tensors", dict(ignore=[7]), "lists of names as targets and ignore"),
        ("gptq", dict(bits=3), r"config\.json: GPTQ with 3 bits is not read; read are 4 and 8"),
        ("gptq", dict(checkpoint_format="marlin"), "checkpoint_format 'marlin' is not read"),
        ("gptq", dict(dynamic={"+:.*down.*": {"bits": 8}}), "of their own .*'\\+:.*down"),
        ("gptq", dict(group_size=48), f"safetensors: {Q}: 64 inputs are no whole number of groups"),
        ("gptq", dict(group_size="x"), "group_size must be a whole number, not 'x'"),
        ("awq", dict(version="gemv"), "AWQ's version 'gemv' is not read"),
        ("awq", dict(version="gemv_fast"), "AWQ's version 'gemv_fast' is not read"),
        ("awq", dict(bits=8), "AWQ with 8 bits is not read"),
        (
            "compressed-tensors",
            dict(kv_cache_scheme={"num_bits": 8}),
            "kv_cache_scheme is not read",
        ),
        ("compressed-tensors", dict(sparsity_config={"format": "sparse-24"}), "sparse weights"),
        (
            "compressed-tensors",
            dict(ignore=[f"re:.*{Q[-6:]}"]),
            f"hold {Q} quantized, and no group",
        ),
        ("compressed-tensors", dict(config_groups={}), f"hold {Q[:14]}.* quantized, and no group"),
    ],
)
def test_settings(write, format, config, says):
    with pytest.raises(RequestError, match=says):
        load_network(write(format, config=config, symmetric=format != "awq"))


@pytest.mark.parametrize(
    ("group", "says"),
    [
        (dict(format="nvfp4-pack-quantized"), "nvfp4-pack-quantized with num_bits 4"),
        (dict(format="float-quantized", weights=dict(num_bits=8, type="float")), "type float"),
        (dict(format="pack-quantized", weights=dict(num_bits=3, type="int")), "num_bits 3"),
        (dict(weights=dict(num_bits=4, type="int", strategy="tensor")), "strategy tensor"),
        (dict(input_activations=dict(num_bits=8, dynamic=False)), "'dynamic': False"),
        (dict(output_activations=dict(num_bits=8)), "is not read"),
    ],
)
def test_kinds_of_compressed_tensors(write, group, says):
    given = dict(
        targets=["Linear"],
        weights=dict(num_bits=4, type="int", symmetric=True, strategy="group", group_size=32),
    )
    directory = write("compressed-tensors", config=dict(config_groups={"group_0": given | group}))
    with pytest.raises(RequestError, match=f"{says}.*read are pack-quantized"):
        load_network(directory)


@pytest.mark.parametrize(
    ("format", "changes", "says"),
    [
        (
            "gptq",
            dict(delete=[f"{Q}.qzeros"]),
            f"layer {Q} is quantized, and its qzeros is missing",
        ),
        ("gptq", dict(tensors={f"{Q}.extra": torch.ones(1)}), "its extra has no place there"),
        ("gptq", dict(tensors={f"{Q}.scales": torch.ones(3, 3)}), r"scales has shape \[3, 3\]"),
        (
            "gptq",
            dict(tensors={f"{Q}.scales": torch.full((2, 64), torch.inf)}),
            f"safetensors: the tensor {Q}.scales holds NaN or infinity",
        ),
        (
            "gptq",
            dict(tensors={f"{Q}.qweight": torch.ones(8, 64)}),
            "holds float32, expected .*int32",
        ),
        (
            "gptq",
            dict(tensors={f"{Q}.g_idx": torch.zeros(64, dtype=torch.int32)}),
            f"{Q}: its groups of inputs are not of 32 inputs each",
        ),
        (
            "gptq",
            dict(tensors={"model.nowhere.qweight": torch.ones(1, dtype=torch.int32)}),
            r"safetensors: model\.nowhere\.qweight belongs to no layer",
        ),
        ("gptq", dict(tensors={f"{Q}.bias": torch.ones(64)}), f"no place for the tensor {Q}.bias"),
        (
            "awq",
            dict(delete=[f"{Q}.qweight"]),
            f"safetensors: the layer {Q} is quantized, and its qweight is missing",
        ),
        (
            "compressed-tensors",
            dict(tensors={f"{Q}.weight_shape": torch.tensor([64, 63])}),
            r"weight_shape says \[64, 63\], and the configuration \[64, 64\]",
        ),
    ],
)
def test_tensors(write, format, changes, says):
    with pytest.raises(RequestError, match=says):
        load_network(write(format, symmetric=format != "awq", **changes))


def test_groups_without_a_kernel(write):
    with pytest.raises(RequestError, match=f"{Q[:14]}.*: groups of 16 inputs have no kernel"):
        directory = write("gptq")
        held = load_file(directory / "model.safetensors")
        for name in [n.removesuffix(".scales") for n in held if n.endswith(".scales")]:
            for part in ("scales", "qzeros"):
                held[f"{name}.{part}"] = held[f"{name}.{part}"].repeat_interleave(2, 0)
            held[f"{name}.g_idx"] = (
                torch.arange(len(held[f"{name}.g_idx"]), dtype=torch.int32) // 16
            )
        save_file(held, directory / "model.safetensors")
        hf = json.loads((directory / "config.json").read_text())
        hf["quantization_config"]["group_size"] = 16
        (directory / "config.json").write_text(json.dumps(hf))
        load_network(directory)


@pytest.mark.parametrize("format", ["gptq", "awq"])
@torch.no_grad()
def test_what_older_writers_did(write, format):
    """Settings in a file of their own with other names, no g_idx, and biases of zeros where there are none."""
    directory = write(format, symmetric=format != "awq")
    expected = exact(load_network(directory))(TOKENS)
    hf = json.loads((directory / "config.json").read_text())
    older = hf.pop("quantization_config")
    del older["quant_method"]
    name = "quantize_config.json"
    if format == "awq":
        name = "quant_config.json"
        older["w_bit"], older["q_group_size"] = older.pop("bits"), older.pop("group_size")
        older["version"] = older["version"].upper()
    else:
        del older["checkpoint_format"]
    (directory / "config.json").write_text(json.dumps(hf))
    (directory / name).write_text(json.dumps(older))
    held = load_file(directory / "model.safetensors")
    held = {name: tensor for name, tensor in held.items() if not name.endswith("g_idx")}
    held[f"{Q}.bias"] = torch.zeros(64)
    save_file(held, directory / "model.safetensors")
    assert torch.equal(exact(load_network(directory))(TOKENS), expected)


def test_a_quantized_head_is_widened(plain, tmp_path):
    network = quantize(load_network(plain), group=32)
    save_hf(network, tmp_path, quantization="gptq")
    held = load_file(tmp_path / "model.safetensors")
    codes = nearest(held.pop("lm_head.weight"), group=32)
    from gristmill.formats.quantized.gptq import GPTQ

    held |= {f"lm_head.{part}": tensor for part, tensor in GPTQ(4, 32, 1).pack(codes).items()}
    save_file(held, tmp_path / "model.safetensors")
    head = load_network(tmp_path, "auto").lm_head
    assert isinstance(head, Linear) and head.weight.dtype == torch.float16
    assert torch.equal(head.weight, codes.matrix(torch.float16))


def changed(network, change):
    layer = network.get_submodule(Q)
    network.set_submodule(Q, QuantizedLinear.from_codes(change(layer.codes())))
    return network


ORDER = torch.randperm(64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("format", "change", "says"),
    [
        ("awq", lambda c: replace(c, bits=8), f"{Q} has 8 bits.*AWQ files hold one kind alone"),
        ("gptq", lambda c: nearest(c.matrix()), f"{Q} has 4 bits in groups of 64.*one kind alone"),
        (
            "awq",
            lambda c: replace(c, order=ORDER),
            f"{Q} cannot be saved as awq: its groups .* apart",
        ),
        ("compressed-tensors", lambda c: replace(c, order=ORDER), 'which only "gptq" can say'),
        ("gptq", lambda c: replace(c, scale=c.scale.float() * 1.01), "scales do not fit float16"),
    ],
)
def test_layers_that_a_format_cannot_hold(plain, tmp_path, format, change, says):
    network = changed(quantize(load_network(plain), group=32), change)
    with pytest.raises(RequestError, match=says):
        save_hf(network, tmp_path / "out", quantization=format)
    assert not (tmp_path / "out").exists()


def test_other_things_that_cannot_be_saved(plain, tmp_path):
    with pytest.raises(RequestError, match=r"'gptqq' is no format.*Did you mean \"gptq\""):
        save_hf(load_network(plain), tmp_path / "out", quantization="gptqq")
    network = quantize(load_network(plain), group=32)
    rows = Int8Rows(torch.ones(64, 64, dtype=torch.int8), torch.ones(64, 1))
    network.set_submodule(Q, layer_of(rows, None))
    with pytest.raises(RequestError, match=f'{Q} has 8-bit weights.*"compressed-tensors"'):
        save_hf(network, tmp_path / "out", quantization="gptq")
    blocks = torch.zeros(64, 36, dtype=torch.uint8)
    network.set_submodule(Q, QuantizedLinear.from_blocks("Q4_0", blocks))
    with pytest.raises(RequestError, match=f"{Q} holds GGUF's Q4_0.*\\.gguf file"):
        save_hf(network, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_layers_stored_together_must_be_quantized_alike(tmp_path, tmp_path_factory):
    directory = saved("phi3", tmp_path_factory.getbasetemp() / "families")[1]
    alone = quantize(load_network(directory), keep=("model.layers.0.self_attn.k_proj",))
    with pytest.raises(RequestError, match=f"{Q} cannot be saved quantized alone: the family phi3"):
        save_hf(alone, tmp_path / "out")
    network = changed(quantize(load_network(directory)), lambda c: nearest(c.matrix(), group=32))
    with pytest.raises(RequestError, match=f"{Q}, .*k_proj.* are not quantized alike"):
        save_hf(network, tmp_path / "out")
    assert not (tmp_path / "out").exists() and len(quantized_layers(network)) == 14


def test_act_order_comes_back(plain, tmp_path):
    network = changed(quantize(load_network(plain), group=32), lambda c: replace(c, order=ORDER))
    save_hf(network, tmp_path, quantization="gptq")
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["desc_act"]
    expected = network.get_submodule(Q).matrix(torch.float32)
    assert torch.equal(load_network(tmp_path).get_submodule(Q).matrix(torch.float32), expected)
