from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from gristmill.formats import Model
from tests.tiny_model import random_model


@pytest.fixture(scope="session")
def model() -> Model:
    return random_model(max_seq_len=64)


@pytest.fixture(scope="session")
def oracle(
    model: Model, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[list[int]], torch.Tensor]:
    """log p(next token) at every place of a row of ids, float64 [T, V], by transformers."""
    from transformers import AutoModelForCausalLM

    path = tmp_path_factory.mktemp("exported")
    model.save(path)
    network = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()

    @torch.no_grad()
    def log_probs(ids: list[int]) -> torch.Tensor:
        return network(torch.tensor([ids])).logits[0].double().log_softmax(-1)

    return log_probs


TEXTS = {
    "heldout": {
        "a": {
            "a/one.py": "def heappush(heap, item):\n    heap.append(item)\n" * 3,
            "a/two.md": "naïve 🙂 text about heaps\n" * 2,
        },
        "b": {"b/long.py": "for i in range(10):\n    heap[i] = nlargest(i, heap)\n" * 12},
    },
    "train": {
        "a": {f"a/{n}.py": f"def f{n}(heap):\n    return heap[{n}]\n" * 8 for n in range(6)},
        "b": {"b/x.md": "Heaps are arrays for which a[k] <= a[2*k+1]\n" * 5},
    },
}


def write_shards(directory: Path, model: Model, texts: dict = TEXTS) -> Path:
    """Token shards as the tokens stage lays them out, of {split: {group: {id: text}}}."""
    directory.mkdir(parents=True)
    tokenizer = model.tokenizer
    manifest: dict = {"vocab_size": tokenizer.vocab_size, "dtype": "uint16", "splits": {}}
    for split, groups in texts.items():
        manifest["splits"][split] = {}
        for group, documents in groups.items():
            rows = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in documents.values()]
            tokens = np.array([id for row in rows for id in row], np.uint16)
            np.save(directory / f"{split}.{group}.npy", tokens)
            np.save(
                directory / f"{split}.{group}.offsets.npy",
                np.cumsum([0, *map(len, rows)], dtype=np.int64),
            )
            (directory / f"{split}.{group}.ids.json").write_text(json.dumps(list(documents)))
            manifest["splits"][split][group] = {
                "tokens": len(tokens),
                "bytes": sum(len(text.encode()) for text in documents.values()),
                "documents": len(documents),
            }
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory


@pytest.fixture(scope="session")
def shards(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("line") / "tokens", model)
