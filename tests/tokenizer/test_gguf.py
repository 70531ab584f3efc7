"""GGUF vocabularies: llama.cpp's own files and their ids, llama.cpp reading ours, and equal ids both ways."""

from __future__ import annotations

import base64
import json
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, normalizers, pre_tokenizers

from gristmill.errors import RequestError
from gristmill.formats.gguf import GGMLType, GGUFFile, write_gguf
from gristmill.tokenizer import Tokenizer, from_gguf_metadata, from_llama2c, to_gguf_metadata
from gristmill.tokenizer.patterns import PRE
from gristmill.tokenizer.ranks import from_tiktoken, ranks_of

VOCABULARIES = ("gpt-2", "llama-spm", "phi-3", "starcoder")
MODELS = Path(__file__).parents[2].parent / "shared" / "data" / "models"


def conformance(shared_file, name: str) -> list[tuple[str, list[int]]]:
    texts = shared_file(f"ggml-vocab-{name}.gguf.inp").read_bytes().decode()
    lines = shared_file(f"ggml-vocab-{name}.gguf.out").read_text().split("\n")
    rows = zip(texts.split("\n__ggml_vocab_test__\n")[:-1], lines, strict=False)
    return [(text, [int(id) for id in line.split()]) for text, line in rows]


@pytest.fixture(scope="module")
def read(shared_file):
    """name -> the tokenizer of that llama.cpp vocabulary file; each read once."""
    made: dict[str, Tokenizer] = {}

    def load(name: str) -> Tokenizer:
        if name not in made:
            file = GGUFFile.open(shared_file(f"ggml-vocab-{name}.gguf"))
            made[name] = from_gguf_metadata(file.metadata)
        return made[name]

    return load


@pytest.mark.parametrize("name", VOCABULARIES)
def test_llama_cpps_vocabularies_give_their_ids(read, shared_file, name):
    ours = read(name)
    rows = conformance(shared_file, name)
    assert len(rows) == 46
    for text, ids in rows:
        assert ours.encode(text) == ids, text
        assert ours.decode(ids) == text or name == "starcoder"  # it lacks tokens for some bytes
    spm = name in ("llama-spm", "phi-3")
    assert ours.before == ([ours.bos_id] if spm else []) and ours.after == []
    control = set(ours.special_tokens.values())
    for text in ours.special_tokens:
        assert not control & set(ours.encode(f"{text}x{text}")), text


def test_phi3s_template_and_ends_are_read(read):
    phi = read("phi-3")
    chat = [{"role": "user", "content": "Hi<|end|>"}]
    assert phi.render(chat) == "<s><|user|>\nHi<|end|><|end|>\n<|assistant|>\n"
    ids = phi.chat_ids(chat)
    assert ids[:2] == [1, 32010] and ids.count(32007) == 1
    assert {32000, 2} <= phi.stop_ids and phi.vocab_size == 32064


def ours_of(name: str, request) -> Tokenizer:
    if name in VOCABULARIES:
        return request.getfixturevalue("read")(name)
    if name == "llama2.model":
        return Tokenizer.load(request.getfixturevalue("shared_file")(name))
    if name == "tok512":
        return from_llama2c(MODELS / "tok512.bin", 512)
    return request.getfixturevalue("tokenizer")


def write_model(path: Path, tokenizer: Tokenizer, vocab_size: int) -> None:
    """A model of one empty layer, which llama.cpp opens, around the metadata."""
    width = 32
    metadata = {
        "general.architecture": "llama",
        **{f"llama.{key}": width for key in ("embedding_length", "feed_forward_length")},
        **{f"llama.{key}": 1 for key in ("block_count", "attention.head_count")},
        "llama.attention.head_count_kv": 1,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.context_length": 64,
        "llama.vocab_size": vocab_size,
        **to_gguf_metadata(tokenizer, vocab_size),
    }
    square = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes = {"token_embd": (vocab_size, width), "output_norm": (width,)}
    shapes |= {f"blk.0.{name}": (width,) for name in ("attn_norm", "ffn_norm")}
    shapes |= {f"blk.0.{name}": (width, width) for name in square}
    tensors = [
        (f"{name}.weight", shape, GGMLType.F32, np.zeros(shape, np.float32))
        for name, shape in shapes.items()
    ]
    write_gguf(path, metadata, tensors)


@pytest.mark.parametrize("name", ["trained", "llama2.model", "gpt-2", "starcoder", "tok512"])
def test_llama_cpp_reads_our_metadata_with_equal_ids(name, request, strings, tmp_path):
    xllamacpp = pytest.importorskip("xllamacpp")
    ours = ours_of(name, request)
    texts = [s for s in strings if "ſ" not in s]  # its contractions lack U+017F
    texts = [*ours.special_tokens, "</s>x<s>", "<0x41>", *texts]
    write_model(tmp_path / "model.gguf", ours, ours.vocab_size + 9)
    params = xllamacpp.CommonParams()
    params.model.path = str(tmp_path / "model.gguf")
    params.n_ctx, params.n_parallel, params.warmup = 64, 1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    address = server.listening_address

    def tokenize(text: str, add_special: bool) -> list[int]:
        body = json.dumps({"content": text, "add_special": add_special, "parse_special": False})
        request = urllib.request.Request(
            f"{address}/tokenize",
            body.encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)["tokens"]

    try:
        for text in texts[:450]:
            if text:
                assert tokenize(text, False) == ours.encode(text), text
        for text in ("Once upon", "x"):
            assert tokenize(text, True) == ours.prompt_ids(text)
    finally:
        del server


@pytest.mark.parametrize(
    "name", ["trained", "llama2.model", "gpt-2", "phi-3", "starcoder", "tok512"]
)
def test_metadata_and_back_gives_an_equal_tokenizer(name, request, strings, tmp_path):
    ours = ours_of(name, request)
    metadata = to_gguf_metadata(ours, ours.vocab_size + 3)
    write_gguf(tmp_path / "v.gguf", {"general.architecture": "llama", **metadata}, [])
    again = from_gguf_metadata(GGUFFile.open(tmp_path / "v.gguf").metadata)
    names = [*ours.special_tokens, "[PAD7]", "<0x41>"]
    for text in [*strings[:500], *names, *(f" {name}{name}x" for name in names)]:
        assert again.prompt_ids(text) == ours.prompt_ids(text), text
    assert again.special_tokens == ours.special_tokens and again.vocab_size == ours.vocab_size
    assert (again.bos_id, again.eos_id, again.pad_id) == (ours.bos_id, ours.eos_id, ours.pad_id)
    assert again.stop_ids == ours.stop_ids
    assert all(again.is_special(id) == ours.is_special(id) for id in ours.special_tokens.values())
    assert again.config.get("chat_template") == ours.config.get("chat_template")
    every = list(range(0, ours.vocab_size, 7))
    assert again.decode(every, skip_special=False) == ours.decode(every, skip_special=False)
    tokens = metadata["tokenizer.ggml.tokens"]
    assert len(set(tokens)) == len(tokens) == ours.vocab_size + 3
    assert metadata["tokenizer.ggml.token_type"][-3:].tolist() == [5, 5, 5]


def test_any_text_has_equal_ids_after_the_round_trip(tokenizer):
    again = from_gguf_metadata(to_gguf_metadata(tokenizer, tokenizer.vocab_size))

    @settings(max_examples=150, deadline=None)
    @given(text=st.text(max_size=40))
    def compare(text):
        assert again.encode(text) == tokenizer.encode(text)

    compare()


@pytest.mark.parametrize("pre", sorted(PRE))
def test_every_split_that_has_a_name_is_found_again(tokenizer, pre, strings):
    metadata = {**to_gguf_metadata(tokenizer, 1500), "tokenizer.ggml.pre": pre}
    named = from_gguf_metadata(metadata)
    written = to_gguf_metadata(named, 1500)["tokenizer.ggml.pre"]
    assert PRE[written] == PRE[pre]
    again = from_gguf_metadata({**metadata, "tokenizer.ggml.pre": written})
    assert again.encode_batch(strings[:500]) == named.encode_batch(strings[:500])


def test_our_own_split_is_llama_3s(tokenizer):
    assert to_gguf_metadata(tokenizer, 1500)["tokenizer.ggml.pre"] == "llama-bpe"


def test_a_split_as_hugging_face_writes_it_is_recognized(tokenizer):
    backend = type(tokenizer.backend).from_str(tokenizer.backend.to_str())
    backend.model.ignore_merges = False
    ours = Tokenizer(backend, tokenizer.config)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    digits = pre_tokenizers.Digits(individual_digits=True)
    for step, pre in (
        (byte_level, "gpt-2"),
        (pre_tokenizers.Sequence([digits, byte_level]), "smollm"),
    ):
        backend.pre_tokenizer = step
        assert to_gguf_metadata(ours, 1500)["tokenizer.ggml.pre"] == pre


def test_what_gguf_cannot_say_is_refused(tokenizer, tmp_path):
    backend = type(tokenizer.backend).from_str(tokenizer.backend.to_str())
    ours = Tokenizer(backend, tokenizer.config)
    with pytest.raises(RequestError, match="1499 is too small for the tokenizer's 1500"):
        to_gguf_metadata(ours, 1499)
    backend.normalizer = normalizers.Lowercase()
    with pytest.raises(RequestError, match="its normalizer is"):
        to_gguf_metadata(ours, 1500)
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("[a-m]+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    with pytest.raises(RequestError, match=r"it splits text by '\[a-m\]\+'.*retrain it"):
        to_gguf_metadata(ours, 1500)
    nameless = {key: value for key, value in tokenizer.config.items() if key != "eos_token"}
    with pytest.raises(RequestError, match="names no eos_token"):
        to_gguf_metadata(Tokenizer(tokenizer.backend, nameless), 1500)


GGML = "tokenizer.ggml."


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": None}, r"tokenizer\.ggml\.model is missing"),
        ({"model": 3}, "model must be str"),
        ({"model": "bert"}, "'bert' is not supported"),
        ({"pre": "llama-bpf"}, 'Did you mean "llama-bpe"'),
        ({"tokens": None}, "tokens is missing"),
        ({"tokens": ["a", 1]}, "tokens must be strings"),
        ({"tokens": ["a", "b", "a"]}, "tokens 0 and 2 are both 'a'"),
        ({"tokens": ["a", ""]}, "token 1 is empty"),
        ({"token_type": np.array([1, 1])}, "token_type must be 1500 numbers"),
        ({"token_type": np.full(1500, 9)}, "token 0 has the type 9"),
        ({"token_type": np.full(1500, 5)}, "no token that is used"),
        ({"merges": None}, "merges is missing"),
        ({"merges": ["a b", "nospace"]}, "entry 1, 'nospace', is no pair|names"),
        ({"merges": ["qqq a"]}, "entry 0, 'qqq a', names 'qqq', which is no token"),
        ({"bos_token_id": 1500}, "bos_token_id is 1500; there are 1500 tokens"),
        ({"eos_token_id": -1}, "eos_token_id is -1"),
        ({"eos_token_id": True}, "eos_token_id must be int"),
        ({"add_bos_token": 1}, "add_bos_token must be bool"),
    ],
)
def test_wrong_metadata_is_named(tokenizer, change, says):
    metadata = to_gguf_metadata(tokenizer, 1500)
    if "tokens" in change and change["tokens"] is not None:
        del metadata[f"{GGML}token_type"]
    for key, value in change.items():
        metadata[GGML + key] = value
        if value is None:
            del metadata[GGML + key]
    with pytest.raises(RequestError, match=says) as raised:
        from_gguf_metadata(metadata)
    assert "\n" not in str(raised.value)


def test_an_unknown_template_type_is_refused(tokenizer):
    metadata = {**to_gguf_metadata(tokenizer, 1500), "tokenizer.chat_template": 3}
    with pytest.raises(RequestError, match="chat_template must be a string"):
        from_gguf_metadata(metadata)


def test_ranks_are_written_as_merges(tokenizer, tmp_path, strings):
    lines = [f"{base64.b64encode(t).decode()} {r}\n" for t, r in ranks_of(tokenizer).items()]
    (tmp_path / "llama3.tiktoken").write_text("".join(lines))
    ours = from_tiktoken(tmp_path / "llama3.tiktoken")
    ours.backend.add_special_tokens(["<|end_of_text|>"])
    ours = Tokenizer(ours.backend, {"eos_token": "<|end_of_text|>"})
    again = from_gguf_metadata(to_gguf_metadata(ours, 2000))
    assert again.encode_batch(strings[:500]) == ours.encode_batch(strings[:500])
