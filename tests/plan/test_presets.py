"""Names: ours, a user's files, models on disk, and what is wrong with any of them."""

from __future__ import annotations

import json

import pytest

from gristmill.errors import RequestError
from gristmill.formats.families import config_to_hf
from gristmill.plan import counts, device, devices, model, presets
from gristmill.plan.presets import this_machine

NAMES = """gpt-3-175b chinchilla-70b llama-2-7b llama-3-70b llama-3.1-405b mistral-7b mixtral-8x7b qwen3-32b
    qwen3-235b-a22b deepseek-v3-671b moe-1.8t gristmill-small""".split()
MACHINES = "h100 h200 b200 a100 l40s rtx-4090 mi300x m4-max laptop-cpu server-cpu".split()


def test_the_issues_names_are_there() -> None:
    assert set(NAMES) <= presets().keys()
    for name in MACHINES:
        found = devices()[name]
        assert found.memory > 1e10 and found.bandwidth > 1e10 and found.peak("fp8") > 1e11


def test_a_users_file_adds_and_replaces(tmp_path) -> None:
    mine = tmp_path / "presets.toml"
    mine.write_text(
        '[mine]\nbase = "llama-3"\nhidden_size = 512\nnum_layers = 2\nnum_heads = 4\nnum_kv_heads = 4\n'
        "intermediate_size = 1024\n"
    )
    assert model("mine", mine).config.vocab_size == 128_256
    assert "mine" not in presets() and "llama-3-8b" in presets(mine)
    cards = tmp_path / "devices.toml"
    cards.write_text(
        '[tpu]\ntitle = "T"\nmemory_gib = 95\nbandwidth_gb_s = 2765\ntflops = { bfloat16 = 459 }\n'
        "link_gb_s = 100\nnetwork_gb_s = 25\nnode = 4\npower_w = 300\nprice_per_hour = 4.2\n"
    )
    assert device("tpu", cards).peak("fp8") == 459e12
    assert device("H100").name == "h100"


@pytest.mark.parametrize(
    "text, said",
    [
        ("[x]\nhiden_size = 3\n", 'there is no key "hiden_size". Did you mean "hidden_size"?'),
        ('[x]\nbase = "lama"\n', 'there is no base "lama". Did you mean "llama"?'),
        ("[x]\nvocab_size = 3\n", "[x]"),
        ("[x\n", "is not TOML"),
    ],
)
def test_a_wrong_file_is_told_with_its_place(text, said, tmp_path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(RequestError) as raised:
        presets(file)
    assert str(file) in str(raised.value) and said in str(raised.value)


def test_a_device_that_lacks_a_key_is_told(tmp_path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[x]\ntitle = "X"\n')
    with pytest.raises(RequestError, match=r"mine.toml: \[x\]: memory_gib is missing"):
        devices(file)


def test_models_on_disk_are_read(tmp_path) -> None:
    config = presets()["qwen3-0.6b"].config
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config_to_hf(config)))
    for name in (str(file), str(tmp_path)):  # no weights are there, and none are read
        assert counts(model(name).config) == counts(config)
    with pytest.raises(RequestError, match=r"neither config\.json nor"):
        (tmp_path / "empty").mkdir()
        model(str(tmp_path / "empty"))


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(RequestError, match='Did you mean "llama-3-70b"'):
        model("lama-3-70b")
    with pytest.raises(RequestError, match='Did you mean "h100"'):
        device("h1000")


def test_this_machine_is_measured() -> None:
    here = this_machine()
    assert here.memory > 1e9 and here.bandwidth > 1e8 and here.peak("bfloat16") > 1e8
