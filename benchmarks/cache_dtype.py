"""What keeping keys and values narrower saves and costs: attention's time, and perplexity.

    python -m benchmarks.cache_dtype [--model MODEL --text FILE] [--threads N] [--rounds N]

Time is that of the attention of one decoding step over a full cache, the forms in turn, round after round, the median
round. With --model and --text also the perplexity of the text in pieces of 1,000 tokens (or the model's context), and
how far log-probabilities move.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks.engine.models import llama
from gristmill.engine import Engine
from gristmill.engine.kept import CACHE_DTYPES, CacheDtype
from gristmill.engine.native import NativeRunner
from gristmill.engine.ragged import RaggedBatch, Span, ragged
from gristmill.files import write_json
from gristmill.formats import Model
from gristmill.model import Transformer, initialize

BLOCK, LAYERS, PIECE, PIECES = 16, 4, 1000, 16
SHAPES = [(64, 512), (1, 4096)]  # rows, positions of each


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", help="a trained model, for the price")
    parser.add_argument("--text", type=Path, help="a text that it has not seen")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=11)
    out = Path("benchmarks/results/cache_dtype.json")
    parser.add_argument("-o", "--out", type=Path, default=out)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results: dict[str, object] = {"threads": options.threads, "attention": times(options.rounds)}
    if options.model and options.text:
        results["price"] = price(Model.load(options.model), options.text.read_text("utf-8"))
    write_json(options.out, results)


def times(rounds: int) -> list[dict]:
    """Milliseconds of attention in a decoding step: 12 heads of 64 elements, 4 layers."""
    network = initialize(Transformer(llama(768, LAYERS, 512)), seed=0)
    found = []
    for rows, context in SHAPES:
        steps = {kept: filled(network, kept, rows, context) for kept in CACHE_DTYPES}
        seconds: dict[str, list[float]] = {kept: [] for kept in CACHE_DTYPES}
        for _ in range(rounds):
            for kept, (runner, batch) in steps.items():
                before = runner.seconds()["attend"]
                runner.hidden(batch)
                seconds[kept].append(runner.seconds()["attend"] - before)
        blocks = rows * context // BLOCK
        for kept in CACHE_DTYPES:
            size = blocks * NativeRunner.block_bytes(network, BLOCK, kept)
            ms, plain = 1e3 * median(seconds[kept]), 1e3 * median(seconds["float32"])
            print(
                f"{rows:3} x {context:,} {kept:8} {size / 2**20:6.1f} MiB {ms:7.2f} ms "
                f"({plain / ms:4.2f}x, {size / ms / 1e6:4.1f} GB/s)",
                flush=True,
            )
            found.append(
                {"rows": rows, "positions": context, "kept": kept, "bytes": size, "ms": ms}
            )
    return found


def filled(
    network: Transformer, kept: CacheDtype, rows: int, context: int
) -> tuple[NativeRunner, RaggedBatch]:
    """A runner whose cache is full, blocks in any order, and a step of one more token for each row."""
    rng = np.random.default_rng(0)
    per_row, written = context // BLOCK, 16
    tables = rng.permutation(rows * per_row).reshape(rows, per_row).tolist()
    runner = NativeRunner(network, rows * per_row, BLOCK, kept)
    tokens = rng.integers(0, 512, written * BLOCK).tolist()
    runner.hidden(ragged([Span(tokens, 0, tables[0], context, 0)], BLOCK))
    blocks = [block for table in tables for block in table]
    for i, block in enumerate(blocks[written:]):
        runner.copy_block(blocks[i % written], block)
    last = [Span([1], context - 1, table, context, 1) for table in tables]
    return runner, ragged(last, BLOCK)


def price(model: Model, text: str) -> list[dict]:
    """Perplexity by form, and how far a token's log-probability moves."""
    ids = model.tokenizer.encode(text)
    size = min(PIECE, model.config.max_seq_len)
    pieces = [ids[at : at + size] for at in range(0, size * PIECES, size) if at + size <= len(ids)]
    found, plain = [], None
    for kept in CACHE_DTYPES:
        scored = Engine(model, cache_dtype=kept).score(pieces)
        said = np.array([x for piece in scored for x in piece.logprobs[1:]], dtype=float)
        plain = said if plain is None else plain
        moved, ratio = np.abs(said - plain), math.exp(float((plain - said).mean()))
        print(
            f"{kept:8} perplexity of {len(said):,} tokens x{ratio:.5f}, log-probabilities moved by "
            f"{moved.mean():.1e} on average, {moved.max():.1e} at most",
            flush=True,
        )
        row = {"kept": kept, "tokens": len(said), "perplexity": math.exp(-float(said.mean()))}
        found.append({**row, "ratio": ratio, "moved": moved.mean(), "moved_most": moved.max()})
    return found


if __name__ == "__main__":
    main()
