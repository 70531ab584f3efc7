from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gristmill.errors import RequestError, WorkError
from gristmill.evaluate import Document, bits_per_byte, read_documents, spell, total
from tests.evaluate.conftest import TEXTS, write_shards


def document(ids: list[int], size: int = 100, group: str = "a") -> Document:
    return Document("x", group, np.array(ids, np.uint16), size)


def test_documents_that_fit_the_context_cost_what_transformers_says(model, oracle, shards) -> None:
    documents = [
        d for d in read_documents(shards, "heldout", model.tokenizer) if len(d.tokens) <= 65
    ]
    assert len(documents) >= 1
    short = [document([0, *range(5, 5 + n)], n) for n in (1, 2, 30, 64)]
    for one in [*documents, *short]:
        ids = one.tokens.tolist()
        log_probs = oracle(ids[:-1])
        nats = -sum(log_probs[i, id].item() for i, id in enumerate(ids[1:]))
        found = total(bits_per_byte(model.network, [one]))
        assert found.bits == pytest.approx(nats / math.log(2), rel=1e-6)
        assert (found.bytes, found.tokens) == (one.size, len(ids) - 1)
        assert found.per_byte == found.bits / one.size


@pytest.mark.parametrize(("length", "context"), [(66, 64), (41, 8), (9, 1), (100, 33)])
def test_longer_documents_are_read_in_half_overlapping_windows(
    model, oracle, length: int, context: int
) -> None:
    """The rule, one token at a time: token i is scored in the first window that reaches it."""
    rng = np.random.default_rng(length)
    ids = rng.integers(0, 512, length).tolist()
    nats, start, end, seen = 0.0, 0, 0, []
    for i in range(1, length):
        if i > end:
            start = max(0, end - context // 2) if end else 0
            end = min(length - 1, start + context)
        seen.append(i - start)
        nats -= oracle(ids[start:i])[-1, ids[i]].item()
    assert max(seen) <= context
    assert all(count > context // 2 for count in seen[context:])  # never less than half a window
    found = total(bits_per_byte(model.network, [document(ids)], context=context))
    assert found.bits == pytest.approx(nats / math.log(2), rel=1e-6)
    assert found.tokens == length - 1


def test_batches_change_nothing_and_groups_add_up(model, shards) -> None:
    documents = read_documents(shards, "heldout", model.tokenizer)
    groups = bits_per_byte(model.network, documents)
    assert list(groups) == ["a", "b"]
    alone = [total(bits_per_byte(model.network, [one])) for one in documents]
    assert total(groups).bits == pytest.approx(sum(one.bits for one in alone), rel=1e-9)
    texts = [text for group in TEXTS["heldout"].values() for text in group.values()]
    assert total(groups).bytes == sum(len(text.encode()) for text in texts)


def test_a_document_without_text_costs_nothing(model) -> None:
    found = total(bits_per_byte(model.network, [document([0], 0)]))
    assert (found.bits, found.bytes, found.tokens) == (0, 0, 0)
    assert math.isnan(found.per_byte)


def test_lower_precision_is_near(model, shards) -> None:
    documents = read_documents(shards, "heldout", model.tokenizer)[:1]
    full = total(bits_per_byte(model.network, documents)).per_byte
    half = total(bits_per_byte(model.network, documents, dtype=torch.bfloat16)).per_byte
    assert half != full
    assert half == pytest.approx(full, rel=0.05)


def test_documents_come_back_whole_and_in_an_order_of_their_own(model, shards) -> None:
    documents = read_documents(shards, "heldout", model.tokenizer)
    texts = {id: text for group in TEXTS["heldout"].values() for id, text in group.items()}
    assert {d.id for d in documents} == set(texts)
    for one in documents:
        assert spell([one], model.tokenizer) == texts[one.id].encode()
        assert one.size == len(texts[one.id].encode())
    assert spell(documents, model.tokenizer) == "".join(texts[d.id] for d in documents).encode()
    sizes = [d.size for d in documents]
    ids = [d.id for d in documents]
    for limit, count in ((sum(sizes), 3), (sum(sizes[:2]) + 1, 2), (sum(sizes[:2]), 2), (1, 1)):
        some = read_documents(shards, "heldout", model.tokenizer, limit)
        assert [d.id for d in some] == ids[:count]


def test_shards_that_do_not_fit_together_are_refused(model, tmp_path) -> None:
    with pytest.raises(RequestError, match=r"no manifest\.json"):
        read_documents(tmp_path, "heldout", model.tokenizer)
    shards = write_shards(tmp_path / "shards", model)
    with pytest.raises(RequestError, match='no "test" split'):
        read_documents(shards, "test", model.tokenizer)
    manifest = shards / "manifest.json"
    size = sum(len(text.encode()) for text in TEXTS["heldout"]["a"].values())
    whole = manifest.read_text()
    manifest.write_text(whole.replace(f'"bytes": {size}', f'"bytes": {size + 1}'))
    with pytest.raises(WorkError, match=f"spells {size} bytes where its manifest counts"):
        read_documents(shards, "heldout", model.tokenizer)
    manifest.write_text(whole)
    (shards / "heldout.a.ids.json").write_text('["a/one.py"]')
    with pytest.raises(WorkError, match="do not belong together"):
        read_documents(shards, "heldout", model.tokenizer)
