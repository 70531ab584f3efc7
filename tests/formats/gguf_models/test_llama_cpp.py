"""GGUF files of every family: llama.cpp gives the log-probabilities that we do, and we read back what we wrote."""

from __future__ import annotations

import heapq
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gristmill.errors import RequestError
from gristmill.formats import load_network
from gristmill.formats.gguf import GGUFFile, write_gguf
from gristmill.formats.gguf_models.model import load_gguf, save_gguf
from gristmill.model import Transformer
from gristmill.tokenizer import Tokenizer, train_bpe
from tests.families import CASES, theirs
from tests.llama_cpp import running

# What llama.cpp computes as the families' authors do, to the last bits of float32.
EXACT = 1e-4
# ggml looks GELU up in a table of float16, and takes its tanh form where GPT-NeoX has the exact one.
TABLED = {
    "gpt2": 5e-3,
    "gpt_neox": 2e-2,
    "gpt_neox, sequential": 2e-2,
    "gemma2": 5e-3,
    "gemma3_text": 5e-3,
}
CHANGES = {  # shapes that llama.cpp can hold, where the case's own are beyond it
    "gemma2": dict(query_pre_attn_scalar=24),
    "gemma3_text": dict(query_pre_attn_scalar=24),
    "qwen3_moe": dict(norm_topk_prob=True),
}
REFUSED = {
    "llama, biases": "attention_bias is False, here it is True",
    "qwen2, window": None,
    "qwen3_moe, some dense": "moe",
    "deepseek_v3": "not supported for the family",
    "deepseek_v3, plain queries": "not supported for the family",
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(iter([Path(heapq.__file__).read_text(encoding="utf-8")]), 390)


def network_of(case: str, root: Path) -> Transformer:
    directory = root / case.replace(" ", "_").replace(",", "")
    if not directory.exists():
        theirs(case, **CHANGES.get(case, {})).save_pretrained(directory)
    return load_network(directory)


@pytest.fixture(scope="module", params=[case for case in CASES if not REFUSED.get(case)])
def written(request, tmp_path_factory, tokenizer):
    case = request.param
    root = tmp_path_factory.mktemp("gguf")
    network = network_of(case, root)
    path = root / "model.gguf"
    save_gguf(network, tokenizer, path, "F32")
    printable(path, root / "printable.gguf")
    return case, network, path


def printable(path: Path, target: Path) -> None:
    """With other texts for the tokens: llama.cpp gives no log-probabilities after half a character."""
    file = GGUFFile.open(path)
    metadata = dict(file.typed_metadata)
    count = len(metadata["tokenizer.ggml.tokens"])
    metadata["tokenizer.ggml.tokens"] = [f"t{i}" for i in range(count)]
    metadata["tokenizer.ggml.token_type"] = np.ones(count, np.int32)
    metadata["tokenizer.ggml.merges"] = ["t 1"]
    tensors = [(i.name, i.shape, i.type, file.raw(i.name)) for i in file.tensors.values()]
    write_gguf(target, metadata, tensors)


@torch.no_grad()
def test_llama_cpp_says_the_same(written):
    case, network, path = written
    read, _ = load_gguf(path, torch.float32, torch.device("cpu"))
    longest = min(120, read.config.max_seq_len - 2)
    tokens = torch.randint(3, 320, (120,), generator=torch.Generator().manual_seed(3)).tolist()
    bound = TABLED.get(case, EXACT)
    if (
        case == "gpt_oss"
    ):  # ggml rounds the ends of YaRN's ramp, its authors do not: that alone differs
        rounded = replace(network.config.rope_scaling, truncate=True)
        network = Transformer(replace(network.config, rope_scaling=rounded)).eval()
        network.load_state_dict(read.state_dict())
    lengths = sorted({1, 9, min(17, longest), longest})
    if case == "phi3, longrope":  # llama.cpp takes the long factors once it has room for more
        lengths = [49, 120]
    with running(path.with_name("printable.gguf"), 256) as llama:
        for length in lengths:
            found = llama.top(tokens[:length])
            logits = network(torch.tensor([tokens[:length]]))[0, -1]
            expected = logits.log_softmax(-1)
            for id, logprob in found.items():
                assert abs(logprob - expected[id]) <= bound, (length, id)
            assert expected.argmax() == max(found, key=found.__getitem__)


@torch.no_grad()
def test_we_read_what_we_wrote(written):
    _, network, path = written
    again, _ = load_gguf(path, torch.float32, torch.device("cpu"))
    tokens = torch.randint(3, 320, (2, min(100, again.config.max_seq_len)))
    assert (again(tokens) - network(tokens)).abs().max() <= 1e-5
    state = network.state_dict()
    for name, tensor in again.state_dict().items():
        if network.config.norm != "rms_plus_one":  # w + 1 - 1 rounds
            assert torch.equal(tensor, state[name]), name


@pytest.mark.parametrize("case", [case for case, says in REFUSED.items() if says])
def test_what_llama_cpp_would_run_differently_is_refused(case, tokenizer, tmp_path):
    with pytest.raises(RequestError, match=REFUSED[case]):
        save_gguf(network_of(case, tmp_path), tokenizer, tmp_path / "model.gguf", "F32")
    assert not (tmp_path / "model.gguf").exists()


def test_a_window_that_llama_cpp_ignores_ends_the_context(tokenizer, tmp_path):
    network = network_of("mistral", tmp_path)
    assert network.config.max_seq_len > network.config.sliding_window == 16
    save_gguf(network, tokenizer, tmp_path / "model.gguf", "F32")
    again, _ = load_gguf(tmp_path / "model.gguf", torch.float32, torch.device("cpu"))
    assert again.config == replace(
        network.config, family="llama", layer_types=(), sliding_window=None, max_seq_len=16
    )
