"""Finding a tokenizer on disk, what goes around a prompt, and files that are damaged."""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

from gristmill.errors import RequestError
from gristmill.tokenizer import Tokenizer
from gristmill.tokenizer.patterns import GPT2, to_bytes


@pytest.fixture(scope="module")
def gpt2(shared_file, tmp_path_factory) -> Path:
    """GPT-2's vocabulary as a directory of each format that has it."""
    folder = tmp_path_factory.mktemp("gpt2")
    vocab = json.loads(shared_file("encoder.json").read_text(encoding="utf-8"))
    ranks = {to_bytes(token): id for token, id in vocab.items() if token != "<|endoftext|>"}
    lines = [f"{base64.b64encode(token).decode()} {id}\n" for token, id in ranks.items()]
    (folder / "ranks").mkdir()
    (folder / "ranks" / "r50k_base.tiktoken").write_text("".join(lines))
    (folder / "merges").mkdir()
    (folder / "merges" / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges" / "merges.txt").write_bytes(shared_file("vocab.bpe").read_bytes())
    (folder / "merges" / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    return folder


def test_gpt2_from_ranks_and_from_merges_gives_tiktokens_ids(gpt2, strings, texts):
    ranked, merged = Tokenizer.load(gpt2 / "ranks"), Tokenizer.load(gpt2 / "merges")
    lines = (gpt2 / "ranks" / "r50k_base.tiktoken").read_text().splitlines()
    pairs = [line.split() for line in lines]
    theirs = tiktoken.Encoding(
        "gpt2",
        pat_str=GPT2,
        mergeable_ranks={base64.b64decode(token): int(rank) for token, rank in pairs},
        special_tokens={"<|endoftext|>": 50256},
    )
    for ours in (ranked, merged):
        assert ours.special_tokens == {"<|endoftext|>": 50256} and ours.stop_ids == {50256}
        assert ours.vocab_size == theirs.n_vocab == 50257

    def compare(text: str) -> None:
        expected = theirs.encode_ordinary(text)
        for ours in (ranked, merged):
            assert ours.encode(text) == expected, text
            assert ours.decode(expected) == theirs.decode(expected) == text

    for text in [*strings[:1000], *texts[:1]]:
        compare(text)
    settings(max_examples=150, deadline=None)(given(text=st.text(max_size=40))(compare))()


def test_merges_equal_transformers(gpt2, strings):
    from transformers import GPT2Tokenizer

    theirs = GPT2Tokenizer.from_pretrained(gpt2 / "merges")
    ours = Tokenizer.load(gpt2 / "merges")
    for text in strings[:300]:
        if "<|" not in text:
            assert ours.prompt_ids(text) == theirs(text)["input_ids"]


@pytest.mark.parametrize(
    ("config", "post_processor", "before", "after"),
    [
        ({}, None, [], []),
        ({"add_bos_token": True}, None, [1], []),
        ({"add_bos_token": True, "add_eos_token": True}, None, [1], [2]),
        ({"add_bos_token": False, "add_eos_token": True}, None, [], [2]),
        ({}, "<|im_start|> $A", [1], []),
        ({"add_bos_token": False}, "<|im_start|> $A", [], []),
        ({}, "<|im_start|> $A <|im_end|> <|im_end|>", [1], [2, 2]),
    ],
)
def test_prompts_are_those_of_transformers(
    tokenizer, strings, tmp_path, config, post_processor, before, after
):
    from transformers import AutoTokenizer

    backend = type(tokenizer.backend).from_str(tokenizer.backend.to_str())
    names = {1: "<|im_start|>", 2: "<|im_end|>"}
    ids = {number: backend.token_to_id(name) for number, name in names.items()}
    backend.post_processor = None
    if post_processor:
        backend.post_processor = processors.TemplateProcessing(
            single=post_processor,
            pair="$A $B",
            special_tokens=[(name, ids[number]) for number, name in names.items()],
        )
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    config |= {"bos_token": names[1], "eos_token": names[2]}
    Tokenizer(backend, config).save(tmp_path)
    ours, theirs = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert ours.before == [ids[number] for number in before]
    assert ours.after == [ids[number] for number in after]
    for text in [text for text in strings[:200] if "<|" not in text]:
        assert ours.prompt_ids(text) == theirs(text)["input_ids"], text
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]


def test_the_prompt_is_what_training_puts_together(tokenizer):
    assert tokenizer.before == [tokenizer.bos_id] and tokenizer.after == []
    assert tokenizer.prompt_ids("") == [tokenizer.bos_id] == tokenizer.document_start
    for config, name in (
        ({"bos_token": "<|pad|>", "eos_token": "<|im_end|>"}, "<|pad|>"),
        ({"eos_token": "<|im_end|>"}, "<|im_end|>"),
    ):
        backend = type(tokenizer.backend).from_str(tokenizer.backend.to_str())
        other = Tokenizer(backend, {**config, "add_bos_token": False})
        assert other.document_start == [other.special(name)] and other.prompt_ids("") == []
    assert Tokenizer(other.backend, {}).document_start == []


def test_what_is_found_first(gpt2, tokenizer, tmp_path):
    with pytest.raises(RequestError, match=r"holds no tokenizer: tokenizer\.json is missing"):
        Tokenizer.load(tmp_path)
    for name in ("cl100k_base", "r50k_base"):
        (tmp_path / f"{name}.tiktoken").write_text("IQ== 0\n")
    with pytest.raises(RequestError, match=r"holds cl100k_base\.tiktoken and r50k_base\.tiktoken"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a")
    with pytest.raises(RequestError, match=r"tokenizer\.model is not a SentencePiece model"):
        Tokenizer.load(tmp_path)
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).vocab_size == 1500


def test_a_vocabulary_whose_split_is_not_known_is_refused(gpt2, tmp_path):
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((gpt2 / "merges" / name).read_bytes())
    with pytest.raises(RequestError, match="does not say how text is split"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    with pytest.raises(RequestError, match="does not say how text is split"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert Tokenizer.load(tmp_path).vocab_size == 50257
    (tmp_path / "merges.txt").write_text("#version\nq qqqqqqq\n")
    with pytest.raises(RequestError, match=r"merges\.txt: 'q qqqqqqq' names 'qqqqqqq'"):
        Tokenizer.load(tmp_path)
    (tmp_path / "vocab.json").write_text('{"a": -1}')
    with pytest.raises(RequestError, match=r"vocab\.json must hold an object"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("IQ== 0\nIQ== 1\n", "line 2: the token or its rank is there twice"),
        ("IQ== 0\nIg== 0\n", "line 2: the token or its rank is there twice"),
        ("IQ== 99999999999\n", "line 1: a token of 1 bytes, rank 99999999999"),
        ("IQ== -1\n", "line 1: a token of 1 bytes, rank -1"),
        (base64.b64encode(b"a" * 5000).decode() + " 0\n", "line 1: a token of 5000 bytes"),
    ],
)
def test_damaged_ranks_are_named(tmp_path, lines, says):
    (tmp_path / "r50k_base.tiktoken").write_text(lines)
    with pytest.raises(RequestError, match=says):
        Tokenizer.load(tmp_path)


def test_ranks_that_are_not_the_named_ones_are_refused(tmp_path):
    lines = [f"{base64.b64encode(bytes([byte])).decode()} {byte}\n" for byte in range(256)]
    (tmp_path / "cl100k_base.tiktoken").write_text("".join(lines))
    with pytest.raises(RequestError, match="its ranks are not those of cl100k_base"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("generation_config.json", '{"eos_token_id": "x"}', "eos_token_id must be a token id"),
        (
            "generation_config.json",
            '{"eos_token_id": [1, null]}',
            "eos_token_id must be a token id",
        ),
        ("generation_config.json", "[" * 100000, "is not JSON"),
        ("tokenizer_config.json", '{"add_bos_token": true, "bos_token": 3}', None),
        ("tokenizer_config.json", '{"chat_template": [3, {"name": "default"}]}', None),
        ("chat_template.jinja", b"\xff", r"chat_template\.jinja is not UTF-8: byte 0"),
    ],
)
def test_damaged_files_beside_it(saved, tmp_path, file, content, says):
    for each in saved.iterdir():
        (tmp_path / each.name).write_bytes(each.read_bytes())
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    if says:
        with pytest.raises(RequestError, match=says):
            Tokenizer.load(tmp_path)
    else:
        ours = Tokenizer.load(tmp_path)
        assert ours.before == ([] if "bos_token" in content else [ours.special("<|endoftext|>")])
        with pytest.raises(RequestError, match="no chat template"):
            ours.chat_ids([])


def test_a_damaged_tokenizer_json_is_one_clear_error_or_loads(tokenizer, tmp_path):
    whole, file = tokenizer.backend.to_str().encode(), tmp_path / "tokenizer.json"
    rng = random.Random(0)
    damaged = [whole[:n] for n in (0, 1, 100, len(whole) // 2, len(whole) - 1)]
    for _ in range(40):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 30))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        damaged.append(bytes(data))
    content = json.loads(whole)
    absurd = dict(content["added_tokens"][0], id=2**31)
    damaged.append(json.dumps({**content, "added_tokens": [absurd]}).encode())
    vocab = {**content["model"]["vocab"], "absurd": 2**31}
    damaged.append(json.dumps({**content, "model": {**content["model"], "vocab": vocab}}).encode())
    refused = 0
    for data in damaged:
        file.write_bytes(data)
        try:
            Tokenizer.load(file)
        except RequestError as error:
            refused += 1
            last = str(error)
    assert refused >= 10 and "a tokenizer of 2147483649 ids" in last
