"""The server under load: python -m benchmarks.serve [--seconds 60] [--size 10M] [--clients 64 256] [--vllm]

Streaming clients on loopback ask for text. Every answer is compared with the engine's own; the tokens a second with
the engine's, and with vLLM's server (`make peers`) on the same load. Written to benchmarks/results/serve.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import AbstractContextManager
from pathlib import Path
from random import Random
from statistics import median, quantiles
from typing import Any

from benchmarks.engine import models
from benchmarks.engine.report import Ratio, finish
from benchmarks.serve import servers

RESULT = Path(__file__).parents[1] / "results" / "serve.json"
PROMPTS = 512


def plan(clients: int, seconds: float) -> dict[str, Any]:
    """Prompts of real text, no two alike from the start on, 16 to 64 words, 32 to 96 tokens to answer."""
    draw = Random(0)
    words = " ".join(models.python_sources(400_000)).split()
    prompts = []
    for number in range(PROMPTS):
        at = draw.randrange(len(words) - 64)
        text = f"{number} " + " ".join(words[at : at + draw.randint(16, 64)])
        prompts.append([text, draw.randint(32, 96)])
    return {"model": servers.NAME, "clients": clients, "seconds": seconds, "prompts": prompts}


def called(module: str, first: str, wanted: dict[str, Any]) -> dict[str, Any]:
    """`python -m benchmarks.serve.MODULE`, with its plan and its result in files."""
    with tempfile.TemporaryDirectory() as place:
        given, out = Path(place, "plan.json"), Path(place, "result.json")
        given.write_text(json.dumps(wanted))
        command = [sys.executable, "-m", f"benchmarks.serve.{module}", first, str(given), str(out)]
        subprocess.run(command, check=True)
        return json.loads(out.read_text())


def loaded(
    server: AbstractContextManager[tuple[str, int]], wanted: dict[str, Any]
) -> dict[str, Any]:
    """What the clients saw, and the server's memory while they asked."""
    with server as (url, process):
        called("load", url, wanted | {"seconds": 3})  # warm
        held: list[int] = []
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(1.0):
                held.append(servers.resident(process))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            result = called("load", url, wanted)
        finally:
            ended.set()
            watcher.join()
    return result | {"resident": held}


def summary(result: dict[str, Any], texts: dict[str, str] | None) -> dict[str, Any]:
    """texts: what the engine alone says, by the prompt's number."""
    answers = result["answers"]
    good = [a for a in answers if not a["error"]]
    first = [a["times"][0] for a in good if a["times"]]
    gaps = [b - a for x in good for a, b in zip(x["times"], x["times"][1:], strict=False)]
    by_client = Counter(a["client"] for a in good)
    held = result["resident"]
    made: dict[str, Any] = {
        "requests": len(answers),
        "errors": Counter(a["error"] for a in answers if a["error"]),
        "requests_per_second": len(good) / result["seconds"],
        "tokens_per_second": sum(a["tokens"] for a in good) / result["seconds"],
        "ttft_p50": median(first),
        "ttft_p95": quantiles(first, n=20)[-1],
        "gap_p50": median(gaps),
        "gap_p99": quantiles(gaps, n=100)[-1],
        "answers_of_a_client": [min(by_client.values()), max(by_client.values())],
        # Of the last third: the cache's pages are touched for the first time in the seconds before.
        "memory_growth": held[-1] / held[2 * len(held) // 3] - 1 if len(held) > 3 else 0.0,
    }
    if texts is not None:
        compared = [a for a in good if str(a["prompt"]) in texts]
        made["compared"] = len(compared)
        made["different"] = sum(a["text"] != texts[str(a["prompt"])] for a in compared)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--size", default="10M", choices=["10M", "134M", "551M"])
    parser.add_argument("--clients", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--rounds", type=int, default=3, help="each side's runs at the first load")
    parser.add_argument("--vllm", action="store_true", help="vLLM's server on the same load")
    options = parser.parse_args()
    place = Path(os.environ.get("GRISTMILL_BENCHMARK_MODELS", tempfile.gettempdir() + "/gristmill"))
    model = models.written(place, options.size)
    record: dict[str, Any] = {}
    for clients in options.clients:
        record[str(clients)] = at_load(model, clients, options)
    known = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    RESULT.write_text(json.dumps(known | {options.size: record}, indent=1) + "\n")


def at_load(model: Path, clients: int, options: argparse.Namespace) -> dict[str, Any]:
    print(f"\n{options.size}, {clients} clients")
    wanted = plan(clients, options.seconds)
    # Other clients' rows would wait: all of them run at once, as at the server.
    sides: dict[str, list[dict[str, Any]]] = {"ours": [], "vllm": []}
    engine: list[float] = []
    texts: dict[str, str] = {}
    for _ in range(options.rounds):
        alone = called("alone", str(model), wanted | {"clients": min(clients, 64)})
        engine.append(alone["tokens"] / alone["seconds"])
        texts |= alone["texts"]
        sides["ours"].append(summary(loaded(servers.ours(model), wanted), texts))
        if options.vllm:
            sides["vllm"].append(summary(loaded(servers.vllm(model), wanted), None))
        time.sleep(1)
    runs = {
        f"{name} tokens": [s["tokens_per_second"] for s in found]
        for name, found in sides.items()
        if found
    }
    runs["engine alone"] = engine
    ratios = [
        Ratio(
            "tokens/s: the server's, of the engine's alone",
            median(runs["ours tokens"]) / median(engine),
            0.95,
        )
    ]
    for what, better in (("requests_per_second", False), ("ttft_p95", True)):
        if options.vllm:
            ours, theirs = (median(s[what] for s in sides[n]) for n in ("ours", "vllm"))
            ratios.append(Ratio(f"{what}: ours to vLLM's", ours / theirs, 1.0, at_most=better))
    for name, found in sides.items():
        for one in found:
            print(f"  {name}: {json.dumps(one)}")
    return finish(ratios, "tokens/s", runs, {"seconds": options.seconds}, **sides)


if __name__ == "__main__":
    main()
