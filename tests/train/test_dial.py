"""The one dial: every size it takes gives settings that the stages accept; every other is refused."""

from __future__ import annotations

import pytest

from gristmill.errors import RequestError
from gristmill.model import ModelConfig
from gristmill.recipe.line import LINE
from gristmill.train import pretrain
from gristmill.train.dial import NAMED, derive, parameters_of

SIZES = [
    *("tiny", "small", "300K", "0.5M", "1M", "2M", "4M", "10M", "20M", "35M", "50M", "59M", "60M"),
    *("100M", "124M", "250M", "350M", "500M", "599M", "600M", "1B", "1.5B", "7B", "70B", "100B"),
]


@pytest.mark.parametrize(
    ("size", "count"),
    [
        ("4M", 4_000_000),
        ("1.5B", 1_500_000_000),
        ("1.5b", 1_500_000_000),
        (" 300 k ", 300_000),
        ("124000000", 124_000_000),
        *NAMED.items(),
    ],
)
def test_sizes_are_read(size, count):
    assert parameters_of(size) == count


@pytest.mark.parametrize(
    "size", ["", "big", "4 M 2", "-4M", "4T", "M", "1e6", "4,5M", "nan", "smal"]
)
def test_what_is_no_size_is_refused_with_the_forms_that_are(size):
    with pytest.raises(RequestError) as refused:
        parameters_of(size)
    assert '"4M"' in str(refused.value)
    assert "tiny, small" in str(refused.value)


@pytest.mark.parametrize("size", ["0", "299999", "0.2M", "101B", "9999999999999999999B"])
def test_sizes_out_of_range_are_refused_with_the_range(size):
    with pytest.raises(RequestError, match=r"from 0\.3M to 100B"):
        parameters_of(size)


@pytest.mark.parametrize("size", [*SIZES, "4M:8x2", "tiny:4x1", "1.5B:64x8"])
def test_every_derived_setting_is_one_that_its_stage_accepts(size):
    for stage, values in derive(size).items():
        config_class = LINE[stage].config_class()
        config = config_class(**values)  # an unknown key or a value of the wrong kind raises
        for key, value in values.items():
            assert getattr(config, key) == value
        if stage == "pretrain":
            pretrain.check(config)


@pytest.mark.parametrize("size", SIZES)
def test_parameters_come_close_to_what_was_asked_for(size):
    settings = derive(size)
    shape = {k: v for k, v in settings["pretrain"].items() if k in ModelConfig.__annotations__}
    config = ModelConfig(vocab_size=settings["tokenizer"]["vocab_size"], **shape)
    # Widths go in steps of 64, so the small end is coarse: 0.5M lies between 0.23M and 0.85M, 2M between
    # 1.1M and 2.7M.
    wanted = parameters_of(size)
    room = 2.2 if wanted < 1e6 else 1.45 if wanted < 5e6 else 1.25
    assert 1 / room < config.num_parameters / wanted < room


def test_more_parameters_mean_no_less_of_anything():
    """Width and depth within one vocabulary: where that grows, its embeddings take from the layers."""
    before: dict[str, float] = {}
    for size in sorted(set(SIZES) - set(NAMED), key=parameters_of):
        settings = derive(size)
        now = {key: settings["pretrain"][key] for key in ("tokens", "batch_tokens")}
        now["vocab_size"] = settings["tokenizer"]["vocab_size"]
        if now["vocab_size"] == before.get("vocab_size", now["vocab_size"]):
            now |= {key: settings["pretrain"][key] for key in ("hidden_size", "num_layers")}
        assert all(now[key] >= before.get(key, 0) for key in now), size
        before = now


def test_experts_cost_a_token_what_the_mlp_did():
    dense, moe = (derive(size)["pretrain"] for size in ("4M", "4M:8x2"))
    assert (moe["num_experts"], moe["experts_per_token"]) == (8, 2)
    assert 2 * moe["expert_size"] == dense["intermediate_size"]
    assert {**dense, **moe} == moe


@pytest.mark.parametrize("size", ["4M:", "4M:8", "4M:8x", "4M:2x8", "4M:0x0", "4M:8x2x1"])
def test_other_forms_of_experts_are_refused(size):
    with pytest.raises(RequestError, match='write experts as "8x2"'):
        derive(size)
