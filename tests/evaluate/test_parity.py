"""parity: paths that agree pass, and a path that is wrong is found."""

from __future__ import annotations

import pytest
import torch

from gristmill.engine import Engine
from gristmill.evaluate.parity import TOLERANCE, parity
from gristmill.evaluate.parity_paths import ENGINE_PATHS, MESSAGES, Reading, make_probes
from gristmill.formats import Model
from gristmill.quantize import Int8Config, run
from gristmill.tokenizer import Tokenizer
from tests.tiny_model import random_model, taught_model


@pytest.fixture(scope="module")
def taught(tmp_path_factory) -> Model:
    path = tmp_path_factory.mktemp("parity") / "taught"
    taught_model().save(path)
    return Model.load(path)


def test_every_path_of_the_engine_agrees_with_the_trainer(taught) -> None:
    results = {result.path: result for result in parity(taught)}
    assert list(results) == [name for name, _ in ENGINE_PATHS]
    exact = Engine(taught).runner.exact
    for result in results.values():
        assert result.status == "same", result
        assert 0 <= result.mean_difference <= result.max_difference <= TOLERANCE
        assert result.tokens >= 48 and result.same_top > 0.99
        assert result.identical or not exact


def test_the_reference_is_that_of_transformers(taught) -> None:
    """What the paths are compared with is what another program computes from the saved model."""
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(taught.path, dtype=torch.float32).eval()
    probes = make_probes(taught)
    assert probes.chat == taught.tokenizer.chat_ids(MESSAGES, add_generation_prompt=True)
    readings = ENGINE_PATHS[0][1](taught, probes)[1]
    for reading in readings:
        with torch.no_grad():
            log_probs = network(torch.tensor([reading.ids])).logits[0].log_softmax(-1)
        for at, value in enumerate(reading.logprobs, reading.first):
            assert float(log_probs[at - 1, reading.ids[at]]) == pytest.approx(value, abs=TOLERANCE)


def test_copies_in_other_formats(taught, tmp_path) -> None:
    for kind in ("F32", "F16", "Q8_0", "Q4_0"):
        taught.save(tmp_path / f"{kind}.gguf", quant=kind)
    int8 = run(Int8Config(), {"model": taught.path}, tmp_path / "int8").outputs["model"]
    kinds = [*(tmp_path / f"{kind}.gguf" for kind in ("F32", "F16", "Q8_0", "Q4_0")), int8]
    results = list(parity(taught, kinds))[len(ENGINE_PATHS) :]
    assert [result.status for result in results] == ["same"] * 5
    assert [(result.same_texts, result.same_chat) for result in results] == [(True, True)] * 5
    assert results[0].max_difference <= TOLERANCE and results[0].bound == "≤ 1e-04"
    assert [result.bound for result in results[1:]] == [
        f"KL ≤ {b}" for b in (0.0001, 0.01, 1.5, 0.01)
    ]
    assert 0 < results[2].kl < results[3].kl


def test_copies_that_say_something_else_are_broken(taught, tmp_path) -> None:
    changed = taught_model()
    config = changed.config
    other = Model(type(changed.network)(config), changed.tokenizer)
    state = {name: tensor.clone() for name, tensor in changed.network.state_dict().items()}
    state["model.layers.1.mlp.up_proj.weight"][3] *= 1.01
    other.network.load_state_dict(state)
    other.save(tmp_path / "weights")
    told = {**changed.tokenizer.config, "chat_template": "{{ messages[0]['content'] }}"}
    Model(changed.network, Tokenizer(changed.tokenizer.backend, told)).save(tmp_path / "template")
    random_model().save(tmp_path / "vocabulary")
    (tmp_path / "damaged.gguf").write_bytes(b"GGUF")
    paths = [tmp_path / name for name in ("weights", "template", "vocabulary", "damaged.gguf")]
    weights, template, vocabulary, damaged = list(parity(taught, paths))[len(ENGINE_PATHS) :]
    assert {r.status for r in (weights, template, vocabulary, damaged)} == {"broken"}
    assert weights.same_texts and weights.same_chat and weights.max_difference > TOLERANCE
    assert template.same_texts and template.same_chat is False
    assert template.why == "the chat becomes other ids: the chat templates differ"
    assert template.max_difference <= TOLERANCE
    assert "512 tokens and the model 640" in vocabulary.why and "damaged.gguf" in damaged.why


@pytest.mark.parametrize(
    ("error", "status"), [(5e-5, "same"), (1e-2, "broken"), (float("nan"), "broken")]
)
def test_a_path_that_is_wrong_is_found(taught, error, status) -> None:
    def wrong(model, probes):
        (reading, *_) = ENGINE_PATHS[0][1](model, probes)[1]
        first, *rest = reading.logprobs
        changed = Reading(reading.ids, reading.first, (first - error, *rest), reading.likeliest)
        return [changed], probes.chat

    *engine, found = parity(taught, others=[("wrong", wrong)])
    assert all(result.status == "same" for result in engine)
    exact = Engine(taught).runner.exact
    assert found.status == ("broken" if exact else status)  # an exact one forgives nothing
    assert found.identical is False


def test_other_ids_for_the_chat_are_found(taught) -> None:
    def wrong(model, probes):
        return ENGINE_PATHS[0][1](model, probes)[1], probes.chat[1:]

    found = list(parity(taught, others=[("wrong", wrong)]))[-1]
    assert (found.status, found.same_chat) == ("broken", False)
    assert found.why == "it made other ids of the chat"


def test_a_short_context_and_no_template(tmp_path) -> None:
    config = {k: v for k, v in random_model().tokenizer.config.items() if k != "chat_template"}
    model = random_model(max_seq_len=40)
    bare = Model(model.network, Tokenizer(model.tokenizer.backend, config))
    results = list(parity(bare, others=[("server", lambda model, probes: ([], None))]))
    assert {r.status for r in results} <= {"same", "not run"}
    assert results[-1].status == "not run" and "no chat template" in results[-1].why
    short = list(parity(model, others=[("server", lambda model, probes: ([], None))]))
    assert short[-1].status == "not run" and "in its context" in short[-1].why


def test_a_side_without_a_template_is_named(taught, tmp_path) -> None:
    def other(template: str | None) -> Model:
        config = {k: v for k, v in taught.tokenizer.config.items() if k != "chat_template"}
        config |= {} if template is None else {"chat_template": template}
        return Model(taught.network, Tokenizer(taught.tokenizer.backend, config))

    other(None).save(tmp_path / "bare")
    other("{{ raise_exception('no') }}").save(tmp_path / "failing")
    paths = [tmp_path / "bare", tmp_path / "failing"]
    bare, failing = list(parity(taught, paths))[len(ENGINE_PATHS) :]
    assert (bare.status, bare.same_texts, bare.same_chat) == ("same", True, None)
    assert bare.why == "the copy has no chat template, so no chat was compared"
    assert failing.same_chat is None and "the copy cannot render the chat (" in failing.why
    turned = list(parity(Model.load(tmp_path / "bare"), [taught.path]))[-1]
    assert turned.why == "the model has no chat template, so no chat was compared"
