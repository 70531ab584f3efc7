"""How fast an engine is on this machine, and how much of the memory's bandwidth its decoding reaches.

A decoding step reads every weight once, whatever the number of rows, and each row's keys and values. So for one
row `tokens/s ≤ bandwidth / (bytes of weights + bytes of keys and values)`: the roofline that the numbers are put
beside. More rows share the reading of the weights, until computing them takes longer.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from gristmill.engine.runner import free_bytes
from gristmill.errors import RequestError
from gristmill.kernels import CodedMatrix
from gristmill.lm import Request, SamplingParams
from gristmill.model import SLIDING

if TYPE_CHECKING:
    from gristmill.engine.engine import Engine
    from gristmill.engine.generation import Generation
    from gristmill.formats import Model

_BUFFER_BYTES = 512 << 20  # far larger than any cache


@dataclass(frozen=True)
class Point:
    """One batch size. Times are in seconds; `between` are those from one token of a row to its next.

    prefill_tokens_per_s: of all prompts, up to everybody's first token. decode_tokens_per_s: of all rows together,
    while all of them decode. read_bytes: what a decoding step reads, weights and keys and values; read_bytes_per_s
    follows. decode and between are None when the time was over before two steps were seen.
    """

    rows: int
    prefill_tokens_per_s: float
    first_token_s: float  # the median row's
    decode_tokens_per_s: float | None
    between_p50_s: float | None
    between_p95_s: float | None
    read_bytes: int
    read_bytes_per_s: float | None


def read_bandwidth(device: torch.device, seconds: float = 0.3) -> float:
    """Bytes a second at which all threads read a buffer that no cache holds; the best pass counts (STREAM, 1995).

    Reductions only read. A plain C loop with two threads reached 27.5 GB/s where `amax` reached 30.8.
    """
    size = max(1 << 20, min(_BUFFER_BYTES, free_bytes(device) // 4))
    buffer = torch.ones(size // 4, device=device)
    best, end = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < end:
        for reduce in (torch.sum, torch.amax):
            begun = time.perf_counter()
            reduce(buffer).item()
            best = min(best, time.perf_counter() - begun)
    return buffer.nbytes / best


def weight_bytes(engine: Engine, rows: int = 1) -> int:
    """Bytes of the model's own tensors that one decoding step of `rows` rows reads.

    Of an embedding only the rows' own lines count, unless the head is the same tensor. Of a mixture's experts
    those that `rows` tokens choose, if they chose evenly: 1 - (1 - k/E)^rows of them.
    """
    network, config = engine.model.network, engine.model.config
    share = 1.0
    if config.moe is not None:
        chosen = config.moe.experts_per_token / config.moe.num_experts
        share = 1 - (1 - chosen) ** rows
    total = 0.0
    # named_* give a shared tensor once; quantized weights are buffers.
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if "embed_" in name and not (config.tie_embeddings and "embed_tokens" in name):
            lines = config.max_seq_len if "positions" in name else config.vocab_size
            total += rows * tensor.nbytes / lines
        else:
            total += tensor.nbytes * (share if ".experts." in name else 1.0)
    return round(total)


def weight_types(model: Model) -> list[str]:
    """The types of the loaded weights by their format's names or torch's, as `main_types` gives them."""
    coded = {
        f"{name}.packed": module.coding
        for name, module in model.network.named_modules()
        if isinstance(module, CodedMatrix)
    }
    tensors = [*model.network.named_parameters(), *model.network.named_buffers()]
    kinds = (
        (coded.get(name, str(t.dtype).removeprefix("torch.")), t.nbytes) for name, t in tensors
    )
    return main_types(kinds)


def main_types(held: Iterable[tuple[str, int]]) -> list[str]:
    """Types of tensors and their bytes -> those that hold a fiftieth of all bytes or more, most bytes first."""
    sizes: Counter[str] = Counter()
    for kind, size in held:
        sizes[kind] += size
    return [kind for kind, size in sizes.most_common() if 50 * size >= sizes.total()]


def cache_bytes(engine: Engine, positions: int) -> int:
    """Bytes of keys and values that a token at so many positions reads; a sliding layer reads its window."""
    network, config = engine.model.network, engine.model.config
    block = 16
    whole = type(engine.runner).block_bytes(network, block, engine.cache_dtype)
    layer = whole / block / config.num_layers
    seen = 0
    for i in range(config.num_layers):
        window = config.sliding_window if config.layer_type(i) == SLIDING else None
        seen += min(positions, window or positions)
    return round(layer * seen)


def prompts(engine: Engine, rows: int, length: int, seed: int) -> list[list[int]]:
    """Random ids, so that no two prompts share a beginning and nothing is found in a cache."""
    generator = torch.Generator().manual_seed(seed)
    size = engine.tokenizer.vocab_size
    return torch.randint(0, size, (rows, length), generator=generator).tolist()


def measure(
    engine: Engine, rows: int, prompt_tokens: int, new_tokens: int, deadline: float = float("inf")
) -> Point:
    """Let `rows` requests come at once, read `prompt_tokens` each and say `new_tokens`.

    `deadline` is a time of `time.monotonic`; what has not ended by then is cut. Raises RequestError when
    the requests do not fit the model's context or the engine's rows.
    """
    if prompt_tokens + new_tokens > engine.context:
        raise RequestError(
            f"{prompt_tokens} + {new_tokens} tokens do not fit the model's context of {engine.context}"
        )
    params = SamplingParams(max_tokens=new_tokens, temperature=0.0, ignore_eos=True)
    asked = [
        engine.prepare(Request(token_ids=ids, params=params))
        for ids in prompts(engine, rows, prompt_tokens, seed=rows)
    ]
    arrivals: dict[Generation, list[float]] = {g: [] for g in asked}
    begun = time.perf_counter()
    for g in asked:
        engine.add(g)
    while engine.busy:
        for g, _ in engine.step():
            if g in arrivals and not g.cancelled:
                arrivals[g].append(time.perf_counter())
        if time.monotonic() > deadline and all(arrivals.values()):
            for g in asked:
                g.cancelled = True
    return _point(engine, prompt_tokens, begun, list(arrivals.values()))


def _point(
    engine: Engine, prompt_tokens: int, begun: float, arrivals: Sequence[Sequence[float]]
) -> Point:
    rows = len(arrivals)
    firsts = [times[0] for times in arrivals]
    # While all rows decode: after the last one's first token, before the first one's end.
    start, end = max(firsts), min(times[-1] for times in arrivals)
    counted = sum(start < at <= end for times in arrivals for at in times)
    steps = sorted({at for times in arrivals for at in times if start <= at <= end})
    between = [b - a for times in arrivals for a, b in pairwise(times) if a >= start and b <= end]
    rate = counted / (end - start) if len(steps) > 2 and counted else None
    middle = prompt_tokens + round(statistics.mean(len(times) for times in arrivals) / 2)
    read = weight_bytes(engine, rows) + rows * cache_bytes(engine, middle)
    return Point(
        rows=rows,
        prefill_tokens_per_s=rows * prompt_tokens / (start - begun),
        first_token_s=statistics.median(firsts) - begun,
        decode_tokens_per_s=rate,
        between_p50_s=_quantile(between, 0.50) if rate else None,
        between_p95_s=_quantile(between, 0.95) if rate else None,
        read_bytes=read,
        read_bytes_per_s=read * rate / rows if rate else None,
    )


def _quantile(values: Sequence[float], share: float) -> float:
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, round(share * (len(ranked) - 1)))]
