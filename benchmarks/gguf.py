"""What quantizing costs, as llama.cpp runs it: our GGUF beside llama.cpp's own quantization of the same weights.

    python -m benchmarks.gguf MODEL [--types Q8_0 Q4_K_M] [--positions 200]
    python -m benchmarks.gguf MODEL --quantizer LIBLLAMA.so [--types Q8_0 Q4_K_M] [--threads 1 2] [--rounds 3]

Both quantized files are made from the same float32 weights: ours by `Model.save`, the other with the blocks that
llama.cpp's quantizer makes of each tensor. llama.cpp then predicts the next token at every position of a held-out
text from all three files; agreement of the likeliest token and KL divergence are those to the float32 file.
Needs the dev extra (xllamacpp).

With --quantizer the time of writing is compared instead, from the same float32 GGUF file, in turn; medians count. Any
libllama will do; `tests/formats/gguf/record_mixtures.py` says where there is one. Ours is loading and saving, and ends
with an fsync, which llama.cpp's does not.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import tempfile
from importlib import import_module
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch

from benchmarks.engine.contest import interleaved
from gristmill.files import read_object, write_json
from gristmill.formats import Model
from gristmill.formats.gguf import FILE_TYPES, GGMLType, GGUFFile, write_gguf
from gristmill.formats.parity import PROBE
from tests.formats.gguf.record_mixtures import Parameters


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--types", nargs="+", default=["Q8_0", "Q6_K", "Q4_K_M", "Q4_0"])
    parser.add_argument("--positions", type=int, default=200)
    parser.add_argument("--text", type=Path, help="default: the probe text of `gristmill convert`")
    parser.add_argument("--quantizer", type=Path, help="a libllama: compare the time of writing")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--out", type=Path, default=Path("benchmarks/results/gguf.json"))
    options = parser.parse_args()
    record = read_object(options.out) if options.out.is_file() else {}
    if options.quantizer:
        record["writing"] = record.get("writing", {}) | written(options)
        write_json(options.out, record)
        return
    model = Model.load(options.model)
    text = PROBE if options.text is None else options.text.read_text(encoding="utf-8")
    ids = model.tokenizer.prompt_ids(text)[: min(options.positions, model.config.max_seq_len - 2)]
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        full = Path(directory) / "full.gguf"
        model.save(full, format="gguf", quant="F32")
        expected = distributions(full, ids, model.config.vocab_size)
        print(f"{options.model}: {len(ids)} positions, against its float32 file under llama.cpp")
        print(f"{'type':8} {'':10} {'MB':>7} {'same top':>9} {'mean KL':>9}   bytes equal")
        for quant in options.types:
            ours, theirs = (Path(directory) / f"{who}-{quant}.gguf" for who in ("ours", "theirs"))
            model.save(ours, format="gguf", quant=quant)
            requantized_by_llama_cpp(full, ours, theirs)
            equal = ours.read_bytes() == theirs.read_bytes()
            for who, path in (("gristmill", ours), ("llama.cpp", theirs)):
                found = distributions(path, ids, model.config.vocab_size)
                row = {"type": quant, "by": who, "bytes": path.stat().st_size, "equal": equal}
                row |= compared(expected, found)
                rows.append(row)
                print(
                    f"{quant:8} {who:10} {row['bytes'] / 1e6:7.2f} {row['same_top']:9.1%} "
                    f"{row['kl']:9.5f}   {equal}"
                )
    write_json(
        options.out, record | {"model": str(options.model), "positions": len(ids), "rows": rows}
    )


def written(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds to make each type of file of each number of threads, by us and by llama.cpp's quantizer."""
    library = ctypes.CDLL(str(options.quantizer))
    library.llama_model_quantize_default_params.restype = Parameters
    library.llama_model_quantize.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p]
    logger = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
    silent = logger(lambda *_: None)
    library.llama_log_set.argtypes = [logger, ctypes.c_void_p]
    library.llama_log_set(silent, None)
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        full, ours, theirs = (
            Path(directory) / f"{name}.gguf" for name in ("full", "ours", "theirs")
        )
        Model.load(options.model, dtype="auto").save(full, format="gguf", quant="F32")
        print(f"{full.stat().st_size / 1e6:.0f} MB of float32, medians of {options.rounds}")
        for quant in options.types:
            for threads in options.threads:

                def by_us(quant: str = quant, threads: int = threads) -> float:
                    torch.set_num_threads(threads)
                    begun = perf_counter()
                    Model.load(full, dtype="auto").save(ours, format="gguf", quant=quant)
                    return perf_counter() - begun

                def by_llama_cpp(quant: str = quant, threads: int = threads) -> float:
                    parameters = library.llama_model_quantize_default_params()
                    parameters.threads, parameters.ftype = threads, FILE_TYPES[quant]
                    begun = perf_counter()
                    failed = library.llama_model_quantize(
                        bytes(full), bytes(theirs), ctypes.byref(parameters)
                    )
                    if failed:
                        raise RuntimeError(f"llama.cpp did not write {quant}")
                    return perf_counter() - begun

                runs = interleaved({"ours": by_us, "llama.cpp": by_llama_cpp}, options.rounds)
                time = {who: median(seconds) for who, seconds in runs.items()}
                ratio, equal = time["ours"] / time["llama.cpp"], same_tensors(ours, theirs)
                print(
                    f"{quant}, {threads} thread(s): ours {time['ours']:6.2f} s, "
                    f"llama.cpp {time['llama.cpp']:6.2f} s, {ratio:.2f} times; equal: {equal}",
                    flush=True,
                )
                row = {"seconds": runs, "medians": time, "ratio": ratio, "equal": equal}
                rows[f"{quant}, {threads} thread(s)"] = row
    return rows


def same_tensors(ours: Path, theirs: Path) -> bool:
    one, other = GGUFFile.open(ours), GGUFFile.open(theirs)
    return one.tensors.keys() == other.tensors.keys() and all(
        one.tensors[name].type == other.tensors[name].type
        and one.raw(name).tobytes() == other.raw(name).tobytes()
        for name in one.tensors
    )


def requantized_by_llama_cpp(full: Path, like: Path, target: Path) -> None:
    """A copy of `like` whose blocks llama.cpp's quantizer has made of the float32 tensors of `full`."""
    import xllamacpp

    (library,) = Path(xllamacpp.__file__).parent.glob("*.so")
    quantize = ctypes.CDLL(str(library)).ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    quantize.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3]
    quantize.argtypes = [*quantize.argtypes, ctypes.c_void_p]
    weights, wanted = GGUFFile.open(full), GGUFFile.open(like)
    tensors = []
    for info in wanted.tensors.values():
        values = np.ascontiguousarray(weights.load(info.name))
        if info.type == GGMLType.F32:
            tensors.append((info.name, info.shape, info.type, values))
            continue
        rows, width = values.reshape(-1, info.shape[-1]).shape
        blocks = np.empty((rows, info.type.nbytes(width)), np.uint8)
        quantize(int(info.type), values.ctypes.data, blocks.ctypes.data, 0, rows, width, None)
        shaped = blocks.reshape(*info.shape[:-1], -1)
        tensors.append((info.name, info.shape, info.type, shaped))
    write_gguf(target, wanted.typed_metadata, tensors)


def distributions(path: Path, ids: list[int], vocab_size: int) -> list[dict[int, float]]:
    """Log-probabilities of all next tokens after each prefix of `ids`, as llama.cpp has them."""
    xllamacpp: Any = import_module("xllamacpp")  # without type information
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.warmup = max(256, len(ids) + 8), 1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
    found = []
    for end in range(1, len(ids) + 1):
        request: dict[str, Any] = {"prompt": ids[:end], "max_tokens": 1, "temperature": 0}
        answer = server.handle_completions(
            request | {"logprobs": vocab_size, "n_probs": vocab_size}
        )
        logprobs = answer["choices"][0]["logprobs"]
        # llama.cpp gives none where the token it would write is a part of a character
        content = logprobs["content"] if logprobs else []
        top = content[0]["top_logprobs"] if content else []
        found.append({entry["id"]: entry["logprob"] for entry in top})
    del server
    return found


def compared(expected: list[dict[int, float]], found: list[dict[int, float]]) -> dict[str, float]:
    """Over the positions at which both gave log-probabilities."""
    same, divergence, count = 0, 0.0, 0
    for p, q in zip(expected, found, strict=True):
        if not p or not q:
            continue
        count += 1
        same += max(p, key=p.__getitem__) == max(q, key=q.__getitem__)
        divergence += sum(math.exp(lp) * (lp - q[id]) for id, lp in p.items() if id in q)
    return {"positions": count, "same_top": same / count, "kl": divergence / count}


if __name__ == "__main__":
    main()
