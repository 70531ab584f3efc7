"""Adapters on a network: what trains, who is active, rows of a batch, taking off, 8-bit layers."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gristmill.adapters import (
    Lora,
    LoraConfig,
    activate,
    adapters_by_row,
    adapters_of,
    add_lora,
    merge,
    merge_and_unload,
    train_only,
    trainable_parameters,
    unload_adapter,
    unmerge,
)
from gristmill.adapters.resident import linears_of
from gristmill.errors import RequestError
from gristmill.kernels import Int8Linear, replace_int8
from gristmill.model import Linear
from tests.adapters.pairs import make_pair, relative, stir, tokens

ATTENTION = LoraConfig(4, 8, target_modules=("q_proj", "v_proj"))
EVERY = LoraConfig(3, 6, dora=True)


def filled(network, *configs: LoraConfig) -> list[str]:
    """Adapters a, b, … with these configs, all stirred."""
    names = [chr(ord("a") + i) for i in range(len(configs))]
    for seed, (name, config) in enumerate(zip(names, configs, strict=True)):
        add_lora(network, config, name, seed)
        stir(network, seed)
    return names


def test_the_published_example():
    """The numbers of one layer by hand; peft 0.21.2 gives the same."""
    linear = Linear(2, 3)
    linear.weight = nn.Parameter(torch.tensor([[3.0, 4], [0, 2], [1, -1]]), requires_grad=False)
    A, B = torch.tensor([[1.0, -1]]), torch.tensor([[0.5], [-0.25], [1]])
    x = torch.tensor([1.0, 2])
    lora = Lora(A, B, scale=2.0)
    y = lora(linear, x, linear(x))
    assert y.tolist() == [10, 4.5, -3]
    assert lora.merged(linear).tolist() == [[4, 3], [-0.5, 2.5], [3, -3]]
    y.sum().backward()
    assert lora.A.grad is not None and lora.A.grad.tolist() == [[2.5, 5]]
    dora = Lora(A, B, scale=2.0, magnitude=linear.weight.norm(dim=1))
    y = dora(linear, x, linear(x))
    assert torch.allclose(y, torch.tensor([10, 3.530090, -1]), atol=1e-6)
    expected = torch.tensor([[4, 3], [-0.392232, 1.961161], [1, -1]])
    assert torch.allclose(dora.merged(linear), expected, atol=1e-6)
    y.sum().backward()
    assert dora.A.grad is not None
    assert torch.allclose(dora.A.grad, torch.tensor([[1.274434, 2.548869]]), atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("config", [ATTENTION, EVERY])
def test_a_fresh_adapter_changes_nothing_and_follows_its_seed(network, config):
    base = network(tokens())
    add_lora(network, config, "a", seed=1)
    assert relative(network(tokens()), base) <= 1e-6
    add_lora(network, config, "b", seed=1)
    add_lora(network, config, "c", seed=2)
    drawn = {n: p for n, p in network.named_parameters() if n.endswith(".A")}
    for name in [n for n in drawn if ".lora.a." in n]:
        assert torch.equal(drawn[name], drawn[name.replace(".a.", ".b.")])
        assert not torch.equal(drawn[name], drawn[name.replace(".a.", ".c.")])
    layers = [p for n, p in drawn.items() if "q_proj.lora.a." in n]
    assert not torch.equal(*layers)


def test_only_the_newest_adapter_trains_until_told_otherwise(network):
    base = set(dict(network.named_parameters()))
    add_lora(network, ATTENTION, "a")
    add_lora(network, EVERY, "b")
    assert {n.split(".lora.")[1] for n in trainable_parameters(network)} == {
        "b.A",
        "b.B",
        "b.magnitude",
    }
    train_only(network, "a")
    trained = trainable_parameters(network)
    assert len(trained) == 2 * 2 * 2 and all(".lora.a." in name for name in trained)
    assert adapters_of(network) == {"a": ATTENTION, "b": EVERY}
    unload_adapter(network, "a")
    assert not trainable_parameters(network)
    unload_adapter(network, "b")
    assert set(trainable_parameters(network)) == base  # as before
    assert adapters_of(network) == {}


@torch.no_grad()
def test_taken_off_nothing_is_left(network):
    base, names = network(tokens()), set(network.state_dict())
    filled(network, ATTENTION, EVERY)
    unload_adapter(network, "b")
    assert torch.equal(network(tokens()), base)  # the active one is gone
    activate(network, "a")
    assert relative(network(tokens()), base) > 1e-2
    unload_adapter(network, "a")
    assert torch.equal(network(tokens()), base) and set(network.state_dict()) == names
    assert not any(module._forward_hooks for module in network.modules())


@torch.no_grad()
def test_every_row_has_its_own_adapter(network):
    filled(network, ATTENTION, EVERY)
    names = ["b", "a", None, "b", "a", "a"]
    given = tokens(6)
    with adapters_by_row(network, names):
        mixed = network(given)
    alone = []
    for row, name in enumerate(names):
        activate(network, name)
        alone.append(network(given[row : row + 1])[0])
        assert relative(mixed[row], alone[row]) <= 1e-5, row
    assert relative(alone[0], alone[1]) > 1e-2
    for name in ("a", None):
        with adapters_by_row(network, [name] * 6):
            whole = network(given)
        activate(network, name)
        assert torch.equal(whole, network(given))
    assert relative(network(given)[:1], mixed[:1]) > 1e-2  # after it, what is active counts


@torch.no_grad()
def test_rows_that_do_not_fit_the_batch(network):
    filled(network, ATTENTION)
    with adapters_by_row(network, ["a", None]), pytest.raises(RequestError, match="for 2 rows"):
        network(tokens(3))
    network(tokens(3))


def test_gradients_through_a_mixed_batch(network):
    filled(network, ATTENTION, EVERY)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(".lora." in name)
    given = tokens(4)
    with adapters_by_row(network, ["a", "b", "a", None]):
        network(given).square().sum().backward()
    mixed = {n: p.grad.clone() for n, p in trainable_parameters(network).items()}
    network.zero_grad()
    for name, rows in (("a", [0, 2]), ("b", [1])):
        activate(network, name)
        network(given[rows]).square().sum().backward()
    for name, parameter in trainable_parameters(network).items():
        assert relative(mixed[name], parameter.grad) <= 1e-4, name


@torch.no_grad()
def test_a_copy_goes_its_own_way(network):
    filled(network, ATTENTION)
    expected = network(tokens())
    copy = deepcopy(network)
    activate(copy, None)
    assert torch.equal(network(tokens()), expected)
    assert relative(copy(tokens()), expected) > 1e-2
    activate(copy, "a")
    assert torch.equal(copy(tokens()), expected)
    stir(copy, 9)
    merge_and_unload(copy, "a")
    assert torch.equal(network(tokens()), expected)


@torch.no_grad()
@pytest.mark.parametrize("how", ["copy_", "load_state_dict", "merge", "trained"])
def test_a_frozen_dora_sees_every_change(network, how):
    """A frozen adapter's row lengths are kept from call to call; stale ones would give wrong outputs."""
    filled(network, EVERY)
    if how == "trained":  # a fused step does not show in the tensors' version counters
        trained = list(trainable_parameters(network).values())
        network.requires_grad_(False)
        network(tokens())
        train_only(network, "a")
        with torch.enable_grad():
            network(tokens()).square().sum().backward()
        torch.optim.AdamW(trained, lr=0.1, fused=True).step()
    network.requires_grad_(False)
    first = network(tokens())
    adapters = [module for module in network.modules() if isinstance(module, Lora)]
    assert all(adapter._kept is not None for adapter in adapters)
    if how == "copy_":
        for adapter in adapters:
            adapter.B.copy_(adapter.B.flip(0))
    elif how == "load_state_dict":
        state = {n: t * 1.5 if ".lora." in n else t for n, t in network.state_dict().items()}
        network.load_state_dict(state)
    elif how == "merge":
        merge(network, "a")
        unmerge(network)
    kept = network(tokens())
    for adapter in adapters:
        adapter._kept = None
    assert torch.equal(network(tokens()), kept)
    assert torch.equal(first, kept) is (how in ("merge", "trained"))


def test_gradients_through_a_frozen_dora_after_generating(network):
    """The engine works in inference mode; what it kept must not reach a backward pass."""
    filled(network, EVERY, LoraConfig(4, 8, target_modules=["q_proj"], layers_to_transform=[0]))
    names = ["a", "b"]
    network.model.embed_tokens.weight.requires_grad_(True)
    with torch.inference_mode(), adapters_by_row(network, names):
        expected = network(tokens(2))
    with adapters_by_row(network, names):
        logits = network(tokens(2))
    torch.testing.assert_close(
        logits, expected, rtol=1e-5, atol=1e-5
    )  # training has kernels of its own
    logits.square().sum().backward()
    assert bool(network.model.embed_tokens.weight.grad[tokens(2)[0]].any())


def test_dora_on_rows_of_zeros(network):
    """A fresh network's residual writers are zero: their length is 0, and 0 / 0 is not a number."""
    with torch.no_grad():
        network.model.layers[0].self_attn.o_proj.weight.zero_()
    base = network(tokens()).detach()
    add_lora(network, EVERY)
    trained = list(trainable_parameters(network).values())
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for step in range(3):
        logits = network(tokens())
        assert (relative(logits, base) <= 1e-6) is (step == 0)
        merge(network)
        assert relative(network(tokens()), logits) <= 1e-5
        unmerge(network)
        F.cross_entropy(logits.flatten(0, 1), tokens().flatten()).backward()
        assert all(bool(parameter.grad.isfinite().all()) for parameter in trained)
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision(dtype):
    """On half-precision weights, and fp32 weights with half-precision activations, as the trainer has them."""
    network, _ = make_pair("llama")
    filled(network, ATTENTION, EVERY)
    expected = {}
    for name in ("a", "b"):
        activate(network, name)
        expected[name] = network(tokens())
        assert relative(network(tokens(), dtype=dtype), expected[name]) <= 5e-2
    network.to(dtype)
    for name in ("a", "b"):
        activate(network, name)
        assert relative(network(tokens()), expected[name]) <= 5e-2
        before = {n: t.clone() for n, t in network.state_dict().items()}
        merge(network, name)
        assert relative(network(tokens()), expected[name]) <= 5e-2
        unmerge(network)
        assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())


def quantize(network) -> list[str]:
    """8 bits and one scale a row for every layer that can be adapted."""
    tensors = {}
    for name, linear in linears_of(network).items():
        scale = linear.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        tensors[f"{name}.weight"] = (linear.weight.detach() / scale).round().to(torch.int8)
        tensors[f"{name}.weight_scale"] = scale
    names = replace_int8(network, tensors)
    network.load_state_dict(tensors, strict=False)
    return names


def dequantized(network):
    """The same network with the 8-bit layers' values as plain weights."""
    copy = deepcopy(network)
    for name, module in list(copy.named_modules()):
        if isinstance(module, Int8Linear):
            linear = Linear(module.in_features, module.out_features)
            linear.weight = nn.Parameter(module.weight.float() * module.weight_scale)
            parent, _, child = name.rpartition(".")
            setattr(copy.get_submodule(parent), child, linear)
    return copy


@pytest.mark.parametrize("config", [ATTENTION, EVERY])
def test_on_an_8_bit_base_as_on_its_values(network, config):
    """QLoRA's arrangement: a frozen integer base, the adapter in fp32; outputs and gradients."""
    names = quantize(network)
    assert len(names) == 14
    plain = dequantized(network)
    for each in (network, plain):
        filled(each, config)
        logits = each(tokens())
        F.cross_entropy(logits.flatten(0, 1), tokens().flatten()).backward()
    with torch.no_grad():
        assert relative(network(tokens()), plain(tokens())) <= 1e-5
        assert relative(network(tokens(1)[:, :3]), plain(tokens(1)[:, :3])) <= 1e-5  # native kernel
    ours, expected = trainable_parameters(network), trainable_parameters(plain)
    assert ours.keys() == expected.keys() and all(".lora." in name for name in ours)
    for name, parameter in ours.items():
        assert relative(parameter.grad, expected[name].grad) <= 1e-4, name
    with pytest.raises(RequestError, match=r"q_proj has 8-bit weights.*full-precision"):
        merge(network, "a")
    assert all(isinstance(network.get_submodule(name), Int8Linear) for name in names)


@torch.no_grad()
def test_while_merged_no_other_adapter_is_used(network):
    filled(network, ATTENTION, EVERY)
    merge(network, "a")
    expected = network(tokens())
    for refused in (
        lambda: activate(network, "b"),
        lambda: activate(network, None),
        lambda: merge(network, "b"),
        lambda: unload_adapter(network, "a"),
        lambda: add_lora(network, ATTENTION, "c"),
        lambda: adapters_by_row(network, ["b"]).__enter__(),
    ):
        with pytest.raises(RequestError, match="'a' is merged"):
            refused()
    assert torch.equal(network(tokens()), expected)
    unmerge(network)
    with pytest.raises(RequestError, match="no adapter is merged"):
        unmerge(network)


@pytest.mark.parametrize(
    ("refused", "says"),
    [
        (lambda n: activate(n, "aa"), r"no adapter 'aa' \(resident: a\)\. Did you mean \"a\""),
        (lambda n: merge(n), "no adapter 'default'"),
        (lambda n: unload_adapter(n, "b"), "no adapter 'b'"),
        (lambda n: adapters_by_row(n, [None, "b"]).__enter__(), "no adapter 'b'"),
        (lambda n: add_lora(n, EVERY, "a"), "there is an adapter 'a' already"),
        (lambda n: add_lora(n, EVERY, "v1.2"), "cannot be named 'v1.2'"),
        (lambda n: add_lora(n, EVERY, "keys"), "cannot be named 'keys'"),
        (lambda n: add_lora(n, EVERY, ""), "cannot be named ''"),
    ],
)
def test_names(network, refused, says):
    filled(network, ATTENTION)
    before = list(network.state_dict())
    with pytest.raises(RequestError, match=says):
        refused(network)
    assert list(network.state_dict()) == before and list(adapters_of(network)) == ["a"]
