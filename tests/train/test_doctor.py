"""What is broken on purpose is named: the layer, the row, the document, the setting."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from gristmill.files import hash_path, write_json
from gristmill.train import checkpoint, trainer
from gristmill.train.checkup import checkup
from gristmill.train.doctor import diagnose
from gristmill.train.examine import examine
from gristmill.train.loss import linear_cross_entropy
from gristmill.train.origin import origins
from gristmill.train.parallel.leaves import leaves
from gristmill.train.parallel.spread import Rows
from gristmill.train.pretrain import PretrainConfig, work
from gristmill.train.trainer import Diverged
from gristmill.train.windows import Windows
from tests.train.corpus import (
    VOCAB,
    corpus,
    make_tokenizer,
    random_network,
    tiny_pretrain,
    write_tokens,
)


def with_documents(tokens_dir: Path, group: str, lengths: list[int]) -> None:
    """The list of documents of a shard, as the tokens stage leaves it."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    np.save(tokens_dir / f"train.{group}.offsets.npy", offsets)
    ids = [f"{group}/{number}.txt" for number in range(len(lengths))]
    write_json(tokens_dir / f"train.{group}.ids.json", ids)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, Path]:
    return corpus(tmp_path_factory.mktemp("corpus"))


def pretrain(
    config: PretrainConfig, inputs: dict[str, Path], out: Path, until: int = 10**9
) -> dict[str, Any]:
    out.mkdir(exist_ok=True)

    def stop(done: float, *_: Any, **__: Any) -> None:
        if done >= until:
            raise KeyboardInterrupt

    return work(config, inputs, out, None, stop, log_every=4)


def test_a_rate_that_is_too_high_is_named_by_the_error_itself(inputs, tmp_path):
    config = tiny_pretrain(warm_start="none", lr_peak=1e18)
    with pytest.raises(Diverged, match=r"Diagnosis: The learning rate is too high.*lr_peak"):
        pretrain(config, inputs, tmp_path / "run")
    before = hash_path(tmp_path / "run")
    found = diagnose(tmp_path / "run", config, inputs)
    assert found.cause == "learning rate" and "pretrain.lr_peak (now 1e+18)" in found.cure
    assert found.replayed_from == 0 and not found.healthy
    assert hash_path(tmp_path / "run") == before  # it only looks


def test_the_rate_of_the_embeddings_is_told_from_that_of_the_matrices(inputs, tmp_path):
    config = tiny_pretrain(warm_start="none", lr_embedding_peak=1e18)
    with pytest.raises(Diverged):
        pretrain(config, inputs, tmp_path / "run")
    found = diagnose(tmp_path / "run", config, inputs)
    assert found.cause == "learning rate" and "pretrain.lr_embedding_peak" in found.cure


def test_an_update_that_leaves_infinite_weights_at_the_very_end(inputs, tmp_path):
    config = tiny_pretrain(warm_start="none", tokens=256, lr_embedding_peak=1e40, evaluations=0)
    with pytest.raises(Diverged, match="at its last step"):
        pretrain(config, inputs, tmp_path / "run")
    found = diagnose(tmp_path / "run", config, inputs)
    assert found.step == 0 and found.cause == "learning rate"
    assert found.place == "model.embed_tokens.weight" and "lr_embedding_peak" in found.cure


@pytest.mark.parametrize("older", [True, False])
def test_a_checkpoint_that_holds_nan(inputs, tmp_path, older):
    config, stage = tiny_pretrain(checkpoint_seconds=0), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        pretrain(config, inputs, stage, until=12)
    trainer_left = sorted((stage / "checkpoints").iterdir())
    newest = trainer_left[-1]
    dcp_to_torch_save(newest, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=False)
    name = "model.layers.1.mlp.up_proj.weight"
    state["network"][name][3, 5] = math.nan
    checkpoint.save(stage / "checkpoints", int(newest.name[-8:]), state)
    if not older:
        for path in trainer_left[:-1]:
            path.rename(tmp_path / path.name)
    with pytest.raises(Diverged, match=name):
        pretrain(config, inputs, stage)
    found = diagnose(stage, config, inputs)
    assert (found.cause, found.place, found.step) == ("checkpoint", name, int(newest.name[-8:]))
    assert found.replayed_from == (int(trainer_left[-2].name[-8:]) if older else 0)
    hurried = diagnose(stage, config, inputs, patience=1e-6)  # no time to make a step again
    assert (hurried.cause, hurried.place, hurried.replayed_from) == ("checkpoint", name, None)


def test_garbage_in_one_row_is_found_with_its_document(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.save(tmp_path / "tokenizer")
    phrase = [*tokenizer.document_start, *tokenizer.encode("def heappush(heap, item):\n    ")]
    ids = np.array((phrase * 6000)[: 64 * 900 + 1])
    tokens = write_tokens(tmp_path / "tokens", {"train": {"code": ids}})
    inputs = {"tokens": tokens, "tokenizer": tmp_path / "tokenizer"}
    config = tiny_pretrain(
        warm_start="none",
        tokens=200 * 256,
        evaluations=0,
        on_spike="stop",
        lr_peak=0.01,
        checkpoint_seconds=0,
    )
    # The row that is first seen at step 160, after the guard has learned what is usual.
    windows = Windows(tokens, "train", 64, {}, config.seed)
    [place] = origins(windows, tokens, 160 * 4 + 2, 1)
    noise = np.random.default_rng(0).permutation(VOCAB - 80)[:64]
    ids[place.start : place.start + 64] = noise
    write_tokens(tokens, {"train": {"code": ids}})
    with_documents(tokens, "code", [place.start + 10, 54, len(ids) - place.start - 64])
    with pytest.raises(Diverged, match=r'Diagnosis: The batch is at fault.*document "code/1.txt"'):
        pretrain(config, inputs, tmp_path / "run")
    found = diagnose(tmp_path / "run", config, inputs)
    assert (found.step, found.cause) == (160, "data")
    [suspect] = found.suspects
    assert (suspect.row, suspect.document, suspect.start) == (2, "code/1.txt", place.start)
    assert suspect.documents == ("code/0.txt", "code/1.txt")
    assert any("noise" in clue for clue in suspect.clues)
    # Where the way there would take too long, its tokens alone give it away.
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        path.rename(tmp_path / path.name)
    glance = diagnose(tmp_path / "run", config, inputs, patience=1e-6)
    assert glance.cause == "data" and glance.replayed_from is None
    assert [s.row for s in glance.suspects] == [2]


def test_what_cannot_be_made_again_is_not_blamed_on_data_or_settings(inputs, tmp_path):
    config = tiny_pretrain(warm_start="none")
    pretrain(config, inputs, tmp_path / "run")
    row = {"step": 7, "batch": 7, "what": "loss nan, gradient norm nan", "action": "stop"}
    trainer.append_row(tmp_path / "run" / "incidents.jsonl", row)
    (tmp_path / "run" / "metrics.jsonl").unlink()
    found = diagnose(tmp_path / "run", config, inputs)
    assert (found.step, found.cause) == (7, "not reproduced")
    assert "doctor parallel" in found.cure


def test_an_id_outside_of_the_vocabulary(inputs, tmp_path):
    stage = tmp_path / "run"
    stage.mkdir()
    ids = np.arange(64 * 40 + 1) % VOCAB
    ids[:] = np.where(np.arange(len(ids)) % 64 == 9, VOCAB + 3, ids)
    tokens = write_tokens(tmp_path / "tokens", {"train": {"code": ids}})
    row = {"step": 2, "batch": 2, "what": "index out of range", "action": "stop"}
    trainer.append_row(stage / "incidents.jsonl", row)
    config = tiny_pretrain(warm_start="none")
    found = diagnose(stage, config, {"tokens": tokens, "tokenizer": inputs["tokenizer"]})
    assert found.cause == "vocabulary" and f"holds the token {VOCAB + 3}" in found.sentence


def test_a_healthy_run_passes(inputs, tmp_path):
    config = tiny_pretrain()
    pretrain(config, inputs, tmp_path / "run")
    found = diagnose(tmp_path / "run", config, inputs)
    assert found.healthy and found.cause == "none"
    states = {check.name: check.state for check in found.checks}
    assert states["incidents"] == states["steps"] == states["loss"] == "good"
    assert "held-out text" in states and "data" in states


def test_the_checklist_on_numbers_that_are_known(tmp_path):
    def rows(losses: list[float], heldout: list[float], norms: list[float]) -> None:
        made = zip(losses, heldout, norms, strict=True)
        (tmp_path / "metrics.jsonl").unlink(missing_ok=True)
        for step, (loss, bits, norm) in enumerate(made, 1):
            row = {"step": step, "loss": loss, "heldout_bits_per_byte": bits, "grad_norm": norm}
            trainer.append_row(tmp_path / "metrics.jsonl", row)

    def states(steps: int = 8, **epochs: float) -> dict[str, str]:
        return {check.name: check.state for check in checkup(tmp_path, steps, epochs)}

    falls = [5.0, 4, 3.5, 3, 2.8, 2.6, 2.5, 2.4]
    rows(falls, falls, [1.0] * 8)
    assert set(states(code=1.0).values()) == {"good"}
    assert states(code=4.5)["data"] == "look"
    assert states(steps=9)["steps"] == "look"
    rows(falls[::-1], falls, [1.0] * 8)
    assert states()["loss"] == "bad"
    rows(falls, [3, 2, 1.5, 1.4, 1.5, 1.6, 1.7, 1.8], [1.0] * 4 + [9.0] * 4)
    found = states()
    assert found["held-out text"] == found["gradients"] == "look"


class NextOf:
    """Cross-entropy of rows, as pretraining has it."""

    def loss(self, network: Any, batch: Rows, dtype: torch.dtype) -> Any:
        hidden = network.hidden(batch.tokens, dtype=dtype)
        flat = hidden.flatten(0, 1), network.head.weight, batch.targets.flatten()
        return linear_cross_entropy(*flat)[0], batch.targets.numel(), {}


def some_rows() -> Rows:
    ids = torch.from_numpy(np.random.default_rng(1).integers(0, VOCAB, (3, 17)))
    return Rows(ids[:, :-1], ids[:, 1:], torch.arange(16).expand(3, 16), None)


def test_a_step_is_examined_as_autograd_makes_it():
    network, batch = random_network(), some_rows()
    found = examine(network, leaves([network]), NextOf(), batch, torch.float32)
    losses = F.cross_entropy(network(batch.tokens).transpose(1, 2), batch.targets, reduction="none")
    losses.mean().backward()
    norm = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]).norm()
    assert found.loss == pytest.approx(losses.mean().item(), rel=1e-5)
    assert found.norm == pytest.approx(norm.item(), rel=1e-4)
    assert [r.loss for r in found.rows] == pytest.approx(losses.mean(1).tolist(), rel=1e-5)
    assert found.finite and not found.forward.first_bad and not found.bad_gradients


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.1.mlp.down_proj.weight", "model.layers.1.mlp.down_proj output"),
        ("model.layers.0.self_attn.k_norm.weight", "model.layers.0.self_attn.k_norm output"),
        ("model.norm.weight", "model.norm output"),
    ],
)
def test_the_first_module_that_is_not_finite(name, place):
    network = random_network()
    with torch.no_grad():
        network.get_parameter(name).view(-1)[0] = math.inf
    found = examine(network, leaves([network]), NextOf(), some_rows(), torch.float32)
    assert found.forward.first_bad == place and not found.finite


def test_every_row_is_where_its_origin_says(inputs, tmp_path):
    windows = Windows(inputs["tokens"], "train", 64, {}, 3)
    shards = dict(zip(windows.groups, windows.tokens, strict=True))
    rows = windows.rows(500, 40)
    for row, place in zip(rows, origins(windows, inputs["tokens"], 500, 40), strict=True):
        assert (row == shards[place.group][place.start : place.start + 65]).all()
        assert place.spans == ()
    lengths = {name: [100, 0, 7, len(shard) - 107] for name, shard in shards.items()}
    write_tokens(tmp_path, {"train": {k: np.asarray(v) for k, v in shards.items()}})
    for name, sizes in lengths.items():
        with_documents(tmp_path, name, sizes)
    seen = set()
    for place in origins(windows, tmp_path, 0, 400):
        assert [s.begin for s in place.spans[1:]] == [s.end for s in place.spans[:-1]]
        assert place.spans[0].begin == 0 and place.spans[-1].end == 64
        for span in place.spans:
            number = int(span.document.split("/")[1].split(".")[0])
            begin = sum(lengths[place.group][:number])
            assert begin <= place.start + span.begin < place.start + span.end
            assert place.start + span.end <= begin + lengths[place.group][number]
            seen.add(number)
    assert seen == {0, 2, 3}  # the empty document is nowhere
