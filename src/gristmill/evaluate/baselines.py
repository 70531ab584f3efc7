"""The baselines stage: what xz and a 5-gram make of the held-out text, before any model is trained.

All numbers are over the same bytes: the held-out documents end to end, without separators. Who predicts
token by token is given a document's beginning and is not asked for its end, so nobody pays for boundaries.
The 5-gram and `xz` with context read the same training documents: all that the model may train on, up to
`train_bytes`.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gristmill.errors import WorkError
from gristmill.evaluate.compression import xz_bits
from gristmill.evaluate.ngram import ngram_bits
from gristmill.evaluate.shards import read_documents, spell
from gristmill.files import write_json
from gristmill.stage import Progress, Result, StageConfig, quiet
from gristmill.tokenizer import Tokenizer


class BaselinesConfig(StageConfig):
    """heldout_bytes: at most so much held-out text, the same that `evaluate` scores the models on.
    train_bytes: at most so much training text for the 5-gram and for `xz` with context (1 MB/s each)."""

    heldout_bytes: int = 400_000
    train_bytes: int = 48_000_000


def run(
    config: BaselinesConfig, inputs: dict[str, Path], out_dir: Path, progress: Progress = quiet
) -> Result:
    """Measure the three numbers and write `baselines.json`. Inputs: tokens, tokenizer."""
    tokenizer = Tokenizer.load(inputs["tokenizer"])
    heldout = read_documents(inputs["tokens"], "heldout", tokenizer, config.heldout_bytes)
    train = read_documents(inputs["tokens"], "train", tokenizer, config.train_bytes)
    size = sum(document.size for document in heldout)
    if not size:
        raise WorkError("the held-out split has no text, so there is nothing to measure on")
    train_text, heldout_text = spell(train, tokenizer), spell(heldout, tokenizer)
    progress(0, 3, "baselines")
    with ThreadPoolExecutor(1) as thread:
        xz_running = thread.submit(xz_bits, train_text, heldout_text)
        ngram = ngram_bits(
            [document.tokens for document in train],
            [document.tokens for document in heldout],
            tokenizer.vocab_size,
        )
        progress(1, 3, "baselines", ngram5_bits_per_byte=ngram / size)
        xz = xz_running.result()
    numbers = {
        "xz_bits_per_byte": xz.alone / size,
        "xz_context_bits_per_byte": xz.with_context / size,
        "ngram5_bits_per_byte": ngram / size,
        "heldout_bytes": size,
        "heldout_tokens": sum(len(document.tokens) - 1 for document in heldout),
        "heldout_documents": len(heldout),
        "train_bytes": len(train_text),
        "train_tokens": sum(len(document.tokens) - 1 for document in train),
        "train_documents": len(train),
    }
    path = out_dir / "baselines.json"
    write_json(path, numbers)
    progress(3, 3, "baselines", xz_context_bits_per_byte=numbers["xz_context_bits_per_byte"])
    return Result({"baselines": path}, numbers)
