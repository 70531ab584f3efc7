"""The tokenizer stage: byte-level BPE trained on the documents, and how well it compresses held-out text."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from pydantic import Field
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from gristmill.errors import RequestError, missing_extra
from gristmill.files import listing_hash, read_json
from gristmill.stage import Progress, Result, StageConfig, quiet
from gristmill.tokenizer.bulk import BulkEncoder
from gristmill.tokenizer.chat import CHATML
from gristmill.tokenizer.patterns import LLAMA3
from gristmill.tokenizer.ranks import load_peer
from gristmill.tokenizer.tokenizer import Tokenizer

SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|pad|>",
    *(f"<|reserved_{k}|>" for k in range(60)),
)
# A piece longer than this is cut for training: merges of one endless "word" cost its length each.
_MAX_PIECE = 256
_LONG = re.compile(rf"[^\W\d_]{{{_MAX_PIECE},}}|(?:[^\w\s]|_){{{_MAX_PIECE},}}|\s{{{_MAX_PIECE},}}")


class TokenizerConfig(StageConfig):
    """vocab_size counts everything, the 64 control tokens included. max_bytes: how much text is sampled.

    base: a model or tokenizer directory whose tokenizer is taken as it is, instead of learning one.

    peers: name -> file of another tokenizer to compare with: GPT-2's vocab.bpe, a .tiktoken file of ranks
    (cl100k_base, o200k_base, …) or a tokenizer.json.
    """

    base: str = ""
    vocab_size: int = Field(8192, ge=256 + len(SPECIALS))
    max_bytes: int = Field(20_000_000, ge=1)
    peers: dict[str, str] = Field(default_factory=dict)
    seed: int = 0


def check(config: TokenizerConfig) -> None:
    """Raises RequestError when `base` holds no tokenizer, before anything runs."""
    if config.base:
        Tokenizer.load(base_directory(config.base))


def run(
    config: TokenizerConfig, inputs: dict[str, Path], out_dir: Path, progress: Progress = quiet
) -> Result:
    """`documents` (a directory of Parquet files) -> `tokenizer`, a directory that transformers loads."""
    progress(0, 3, "steps", doing="sampling text")
    peers = {name: load_peer(Path(path).expanduser()) for name, path in config.peers.items()}
    metrics: dict[str, Any] = {}
    if config.base:
        tokenizer = Tokenizer.load(base_directory(config.base))
        metrics["base"] = config.base
    else:
        sample = sample_texts(inputs["documents"], config.max_bytes, config.seed)
        progress(1, 3, "steps", doing="learning merges")
        tokenizer = train_bpe((text for _, text in sample), config.vocab_size)
        metrics["sample"] = {
            "documents": len(sample),
            "bytes": sum(len(text.encode()) for _, text in sample),
            "ids_sha256": hashlib.sha256("\n".join(id for id, _ in sample).encode()).hexdigest(),
        }
    path = out_dir / "tokenizer"
    tokenizer.save(path)
    progress(2, 3, "steps", doing="measuring compression")
    metrics |= {
        "vocab_size": tokenizer.vocab_size,
        **measure(tokenizer, read_groups(inputs["documents"], "heldout"), peers),
    }
    progress(3, 3, "steps")
    return Result({"tokenizer": path}, metrics)


def source_fingerprint(config: TokenizerConfig) -> str:
    """Changes when the base tokenizer's files do."""
    return listing_hash(base_directory(config.base)) if config.base else ""


def base_directory(base: str) -> Path:
    """Where a model's tokenizer lies: in its directory, in the stage's `model/`, or where a run names its model."""
    path = Path(base).expanduser()
    if (path / "run.json").is_file():
        try:
            path = path / str(read_json(path / "run.json")["model"])
        except (ValueError, KeyError, TypeError) as error:
            raise RequestError(f"{path / 'run.json'} names no model: the run made none") from error
    return path / "model" if (path / "model" / "tokenizer.json").is_file() else path


def train_bpe(texts: Iterator[str], vocab_size: int = 8192) -> Tokenizer:
    """Learn merges from `texts`; their order, thread counts and hash seeds do not change the result.

    Ids: the 256 bytes, then merges in the order learned, then the control tokens. A text too small for that
    many merges leaves ids over, which become further reserved tokens, so vocab_size is exact.
    """
    backend = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=128,
        show_progress=False,
    )
    backend.train_from_iterator((_cut_long_pieces(text) for text in texts), trainer)
    spare = vocab_size - len(SPECIALS) - backend.get_vocab_size()
    more = [f"<|reserved_{60 + k}|>" for k in range(spare)]
    backend.add_special_tokens([AddedToken(name, special=True) for name in [*SPECIALS, *more]])
    return Tokenizer(
        backend,
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|endoftext|>",
            "eos_token": "<|im_end|>",
            "pad_token": "<|pad|>",
            "add_bos_token": True,  # training puts it before every document, so prompts begin with it too
            "add_eos_token": False,
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 1_000_000_000,
            "chat_template": CHATML,
        },
    )


def _cut_long_pieces(text: str) -> str:
    longest = max(map(len, text.splitlines()), default=0)
    if longest < _MAX_PIECE and "\n" * _MAX_PIECE not in text:
        return text
    return _LONG.sub(lambda run: run[0][:_MAX_PIECE], text)


def sample_texts(documents: Path, max_bytes: int, seed: int) -> list[tuple[str, str]]:
    """(id, text) of training documents up to about `max_bytes`, drawn by hash of (seed, id)."""
    table = _read(documents, "train", ["id", "text"])
    ids, texts = table["id"].to_pylist(), table["text"]
    keyed = sorted(
        (hashlib.blake2b(f"{seed}|{id}".encode(), digest_size=8).digest(), row)
        for row, id in enumerate(ids)
    )
    sample, size = [], 0
    for _, row in keyed:
        if size >= max_bytes:
            break
        text = texts[row].as_py()
        sample.append((ids[row], text))
        size += len(text.encode())
    if not sample:
        raise RequestError(
            f"{documents}/train.parquet has no documents to learn from; check the sources of [data]"
        )
    return sample


def read_groups(documents: Path, split: str) -> dict[str, list[str]]:
    """Texts of one split by mixture group, groups in alphabetical order."""
    table = _read(documents, split, ["text", "group"])
    groups: dict[str, list[str]] = {}
    for text, group in zip(table["text"].to_pylist(), table["group"].to_pylist(), strict=True):
        groups.setdefault(group, []).append(text)
    return dict(sorted(groups.items()))


def measure(
    tokenizer: Tokenizer, groups: dict[str, list[str]], peers: dict[str, Tokenizer]
) -> dict[str, Any]:
    """Bytes per token by group and of peers, tokens never used, and the longest tokens."""
    sizes = {name: sum(len(t.encode()) for t in texts) for name, texts in groups.items()}
    total = sum(sizes.values())
    encoder, used = BulkEncoder(tokenizer), np.zeros(tokenizer.vocab_size, dtype=bool)
    counts: dict[str, int] = {}
    for name, texts in groups.items():
        ids, _ = encoder.encode(texts)
        used[np.unique(ids)] = True
        counts[name] = len(ids)

    def ratio(size: int, tokens: int) -> float | None:
        return round(size / tokens, 4) if tokens else None

    control = set(tokenizer.special_tokens.values())
    ordinary = [id for id in range(tokenizer.vocab_size) if id not in control]
    longest = sorted(ordinary, key=lambda id: (-len(tokenizer.token_bytes(id)), id))[:24]
    metrics: dict[str, Any] = {
        "bytes_per_token": {
            "heldout": ratio(total, sum(counts.values())),
            "by_group": {name: ratio(sizes[name], counts[name]) for name in groups},
        },
        "heldout_bytes": total,
        "unused_tokens": sum(not used[id] for id in ordinary),
        "longest": [tokenizer.token_bytes(id).decode("utf-8", "replace") for id in longest],
    }
    if peers:
        every = [text for texts in groups.values() for text in texts]
        metrics["peers"] = {
            name: ratio(total, len(BulkEncoder(peer).encode(every)[0]))
            for name, peer in peers.items()
        }
    return metrics


def _read(documents: Path, split: str, columns: list[str]) -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise missing_extra("pyarrow", "data") from None
    file = documents / f"{split}.parquet"
    if not file.is_file():
        raise RequestError(
            f"{documents} is not a directory of documents: {split}.parquet is missing"
        )
    return parquet.read_table(file, columns=columns)
