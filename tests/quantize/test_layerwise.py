"""Blocks in their turn: what they are given is what the whole network would give them."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch

from gristmill.errors import RequestError, WorkError
from gristmill.formats import load_network
from gristmill.model import ModelConfig, MoEConfig, Transformer
from gristmill.quantize import layerwise, methods
from gristmill.quantize.awq import scale_pairs
from gristmill.quantize.grid import round_to_nearest
from gristmill.quantize.layerwise import (
    Done,
    importances,
    linear,
    linears,
    quantize_blocks,
    stages,
    widened,
)
from gristmill.quantize.methods import AWQ, GPTQ, Grid, RoundToNearest, SmoothQuant, fold_into
from gristmill.quantize.stream import Stream
from tests.families import saved
from tests.quantize.tiny_networks import network as tiny_network
from tests.tiny_model import random_model

GRID = Grid(4, 16, True)


@pytest.fixture(scope="module")
def network() -> Transformer:
    return random_model().network.eval()


@pytest.fixture(scope="module")
def windows() -> torch.Tensor:
    return torch.randint(0, 512, (6, 24), generator=torch.Generator().manual_seed(0))


def inputs_by_hooks(network: Transformer, windows: torch.Tensor, names) -> dict[str, torch.Tensor]:
    """What each layer is given when the whole network runs."""
    found: dict[str, torch.Tensor] = {}
    handles = [
        network.get_submodule(name).register_forward_pre_hook(
            lambda m, given, name=name: found.update({name: given[0].flatten(0, -2)})
        )
        for name in names
    ]
    with torch.no_grad():
        network(windows, dtype=torch.float32)
    for handle in handles:
        handle.remove()
    return found


def watched(stream: Stream, network: Transformer, layer: int) -> dict[str, torch.Tensor]:
    """What the layers of a block are given as the stream feeds it."""
    block, parts = widened(network, layer), {}

    def keep(name: str):
        return lambda x: parts.setdefault(name, []).append(x.clone())

    stream.feed(block, {name: keep(name) for stage in stages(block) for name in stage})
    return {f"model.layers.{layer}.{name}": torch.cat(part) for name, part in parts.items()}


def test_layers_see_what_they_see_in_the_whole_network(network, windows, tmp_path):
    expected = inputs_by_hooks(network, windows, linears(network))
    stream = Stream(network, windows, tmp_path)
    for layer in range(network.config.num_layers):
        for name, x in watched(stream, network, layer).items():
            torch.testing.assert_close(x, expected[name], atol=1e-5, rtol=1e-4)
        stream.advance(widened(network, layer))
    for name, mean in importances(network, windows, tmp_path).items():
        want = expected[name].double().square().mean(0).float()
        torch.testing.assert_close(torch.from_numpy(mean), want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["gemma3_text", "gpt2", "olmo2", "gpt_neox"])
def test_families_with_windows_and_other_norms_go_through_too(family, tmp_path):
    """Sliding layers have masks and rotations of their own; GPT-2 has positions at the embedding."""
    network = load_network(saved(family, tmp_path)[1])
    tokens = torch.randint(0, network.config.vocab_size, (2, 24))
    stream = Stream(network, tokens, tmp_path)
    for layer in range(network.config.num_layers):
        stream.advance(widened(network, layer))
    with torch.no_grad():
        got, want = network.model.norm(stream.hidden), network.hidden(tokens, dtype=torch.float32)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_a_block_sees_what_the_quantized_ones_before_it_make(network, windows, tmp_path):
    """True-sequential: the statistics of block 2 are those of a network whose blocks 0 and 1 are rounded."""
    seen: dict[str, torch.Tensor] = {}

    def method(block, name, stream):
        parts: list[torch.Tensor] = []
        stream.feed(block, {"self_attn.q_proj": lambda x: parts.append(x.clone())})
        seen[name] = torch.cat(parts)
        return RoundToNearest(GRID)(block, name, stream)

    list(quantize_blocks(network, method, windows, tmp_path))
    rounded = copy.deepcopy(network)
    with torch.no_grad():
        for layer in linears(rounded).values():
            layer.weight.copy_(round_to_nearest(layer.weight, bits=4, group=16).matrix())
    name = "model.layers.2.self_attn.q_proj"
    expected = inputs_by_hooks(rounded, windows, [name])[name]
    torch.testing.assert_close(seen["model.layers.2"], expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    "method", [GPTQ(GRID), AWQ(GRID, torch.float32), SmoothQuant(torch.float32)]
)
def test_activations_in_a_file_give_the_same_bytes(network, windows, method, tmp_path):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for place, size in (("memory", 1 << 30), ("file", 1)):
        work = tmp_path / place
        done = dict(quantize_blocks(network, method, windows, work, in_memory=size))
        assert len(done) == 3 and not (work / "activations.tmp").exists()
    for file in sorted((tmp_path / "memory").glob("block-*")):
        assert file.read_bytes() == (tmp_path / "file" / file.name).read_bytes()
    after = network.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_gptq_beats_rounding_by_30_percent_on_real_activations(network, windows, tmp_path):
    blocks = dict(quantize_blocks(network, GPTQ(GRID), windows.repeat(4, 1), tmp_path))
    notes = [note for done in blocks.values() for note in done.notes.values()]
    assert len(notes) == 3 * 7
    ratios = [note["proxy_loss"] / note["proxy_loss_of_nearest"] for note in notes]
    assert sum(ratios) / len(ratios) < 0.7 and max(ratios) < 1


def test_awq_loses_no_more_than_rounding_on_what_it_judges(network, windows, tmp_path):
    blocks = dict(quantize_blocks(network, AWQ(GRID, torch.float32), windows, tmp_path))
    notes = [note for done in blocks.values() for note in done.notes.values()]
    assert all(note["loss"] <= note["loss_of_nearest"] for note in notes)
    assert any(note["ratio"] is not None for note in notes)
    assert "input_layernorm.weight" in blocks[0].changed


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        ("llama", torch.bfloat16),
        ("gemma2", torch.bfloat16),
        ("olmo2", torch.bfloat16),
        ("gpt2", torch.float32),  # whose norms have biases: bf16 would round these by 0.4%
    ],
)
def test_awq_clips_on_what_the_scaled_block_is_given(family, dtype, tmp_path, monkeypatch):
    """One pass sees the block before anything is scaled: what it saw is divided as the inputs are."""
    network = tiny_network(family)
    tokens = torch.randint(97, (2, 24), generator=torch.Generator().manual_seed(1))
    stream, block = Stream(network, tokens, tmp_path), widened(network, 0)
    names = {id(linear(block, name)): name for stage in stages(block) for name in stage}
    seen: dict[str, torch.Tensor] = {}

    def search_clip(weight, x, *, name, **settings):
        seen[name.removeprefix("block.")] = x

    monkeypatch.setattr(methods, "search_clip", search_clip)
    monkeypatch.setattr(methods, "take", lambda *given: None)  # nothing is rounded
    done = AWQ(GRID, dtype)(block, "block", stream)
    assert any(note["ratio"] is not None for note in done.notes.values())
    assert len(seen) == len(names) - 2  # all but queries and keys
    given: dict[str, torch.Tensor] = {}
    stream.feed(block, {name: partial(given.__setitem__, name) for name in seen})
    for name, x in seen.items():
        torch.testing.assert_close(x, given[name], atol=1e-5, rtol=1e-4)


def test_smoothing_alone_changes_nothing(network, windows, tmp_path):
    """Scales are folded: with the 8-bit rounding undone, logits stay."""
    smoothed = copy.deepcopy(network)
    for layer, done in quantize_blocks(network, SmoothQuant(torch.float32), windows, tmp_path):
        block = smoothed.model.layers[layer]
        state = {name: t.clone() for name, t in done.changed.items()}
        for norm, names in (
            ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        ):
            scale = block.get_parameter(f"{norm}.weight") / state[f"{norm}.weight"]
            for name in names:
                state[f"{name}.weight"] = block.get_parameter(f"{name}.weight") * scale
        block.load_state_dict(state, strict=False)
    with torch.no_grad():
        torch.testing.assert_close(smoothed(windows), network(windows), atol=2e-4, rtol=1e-4)


def test_activations_that_are_not_finite_are_traced_to_the_layer(network, windows, tmp_path):
    broken = copy.deepcopy(network)
    with torch.no_grad():
        broken.model.layers[1].post_attention_layernorm.weight[3] = float("inf")
    with pytest.raises(WorkError, match=r"input of model\.layers\.1\.mlp\.gate_proj holds NaN"):
        list(quantize_blocks(broken, GPTQ(GRID), windows, tmp_path / "a"))
    with torch.no_grad():
        broken.model.embed_tokens.weight[int(windows[0, 0])] = float("nan")
    with pytest.raises(WorkError, match="output of the embedding holds NaN"):
        list(quantize_blocks(broken, GPTQ(GRID), windows, tmp_path / "b"))


def test_activations_in_a_file_leave_none_behind_where_a_method_fails(network, windows, tmp_path):
    def fails(block, name, stream):
        raise WorkError("no")

    with pytest.raises(WorkError):
        list(quantize_blocks(network, fails, windows, tmp_path, in_memory=1))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_a_norm_rounded_to_bf16_still_undoes_what_its_consumers_are_multiplied_with(family):
    """Norm times column is what it was to fp32's rounding, though bf16 has 8 bits."""
    block = tiny_network(family).bfloat16().float().model.layers[0]
    pair = scale_pairs(block)[0]

    def columns() -> torch.Tensor:
        gain = pair.producer.weight.detach() + (1.0 if family == "gemma2" else 0.0)
        return torch.cat([consumer.weight.detach() for consumer in pair.consumers]) * gain

    before, done = columns(), Done()
    scale = torch.linspace(0.3, 3, pair.consumers[0].in_features)
    fold_into(block, pair, scale, torch.bfloat16, done)
    torch.testing.assert_close(columns(), before, atol=1e-6, rtol=1e-5)
    stored = done.changed["input_layernorm.weight"]
    assert stored.dtype == torch.bfloat16
    assert torch.equal(stored.float(), pair.producer.weight)


def test_a_full_disk_is_said_and_leaves_no_block(network, windows, tmp_path, monkeypatch):
    def full(tensors, path, metadata):
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(layerwise, "save_file", full)
    with pytest.raises(WorkError, match=r"block-0000.safetensors cannot be written: No space left"):
        list(quantize_blocks(network, RoundToNearest(GRID), None, tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_stacked_experts_are_refused(tmp_path):
    config = ModelConfig(
        vocab_size=64,
        hidden_size=32,
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        head_dim=16,
        intermediate_size=32,
        max_seq_len=32,
        moe=MoEConfig(num_experts=4, experts_per_token=2, intermediate_size=32),
    )
    with pytest.raises(RequestError, match=r"mixture of experts.*Use --method gguf"):
        linears(Transformer(config))


def test_what_a_block_left_is_read_back(tmp_path):
    codes = round_to_nearest(torch.randn(8, 32), bits=4, group=16, symmetric=False)
    done = Done({"mlp.up_proj": codes}, {"norm.weight": torch.ones(3)}, {"mlp.up_proj": {"x": 1}})
    layerwise._write(tmp_path / "b", done)
    back = layerwise._read(tmp_path / "b")
    assert torch.equal(back.codes["mlp.up_proj"].matrix(), codes.matrix())
    assert back.codes["mlp.up_proj"].group == 16 and back.notes == done.notes
    assert torch.equal(back.changed["norm.weight"], torch.ones(3))
