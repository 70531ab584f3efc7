"""The price tag: each number against its definition, and where it is written."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gristmill.errors import RequestError
from gristmill.evaluate.price import (
    HEADING,
    check_unseen,
    footnotes,
    measure_distance,
    on_disk,
    price,
    rows,
    write_card,
)
from gristmill.formats import Model
from gristmill.quantize import QuantizeConfig, Windows, quantize
from tests.tiny_model import random_model


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("price")
    random_model().save(path / "full", card="# Mine\n\n## Limits\n\n- None.\n")
    quantize(path / "full", path / "rtn", QuantizeConfig(method="rtn", group="channel"))
    quantize(path / "full", path / "int8", QuantizeConfig(method="int8"))
    quantize(path / "full", path / "q.gguf", QuantizeConfig(method="gguf", type="Q8_0"))
    return path


@pytest.fixture(scope="module")
def windows() -> Windows:
    tokens = torch.randint(0, 512, (5, 40), generator=torch.Generator().manual_seed(2))
    return Windows(tokens, "held-out.txt", "0" * 64, 0)


def test_distances_are_those_of_the_definitions(place, windows):
    """Computed again in float64 by numpy, over all windows at once."""
    full, copy = Model.load(place / "full"), Model.load(place / "rtn")
    found = measure_distance(full, copy, windows.tokens)
    tokens = windows.tokens.numpy()
    p, q = (
        np.concatenate([m(window[None]).double().numpy() for window in windows.tokens])
        for m in (full, copy)
    )
    p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (p, q))
    kl = (np.exp(p) * (p - q)).sum(-1)
    assert found.tokens == 200
    assert found.kl_mean == pytest.approx(kl.mean(), rel=1e-4)
    assert found.kl_p99 == pytest.approx(np.sort(kl.ravel())[197], rel=1e-4)  # the 198th of 200
    assert found.same_top == pytest.approx((p.argmax(-1) == q.argmax(-1)).mean())
    for logprobs, perplexity in ((p, found.perplexity_before), (q, found.perplexity_after)):
        nats = -np.take_along_axis(logprobs[:, :-1], tokens[:, 1:, None], -1).mean()
        assert perplexity == pytest.approx(math.exp(nats), rel=1e-4)
    ratio = found.perplexity_after / found.perplexity_before
    assert found.perplexity_ratio == pytest.approx(ratio)
    assert found.kl_mean > 0.01  # four bits a row cost something


def test_a_copy_of_itself_costs_nothing(place, windows):
    full = Model.load(place / "full")
    found = measure_distance(full, full, windows.tokens)
    assert (found.perplexity_ratio, found.kl_mean, found.kl_p99, found.same_top) == (1, 0, 0, 1)


def test_bits_per_weight_are_those_of_the_formats(place):
    """F32 is 32; int8 with an fp32 scale a row 8 + 32/in; Q8_0 8.5. Norms are whole."""
    config = Model.load(place / "full").config
    embedded = config.vocab_size * config.hidden_size
    norms = config.num_layers * (2 * 48 + 2 * 16) + 48
    inside = config.num_parameters - embedded
    full = on_disk(place / "full")
    assert (full.bits_per_weight, full.bits_per_weight_inside) == (32, 32)
    assert full.bytes == (place / "full" / "model.safetensors").stat().st_size
    assert full.embedding_bytes == 4 * embedded
    assert on_disk(place / "q.gguf").bytes == (place / "q.gguf").stat().st_size
    rows_of = {48: 64 + 2 * 32 + 2 * 96, 64: 48, 96: 48}
    weights = sum(width * count for width, count in rows_of.items())
    eight = config.num_layers * (8 * weights + 32 * sum(rows_of.values())) + 32 * norms
    assert on_disk(place / "int8").bits_per_weight_inside == pytest.approx(eight / inside)
    assert on_disk(place / "q.gguf").bits_per_weight_inside < 20


def test_the_calibration_text_is_refused(windows):
    other = replace(windows, source_sha256="1" * 64)
    check_unseen(windows, None)
    check_unseen(windows, other)
    with pytest.raises(RequestError, match=r"held-out.txt is the text that was calibrated on"):
        check_unseen(windows, replace(windows, tokens=windows.tokens[:1]))


def test_models_of_other_vocabularies_are_refused(place, windows):
    other = random_model(vocab_size=500)
    with pytest.raises(RequestError, match="vocabulary of 500 tokens"):
        measure_distance(Model.load(place / "full"), other, windows.tokens)


def test_the_tag_is_written_into_the_card_once_and_as_json(place, windows):
    made = {"method": "rtn", "calibration_sha256": "ab" * 32, "seed": 7, "seconds": 1.5}
    made |= {"peak_memory_bytes": 2_000_000_000}
    found = price(place / "full", place / "rtn", windows, made=made, seconds=5)
    assert found.after.decode_tokens_per_s and found.before.prefill_tokens_per_s
    assert 0 < found.bytes_ratio < 1
    for _ in range(2):
        card, numbers = write_card(place / "rtn", found)
    text = card.read_text()
    assert text.startswith("# Mine") and text.count(HEADING) == 1 and "## Limits\n\n- None." in text
    for part in ("seed 7", "ab" * 32, "wall time 1.5 s", "peak memory 2.00 GB", "held-out.txt"):
        assert part in text, part
    for what, before, after in rows(found):
        assert f"| {what} | {before} | {after} |" in text
    stored = json.loads(numbers.read_text())
    assert stored["distance"]["kl_mean"] == found.distance.kl_mean
    assert stored["made"]["seed"] == 7 and stored["after"]["bytes"] == found.after.bytes


def test_embeddings_that_dominate_are_told_of_where_they_are_kept(place, windows):
    found = price(place / "full", place / "int8", windows, made={"method": "int8"}, seconds=0)
    share = found.after.embedding_bytes / found.after.bytes
    says = f"Embeddings and head stay in full precision and are {share:.0%} of it"
    assert share > 0.3 and footnotes(found)[0].startswith(says)
    for other in (
        replace(found, made={"method": "gguf"}),
        replace(found, made={}),
        replace(found, after=replace(found.after, bytes=4 * found.after.embedding_bytes)),
    ):
        assert not any("Embeddings" in sentence for sentence in footnotes(other))


def test_a_gguf_files_card_lies_beside_it(place, windows):
    found = price(place / "full", place / "q.gguf", windows, seconds=0)
    card, numbers = write_card(place / "q.gguf", found)
    assert (card.name, numbers.name) == ("q.md", "q.price.json")
    assert card.read_text().startswith("# q\n") and found.distance.perplexity_ratio < 1.05
    assert found.before.decode_tokens_per_s is None and "decode" not in card.read_text()


def test_activations_are_said_as_the_copys_kernels_see_them(place, windows):
    found = price(place / "full", place / "q.gguf", windows, seconds=0)
    assert found.activations == "rounded to 8 bits"
    assert price(place / "full", place / "int8", windows, seconds=0).activations == "full precision"


def test_a_directorys_card_has_its_whole_name(place, windows):
    found = price(place / "full", place / "q.gguf", windows, seconds=0)
    bare = place / "Llama-3.1-8B-gptq"
    bare.mkdir()
    assert write_card(bare, found)[0].read_text().startswith("# Llama-3.1-8B-gptq\n")
