"""What quantizing a model cost: bytes, how its predictions moved on text it was not tuned on, speed, memory.

Both models read the same held-out windows, activations in fp32 but where the copy's kernels round them to 8 bits, as
they do when it is used (`Price.activations` says it); the original's distribution at each token is compared with the
copy's. Perplexity alone hides much: errors that cancel on average still change answers, so the
divergence and the share of tokens with the same likeliest next one stand beside it.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from math import exp
from pathlib import Path
from typing import Any

import torch

from gristmill.engine import Engine
from gristmill.engine.measure import measure, weight_bytes, weight_types
from gristmill.errors import RequestError
from gristmill.files import write_json, write_text
from gristmill.formats import Model, describe, load_config, name_of
from gristmill.kernels.quantized import CodedMatrix
from gristmill.quantize.calibration import Windows
from gristmill.stage import Progress, quiet

_EMBEDDINGS = re.compile(
    r"(^|\.)(embed_tokens|embed_in|wte|wpe|token_embd|position_embd|lm_head|embed_out|output)\.weight"
)
_DOMINANT = 0.3  # the share of embeddings and head that is worth a sentence
HEADING = "## The price of quantization"


@dataclass(frozen=True)
class Copy:
    """One of the two models. bytes: of its file, or its directory's weight files; embedding_bytes: of embeddings and
    head among them. bits_per_weight: of all parameters; bits_per_weight_inside: without embeddings and head.
    token_bytes: what writing one token reads. runner: what computes ("native" or "torch"); decode, prefill: tokens/s
    of one request alone, the median of three; None where it was not measured."""

    path: str
    bytes: int
    embedding_bytes: int
    bits_per_weight: float
    bits_per_weight_inside: float
    token_bytes: int | None = None
    weight_types: tuple[str, ...] = ()
    runner: str = ""
    decode_tokens_per_s: float | None = None
    prefill_tokens_per_s: float | None = None


@dataclass(frozen=True)
class Distance:
    """kl: KL(before ‖ after) in nats a token, its mean and 99th percentile. same_top: share of tokens after which
    the likeliest next one is the same."""

    tokens: int
    perplexity_before: float
    perplexity_after: float
    perplexity_ratio: float
    kl_mean: float
    kl_p99: float
    same_top: float


@dataclass(frozen=True)
class Price:
    """The tag. activations: how the copy's kernels see them, in words. made: how the copy was made (method, settings,
    calibration hash, seed, seconds, peak memory), as the quantizer tells it; {} for a copy of unknown making."""

    before: Copy
    after: Copy
    distance: Distance
    held_out: str
    held_out_sha256: str
    activations: str
    made: dict[str, Any]

    @property
    def bytes_ratio(self) -> float:
        return self.after.bytes / self.before.bytes


def check_unseen(held_out: Windows, calibration: Windows | None) -> None:
    """Raises RequestError where the price would be measured on the calibration text."""
    if calibration is not None and held_out.source_sha256 == calibration.source_sha256:
        raise RequestError(
            f"{held_out.source} is the text that was calibrated on, so the price would be too good. "
            "Give other text with --held-out"
        )


def price(
    before: str | Path,
    after: str | Path,
    held_out: Windows,
    *,
    made: dict[str, Any] | None = None,
    seconds: float = 60.0,
    progress: Progress = quiet,
) -> Price:
    """Measure the copy `after` of the model `before` on the held-out windows.

    Speeds get `seconds` for each of the two; 0 leaves them out. Raises RequestError where the two models do not share
    a vocabulary, or the windows do not fit them.
    """
    full, copy = Model.load(before, dtype="auto"), Model.load(after, dtype="auto")
    distance = measure_distance(full, copy, held_out.tokens, progress)
    fast: list[Copy] = []
    for model in (full, copy):
        assert model.path is not None
        fast.append(_speed(model, on_disk(model.path), seconds) if seconds else on_disk(model.path))
    return Price(
        fast[0],
        fast[1],
        distance,
        held_out.source,
        held_out.source_sha256,
        _activations(copy),
        dict(made or {}),
    )


@torch.inference_mode()
def measure_distance(
    before: Model, after: Model, windows: torch.Tensor, progress: Progress = quiet
) -> Distance:
    """Over windows of token ids [count, length]; the logits of one window exist at a time."""
    if before.config.vocab_size != after.config.vocab_size:
        raise RequestError(
            f"{after.path} has a vocabulary of {after.config.vocab_size} tokens and {before.path} one of "
            f"{before.config.vocab_size}: they cannot be compared token by token"
        )
    kl, same, spent = [], [], torch.zeros(2, dtype=torch.float64)
    for done, window in enumerate(windows, 1):
        tokens = window[None].to(before.device)
        p, q = (m.network(tokens, dtype=torch.float32)[0].log_softmax(-1) for m in (before, after))
        kl.append((p.exp() * (p - q)).sum(-1).clamp(min=0).cpu())
        same.append((p.argmax(-1) == q.argmax(-1)).cpu())
        for at, log_probs in enumerate((p, q)):
            spent[at] -= log_probs[:-1].gather(1, tokens[0, 1:, None]).double().sum().cpu()
        progress(done, len(windows), "windows")
    nats = (spent / (len(windows) * (windows.shape[1] - 1))).tolist()
    every = torch.cat(kl)
    return Distance(
        tokens=every.numel(),
        perplexity_before=exp(nats[0]),
        perplexity_after=exp(min(nats[1], 700.0)),
        perplexity_ratio=exp(min(nats[1] - nats[0], 700.0)),
        kl_mean=every.double().mean().item(),
        kl_p99=every.kthvalue(max(1, round(0.99 * every.numel()))).values.item(),
        same_top=torch.cat(same).double().mean().item(),
    )


def _activations(model: Model) -> str:
    coded = (m for m in model.network.modules() if isinstance(m, CodedMatrix))
    return "rounded to 8 bits" if any(m.rounded for m in coded) else "full precision"


def on_disk(path: Path) -> Copy:
    """What lies there; speeds are not measured."""
    config, tensors = load_config(path), describe(path).tensors
    total = sum(tensor.nbytes for tensor in tensors)
    outside = sum(tensor.nbytes for tensor in tensors if _EMBEDDINGS.search(tensor.name))
    embedded = config.hidden_size * config.vocab_size * (1 if config.tie_embeddings else 2)
    if config.positions == "learned":
        embedded += config.hidden_size * config.max_seq_len
    weights = config.num_parameters
    files = [path]
    if path.is_dir():
        files = [*path.glob("model*.safetensors")] or [*path.glob("pytorch_model*.bin")]
    return Copy(
        str(path),
        sum(file.stat().st_size for file in files),
        outside,
        8 * total / weights,
        8 * (total - outside) / (weights - embedded),
    )


def _speed(model: Model, copy: Copy, seconds: float) -> Copy:
    """`copy` with its speeds; three passes, or as many as `seconds` allow."""
    context = model.config.max_seq_len
    new = min(64, max(3, context // 4))
    prompt = max(1, min(256, context - new))
    engine = Engine(model, max_rows=1, cache_tokens=prompt + new + 32, prefix_caching=False)
    end = time.monotonic() + seconds
    measure(engine, 1, min(prompt, 32), 3, end)  # warm
    points = [measure(engine, 1, prompt, new, end)]
    while len(points) < 3 and time.monotonic() < end:
        points.append(measure(engine, 1, prompt, new, end))
    decode = [p.decode_tokens_per_s for p in points if p.decode_tokens_per_s]
    return replace(
        copy,
        token_bytes=weight_bytes(engine),
        weight_types=tuple(weight_types(model)),
        runner=engine.runner_name,
        decode_tokens_per_s=statistics.median(decode) if decode else None,
        prefill_tokens_per_s=statistics.median(p.prefill_tokens_per_s for p in points),
    )


def rows(price: Price) -> list[tuple[str, str, str]]:
    """(what, before, after) for a table."""
    a, b, d = price.before, price.after, price.distance

    def both(what: str, show: Callable[[Any], str], name: str) -> tuple[str, str, str]:
        first, second = (
            "–" if v is None else show(v) for v in (getattr(a, name), getattr(b, name))
        )
        return what, first, second

    found = [
        ("size", _size(a.bytes), f"{_size(b.bytes)} ({price.bytes_ratio:.0%})"),
        both("bits per weight", lambda v: f"{v:.2f}", "bits_per_weight"),
        both("… without embeddings", lambda v: f"{v:.2f}", "bits_per_weight_inside"),
        (
            "perplexity",
            f"{d.perplexity_before:,.2f}",
            f"{d.perplexity_after:,.2f} (× {d.perplexity_ratio:.4f})",
        ),
        ("mean KL divergence", "", f"{d.kl_mean:.2e} nats"),
        ("… 99th percentile", "", f"{d.kl_p99:.2e} nats"),
        ("same likeliest token", "", f"{d.same_top:.1%}"),
        both("decode, tokens/s", lambda v: f"{v:,.1f}", "decode_tokens_per_s"),
        both("prefill, tokens/s", lambda v: f"{v:,.0f}", "prefill_tokens_per_s"),
        both("a token reads", _size, "token_bytes"),
    ]
    return [row for row in found if row[1:] != ("–", "–")]


def footnotes(price: Price) -> list[str]:
    """Where the numbers are from, in sentences."""
    unseen = ", which was not calibrated on" if "calibration" in price.made else ""
    said: list[str] = []
    outside = price.after.embedding_bytes / price.after.bytes
    if price.made.get("method", "gguf") != "gguf" and outside > _DOMINANT:
        said.append(
            f"Embeddings and head stay in full precision and are {outside:.0%} of it; a .gguf rounds them, too."
        )
    said.append(
        f"Predictions on {price.distance.tokens:,} tokens of {price.held_out} "
        f"(sha256 {price.held_out_sha256[:16]}){unseen}. The copy's activations: {price.activations}."
    )
    if price.after.runner:
        kinds = " and ".join(price.after.weight_types)
        said.append(
            f"Speeds of one request alone on this machine, by the {price.before.runner} runner before and the "
            f"{price.after.runner} runner after (weights in memory: {kinds})."
        )
    if price.made:
        said.append(f"Made with: {', '.join(_told(*fact) for fact in price.made.items())}.")
    return said


def _told(name: str, value: Any) -> str:
    if name.endswith("_bytes"):
        name, value = name.removesuffix("_bytes"), _size(value)
    elif name.endswith("seconds"):
        named = "wall time" if name == "seconds" else name.removesuffix("_seconds") + " time"
        name, value = named, f"{value:,.1f} s"
    elif isinstance(value, float):
        value = f"{value:.3g}"
    elif isinstance(value, dict):
        value = f"({', '.join(f'{key} {part:.3g}' for key, part in value.items())})"
    return f"{name.replace('_', ' ')} {value}"


def _size(count: float) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.2f} MB"


def write_card(target: Path, price: Price) -> tuple[Path, Path]:
    """Put the tag into the card of the model `target` (a .gguf file's lies beside it), and beside it as JSON.

    Returns both files. A section of an earlier tag is replaced.
    """
    if target.is_dir():
        card, numbers = target / "README.md", target / "price.json"
    else:
        card, numbers = target.with_suffix(".md"), target.with_suffix(".price.json")
    text = card.read_text(encoding="utf-8") if card.is_file() else f"# {name_of(target)}\n"
    kept, _, rest = text.partition(HEADING)
    _, mark, following = rest.partition("\n## ")
    lines = [HEADING, "", "| | before | after |", "|---|---|---|"]
    lines += [f"| {what} | {before} | {after} |" for what, before, after in rows(price)]
    lines += ["", *(f"- {sentence}" for sentence in footnotes(price)), ""]
    section = "\n".join(lines)
    write_text(card, f"{kept.rstrip()}\n\n{section}{mark}{following}")
    write_json(numbers, asdict(price) | {"bytes_ratio": price.bytes_ratio})
    return card, numbers
