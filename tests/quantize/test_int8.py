"""8-bit export against compressed-tensors and transformers, and its rounding against closed forms."""

import heapq
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from gristmill.errors import RequestError
from gristmill.files import hash_path
from gristmill.formats import Model
from gristmill.model import ModelConfig, Transformer
from gristmill.model.init import generator_for
from gristmill.quantize import Int8Config, quantize_rows, run
from gristmill.tokenizer import train_bpe


def random_model(qk_norm: bool = True, tie_embeddings: bool = True) -> Model:
    source = Path(heapq.__file__).read_text(encoding="utf-8")
    config = ModelConfig(
        vocab_size=512,
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        intermediate_size=100,
        max_seq_len=128,
        family="qwen3" if qk_norm else "llama",
        qk_norm=qk_norm,
        tie_embeddings=tie_embeddings,
    )
    network = Transformer(config)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator_for(0, name))
            parameter.copy_(1 + 0.3 * noise if parameter.ndim == 1 else noise * 0.2)
    return Model(network, train_bpe(iter([source]), 512))


@pytest.fixture(scope="module", params=[(True, True), (False, False)], ids=["qwen3", "llama"])
def exported(request, tmp_path_factory):
    """(full-precision directory, Result of quantizing it)"""
    path = tmp_path_factory.mktemp("model")
    random_model(*request.param).save(path / "full", card="# A card\n")
    return path / "full", run(Int8Config(), {"model": path / "full"}, path / "int8")


@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 33),
    scale=st.floats(1e-6, 1e6),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=80, deadline=None)
def test_rounding_is_to_the_nearest_of_255_levels(rows, columns, scale, seed):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * scale
    q, s = quantize_rows(weight)
    assert q.dtype == torch.int8 and s.shape == (rows, 1)
    absmax = weight.abs().amax(1)
    # the largest weight of each row is hit, and no weight is off by more than half a level
    assert torch.equal(q.int().abs().amax(1), torch.full((rows,), 127))
    error = (q.double() * s.double() - weight.double()).abs().amax(1)
    assert (error <= absmax.double() / 254 * (1 + 1e-5)).all()


def test_rows_of_zeros_stay_zero():
    q, s = quantize_rows(torch.zeros(3, 5))
    assert torch.equal(q, torch.zeros(3, 5, dtype=torch.int8)) and bool(s.isfinite().all())


def test_rounding_equals_pytorchs_own_per_channel_quantizer():
    weight = torch.randn(40, 70, generator=torch.Generator().manual_seed(3))
    q, s = quantize_rows(weight)
    theirs = torch.fake_quantize_per_channel_affine(
        weight, s.view(-1), torch.zeros(40, dtype=torch.int32), 0, -127, 127
    )
    # theirs multiplies by the inverse of the scale: at an exact half it may fall on the other side
    steps = ((theirs - q * s) / s).abs()
    assert steps.max() < 1.001 and (steps > 0.001).float().mean() < 1e-3


def test_transformers_loads_the_export_and_agrees(exported):
    """compressed-tensors reads our file; its logits equal ours and those of the dequantized weights."""
    from transformers import AutoModelForCausalLM

    full, result = exported
    ours = Model.load(result.outputs["model"])
    tokens = torch.randint(0, 512, (2, 20), generator=torch.Generator().manual_seed(1))
    theirs = AutoModelForCausalLM.from_pretrained(result.outputs["model"], dtype=torch.float32)
    with torch.no_grad():
        expected = theirs.eval()(tokens).logits
    # 40 rows go through the PyTorch twin, one row through the native kernel
    torch.testing.assert_close(ours(tokens), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours(tokens[:1, :1]), expected[:1, :1], atol=1e-4, rtol=1e-4)

    stored = load_file(result.outputs["model"] / "model.safetensors")
    reference = Model.load(full)
    state = {
        name: stored[name].float() * stored[name.removesuffix("weight") + "weight_scale"]
        if stored[name].dtype == torch.int8
        else stored[name]
        for name in reference.network.state_dict()
    }
    reference.network.load_state_dict(state)
    torch.testing.assert_close(reference(tokens), expected, atol=1e-4, rtol=1e-4)


def test_every_matrix_of_the_blocks_and_nothing_else_is_8_bit(exported):
    _, result = exported
    stored = load_file(result.outputs["model"] / "model.safetensors")
    eight = {name for name, tensor in stored.items() if tensor.dtype == torch.int8}
    assert len(eight) == result.metrics["quantized_layers"] == 2 * 7
    assert all(".layers." in name and "_proj." in name for name in eight)
    assert stored["model.embed_tokens.weight"].dtype == torch.float32


def test_metrics_are_those_of_the_files(exported):
    full, result = exported
    metrics, target = result.metrics, result.outputs["model"]
    assert metrics["bytes_before"] == (full / "model.safetensors").stat().st_size
    assert metrics["bytes_after"] == (target / "model.safetensors").stat().st_size
    assert metrics["bytes_after"] < 0.8 * metrics["bytes_before"]
    before, after = Model.load(full), Model.load(target)
    tokens = torch.tensor([before.tokenizer.encode(Int8Config().probe)[:128]])
    difference = (before(tokens) - after(tokens)).abs()
    assert metrics["probe_tokens"] == tokens.shape[1] > 50
    assert metrics["max_logit_difference"] == difference.max().item() > 0
    assert 0 < metrics["mean_logit_difference"] < 0.1 * before(tokens).std().item()
    assert (target / "README.md").read_text() == "# A card\n"
    json.dumps(metrics)


def test_the_same_input_gives_the_same_bytes(exported, tmp_path):
    full, result = exported
    again = run(Int8Config(), {"model": full}, tmp_path)
    assert hash_path(again.outputs["model"]) == hash_path(result.outputs["model"])
    assert again.metrics == result.metrics


def test_what_cannot_be_quantized_is_refused(exported, tmp_path):
    full, result = exported
    with pytest.raises(RequestError, match="quantized already"):
        run(Int8Config(), {"model": result.outputs["model"]}, tmp_path / "twice")
    with pytest.raises(RequestError, match="there is no model"):
        run(Int8Config(), {"model": tmp_path / "nowhere"}, tmp_path / "out")
    broken = Model.load(full)
    with torch.no_grad():
        broken.network.model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
    broken.save(tmp_path / "broken")
    with pytest.raises(RequestError, match=r"layers\.1\.mlp\.up_proj\.weight holds NaN"):
        run(Int8Config(), {"model": tmp_path / "broken"}, tmp_path / "out")
    assert not (tmp_path / "out" / "model").exists()
