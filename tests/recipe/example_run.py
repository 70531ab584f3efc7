"""Manifests as a run of the whole line leaves them, for tests of the page: plausible numbers, nothing real."""

from __future__ import annotations

import hashlib
import math
from typing import Any

from gristmill.recipe.line import LINE

SECONDS = {
    "data": 21.4, "facts": 3.1, "tokenizer": 6.2, "questions": 5.0, "tokens": 4.4, "baselines": 31.0,
    "pretrain": 262.5, "sft": 96.3, "dpo": 41.0, "index": 2.2, "quantize": 0.6, "evaluate": 38.9,
}  # fmt: skip
SIZES = {
    "data": 9_812_004, "facts": 3_120_118, "tokenizer": 702_112, "questions": 12_844_010,
    "tokens": 15_201_120, "baselines": 410, "pretrain": 25_120_998, "sft": 25_120_998,
    "dpo": 25_120_998, "index": 31_456_256, "quantize": 8_830_112, "evaluate": 18_220,
}  # fmt: skip


def _sha(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def _training_rows(
    steps: int, high: float, low: float, name: str, held: float
) -> list[dict[str, Any]]:
    rows = []
    for step in range(10, steps + 1, 10):
        value = low + (high - low) * math.exp(-5 * step / steps) + 0.02 * math.sin(step * 1.7)
        row: dict[str, Any] = {
            "step": step,
            "lr": 0.02,
            name: value,
            "loss": value * 2.1,
            "grad_norm": 0.8,
        }
        if step % (steps // 8 // 10 * 10) == 0:
            row[f"heldout_{name}"] = value + held
        rows.append(row)
    return rows


def _choices(closed: float, closed_new: float, found: float, found_new: float) -> dict[str, Any]:
    def score(accuracy: float, n: int) -> dict[str, Any]:
        return {"accuracy": accuracy, "stderr": math.sqrt(accuracy * (1 - accuracy) / n), "n": n}

    return {
        "closed_book": {"seen": score(closed, 400), "heldout": score(closed_new, 200)},
        "retrieval": {"seen": score(found, 400), "heldout": score(found_new, 200)},
    }


METRICS: dict[str, dict[str, Any]] = {
    "data": {
        "groups": [
            {"group": "packages", "files": 9120, "documents": 8304, "bytes": 118_202_004, "kept_documents": 3120,
             "kept_bytes": 11_902_110, "packages": 74},
            {"group": "stdlib", "files": 1704, "documents": 1690, "bytes": 31_201_998, "kept_documents": 982,
             "kept_bytes": 11_480_220, "packages": 0},
            {"group": "topics", "files": 78, "documents": 78, "bytes": 480_120, "kept_documents": 78,
             "kept_bytes": 470_004, "packages": 0},
        ],
        "drop_reasons": {
            "over_per_package_bytes": {"documents": 3120, "bytes": 70_120_004},
            "tests": {"documents": 1822, "bytes": 22_004_120},
            "duplicate": {"documents": 403, "bytes": 2_001_440},
            "near_duplicate": {"documents": 204, "bytes": 1_930_222},
            "vendored": {"documents": 190, "bytes": 3_110_870},
            "too_short": {"documents": 120, "bytes": 4_118},
            "binary": {"documents": 12, "bytes": 8_112_004},
        },
        "splits": {
            "train": {"documents": 3970, "bytes": 22_660_118},
            "heldout": {"documents": 210, "bytes": 1_192_216},
        },
        "removed": {"emails": 512, "secrets": 3},
        "samples": {
            "kept": [
                {"source": "python3.11/heapq.py", "text": '"""Heap queue algorithm (a.k.a. priority queue).\n\n'
                 'Heaps are arrays for which a[k] <= a[2*k+1] and a[k] <= a[2*k+2] for\nall k.\n"""'},
                {"source": "site-packages/rich/rule.py", "text": "class Rule(JupyterMixin):\n    ..."},
            ],
            "dropped": [
                {"source": "site-packages/numpy/tests/test_x.py", "reason": "tests", "text": "def test_x(): pass"},
                {"source": "site-packages/x/data.py", "reason": "near_duplicate", "text": "TABLE = [\n  1,\n]"},
            ],
        },
    },
    "facts": {
        "facts": 11_201,
        "by_kind": {"function": 4_120, "method": 5_204, "class": 1_290, "module": 509, "topic": 78},
        "by_split": {"train": 10_640, "heldout": 561},
    },
    "tokenizer": {
        "vocab_size": 8192,
        "bytes_per_token": {"heldout": 3.41, "by_group": {"packages": 3.36, "stdlib": 3.44, "topics": 3.92}},
        "peers": {"gpt2": 2.62, "cl100k": 4.05},
        "unused_tokens": 212,
        "longest": ["                                ", "################################", " NotImplementedError"],
    },
    "questions": {
        "sft_train": 14_201, "sft_heldout": 800, "preferences_train": 5_120, "preferences_heldout": 402,
        "choices_seen": 400, "choices_heldout": 200,
        "forms": {"what": 6_204, "args": 2_130, "which": 2_410, "example": 702, "grounded": 2_100, "unknown": 655},
        "samples": [
            {"messages": [{"role": "user", "content": "What does `heapq.nlargest` do?"},
                          {"role": "assistant", "content": "Find the n largest elements in a dataset."}],
             "fact": "heapq.nlargest", "form": "what"},
            {"messages": [{"role": "user", "content": "Which function finds the n largest elements?"},
                          {"role": "assistant", "content": "`heapq.nlargest`"}], "fact": "f", "form": "which"},
        ],
    },
    "tokens": {
        "train": {"stdlib": {"tokens": 3_201_000, "bytes": 11_000_000, "documents": 930},
                  "packages": {"tokens": 3_402_000, "bytes": 11_200_000, "documents": 2_960}},
        "heldout": {"stdlib": {"tokens": 170_120, "bytes": 590_000, "documents": 52},
                    "packages": {"tokens": 181_900, "bytes": 602_216, "documents": 158}},
    },
    "baselines": {
        "xz_bits_per_byte": 1.79, "xz_context_bits_per_byte": 1.31, "ngram5_bits_per_byte": 1.92,
        "heldout_bytes": 1_192_216, "heldout_tokens": 352_020, "train_tokens": 6_603_000,
    },
    "pretrain": {
        "shape": {"num_layers": 6, "hidden_size": 256, "num_heads": 8, "num_kv_heads": 4}, "parameters": 6_294_016,
        "steps": 1200, "tokens": 9_830_400, "history": _training_rows(1200, 3.4, 1.24, "bits_per_byte", 0.05),
    },
    "sft": {
        "parameters": 6_294_016, "steps": 600, "tokens": 1_204_110,
        "history": _training_rows(600, 1.9, 0.35, "loss", 0.4),
    },
    "dpo": {
        "parameters": 6_294_016, "steps": 160, "tokens": 410_220,
        "history": _training_rows(160, 0.55, 0.93, "accuracy", -0.08),
    },
    "index": {"passages": 40_120},
    "quantize": {"max_logit_difference": 0.04, "bytes_before": 25_120_998, "bytes_after": 8_830_112},
    "evaluate": {
        "bits_per_byte": {"untrained": 3.98, "base": 1.287, "sft": 1.402, "dpo": 1.43, "int8": 1.431, "xz": 1.79,
                          "xz_context": 1.31, "ngram5": 1.92},
        "choices": {"base": _choices(0.31, 0.29, 0.62, 0.6), "sft": _choices(0.71, 0.36, 0.95, 0.93),
                    "dpo": _choices(0.78, 0.38, 0.965, 0.945)},
        "preferences": {"sft": {"seen": 0.81, "heldout": 0.66}, "dpo": {"seen": 0.93, "heldout": 0.74}},
        "samples": [
            {"question": "What does `heapq.nlargest` do?",
             "answers": {"base": " def nlargest(n, iterable, key=None):\n    return sorted(", "sft": "Find the n "
                         "largest elements in a dataset.", "dpo": "Find the n largest elements in a dataset.",
                         "dpo_retrieval": "`heapq.nlargest` finds the n largest elements in a dataset."},
             "citations": ["python3.11/heapq.py:523"]},
            {"question": "What arguments does `shutil.copytree` take?",
             "answers": {"base": "\n\n    :param src: the", "sft": "`src`, `dst`, `symlinks=False`, `ignore=None`.",
                         "dpo": "`src`, `dst`, `symlinks=False`, `ignore=None`, `copy_function=copy2`.",
                         "dpo_retrieval": "It takes `(src, dst, symlinks=False, ignore=None, copy_function=copy2, "
                         "ignore_dangling_symlinks=False, dirs_exist_ok=False)`."},
             "citations": ["python3.11/shutil.py:557", "python3.11/shutil.py:452"]},
        ],
        "next_token": [
            {"prompt": "The capital of France is", "top": [{"token": " a", "probability": 0.21},
             {"token": " the", "probability": 0.13}, {"token": " not", "probability": 0.06},
             {"token": " that", "probability": 0.04}, {"token": "\n", "probability": 0.02}]},
            {"prompt": "def __init__(self, ", "top": [{"token": "*", "probability": 0.32},
             {"token": "name", "probability": 0.08}, {"token": "path", "probability": 0.03}], "actual": "*"},
            {"prompt": "import numpy as", "top": [{"token": " np", "probability": 0.971},
             {"token": " _", "probability": 0.006}]},
        ],
    },
}  # fmt: skip


def manifests() -> dict[str, dict[str, Any]]:
    """stage -> manifest, for every stage but the report."""
    made: dict[str, dict[str, Any]] = {}
    for stage, node in LINE.items():
        if stage == "report":
            continue
        outputs = {
            output for n in LINE.values() for maker, output in n.inputs.values() if maker == stage
        }
        outputs -= {"manifest"}
        made[stage] = {
            "schema": 1,
            "stage": stage,
            "key": _sha(stage),
            "config": {
                "seed": 0,
                "max_bytes": 24_000_000,
                "optim": {"lr_peak": 0.02, "schedule": "wsd"},
            },
            "inputs": {
                name: {"path": f"{maker}/{output}", "sha256": _sha(maker), "stage": maker}
                for name, (maker, output) in node.inputs.items()
            },
            "outputs": {
                output: {"path": f"{stage}/{output}", "sha256": _sha(stage), "bytes": SIZES[stage]}
                for output in sorted(outputs)
            },
            "metrics": METRICS[stage],
            "seed": 0,
            "versions": {"gristmill": "0.1.0", "python": "3.11.7", "torch": "2.13.0"},
            "seconds": SECONDS[stage],
            "peak_memory_bytes": 1_204_000_000,
            "finished": "2026-11-24T14:00:00+00:00",
        }
    return made
