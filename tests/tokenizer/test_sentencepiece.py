"""SentencePiece models: ids against the sentencepiece library itself, on text meant to confuse."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2 as proto

from gristmill.errors import RequestError
from gristmill.tokenizer import StreamDecoder, Tokenizer

IDENTITY = {"normalization_rule_name": "identity"}
EXACT = {**IDENTITY, "remove_extra_whitespaces": False}
MODELS = {
    "bpe": {"model_type": "bpe", "byte_fallback": True, **EXACT},
    "bpe_unknown": {"model_type": "bpe", **EXACT},
    "bpe_collapse": {"model_type": "bpe", "byte_fallback": True, **IDENTITY},
    "bpe_no_prefix": {"model_type": "bpe", "add_dummy_prefix": False, **EXACT},
    "bpe_collapse_no_prefix": {"model_type": "bpe", "add_dummy_prefix": False, **IDENTITY},
    "bpe_user": {
        "model_type": "bpe",
        "byte_fallback": True,
        "user_defined_symbols": ["<sep>", "\n", "ab", "abc", "▁▁▁", "|"],
        "control_symbols": ["<|im_start|>"],
        **EXACT,
    },
    "bpe_user_no_prefix": {
        "model_type": "bpe",
        "byte_fallback": True,
        "add_dummy_prefix": False,
        "user_defined_symbols": ["<sep>", "\n"],
        **IDENTITY,
    },
    "unigram": {"model_type": "unigram", "byte_fallback": True, **EXACT},
    "unigram_unknown": {"model_type": "unigram", **IDENTITY},
    "unigram_user": {
        "model_type": "unigram",
        "user_defined_symbols": ["<sep>", "\n", "ab"],
        "control_symbols": ["<|im_start|>"],
        **EXACT,
    },
}
PIECES = [
    *" \t\n\r\x00\x0b\x85\xa0\u2003\u2028\u3000\ufeff\ufffd▁",
    *"abcexyz0159.,=-_#()é日한ß🙂½\u0301\u202e\U0010ffff",
    *("  ", "   ", "▁▁", "▁▁▁▁▁", "self", "self.", "return ", "the ", "ing", "def ", "abab", "====", "----"),
    *("<unk>", "<s>", "</s>", "<0x41>", "<0x0A>", "<sep>", "<|im_start|>", "<", ">", "|"),
]  # fmt: skip
hostile = st.one_of(
    st.text(max_size=40), st.lists(st.sampled_from(PIECES), max_size=25).map("".join)
)


@pytest.fixture(scope="module")
def trained(texts, tmp_path_factory):
    """name -> file, of models trained here; each once."""
    folder = tmp_path_factory.mktemp("spm")
    lines = [line for text in texts[:4] for line in text.split("\n") if line.strip()]

    def train(name: str, **options) -> Path:
        file = folder / name / "tokenizer.model"
        if not file.exists():
            written = io.BytesIO()
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter([*lines, "größe 日本 한국 " * 3]),
                model_writer=written,
                vocab_size=700,
                minloglevel=2,
                num_threads=1,
                **(options or MODELS[name]),
            )
            file.parent.mkdir()
            file.write_bytes(written.getvalue())
        return file

    return train


def pair(file: Path):
    return sentencepiece.SentencePieceProcessor(model_file=str(file)), Tokenizer.load(file)


def tied(theirs, expected: list[int], found: list[int]) -> bool:
    """Whether two cuts of one text have the same likelihood, as near as float32 can say."""
    sums = [sum(map(theirs.get_score, ids)) for ids in (expected, found)]
    return abs(sums[0] - sums[1]) <= 1e-6 * abs(sums[0]) * max(len(expected), 1)


@pytest.mark.parametrize("name", MODELS)
def test_ids_and_text_equal_sentencepiece(trained, name, strings):
    theirs, ours = pair(trained(name))
    unknown = theirs.unk_id()

    @settings(max_examples=150, deadline=None, derandomize=True)
    @given(text=hostile)
    def compare(text):
        expected, found = theirs.encode(text), ours.encode(text)
        if found != expected:
            assert name.startswith("unigram") and tied(theirs, expected, found), text
        if unknown not in expected and "▁" not in text:
            assert ours.decode(expected) == theirs.decode(expected)
        stream = StreamDecoder(ours)
        assert "".join(map(stream.push, found)) + stream.finish() == ours.decode(found)

    compare()
    for text in strings[:300]:
        assert ours.encode(text) == theirs.encode(text), text


@pytest.mark.parametrize("name", ["bpe", "bpe_no_prefix", "unigram", "unigram_user"])
def test_text_after_a_prompt_is_what_sentencepiece_adds_to_it(trained, name):
    theirs, ours = pair(trained(name))
    before = [] if ours.bos_id is None else [ours.bos_id]  # which decoding leaves out
    for text in ("def upon(a):\n    return  self", " a  b", "", "é 日本", " x = größe"):
        ids = theirs.encode(text)
        if theirs.unk_id() in ids:  # which the library shows as ⁇
            continue
        for at in range(len(ids) + 1):
            prompt = theirs.decode(ids[:at])
            if "\ufffd" in prompt:  # ends amid a character
                continue
            stream = StreamDecoder(ours, [*before, *ids[:at]])
            added = "".join(map(stream.push, ids[at:])) + stream.finish()
            assert prompt + added == theirs.decode(ids), (text, at)


def test_llama2_equals_sentencepiece_and_its_conformance_file(shared_file, strings):
    theirs, ours = pair(shared_file("llama2.model"))
    assert (ours.vocab_size, ours.bos_id, ours.eos_id) == (32000, 1, 2)
    rng = random.Random(1)
    more = ["".join(rng.choices(PIECES, k=rng.randint(0, 40))) for _ in range(1500)]
    for text in [*strings[:1000], *more, *(c * n for c in " =-a▁" for n in range(70))]:
        assert ours.encode(text) == theirs.encode(text), text
        assert ours.prompt_ids(text) == [1, *theirs.encode(text)]
    read = shared_file("ggml-vocab-llama-spm.gguf.inp").read_bytes().decode()
    expected = shared_file("ggml-vocab-llama-spm.gguf.out").read_text().split("\n")
    for text, line in zip(read.split("\n__ggml_vocab_test__\n")[:-1], expected, strict=False):
        assert ours.encode(text) == [int(id) for id in line.split()], text


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=20))
def test_bytes_that_are_no_text_decode_as_sentencepiece_does(trained, data):
    theirs, ours = pair_once(trained("bpe"))
    data = data.lstrip(
        b" "
    )  # tokenizers' Strip takes the first space also where a byte piece made it
    ids = [ours.backend.token_to_id(f"<0x{byte:02X}>") for byte in data]
    assert ours.decode(ids) == theirs.decode(ids)
    stream = StreamDecoder(ours)
    assert "".join(map(stream.push, ids)) + stream.finish() == ours.decode(ids)


_pairs: dict[Path, tuple] = {}


def pair_once(file: Path):
    if file not in _pairs:
        _pairs[file] = pair(file)
    return _pairs[file]


def test_transformers_agrees_after_saving(trained, tmp_path, strings):
    from transformers import AutoTokenizer

    for name in ("bpe", "bpe_user", "unigram_user"):
        ours = Tokenizer.load(trained(name))
        ours.save(tmp_path / name)
        theirs = AutoTokenizer.from_pretrained(tmp_path / name)
        again = Tokenizer.load(tmp_path / name)
        for text in strings[:200]:
            if "<|" not in text:
                assert theirs(text)["input_ids"] == ours.prompt_ids(text) == again.prompt_ids(text)
        assert ours.before == again.before == [ours.bos_id]


def test_names_and_added_tokens_beside_the_model(trained, tmp_path):
    file = tmp_path / "tokenizer.model"
    file.write_bytes(trained("bpe").read_bytes())
    (tmp_path / "added_tokens.json").write_text('{"<|user|>": 700, "<tool>": 701}')
    config = {"add_bos_token": False, "eos_token": "<|user|>", "tokenizer_class": "LlamaTokenizer"}
    config["added_tokens_decoder"] = {"701": {"content": "<tool>", "special": False}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = Tokenizer.load(tmp_path)
    assert ours.special_tokens == {"<unk>": 0, "<s>": 1, "</s>": 2, "<|user|>": 700, "<tool>": 701}
    assert ours.eos_id == 700 and ours.before == [] and not ours.is_special(701)
    assert 700 not in ours.encode("<|user|>")
    (tmp_path / "added_tokens.json").write_text('{"<|user|>": 705}')
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(RequestError, match=r"'<\|user\|>' cannot have the id 705"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"model_type": "bpe"}, "rewrites text by the map 'nmt_nfkc'"),
        ({"model_type": "unigram", "normalization_rule_name": "nfkc"}, "by the map 'nfkc'"),
        ({"model_type": "char", **EXACT}, "'character'"),
        ({"model_type": "word", **EXACT, "vocab_size": 300}, "'word'"),
        ({"model_type": "bpe", **EXACT, "treat_whitespace_as_suffix": True}, "spaces after words"),
    ],
)  # fmt: skip
def test_what_cannot_be_exact_is_refused(trained, options, says, texts, tmp_path):
    file, written = tmp_path / "m.model", io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts[0].split("\n")), model_writer=written, minloglevel=2,
        hard_vocab_limit=False, **{"vocab_size": 500, **options},
    )  # fmt: skip
    file.write_bytes(written.getvalue())
    with pytest.raises(RequestError, match=says):
        Tokenizer.load(file)


def edited(trained, change) -> bytes:
    model = proto.ModelProto()
    model.ParseFromString(trained("bpe").read_bytes())
    change(model)
    return model.SerializeToString()


def unused(model):
    model.pieces[400].type = 5


def twice(model):
    model.pieces[401].piece = model.pieces[400].piece


def tie(model):
    model.pieces[300].score = model.pieces[301].score


def no_unknown(model):
    model.pieces[0].type = 1


def no_byte(model):
    model.pieces[50].type = 1


def not_finite(model):
    model.pieces[400].score = float("nan")


def unknown_character(model):
    model.pieces[400].piece = "\u1234\u1235"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (unused, "is marked unused"),
        (twice, "pieces 400 and 401 are both"),
        (tie, "have the same score"),
        (no_unknown, "no piece stands for unknown text"),
        (no_byte, "255 byte pieces where there must be 256"),
        (not_finite, "piece 400, .*, has the score nan"),
        (unknown_character, "is no piece itself"),
    ],
)
def test_contradictions_are_named(trained, tmp_path, change, says):
    file = tmp_path / "tokenizer.model"
    file.write_bytes(edited(trained, change))
    with pytest.raises(RequestError, match=says) as raised:
        Tokenizer.load(file)
    assert str(file) in str(raised.value) and "\n" not in str(raised.value)


def test_damaged_files_are_one_clear_line_or_load(trained, tmp_path):
    """Cut anywhere, or with bytes changed: an error that names the file, never another exception."""
    whole, file = trained("bpe").read_bytes(), tmp_path / "tokenizer.model"
    rng = random.Random(0)
    damaged = [whole[:n] for n in (0, 1, 2, 5, 100, len(whole) // 2, len(whole) - 1)]
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 20))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        damaged.append(bytes(data))
    damaged += [
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\x0a\xff\xff\xff\xff\x0f",
        b"\xff" * 30,
    ]
    refused = 0
    for data in damaged:
        file.write_bytes(data)
        try:
            Tokenizer.load(file)
        except RequestError as error:
            refused += 1
            assert str(file) in str(error) and "\n" not in str(error)
    assert refused > 50
    file.write_bytes(b"IQ== 0\nIg== 1\n")
    with pytest.raises(RequestError, match="looks like tiktoken's ranks"):
        Tokenizer.load(file)
