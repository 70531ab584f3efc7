"""The search: what it finds is allowed by the trainer, fits, and is the best of all that there is."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from gristmill.errors import RequestError
from gristmill.plan import Sizes, Training, best_layouts, devices, presets
from gristmill.plan.layouts import does_not_fit, not_split, problems, smallest
from gristmill.train.parallel.layout import Layout, check

PRESETS, H100 = presets(), devices()["h100"]
CASES = {
    "llama-3-8b": (8, 8192, 64),
    "llama-3-70b": (64, 8192, 512),
    "mixtral-8x7b": (32, 4096, 256),
    "deepseek-v3-671b": (512, 4096, 4096),
    "gpt-3-13b": (24, 2048, 1536),
    "gristmill-124m": (4, 512, 32),
}


@pytest.mark.parametrize("name", list(CASES))
def test_the_trainer_accepts_what_is_found(name: str) -> None:
    number, context, rows = CASES[name]
    config = PRESETS[name].config
    found = best_layouts(
        config, number, H100, batch_tokens=rows * context, training=Training(context=context)
    )
    assert found
    assert [one.step_seconds for one in found] == sorted(one.step_seconds for one in found)
    for one in found:
        assert one.layout.world == number
        assert one.memory.total < H100.memory
        assert 0 < one.mfu < 0.85 and 0 <= one.bubble < 1
        sizes = {k: getattr(one.layout, k) for k in ("dp", "replicas", "tp", "pp", "cp", "ep")}
        layout = Layout.model_validate({**sizes, "schedule": one.training.schedule})
        pieces = one.training.micro_batches
        assert pieces * one.training.micro_batch_rows * layout.rows == rows
        check(layout, config, batch_rows=rows // pieces, context=context, micro_batches=pieces)


@pytest.mark.parametrize("name", list(CASES))
def test_the_rules_are_the_trainers(name: str) -> None:
    """Every small layout is refused by both or by neither."""
    _, context, rows = CASES[name]
    config = PRESETS[name].config
    for dp, tp, pp, cp, ep in product((1, 2, 3, 8), (1, 2, 5), (1, 2, 200), (1, 2, 3), (1, 2, 3)):
        mine = next(
            problems(Sizes(dp, 1, tp, pp, cp, ep), config, batch_rows=rows, context=context), ""
        )
        try:
            layout = Layout(dp=dp, tp=tp, pp=pp, cp=cp, ep=ep)
            check(layout, config, batch_rows=rows, context=context, micro_batches=256)
            theirs = ""
        except RequestError as error:
            theirs = str(error)
        assert bool(mine) == bool(theirs), (dp, tp, pp, cp, ep, mine, theirs)


def test_more_devices_take_less_time_and_a_faster_device_too() -> None:
    config, settings = PRESETS["llama-3-8b"].config, Training(context=8192)
    args: dict[str, Any] = dict(batch_tokens=512 * 8192, training=settings, most=1)
    few, many = (best_layouts(config, n, H100, **args)[0] for n in (16, 64))
    assert many.step_seconds < few.step_seconds / 2
    newer = best_layouts(config, 16, devices()["b200"], **args)[0]
    assert newer.step_seconds < few.step_seconds


def test_what_does_not_fit_says_what_would() -> None:
    config, training = PRESETS["llama-3-70b"].config, Training(context=8192)
    assert best_layouts(config, 8, H100, batch_tokens=8 * 8192, training=training) == []
    said = does_not_fit(config, 8, H100, training)
    assert said is not None and "you have 78.6: use " in said
    number = int(said.split("use ")[1].split(" devices")[0])
    assert smallest(config, number, H100, training)[1] < H100.memory
    assert smallest(config, number // 2, H100, training)[1] > 0.92 * H100.memory
    assert does_not_fit(config, number, H100, training) is None


def test_what_the_trainer_does_not_split_is_said() -> None:
    said = list(not_split(PRESETS["deepseek-v3-671b"].config))
    assert said == ["tp does not split latent attention and experts"]
    assert list(not_split(PRESETS["llama-3-8b"].config)) == []


def test_a_batch_smaller_than_a_row_is_refused() -> None:
    with pytest.raises(RequestError, match="holds no row"):
        best_layouts(
            PRESETS["gpt2"].config, 1, H100, batch_tokens=512, training=Training(context=1024)
        )
