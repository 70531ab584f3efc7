"""Hours and money against published runs."""

from __future__ import annotations

import pytest

from gristmill.errors import RequestError
from gristmill.plan import Assumptions, counts, devices, presets, training_cost, utilization
from gristmill.plan.cost import MONTH_HOURS

DEVICES = devices()


def test_ten_to_the_25_is_known() -> None:
    """At 40% MFU on H100: 7.02e6 GPU-hours, 9.61 thousand GPU-months."""
    assumed = Assumptions(mfu=0.4, availability=1.0, pue=1.2, price=2.5)
    cost = training_cost(1e25, 1000, DEVICES["h100"], "bfloat16", assumed)
    assert cost.device_hours == pytest.approx(7.02e6, rel=1e-3)
    assert cost.device_hours / MONTH_HOURS == pytest.approx(9610, rel=1e-3)
    assert cost.hours == pytest.approx(cost.device_hours / 1000)
    assert cost.money == pytest.approx(2.5 * cost.device_hours)
    assert cost.kwh == pytest.approx(cost.device_hours * 0.7 * 1.2)
    assert training_cost(1e25, 1, DEVICES["h100"], "bfloat16", Assumptions()).money is None
    slower = training_cost(1e25, 1000, DEVICES["h100"], "bfloat16", Assumptions(0.4, 0.5))
    assert slower.hours == pytest.approx(2 * cost.hours)


@pytest.mark.parametrize(
    "name, device, hours, tokens, share",
    [
        ("llama-2-7b", "a100", 184_320, 2e12, 0.391),
        ("llama-2-70b", "a100", 1_720_320, 2e12, 0.428),
        ("llama-3-70b", "h100", 6.4e6, 15e12, 0.279),
    ],
)
def test_published_hours_imply_their_utilization(name, device, hours, tokens, share) -> None:
    flops = 6 * counts(presets()[name].config).total * tokens
    assert utilization(flops, hours, DEVICES[device]) == pytest.approx(share, abs=0.001)
    # and back: at that share of peak the model predicts those hours
    assumed = Assumptions(mfu=share, availability=1.0)
    cost = training_cost(flops, 1, DEVICES[device], "bfloat16", assumed)
    assert cost.device_hours == pytest.approx(hours, rel=0.15)


@pytest.mark.parametrize(
    "wrong", [{"mfu": 0}, {"mfu": 40}, {"availability": 1.5}, {"pue": 0.5}, {"price": -1}]
)
def test_shares_that_are_none_are_refused(wrong) -> None:
    with pytest.raises(RequestError):
        Assumptions(**wrong)
