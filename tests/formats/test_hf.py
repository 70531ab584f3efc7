"""Saved directories: transformers loads them with equal logits, we load them bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gristmill.errors import RequestError
from gristmill.formats import Model, load_config, load_network, save_hf
from gristmill.kernels import Int8Linear, replace_int8
from gristmill.tokenizer import Tokenizer

SHAPES = [
    dict(
        family="qwen3" if qk_norm else "llama", qk_norm=qk_norm, tie_embeddings=tie, num_kv_heads=kv
    )
    for qk_norm, tie, kv in [(True, True, 2), (True, False, 4), (False, True, 1), (False, False, 2)]
]


def tokens(model: Model, shape=(3, 40)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, model.config.vocab_size, shape, generator=generator)


@pytest.mark.parametrize("shape", SHAPES)
def test_transformers_loads_what_we_save_with_equal_logits(make, tmp_path, shape):
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, Qwen3ForCausalLM

    model = make(**shape)
    model.save(tmp_path)
    theirs, loading = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(theirs) is (Qwen3ForCausalLM if shape["qk_norm"] else LlamaForCausalLM)
    assert not any(loading.values()), loading
    given = tokens(model)
    with torch.no_grad():
        expected = theirs(given).logits
    assert (model(given) - expected).abs().max() <= 1e-5
    assert expected.std() > 0.5  # or the bound would say little
    tokenizer = model.tokenizer
    assert set(theirs.generation_config.eos_token_id) == tokenizer.stop_ids
    assert theirs.generation_config.pad_token_id == tokenizer.pad_id
    text = "heapq.nlargest(3, [1, 2])"
    assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == tokenizer.prompt_ids(text)


@pytest.mark.parametrize("shape", SHAPES)
def test_we_load_what_transformers_saves(make, tmp_path, shape):
    from transformers import AutoModelForCausalLM

    model = make(**shape)
    model.save(tmp_path / "ours")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="40KB")
    model.tokenizer.save(tmp_path / "theirs")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").is_file()
    again = Model.load(tmp_path / "theirs")
    assert again.config == model.config
    assert_identical(again.network, model.network)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_come_back_bit_for_bit(make, tmp_path, shape, dtype):
    model = make(**shape)
    model.network.to(dtype)
    model.save(tmp_path)
    again = Model.load(tmp_path, dtype=dtype)
    assert again.config == model.config == load_config(tmp_path)
    assert_identical(again.network, model.network)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(dtype)[6:]
    assert Model.load(tmp_path).network.head.weight.dtype == torch.float32
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert ("lm_head.weight" in file.keys()) is not shape["tie_embeddings"]  # noqa: SIM118


def assert_identical(a, b):
    left, right = a.state_dict(), b.state_dict()
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype and torch.equal(tensor, right[name]), name


def test_large_models_are_sharded(make, tmp_path):
    from transformers import AutoModelForCausalLM

    model = make()
    save_hf(model.network, tmp_path, model.tokenizer, max_shard_bytes=60_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2 and files == sorted(p.name for p in tmp_path.glob("model-*.safetensors"))
    assert index["metadata"]["total_size"] == 4 * model.config.num_parameters
    assert_identical(Model.load(tmp_path).network, model.network)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    given = tokens(model)
    with torch.no_grad():
        assert torch.equal(theirs(given).logits, model(given))
    # saving again in one file leaves no shard behind, and keeps what is not ours
    (tmp_path / "notes.txt").write_text("mine")
    model.save(tmp_path, card="# A card\n")
    assert [p.name for p in tmp_path.glob("model*")] == ["model.safetensors"]
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "README.md").read_text() == "# A card\n"


def test_a_save_that_is_killed_or_fails_leaves_the_old_model(make, saved):
    """While new weights are written the old ones stay; never old config with new weights."""
    script = """
import os, sys
from gristmill.formats import Model, hf
model = Model.load(sys.argv[1])
kept = hf.save_file
def killed(tensors, path, metadata):
    kept(tensors, path, metadata=metadata)
    os._exit(9)
hf.save_file = killed
model.save(sys.argv[1])
"""
    before = Model.load(saved).network.state_dict()
    result = subprocess.run([sys.executable, "-c", script, saved], env=dict(os.environ))
    assert result.returncode == 9
    assert list(saved.glob("..shard*"))  # what was under way
    for name, tensor in Model.load(saved).network.state_dict().items():
        assert torch.equal(tensor, before[name])
    make(seed=1).save(saved)
    assert not list(saved.glob("*shard*")) and not list(saved.glob(".*shard*"))
    assert not torch.equal(
        Model.load(saved).network.head.weight, before["model.embed_tokens.weight"]
    )


def test_an_older_template_does_not_win(saved, make):
    (saved / "chat_template.jinja").write_text("old")
    assert Model.load(saved).tokenizer.chat_template == "old"
    make().save(saved)
    assert Model.load(saved).tokenizer.chat_template != "old"


def test_an_open_model_survives_a_save_over_it(make, saved):
    """Weights are memory-mapped: the file under them is replaced, not overwritten."""
    model = Model.load(saved)
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    make(seed=1).save(saved)
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert not torch.equal(Model.load(saved).network.head.weight, model.network.head.weight)


def test_int8_layers_come_back(make, tmp_path):
    model = make()
    quantized = {}
    for name, module in model.network.named_modules():
        if name.endswith("_proj"):
            scale = module.weight.detach().abs().amax(1, keepdim=True) / 127
            quantized[f"{name}.weight"] = (module.weight.detach() / scale).round().to(torch.int8)
            quantized[f"{name}.weight_scale"] = scale
    replace_int8(model.network, quantized)
    model.network.load_state_dict(quantized, strict=False)
    model.save(tmp_path)
    again = Model.load(tmp_path)
    assert sum(isinstance(m, Int8Linear) for m in again.network.modules()) == 14
    assert_identical(again.network, model.network)
    given = tokens(model)
    assert torch.equal(again(given), model(given))
    hf = json.loads((tmp_path / "config.json").read_text())
    hf["quantization_config"]["config_groups"]["group_0"]["weights"]["num_bits"] = 4
    (tmp_path / "config.json").write_text(json.dumps(hf))
    with pytest.raises(RequestError, match=r"int-quantized with num_bits 4.* is not read"):
        Model.load(tmp_path)


def test_older_keys_are_read(saved):
    file = saved / "config.json"
    hf = json.loads(file.read_text())
    expected = load_config(saved)
    del hf["rope_parameters"]  # transformers 4
    hf["rope_scaling"] = None
    file.write_text(json.dumps(hf))
    assert load_config(saved) == expected
    hf["rope_parameters"] = {"rope_type": "default", "rope_theta": 7.0}
    del hf["architectures"]
    file.write_text(json.dumps(hf))
    assert load_config(saved).rope_theta == 7.0
    hf.update(model_type="llama", head_dim=None)
    del hf["num_key_value_heads"]
    hf["hidden_size"] = 64
    file.write_text(json.dumps(hf))
    assert load_config(saved).head_dim == 16
    assert load_config(saved).num_kv_heads == 4


def test_a_tied_head_that_is_stored_anyway_must_be_equal(saved):
    weights = saved / "model.safetensors"
    tensors = load_file(weights)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, weights, metadata={"format": "pt"})
    given = tokens(Model.load(saved))
    tensors["lm_head.weight"][3, 4] += 1
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(RequestError, match=r"lm_head\.weight differs"):
        Model.load(saved)
    hf = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**hf, "tie_word_embeddings": False}))
    hidden = (untied := Model.load(saved)).network.hidden(given)
    assert torch.allclose(untied(given), hidden @ tensors["lm_head.weight"].T, atol=1e-5)


def test_padded_vocabularies_are_fine_and_short_ones_are_not(make, tmp_path, tokenizer):
    make(vocab_size=tokenizer.vocab_size - 100).save(tmp_path)
    with pytest.raises(RequestError, match="do not belong together"):
        Model.load(tmp_path)
    assert load_network(tmp_path).head.weight.shape[0] == tokenizer.vocab_size - 100


def test_calling_a_model_checks_what_it_is_given(make):
    model = make()
    with pytest.raises(RequestError, match=r"from 0 to 419"):
        model(torch.tensor([[0, 420]]))
    with pytest.raises(RequestError, match=r"from 0 to 419"):
        model(torch.tensor([[-1]]))
    with pytest.raises(RequestError, match="97 tokens do not fit"):
        model(torch.zeros(1, 97, dtype=torch.long))
    with pytest.raises(RequestError, match=r"must be \[batch, seq\]"):
        model(torch.tensor([1, 2]))
    logits = model(torch.tensor([[1, 2]]))
    assert (
        logits.shape == (1, 2, 420) and logits.dtype == torch.float32 and not logits.requires_grad
    )


def test_save_refuses_what_it_cannot_do(make, tmp_path):
    with pytest.raises(RequestError, match='supported are "hf" and "gguf"'):
        make().save(tmp_path / "x", format="pickle")
    assert not (tmp_path / "x").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="it is a file"):
        make().save(tmp_path / "file")


def test_the_tokenizer_travels_with_the_model(saved, tokenizer):
    again = Model.load(saved).tokenizer
    assert isinstance(again, Tokenizer)
    chat = [{"role": "user", "content": "What does heappush do?"}]
    assert again.chat_ids(chat) == tokenizer.chat_ids(chat)
