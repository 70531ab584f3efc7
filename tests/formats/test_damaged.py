"""Directories that are broken, foreign or hostile: one message that names the file and the tensor."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from gristmill.errors import RequestError
from gristmill.formats import Model


def edit_config(path, **changes):
    file = path / "config.json"
    hf = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in {**hf, **changes}.items() if v != "delete"}))


def edit_tensors(path, change):
    file = path / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            dict(architectures=["MambaForCausalLM"]),
            r"'MambaForCausalLM' is not supported.*Llama.*Qwen3",
        ),
        (dict(architectures=[], model_type="bert"), r"'bert' is not supported"),
        (dict(architectures=7), "is not supported"),
        (
            dict(architectures=["Gemma3ForConditionalGeneration"], text_config={}),
            "reads images too, and only text models are supported",
        ),
        (dict(hidden_size="delete"), "hidden_size must be a whole number, not None"),
        (dict(num_hidden_layers="two"), "num_hidden_layers must be a whole number, not 'two'"),
        (dict(num_attention_heads=0), "num_heads must be at least 1"),
        (dict(num_key_value_heads=3), "multiple of"),
        (dict(attention_bias="yes"), "attention_bias must be true or false, not 'yes'"),
        (
            dict(use_sliding_window=True, layer_types=["linear_attention"] * 2),
            "layer_types must be",
        ),
        (dict(use_sliding_window=True, layer_types=["full_attention"]), "1 entries for 2 layers"),
        (
            dict(
                use_sliding_window=True, layer_types="delete", sliding_window=0, max_window_layers=0
            ),
            "sliding_window",
        ),
        (dict(hidden_act="relu2"), "hidden_act 'relu2' is not supported; supported are silu"),
        (dict(rope_parameters={"rope_type": "dynamic", "factor": 4.0}), "rope_type 'dynamic'"),
        (
            dict(rope_parameters={"rope_type": "llama3", "factor": 4.0}),
            "low_freq_factor must be a number",
        ),
        (dict(rope_parameters={"rope_type": "linear", "factor": -4.0}), "factor must be above 0"),
        (
            dict(rope_parameters={"rope_type": "longrope", "short_factor": [1]}),
            "short_factor must be a list of 12",
        ),
        (dict(rope_parameters={"partial_rotary_factor": 2}), "from 0 to 1"),
        (dict(rope_parameters={"rope_theta": -1}), "rope_theta must be a number above 1"),
        (dict(rope_parameters=[1]), "rope_parameters must be an object"),
        (dict(quantization_config={"quant_method": "gptq"}), "bits must be a whole number"),
        (dict(quantization_config={"quant_method": "fp8"}), "quantized by 'fp8' are not read"),
        (
            dict(
                quantization_config={
                    "quant_method": "compressed-tensors",
                    "config_groups": {"a": 1},
                }
            ),
            "must be an object of objects",
        ),
        (dict(rms_norm_eps="tiny"), "rms_norm_eps must be a number"),
        (dict(vocab_size=400.5), "vocab_size must be a whole number"),
        (dict(quantization_config=3), "quantization_config must be an object"),
    ],
)
def test_configs_that_ask_for_something_else(saved, changes, says):
    edit_config(saved, **changes)
    with pytest.raises(RequestError, match=says):
        Model.load(saved)


def test_config_that_is_no_json(saved):
    (saved / "config.json").write_text("{")
    with pytest.raises(RequestError, match=r"config\.json is not JSON"):
        Model.load(saved)
    (saved / "config.json").write_text("[]")
    with pytest.raises(RequestError, match=r"config\.json must hold a JSON object"):
        Model.load(saved)


DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop(DOWN), f"the tensor {DOWN} is missing"),
        (
            lambda t: t.update({DOWN: t[DOWN].T.contiguous()}),
            rf"{DOWN} has shape \[88, 60\].*\[60, 88\]",
        ),
        (lambda t: t.update({DOWN: t[DOWN].to(torch.int8)}), f"{DOWN} holds int8"),
        (lambda t: t.update(surplus=torch.ones(2)), "no place for the tensor surplus"),
        (lambda t: t["model.norm.weight"].fill_(float("nan")), r"model\.norm\.weight holds NaN"),
        (
            lambda t: t["model.norm.weight"][3:4].fill_(float("inf")),
            r"model\.norm\.weight holds NaN",
        ),
    ],
)
def test_tensors_that_do_not_fit(saved, change, says):
    edit_tensors(saved, change)
    with pytest.raises(RequestError, match=says):
        Model.load(saved)


@pytest.mark.parametrize("keep", [0, 5, 8, 100, 0.5, 0.999, -1])
def test_truncated_weights_name_the_file(saved, keep):
    file = saved / "model.safetensors"
    data = file.read_bytes()
    cut = int(len(data) * keep) if isinstance(keep, float) else keep
    file.write_bytes(data[:cut])
    with pytest.raises(RequestError, match=r"model\.safetensors"):
        Model.load(saved)


@pytest.mark.parametrize(
    "header",
    [
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 4) + b"\xff\xff\xff\xff",
        struct.pack("<Q", 62) + b'{"x":{"dtype":"F32","shape":[4611686018427387904],"data_offse',
    ],
)
def test_hostile_headers(saved, header):
    (saved / "model.safetensors").write_bytes(header)
    with pytest.raises(RequestError, match=r"model\.safetensors"):
        Model.load(saved)


def test_missing_weights_and_shards(saved):
    weights = saved / "model.safetensors"
    data = weights.read_bytes()
    weights.unlink()
    with pytest.raises(RequestError, match=r"model\.safetensors is missing"):
        Model.load(saved)
    index = saved / "model.safetensors.index.json"
    outside = saved.parent / "outside.safetensors"
    outside.write_bytes(data)
    for weight_map, says in [
        ({"a": "gone.safetensors"}, r"gone\.safetensors is missing; model\.safetensors\.index"),
        ({"a": "../outside.safetensors"}, "must be a file beside it"),
        ({"a": str(outside)}, "must be a file beside it"),
        ({"a": 3}, "must be a file beside it"),
    ]:
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(RequestError, match=says):
            Model.load(saved)
    for content in ("{", "{}", '{"weight_map": []}'):
        index.write_text(content)
        with pytest.raises(RequestError, match="is not an index of weights"):
            Model.load(saved)


def test_a_tensor_the_index_names_and_the_shard_lacks(saved):
    (saved / "model.safetensors").rename(saved / "part.safetensors")
    names = {name: "part.safetensors" for name in [*load_file(saved / "part.safetensors"), "more"]}
    (saved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(RequestError, match=r"part\.safetensors: the tensor more is missing"):
        Model.load(saved)


def test_scales_without_their_layer(saved):
    edit_config(
        saved,
        quantization_config={
            "quant_method": "compressed-tensors",
            "format": "int-quantized",
            "config_groups": {
                "group_0": {
                    "weights": {
                        "num_bits": 8,
                        "type": "int",
                        "symmetric": True,
                        "strategy": "channel",
                    }
                }
            },
        },
    )
    edit_tensors(saved, lambda t: t.update({"model.nowhere.weight_scale": torch.ones(2, 1)}))
    with pytest.raises(RequestError, match=r"model\.nowhere\.weight_scale belongs to no layer"):
        Model.load(saved)


def test_missing_tokenizer(saved):
    (saved / "tokenizer.json").unlink()
    with pytest.raises(RequestError, match=r"holds no tokenizer: tokenizer\.json is missing"):
        Model.load(saved)


def test_names_of_dtypes_and_devices(saved):
    with pytest.raises(RequestError, match=r"'bfloat61' is not one of.*Did you mean \"bfloat16\""):
        Model.load(saved, dtype="bfloat61")
    with pytest.raises(RequestError, match=r"'torch\.int8' is not one of"):
        Model.load(saved, dtype=torch.int8)
    with pytest.raises(RequestError, match=r"'cqu'.*Did you mean \"cpu\""):
        Model.load(saved, device="cqu")
    if not torch.cuda.is_available():
        with pytest.raises(RequestError, match="no usable CUDA GPU"):
            Model.load(saved, device="cuda")
