"""Vocabularies of others, read from ranks: ids against llama.cpp's files and tiktoken."""

from __future__ import annotations

import base64
import json

import pytest
import tiktoken

from gristmill.errors import RequestError
from gristmill.tokenizer.patterns import LLAMA3
from gristmill.tokenizer.ranks import from_tiktoken, from_vocab_bpe, load_peer, ranks_of


def test_gpt2_from_its_merges_file(shared_file):
    gpt2 = from_vocab_bpe(shared_file("vocab.bpe"))
    encoder = json.loads(shared_file("encoder.json").read_text(encoding="utf-8"))
    del encoder["<|endoftext|>"]
    assert gpt2.backend.get_vocab() == encoder
    read = shared_file("ggml-vocab-gpt-2.gguf.inp").read_bytes().decode()
    expected = shared_file("ggml-vocab-gpt-2.gguf.out").read_text().split("\n")
    texts = read.split("\n__ggml_vocab_test__\n")[:-1]
    assert len(texts) == 46
    for text, line in zip(texts, expected, strict=False):
        assert gpt2.encode(text) == [int(id) for id in line.split()], text


def test_a_tiktoken_file_gives_tiktokens_ids(tokenizer, strings, texts, tmp_path):
    ranks = ranks_of(tokenizer)
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()]
    file = tmp_path / "llama3.tiktoken"
    file.write_text("".join(lines))
    theirs = tiktoken.Encoding("x", pat_str=LLAMA3, mergeable_ranks=ranks, special_tokens={})
    ours = load_peer(file)
    for text in [*strings[:500], *texts]:
        assert ours.encode(text) == theirs.encode_ordinary(text)


def test_broken_files_are_named_with_their_line(tmp_path):
    file = tmp_path / "vocab.bpe"
    file.write_text("#version: 0.2\nĠ t\nbroken\n", encoding="utf-8")
    with pytest.raises(RequestError, match=r"vocab\.bpe, line 3"):
        from_vocab_bpe(file)
    file = tmp_path / "llama3.tiktoken"
    file.write_text("IQ== 0\nnot base64\n")
    with pytest.raises(RequestError, match=r"llama3\.tiktoken, line 2"):
        from_tiktoken(file)
    file.write_text("IQ== 0\n")
    with pytest.raises(RequestError, match="the byte 0 has no rank"):
        from_tiktoken(file)
    (tmp_path / "mine.tiktoken").write_text("")
    with pytest.raises(RequestError, match=r"cl100k_base\.tiktoken"):
        load_peer(tmp_path / "mine.tiktoken")
