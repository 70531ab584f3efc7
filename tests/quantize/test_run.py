"""Whole runs: what is written, what other tools make of it, and what a killed or refused run leaves."""

from __future__ import annotations

import json
import mmap
import re
from contextlib import contextmanager
from itertools import pairwise, product
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from gristmill.errors import RequestError, WorkError
from gristmill.files import hash_path
from gristmill.formats import Model, describe, load_network
from gristmill.formats.gguf import GGMLType
from gristmill.machine import resident_memory
from gristmill.quantize import (
    QuantizeConfig,
    Windows,
    driver,
    gguf,
    gptq,
    layerwise,
    quantize,
    read_windows,
)
from gristmill.quantize.layerwise import importances, linears
from gristmill.quantize.plan import Option, choose, undominated
from gristmill.quantize.work import keep_or_clear, key_of, locked
from gristmill.tokenizer import train_bpe
from tests import llama_cpp
from tests.families import saved
from tests.tiny_model import LESSONS, taught_model

CHATS = [
    [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    for question, answer in LESSONS
]


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("full") / "taught"
    taught_model().save(path, card="# Taught\n\nThree lessons.\n")
    return path


@pytest.fixture(scope="module")
def windows(tmp_path_factory) -> Windows:
    file = tmp_path_factory.mktemp("text") / "lessons.jsonl"
    file.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in CHATS * 10))
    return read_windows(file, taught_model().tokenizer, count=12, length=96)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("gpt2")
    network = load_network(saved("gpt2", place)[1])
    Model(network, train_bpe(iter(["a few words"]), 300)).save(place / "model")
    return place / "model"


def config(method: str = "gptq", **changes) -> QuantizeConfig:
    return QuantizeConfig(method=method, **{"group": 32, **changes})  # type: ignore[arg-type]


def left_behind(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name.startswith("."))


@pytest.mark.parametrize("method", ["gptq", "awq", "rtn", "smoothquant", "int8"])
def test_every_method_makes_a_model_that_still_knows_its_lessons(full, windows, method, tmp_path):
    made = quantize(full, tmp_path / "out", config(method), windows)
    copy, original = Model.load(made.target), Model.load(full)
    tokens = windows.tokens[:4]
    same = (copy(tokens).argmax(-1) == original(tokens).argmax(-1)).float().mean()
    assert same > 0.9
    assert (made.target / "README.md").read_text() == "# Taught\n\nThree lessons.\n"
    kept = {t.name: t.type for t in describe(made.target).tensors if "layers" not in t.name}
    assert set(kept.values()) == {"float32"} and "model.embed_tokens.weight" in kept
    assert left_behind(tmp_path) == []
    json.dumps([made.facts, made.layers])


def test_transformers_reads_what_gptq_made_and_agrees(full, windows, tmp_path):
    from transformers import AutoModelForCausalLM

    made = quantize(full, tmp_path / "out", config(), windows)
    theirs = AutoModelForCausalLM.from_pretrained(made.target, dtype=torch.float32).eval()
    ours = Model.load(made.target, activations="float")  # as theirs
    tokens = windows.tokens[:2]
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=1e-3, rtol=1e-3)


def test_a_run_that_was_killed_goes_on_to_the_same_bytes(full, windows, tmp_path, monkeypatch):
    whole = quantize(full, tmp_path / "whole", config(), windows)
    write, written = layerwise._write, []

    def killed_at_the_second(file, done):
        if written:
            raise KeyboardInterrupt
        written.append(file.name)
        write(file, done)

    monkeypatch.setattr(layerwise, "_write", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        quantize(full, tmp_path / "out", config(), windows)
    assert left_behind(tmp_path) == [".work-out"] and not (tmp_path / "out").exists()
    first = tmp_path / ".work-out" / "block-0000.safetensors"
    made_at, said = first.stat().st_mtime_ns, []

    def write_others(file, done):
        assert file != first and first.stat().st_mtime_ns == made_at
        write(file, done)

    monkeypatch.setattr(layerwise, "_write", write_others)
    again = quantize(full, tmp_path / "out", config(), windows, say=said.append)
    assert "going on from what an earlier run finished" in said[0]
    assert hash_path(again.target) == hash_path(whole.target)
    assert again.layers == whole.layers and left_behind(tmp_path) == []


@pytest.mark.parametrize("changed", ["settings", "calibration", "weights"])
def test_work_of_another_run_is_never_mixed_in(full, windows, tmp_path, monkeypatch, changed):
    model = tmp_path / "model"
    Model.load(full).save(model)
    before, other = config(), config(**({"damping": 0.1} if changed == "settings" else {}))
    write = layerwise._write

    def killed_at_the_second(file, done):
        if "0001" in file.name:
            raise KeyboardInterrupt
        write(file, done)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(layerwise, "_write", killed_at_the_second)
        quantize(model, tmp_path / "out", before, windows)
    if changed == "calibration":
        windows = Windows(windows.tokens[:8], windows.source, windows.source_sha256, 0)
    if changed == "weights":
        Model.load(full).save(model)  # the same bytes, written later: they might be others
    said: list[str] = []
    made = quantize(model, tmp_path / "out", other, windows, say=said.append)
    assert f"({changed} differ); starting over" in said[0]
    clean = quantize(model, tmp_path / "clean", other, windows)
    assert hash_path(made.target) == hash_path(clean.target)


@pytest.mark.parametrize("where", ["block", "model"])
def test_a_full_disk_leaves_nothing_half_written_and_can_be_gone_on_from(
    full, windows, tmp_path, monkeypatch, where
):
    from gristmill.formats import hf

    module, kept = {"block": (layerwise, []), "model": (hf, [".work-out"])}[where]

    def disk_is_full(*arguments, **named):
        raise SafetensorError("I/O error: No space left on device (os error 28)")  # its own words

    with monkeypatch.context() as patched:
        patched.setattr(module, "save_file", disk_is_full)
        with pytest.raises(
            WorkError, match=r"cannot be written: .*No space left.*What is finished"
        ):
            quantize(full, tmp_path / "out", config(), windows)
    assert not (tmp_path / "out").exists() and left_behind(tmp_path) == kept
    quantize(full, tmp_path / "out", config(), windows)
    assert left_behind(tmp_path) == []


def test_what_cannot_be_done_is_refused_before_any_work(full, gpt2, windows, tmp_path, monkeypatch):
    def refused(says: str, source=full, target="out", given: Windows | None = windows, **settings):
        with pytest.raises(RequestError, match=says):
            quantize(source, tmp_path / target, config(**settings), given)
        assert left_behind(tmp_path) == [], left_behind(tmp_path)

    refused(r"q_proj has 64 inputs, which groups of 96 do not divide; groups of 64 fit", group=96)
    refused("must be a multiple of 32, auto or channel, not 48", group=48)
    refused("needs text to calibrate on", given=None)
    with monkeypatch.context() as patched:
        for work in ("quantize_blocks", "quantize_network"):
            patched.setattr(driver, work, lambda *given, **named: pytest.fail("it was begun"))
        eight = "AWQ's files hold 4 bits, and the layer has 8; use --format compressed-tensors"
        refused(eight, bits=8, format="awq")
        only = 'of the family gpt2 only "gptq" is read by others; '
        refused(f"{only}use --format gptq", source=gpt2)
        refused(f"{only}no format holds what smoothquant makes", source=gpt2, method="smoothquant")
        refused(f"{only}no format holds what int8 makes", source=gpt2, method="int8")
        refused(
            'has 8-bit weights with one scale a row; save it as "compressed-tensors"',
            method="smoothquant",
            format="gptq",
        )
    fitting = Windows(windows.tokens % 300, "text", "0" * 64, 0)
    assert Model.load(quantize(gpt2, tmp_path / "gpt2", config(format="gptq"), fitting).target)
    refused("method gguf makes a file; name it .*out.gguf", method="gguf")
    refused("gptq makes a directory, not a .gguf file", target="a.gguf")
    refused("there is no directory .*/none; make it", target="none/out")
    refused("there is no model at", source=tmp_path / "none")
    quantize(full, tmp_path / "made", config("rtn"))
    refused("made is there already", target="made")
    refused("is quantized already", source=tmp_path / "made")


@pytest.fixture
def killed(full, windows, tmp_path, monkeypatch) -> Path:
    """The work directory of a run for tmp_path/out that was killed after its first block."""
    write = layerwise._write

    def once(file, done):
        if "0001" in file.name:
            raise KeyboardInterrupt
        write(file, done)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(layerwise, "_write", once)
        quantize(full, tmp_path / "out", config(), windows)
    return tmp_path / ".work-out"


def test_another_format_goes_on_from_the_same_work(full, windows, killed, tmp_path):
    said: list[str] = []
    made = quantize(full, tmp_path / "out", config(format="gptq"), windows, say=said.append)
    assert "going on from what an earlier run finished" in said[0]
    assert made.facts["format"] == "gptq" and not killed.exists()


def test_what_was_being_written_when_a_run_was_killed_is_no_finished_work(
    full, windows, killed, tmp_path
):
    half = [killed / "activations.tmp", killed / ".block-0001.safetensors.1.tmp"]
    for file in half:
        file.write_bytes(b"half")
    keep_or_clear(killed, key_of(full, config(), windows), lambda line: None)
    assert (killed / "block-0000.safetensors").is_file()
    assert not any(file.exists() for file in half)
    (killed / "block-0000.safetensors").unlink()
    half[0].write_bytes(b"half")
    with locked(killed):
        pass
    assert left_behind(tmp_path) == []  # nothing finished is kept


def test_the_work_of_another_method_is_not_thrown_away_in_silence(
    full, gpt2, windows, killed, tmp_path
):
    said: list[str] = []
    with pytest.raises(RequestError, match="no format holds"):
        quantize(gpt2, tmp_path / "out", config("int8"), say=said.append)
    assert (killed / "block-0000.safetensors").is_file() and not said
    quantize(full, tmp_path / "out", config("int8"), say=said.append)
    assert "holds the work of another run (settings, calibration differ); starting over" in said[0]


def test_a_target_that_another_run_made_meanwhile_is_left_alone(
    full, windows, tmp_path, monkeypatch
):
    target = tmp_path / "out"

    @contextmanager
    def late(work):
        with locked(work):
            target.mkdir()  # the other run ends, and this one has its turn
            (target / "theirs").touch()
            yield

    monkeypatch.setattr(driver, "locked", late)
    with pytest.raises(RequestError, match="out is there already"):
        quantize(full, target, config("int8"))
    assert [file.name for file in target.iterdir()] == ["theirs"] and left_behind(tmp_path) == []


def test_raised_damping_is_said_with_the_layers(full, windows, tmp_path, monkeypatch):
    factor = gptq._factor

    def raised(hessian, order, damping, name):
        return factor(hessian, order, 0.03 if "0.mlp.down_proj" in name else damping, name)

    monkeypatch.setattr(gptq, "_factor", raised)
    said: list[str] = []
    quantize(full, tmp_path / "out", config(), windows, say=said.append)
    told = [line for line in said if "damping of 0.01 was raised" in line]
    assert len(told) == 1 and "model.layers.0: " in told[0] and "mlp.down_proj to 0.03:" in told[0]


def test_a_directorys_whole_name_is_the_ggufs(full, tmp_path):
    source = tmp_path / "Llama-3.1-8B"
    Model.load(full).save(source)
    made = quantize(source, tmp_path / "out.gguf", config("gguf", type="Q8_0"))
    assert describe(made.target).metadata["general.name"] == "Llama-3.1-8B"


def test_memory_now_falls_again():
    # Its own mapping: what malloc gives back, and when, depends on every test that ran before in this process.
    with mmap.mmap(-1, 256 << 20) as held:
        for page in range(0, len(held), mmap.PAGESIZE):
            held[page] = 1
        most = resident_memory()
    assert resident_memory() < most - (200 << 20)


def test_two_runs_for_one_target_do_not_meet(full, windows, tmp_path):
    work = tmp_path / ".work-out"
    with locked(work):
        with pytest.raises(RequestError, match="another run"):
            quantize(full, tmp_path / "out", config(), windows)
        assert work.is_dir()  # the other's
    assert left_behind(tmp_path) == []


def test_auto_group_is_the_largest_that_fits(full, windows, tmp_path):
    made = quantize(full, tmp_path / "out", config("rtn", group="auto"))
    assert made.facts["group"] == 64
    assert Model.load(made.target).network.model.layers[0].mlp.down_proj.group == 64  # type: ignore


def test_undominated_options_are_the_lower_hull():
    q4, q5, q6, q8 = GGMLType.Q4_K, GGMLType.Q5_K, GGMLType.Q6_K, GGMLType.Q8_0
    worse, concave = Option(q5, 55, 0.9), Option(q6, 60, 0.79)
    options = [Option(q8, 80, 0.1), worse, Option(q4, 45, 0.8), concave]
    assert undominated(options) == [Option(q4, 45, 0.8), Option(q8, 80, 0.1)]


def test_greedy_is_within_one_step_of_the_best_of_all_plans():
    """Brute force over 4 groups; on concave savings greedy misses the best by one step at most."""
    generator = torch.Generator().manual_seed(0)
    types = (GGMLType.Q4_K, GGMLType.Q5_K, GGMLType.Q6_K, GGMLType.Q8_0)
    options = {}
    for group in "abcd":
        base = float(torch.rand((), generator=generator)) + 0.1
        options[group] = [
            Option(type, size * 10, base / (1 + i * i))
            for i, (type, size) in enumerate(zip(types, (45, 55, 66, 85), strict=True))
        ]
    for budget in range(1800, 3401, 100):
        chosen = choose(options, budget)
        assert sum(o.bytes for o in chosen.values()) <= budget
        found = sum(o.kl for o in chosen.values())
        plans = (p for p in product(*options.values()) if sum(o.bytes for o in p) <= budget)
        best = min(sum(o.kl for o in p) for p in plans)
        step = max(a.kl - b.kl for of in options.values() for a, b in pairwise(of))
        assert best <= found <= best + step
    assert choose(options, 3400) == {group: of[-1] for group, of in options.items()}
    with pytest.raises(RequestError, match=r"the smallest that the tensors can be is 0\.0 MB"):
        choose(options, 1799)


def test_importance_moves_the_error_to_where_it_matters_less(full, windows, tmp_path):
    """Weighted by mean x², the squared error of the layers is smaller than without."""
    original = Model.load(full)
    columns = importances(original.network, windows.tokens, tmp_path)

    def weighted(name: str, **settings) -> float:
        made = quantize(full, tmp_path / name, config("gguf", type="Q4_0", **settings), windows)
        assert ("calibration" in made.facts) == bool(settings)
        copy = Model.load(made.target, widen=True).network
        total = 0.0
        for layer, linear in linears(original.network).items():
            delta = (copy.get_submodule(layer).weight - linear.weight).detach().numpy()  # type: ignore
            total += float((columns[layer] * delta**2).sum())
        return total

    assert weighted("a.gguf", importance=True) < 0.97 * weighted("b.gguf")


def test_a_size_out_of_bounds_needs_no_measuring(full, windows, tmp_path, monkeypatch):
    """The largest fit from the very byte on that a file of them has."""
    q8 = quantize(full, tmp_path / "q8.gguf", config("gguf", type="Q8_0")).target
    size, model = q8.stat().st_size, Model.load(full)
    assert gguf.largest_fits(model, size) and not gguf.largest_fits(model, size - 1)
    with monkeypatch.context() as patched:
        patched.setattr(gguf, "Sensitivity", lambda *given: pytest.fail("it was measured"))
        made = quantize(full, tmp_path / "m.gguf", config("gguf", target_bytes=size), windows)
        assert made.target.read_bytes() == q8.read_bytes()
        with pytest.raises(RequestError, match=r"--target-size 2\.00 KB is too small: .* KB$"):
            quantize(full, tmp_path / "s.gguf", config("gguf", target_bytes=2_000), windows)
    assert left_behind(tmp_path) == []


def test_the_smallest_size_that_is_named_can_be_had(full, windows, tmp_path):
    with pytest.raises(RequestError) as refused:
        quantize(full, tmp_path / "s.gguf", config("gguf", target_bytes=2_000), windows)
    (least,) = re.findall(r"takes ([0-9.]+) KB", str(refused.value))
    target = round(float(least) * 1000)
    made = quantize(full, tmp_path / "s.gguf", config("gguf", target_bytes=target), windows)
    assert target - 100 < made.target.stat().st_size <= target


def test_the_format_of_awq_is_its_own_where_that_can_hold_it(full, windows, tmp_path):
    def made(name: str, **settings) -> tuple[str, bool]:
        said: list[str] = []
        facts = quantize(full, tmp_path / name, config(**settings), windows, say=said.append).facts
        return facts["format"], any("transformers 5 fails to load" in line for line in said)

    assert made("a", method="awq") == ("awq", False)
    assert made("b", method="awq", symmetric=True) == ("compressed-tensors", False)
    assert made("c", method="awq", bits=8) == ("compressed-tensors", True)
    assert made("d", method="rtn") == ("compressed-tensors", False)


def test_a_target_size_is_kept_and_beats_the_uniform_mixtures(full, windows, tmp_path):
    """llama.cpp loads the mixed file; its divergence is below that of every uniform one that fits."""
    whole = quantize(full, tmp_path / "q8.gguf", config("gguf", type="Q8_0"), None)
    size = whole.target.stat().st_size
    target = size - 20_000
    said: list[str] = []
    settings = config("gguf", target_bytes=target)
    made = quantize(full, tmp_path / "m.gguf", settings, windows, say=said.append)
    assert re.fullmatch(r"gguf, chosen to fit: \d+ sensitivities to measure, about \d+ s", said[0])
    assert made.target.stat().st_size <= target
    assert made.facts["type"] == "mixed" and len(made.facts["uniform_kl"]) >= 3
    assert all(made.facts["planned_kl"] < kl for kl in made.facts["uniform_kl"].values())
    description = describe(made.target)
    assert "general.file_type" not in description.metadata  # it holds no mixture that has a name
    assert len({t.type for t in description.tensors}) > 2
    prompt = windows.tokens[0, :40].tolist()
    ours = Model.load(made.target)(torch.tensor([prompt]))[0, -1].log_softmax(-1)
    with llama_cpp.running(made.target, 384) as them:
        theirs = them.top(prompt, 5)
    likely = {id: logprob for id, logprob in theirs.items() if logprob > -4}
    assert likely and all(abs(logprob - ours[id]) < 0.2 for id, logprob in likely.items())
