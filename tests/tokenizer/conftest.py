"""One small tokenizer, trained here on part of the standard library, and text to try it on."""

from __future__ import annotations

import random
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from gristmill.tokenizer import Tokenizer, train_bpe

STDLIB = Path(sysconfig.get_paths()["stdlib"])
MODULES = ("argparse", "heapq", "inspect", "pathlib", "random", "statistics", "typing", "zipfile")


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return [(STDLIB / f"{name}.py").read_text(encoding="utf-8") for name in MODULES]


@pytest.fixture(scope="session")
def tokenizer(texts: list[str]) -> Tokenizer:
    return train_bpe(iter(texts), vocab_size=1500)


@pytest.fixture(scope="session")
def saved(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(path)
    return path


@pytest.fixture(scope="session")
def strings() -> list[str]:
    """llama.cpp's conformance strings (models/ggml-vocab-gpt-2.gguf.inp, MIT), and fuzzed ones."""
    file = Path(__file__).parent / "llama_cpp_strings.txt"
    shared = file.read_bytes().decode("utf-8").split("\n__ggml_vocab_test__\n")
    assert len(shared) == 47
    return shared + fuzzed(3000)


def fuzzed(count: int) -> list[str]:
    """Short strings from what split patterns care about: spaces, newlines, digits, case, marks, planes."""
    rng = random.Random(0)
    pieces = [
        *" \t\n\r\x0b\x0c\x00\x85\xa0\u2003\u2028\u3000\ufeff",
        *"abzABZéßſıİǅ\u0301\u0327क्षाהשالعربية你好日本ㄅ",
        *"0123456789½٣൧Ⅷ㊿",
        *"'\"`.,;:!?()[]{}<>=+-*/\\|_~#@$%^&",
        "'s", "'S", "'ſ", "'LL", "'re", " ", "  ", "\r\n", "\n\n", "👨‍👩‍👧", "🏳️‍🌈", "\U000e0041", "\U0010ffff",
        "def ", "return", "self.", "    ", "http://", "<|endoftext|>", "<|im_end|>",
    ]  # fmt: skip
    return ["".join(rng.choices(pieces, k=rng.randint(0, 12))) for _ in range(count)]


@pytest.fixture(scope="session")
def shared_file() -> Callable[[str], Path]:
    """Vocabularies of others, in the folder beside the repository; without it the test is skipped, loudly."""

    def find(name: str) -> Path:
        path = Path(__file__).parents[2].parent / "shared" / "data" / "tokenizers" / name
        if not path.is_file():
            pytest.skip(f"{name} is not at {path}")
        return path

    return find
