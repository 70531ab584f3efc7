"""Verbatim spans in a large corpus: building the index and asking it, beside infini-gram, OLMoTrace's own engine.

    python -m benchmarks.trace [--tokens 500000000] [--rounds 3] [--peer PYTHON] [--directory DIR]

The corpus is real text of this machine (installed packages and the standard library), encoded by a BPE of 32,768 ids
and repeated: documents of passages of 64 to 1,024 tokens, drawn at random, until there are as many tokens as asked
for; 2 bytes each. Texts asked about are passages of it with a random token at every 25th place, or are text that is
not in it. Both sides must give the same spans and counts; asking takes turns, medians count. "cold" is after the files
were dropped from the page cache.

--peer: the Python of an environment with infini-gram (`pip install infini-gram`, Linux); without it only ours runs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from gristmill.data.trace.build import index_tokens
from gristmill.data.trace.index import open_index, place
from gristmill.data.trace.search import find, longest_matches, maximal
from gristmill.files import read_json, read_object, write_json
from gristmill.machine import peak_memory
from gristmill.tokenizer import BulkEncoder, Tokenizer, train_bpe

VOCAB_SIZE, LEAST = 32_768, 5
LENGTHS = (100, 300, 1000)  # tokens of the texts
TEXTS_OF_A_LENGTH = 10
BASE_BYTES = 150_000_000

# Runs in the peer's environment: reads texts, answers with spans and seconds.
PEER = """
import json, sys
from time import perf_counter
from infini_gram.engine import InfiniGramEngine
engine = InfiniGramEngine(index_dir=sys.argv[1], eos_token_id=0, vocab_size=32768, version=4, token_dtype="u16")
print("ready", flush=True)
for line in sys.stdin:
    ids = json.loads(line)
    begun = perf_counter()
    found = engine.attribute(ids, delim_ids=[], min_len=5, max_cnt=1000, enforce_bow=False)
    seconds = perf_counter() - begun
    spans = [[span["l"], span["r"], span["count"]] for span in found["spans"]]
    print(json.dumps({"seconds": seconds, "spans": spans}), flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=500_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", type=Path, help="a Python that has infini-gram")
    parser.add_argument("--directory", type=Path, help="where the corpus is made, and stays")
    parser.add_argument("-o", "--out", type=Path, default=Path("benchmarks/results/trace.json"))
    parser.add_argument("--index", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.index:
        begun = perf_counter()
        index_tokens(options.index)
        print(json.dumps({"seconds": perf_counter() - begun, "peak_bytes": peak_memory()}))
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = options.directory or Path(temporary)
        record = measure(root, options)
    known = read_object(options.out)
    write_json(options.out, known | {f"{record['tokens']} tokens": record})
    print(f"written to {options.out}")


def measure(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    shards, tokenizer = root / "tokens", root / "tokenizer"
    if not (shards / "manifest.json").is_file():
        make_corpus(root, options.tokens)
    tokens = np.load(shards / "train.all.npy", mmap_mode="r")
    record: dict[str, Any] = {"tokens": len(tokens), "corpus_bytes": tokens.nbytes}
    print(f"corpus: {len(tokens):,} tokens, {tokens.nbytes / 1e6:,.0f} MB")
    if not place(shards).is_dir():
        command = [sys.executable, "-m", "benchmarks.trace", "--index", str(shards)]
        built = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        built["bytes"] = sum(path.stat().st_size for path in place(shards).iterdir())
        write_json(root / "built.json", built)
    record["build"] = {"gristmill": read_json(root / "built.json")}
    if options.peer:
        if not (root / "peer.json").is_file():
            write_json(root / "peer.json", build_peer(root, shards, options.peer))
        record["build"]["infini-gram"] = read_json(root / "peer.json")
    for side, built in record["build"].items():
        rate = tokens.nbytes / built["seconds"] / 1e6
        print(
            f"index of {side}: {built['seconds']:.0f} s, {rate:.1f} MB/s, {built['bytes']:,} bytes"
        )
    print(f"peak memory of ours: {record['build']['gristmill']['peak_bytes'] / 1e9:.2f} GB")
    texts = queries(tokens, Tokenizer.load(tokenizer))
    record["asking"] = ask(root, shards, texts, options)
    return record


def make_corpus(root: Path, wanted: int) -> None:
    texts = list(real_texts(BASE_BYTES))
    tokenizer = train_bpe(iter(texts[::20]), VOCAB_SIZE)
    tokenizer.save(root / "tokenizer")
    base, _ = BulkEncoder(tokenizer).encode(texts)
    base = base.astype(np.uint16)
    print(f"base: {sum(map(len, texts)):,} characters, {len(base):,} tokens")
    separator = tokenizer.document_start[0]
    rng = np.random.default_rng(0)
    (root / "tokens").mkdir(parents=True, exist_ok=True)
    whole = np.lib.format.open_memmap(root / "tokens" / "train.all.npy", "w+", np.uint16, (wanted,))
    at, offsets = 0, [0]
    while at < wanted:
        if at == offsets[-1]:
            whole[at] = separator
            at += 1
        size = min(int(rng.integers(64, 1024)), wanted - at)
        start = int(rng.integers(0, len(base) - size))
        whole[at : at + size] = base[start : start + size]
        at += size
        if at - offsets[-1] > 4096 or at == wanted:
            offsets.append(at)
    whole.flush()
    np.save(root / "tokens" / "train.all.offsets.npy", np.array(offsets, np.int64))
    write_json(root / "tokens" / "train.all.ids.json", [str(i) for i in range(len(offsets) - 1)])
    numbers = {"tokens": wanted, "bytes": 0, "documents": len(offsets) - 1}
    manifest = {"vocab_size": VOCAB_SIZE, "splits": {"train": {"all": numbers}}}
    write_json(root / "tokens" / "manifest.json", manifest)


def real_texts(most: int) -> Iterator[str]:
    """Sources and documentation that lie on this machine, in the order of their names."""
    paths = sysconfig.get_paths()
    found = (
        path
        for place_ in (paths["stdlib"], paths["purelib"])
        for path in sorted(Path(place_).rglob("*"))
        if path.suffix in (".py", ".pyi", ".md", ".rst", ".txt", ".h") and path.is_file()
    )
    total = 0
    for path in found:
        if path.stat().st_size < 400_000:
            text = path.read_text(encoding="utf-8", errors="ignore")
            total += len(text)
            yield text
        if total > most:
            return


def queries(tokens: np.ndarray, tokenizer: Tokenizer) -> dict[str, list[list[int]]]:
    """name -> texts as ids."""
    rng = np.random.default_rng(1)
    found: dict[str, list[list[int]]] = {}
    for length in LENGTHS:
        texts = []
        for start in rng.integers(0, len(tokens) - length, TEXTS_OF_A_LENGTH):
            ids = tokens[start : start + length].astype(int)
            ids[::25] = rng.integers(300, VOCAB_SIZE, len(ids[::25]))
            texts.append(ids[ids != tokenizer.document_start[0]].tolist())
        found[f"{length} tokens, of the corpus"] = texts
    wiki = Path("../shared/data/text/wikitext2-valid.txt")
    if wiki.is_file():
        ids = tokenizer.encode(wiki.read_text(encoding="utf-8")[:100_000])
        starts = range(0, 300 * TEXTS_OF_A_LENGTH, 300)
        found["300 tokens, of Wikipedia"] = [ids[start : start + 300] for start in starts]
    else:
        print(f"{wiki} is absent: no text that is not in the corpus is asked about")
    return found


def build_peer(root: Path, shards: Path, python: Path) -> dict[str, Any]:
    """Their index of the same tokens; documents begin with 65535 there."""
    out = root / "infini-gram"
    out.mkdir(exist_ok=True)
    tokens = np.load(shards / "train.all.npy")
    offsets = np.load(shards / "train.all.offsets.npy")
    tokens[offsets[:-1]] = 65_535
    tokens.tofile(out / "tokenized.0")
    (offsets[:-1] * 2).astype(np.uint64).tofile(out / "offset.0")
    options = [
        "--tokenizer",
        "gpt2",
        "--token_dtype",
        "u16",
        "--cpus",
        "2",
        "--mem",
        "4",
        "--ulimit",
        "1024",
    ]
    command = [python, "-m", "infini_gram.indexing", "--data_dir", out, "--save_dir", out, *options]
    begun = perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds = perf_counter() - begun
    return {"seconds": seconds, "bytes": (out / "table.0").stat().st_size}


def ask(
    root: Path, shards: Path, texts: dict[str, list[list[int]]], options: argparse.Namespace
) -> list[dict[str, Any]]:
    index = open_index(shards)
    peer = start_peer(root, options.peer) if options.peer else None
    rows = []
    print(f"{'':32} {'ours':>9} {'slowest':>9} {'cold':>9} {'infini-gram':>12} {'ratio':>7}")
    for name, asked in texts.items():
        ours: list[float] = []
        theirs: list[float] = []
        differing = 0
        drop_from_cache(place(shards), shards)
        begun = perf_counter()
        spans_of(index, asked[0])
        cold = perf_counter() - begun
        for round_ in range(options.rounds + 1):
            for ids in asked:
                begun = perf_counter()
                spans = spans_of(index, ids)
                seconds = perf_counter() - begun
                answer = ask_peer(peer, ids) if peer else None
                if round_ == 0:  # the first warms the page cache for both
                    differing += bool(answer) and answer["spans"] != spans
                    continue
                ours.append(seconds)
                theirs += [answer["seconds"]] if answer else []
        row = {"texts": name, "median_s": median(ours), "max_s": max(ours), "cold_s": cold}
        if peer:
            row |= {"infini_gram_median_s": median(theirs), "differing_texts": differing}
            row["ratio"] = row["infini_gram_median_s"] / row["median_s"]
        rows.append(row)
        print(
            f"{name:32} {row['median_s'] * 1e3:6.1f} ms {row['max_s'] * 1e3:6.1f} ms {cold * 1e3:6.0f} ms "
            + (f"{row['infini_gram_median_s'] * 1e3:9.1f} ms {row['ratio']:7.2f}" if peer else "")
            + (f"  {differing} of {len(asked)} texts have other spans" if differing else "")
        )
    if peer:
        peer.kill()
    return rows


def spans_of(index: Any, ids: list[int]) -> list[list[int]]:
    """[begin, end, occurrences] of each span."""
    text = np.array(ids)
    lengths = longest_matches(index, text)
    starts = maximal(lengths, LEAST)
    return [[m.begin, m.end, m.places] for m in find(index, text, starts, lengths[starts])]


def start_peer(root: Path, python: Path) -> subprocess.Popen[str]:
    command = [str(python), "-c", PEER, str(root / "infini-gram")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while (line := process.stdout.readline()) and line.strip() != "ready":
        pass
    return process


def ask_peer(process: subprocess.Popen[str], ids: list[int]) -> dict[str, Any]:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps(ids) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def drop_from_cache(*directories: Path) -> None:
    for directory in directories:
        for path in directory.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
