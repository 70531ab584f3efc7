"""Pretraining: our trainer against the same-shape transformers Llama in its Trainer, to the same held-out loss.

    python -m benchmarks.train [--tokens DIR --tokenizer DIR] [--size small] [--budget N] [--rounds N]

Both read the same windows of the same token shards in the same order and are measured on the same held-out
windows. Ours trains the dial's recipe for `--budget` tokens; its held-out loss is the target. The peer is
LlamaForCausalLM with AdamW, warmup and cosine in transformers' Trainer, eager, and gets its best: every learning
rate of `--lrs` at every batch of `--batches` (in multiples of ours) is trained for the budget; the best rate of
each batch is then trained for longer and longer, each run with a schedule of its own, until it reaches the
target. How many tokens it needs is interpolated between the last two runs.

Losses do not depend on how busy the machine is; speeds do. So speed is measured apart: in every round each
contestant, in a process of its own, trains one step and then `--speed-steps` more, in turn; the medians count.
time to loss = setup (the one-step run, ours with its warm start) + tokens needed / (tokens a second).
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import platform
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from gristmill.files import read_json, write_json

EVALUATION_TOKENS = 65_536
GROWTH = 2.0  # of the peer's horizon from run to run
LONGEST = 8  # horizons: the peer's search ends at this multiple of the budget


@dataclass(frozen=True)
class Task:
    """What every run shares. Paths are strings and everything is picklable: runs happen in other processes."""

    tokens: str
    tokenizer: str
    size: str
    seed: int
    threads: int
    compute_dtype: str


@dataclass(frozen=True)
class Peer:
    lr: float
    batch: int  # in multiples of our batch


def settings(task: Task) -> dict[str, Any]:
    """Our recipe's pretraining settings for the size."""
    from gristmill.train.dial import derive

    return derive(task.size)["pretrain"] | {
        "seed": task.seed,
        "compute_dtype": task.compute_dtype,
        "evaluation_tokens": EVALUATION_TOKENS,
    }


def train_ours(task: Task, steps: int, evaluate: bool) -> tuple[float, float]:
    """(seconds, held-out loss in nats a token or nan) of a pretraining stage of `steps` steps."""
    import torch

    from gristmill.train import pretrain

    torch.set_num_threads(task.threads)
    given = settings(task)
    config = pretrain.PretrainConfig(
        **given | {"tokens": steps * given["batch_tokens"], "evaluations": int(evaluate)}
    )
    inputs = {"tokens": Path(task.tokens), "tokenizer": Path(task.tokenizer)}
    with tempfile.TemporaryDirectory() as directory:
        start = perf_counter()
        result = pretrain.run(config, inputs, Path(directory))
        seconds = perf_counter() - start
    return seconds, result.metrics["history"][-1].get("heldout_loss", math.nan)


def train_peer(task: Task, steps: int, evaluate: bool, peer: Peer) -> tuple[float, float]:
    """The same for the peer: LlamaForCausalLM trained by transformers' Trainer."""
    import torch
    import transformers

    torch.set_num_threads(task.threads)
    transformers.set_seed(task.seed)
    transformers.logging.set_verbosity_error()
    given = settings(task)
    rows = given["batch_tokens"] // given["context"] * peer.batch
    with tempfile.TemporaryDirectory() as directory:
        start = perf_counter()
        model = transformers.LlamaForCausalLM(_llama_config(task, given))
        arguments = transformers.TrainingArguments(
            output_dir=directory,
            max_steps=steps,
            per_device_train_batch_size=rows,
            learning_rate=peer.lr,
            lr_scheduler_type="cosine",
            warmup_steps=max(1, steps // 20),
            weight_decay=0.1,
            adam_beta2=0.95,
            max_grad_norm=1.0,
            bf16=task.compute_dtype == "bfloat16",
            use_cpu=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=task.seed,
        )
        trainer = transformers.Trainer(
            model=model, args=arguments, train_dataset=_stream(task, given)
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
        seconds = perf_counter() - start
    return seconds, _heldout_loss(task, given, model) if evaluate else math.nan


def _llama_config(task: Task, given: dict[str, Any]) -> Any:
    import transformers

    keys = {
        "hidden_size": "hidden_size",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "num_key_value_heads": "num_kv_heads",
        "head_dim": "head_dim",
        "intermediate_size": "intermediate_size",
        "max_position_embeddings": "max_seq_len",
        "tie_word_embeddings": "tie_embeddings",
    }
    return transformers.LlamaConfig(
        **{theirs: given[ours] for theirs, ours in keys.items()},
        vocab_size=read_json(Path(task.tokens) / "manifest.json")["vocab_size"],
        use_cache=False,
    )


def _stream(task: Task, given: dict[str, Any]) -> Any:
    """Our training windows, in our order, as the dataset of the Trainer."""
    import torch

    from gristmill.train.windows import Windows

    windows = Windows(
        Path(task.tokens), "train", given["context"], given.get("weights", {}), task.seed
    )

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
            number = 0
            while True:
                row = torch.from_numpy(windows.rows(number, 1)[0])
                # `shift_labels` gives the loss its targets as they are: all `context` of them, as ours.
                yield {
                    "input_ids": row[:-1],
                    "labels": row[:-1],
                    "shift_labels": row[1:].contiguous(),
                }
                number += 1

    return Stream()


def _heldout_loss(task: Task, given: dict[str, Any], model: Any) -> float:
    """Nats a token on the windows on which `gristmill.train` evaluates."""
    import torch

    from gristmill.train.windows import Windows

    windows = Windows(Path(task.tokens), "heldout", given["context"], {}, task.seed)
    rows = torch.from_numpy(windows.rows(0, EVALUATION_TOKENS // given["context"]))
    total = 0.0
    model.eval()
    with torch.inference_mode():
        for batch in rows.split(16):
            logits = model(input_ids=batch[:, :-1]).logits.float().flatten(0, 1)
            targets = batch[:, 1:].flatten()
            total += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
    return total / rows[:, 1:].numel()


class Contestant:
    """A process of its own, so that neither side's allocator or thread settings reach the other."""

    def __init__(self, run: Callable[..., tuple[float, float]], task: Task) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._process = ProcessPoolExecutor(1, mp_context=spawn)
        self._run, self._task = run, task

    def __call__(self, steps: int, evaluate: bool, *more: Any) -> tuple[float, float]:
        return self._process.submit(self._run, self._task, steps, evaluate, *more).result()

    def close(self) -> None:
        self._process.shutdown()


def tokens_to_reach(
    target: float, start: int, loss_after: Callable[[int], float]
) -> tuple[float, list[tuple[int, float]]]:
    """Tokens of the shortest complete run that reaches `target`, and all (tokens, loss) that were tried.

    Horizons grow (or shrink) by GROWTH from `start` until the target lies between two runs; in between, the
    logarithm of the tokens is taken linear in the loss. inf when LONGEST times `start` does not reach it.
    """
    tried = [(start, loss_after(start))]
    step = GROWTH if tried[0][1] > target else 1 / GROWTH
    while (tried[-1][1] > target) == (step > 1):
        tokens = round(tried[-1][0] * step)
        if not start / LONGEST <= tokens <= start * LONGEST:
            break
        tried.append((tokens, loss_after(tokens)))
    tried.sort()
    for (few, high), (many, low) in pairwise(tried):
        if high > target >= low:
            share = (high - target) / (high - low)
            return math.exp(math.log(few) + share * math.log(many / few)), tried
    return (math.inf if tried[-1][1] > target else float(tried[0][0])), tried


def main() -> None:
    options = _options()
    from gristmill.train.compute import fast_dtype

    dtype = str(fast_dtype()).removeprefix("torch.")
    tokens, tokenizer = _inputs(options)
    task = Task(str(tokens), str(tokenizer), options.size, options.seed, options.threads, dtype)
    given = settings(task)
    batch_tokens = given["batch_tokens"]
    budget = options.budget or given["tokens"]
    names = ("torch", "transformers", "accelerate")
    versions = {"gristmill": version("gristmill"), **{name: version(name) for name in names}}
    print(", ".join(f"{name} {v}" for name, v in versions.items()))
    print(f"{options.threads} threads, {dtype}, size {options.size}, budget {budget:,} tokens")
    ours, theirs = Contestant(train_ours, task), Contestant(train_peer, task)

    seconds, target = ours(budget // batch_tokens, True)
    print(f"ours: held-out loss {target:.4f} after {budget:,} tokens, {seconds:.0f} s")

    def peer_loss(peer: Peer, tokens: int) -> float:
        steps = max(1, tokens // (batch_tokens * peer.batch))
        seconds, loss = theirs(steps, True, peer)
        print(f"  {peer}: held-out loss {loss:.4f} after {tokens:,} tokens, {seconds:.0f} s")
        return loss

    tuned, searches = [], []
    for batch in options.batches:
        losses = {lr: peer_loss(Peer(lr, batch), budget) for lr in options.lrs}
        tuned += [{"lr": lr, "batch": batch, "loss": loss} for lr, loss in losses.items()]
        best = Peer(min(losses, key=lambda lr: losses[lr]), batch)
        known = {budget: losses[best.lr]}
        needed, tried = tokens_to_reach(
            target, budget, lambda n, peer=best, known=known: known.get(n) or peer_loss(peer, n)
        )
        searches.append((best, needed, tried))

    runs: dict[str, list[tuple[float, float]]] = {}
    for _ in range(options.rounds):
        runs.setdefault("ours", []).append(_speed(ours, options.speed_steps))
        for peer, _, _ in searches:
            steps = max(2, options.speed_steps // peer.batch)
            runs.setdefault(f"peer x{peer.batch}", []).append(_speed(theirs, steps, peer))
    ours.close()
    theirs.close()

    result = [_line("ours", runs["ours"], batch_tokens, budget)]
    for peer, needed, tried in searches:
        name = f"peer x{peer.batch}"
        reached = math.isfinite(needed)  # if not, the longest run that failed is a lower bound
        line = _line(
            name, runs[name], batch_tokens * peer.batch, needed if reached else tried[-1][0]
        )
        result.append(line | {"reached": reached, **asdict(peer), "horizons": tried})
    fastest = min(result[1:], key=lambda line: line["seconds_to_loss"])
    speed = result[0]["tokens_per_s"] / max(line["tokens_per_s"] for line in result[1:])
    time = fastest["seconds_to_loss"] / result[0]["seconds_to_loss"]
    for line in result:
        more = "" if line.get("reached", True) else "more than "
        print(
            f"{line['name']:<10} {line['tokens_per_s']:>9,.0f} tokens/s, setup {line['setup_s']:.1f} s; "
            f"to the loss: {more}{line['tokens_to_loss']:,.0f} tokens, {line['seconds_to_loss']:.0f} s"
        )
    print(f"tokens/s: {speed:.2f}x the peer's (its fastest batch)")
    more = "" if fastest["reached"] else "more than "
    print(f"time to held-out loss {target:.4f}: the peer's best takes {more}{time:.2f}x ours")
    write_json(
        options.out,
        {
            "versions": versions,
            "machine": platform.machine(),
            "task": asdict(replace(task, tokens=tokens.name, tokenizer=tokenizer.name)),
            "settings": given,
            "budget_tokens": budget,
            "target_heldout_loss": target,
            "rounds": options.rounds,
            "tuning": tuned,
            "results": result,
            "tokens_per_s_ratio": speed,
            "time_to_loss_ratio": time,
            "time_to_loss_ratio_is_lower_bound": not fastest["reached"],
        },
    )


def _speed(contestant: Contestant, steps: int, *more: Any) -> tuple[float, float]:
    """(seconds of a run of one step, seconds of a step after it)."""
    setup, _ = contestant(1, False, *more)
    longer, _ = contestant(1 + steps, False, *more)
    return setup, (longer - setup) / steps


def _line(
    name: str, runs: list[tuple[float, float]], batch_tokens: int, needed: float
) -> dict[str, Any]:
    setup, step = median(setup for setup, _ in runs), median(step for _, step in runs)
    return {
        "name": name,
        "tokens_per_s": batch_tokens / step,
        "setup_s": setup,
        "tokens_to_loss": needed,
        "seconds_to_loss": setup + needed * step / batch_tokens,
        "runs": runs,
    }


def _inputs(options: argparse.Namespace) -> tuple[Path, Path]:
    """Shards and tokenizer: those named, or those of a finished run."""
    if options.tokens and options.tokenizer:
        return options.tokens, options.tokenizer
    from gristmill.formats import newest_run

    run = options.run or newest_run()
    found = [
        run / read_json(run / stage / "manifest.json")["outputs"][stage]["path"]
        for stage in ("tokens", "tokenizer")
    ]
    return found[0], found[1]


def _options() -> argparse.Namespace:
    import torch

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--run", type=Path, help="run directory with shards; default: the newest")
    parser.add_argument("--tokens", type=Path, help="token shards, instead of a run's")
    parser.add_argument("--tokenizer", type=Path, help="the tokenizer that made them")
    parser.add_argument("--size", default="small")
    parser.add_argument("--budget", type=int, default=0, help="our tokens; default: the dial's")
    parser.add_argument("--lrs", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3, 6e-3])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4], help="multiples of ours")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--speed-steps", type=int, default=24)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--out", type=Path, default=Path("benchmarks/results/train.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
