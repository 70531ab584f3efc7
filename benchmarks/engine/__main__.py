"""The engine beside its peers: transformers, llama.cpp, vLLM; and beside itself.

    make peers
    python -m benchmarks.engine [single concurrent prefix speculation start exactness] [--rounds N]

single: decoding alone, against the memory's speed, transformers and llama.cpp. concurrent: 64 mixed requests against
vLLM and transformers. prefix: time to first token with a shared prefix. speculation: what drafts gain, and what they
cost where they cannot. start: cold processes. exactness: what fixed-order kernels cost.

Contestants take turns round after round in processes of their own, the others stopped; medians count. Run it on a
quiet machine: llama.cpp's threads wait for each other by spinning, and a busy core made it 30 times slower.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.engine import concurrent, exactness, prefix, single, speculation, start
from gristmill.files import read_object, write_json

PARTS: dict[str, Callable[[int, Path], dict[str, Any]]] = {
    "single": single.run,
    "concurrent": concurrent.run,
    "prefix": prefix.run,
    "speculation": speculation.run,
    "start": start.run,
    "exactness": exactness.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.engine",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="default: all of them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--out", type=Path, default=Path("benchmarks/results/engine.json"))
    options = parser.parse_args()
    parts = options.parts or list(PARTS)
    unknown = set(parts) - {*PARTS, "all"}
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # Contestants who wait are stopped, and whoever ends this must not leave them so.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory() as directory:
        for part in PARTS if "all" in parts else parts:
            print(f"{part}:", flush=True)
            begun = perf_counter()
            found = PARTS[part](options.rounds, Path(directory))
            print(f"  took {perf_counter() - begun:.0f} s", flush=True)
            # Parts measured earlier stay: each has its own machine and rounds beside it.
            everything = read_object(options.out)
            write_json(
                options.out, everything | {part: machine() | {"rounds": options.rounds} | found}
            )


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "avx": [
            flag for flag in flags if flag in ("avx2", "avx512f", "avx512_bf16", "avx512_vnni")
        ],
        "torch": version("torch"),
    }


if __name__ == "__main__":
    main()
