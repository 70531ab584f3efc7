"""Hours, energy and money of a training, with every assumption beside the number.

hours = C / (n · peak · MFU · 3600) at steady state; what is lost to restarts, evaluation and failed runs is
`availability`. Published hours against 6ND give the *overall* utilization, which is below the MFU of steady training:
`PUBLISHED` holds what model cards say, for comparison.
"""

from __future__ import annotations

from dataclasses import dataclass

from gristmill.errors import RequestError
from gristmill.plan.presets import Device

MONTH_HOURS = 730.5
# (preset, device, device-hours of the model card, tokens)
PUBLISHED = (
    ("llama-2-7b", "a100", 184_320, 2e12),
    ("llama-2-70b", "a100", 1_720_320, 2e12),
    ("llama-3-8b", "h100", 1.3e6, 15e12),
    ("llama-3-70b", "h100", 6.4e6, 15e12),
    ("llama-3.1-405b", "h100", 30.84e6, 15.6e12),
)


@dataclass(frozen=True)
class Assumptions:
    """mfu: share of peak in steady training. availability: share of the time that trains. pue: a data centre's power
    over its machines'. price: US dollars a device-hour, electricity in it; None where none is known."""

    mfu: float = 0.40
    availability: float = 0.90
    pue: float = 1.2
    price: float | None = None

    def __post_init__(self) -> None:
        for name in ("mfu", "availability"):
            if not 0 < getattr(self, name) <= 1:
                raise RequestError(
                    f"{name} is a share, above 0 and up to 1, not {getattr(self, name)}"
                )
        if not self.pue >= 1:
            raise RequestError(f"pue is at least 1, not {self.pue:g}")
        if self.price is not None and not self.price >= 0:
            raise RequestError(f"price is at least 0, not {self.price:g}")


@dataclass(frozen=True)
class Cost:
    """hours: of the wall. kwh: at the wall socket. money: US dollars, None where no price is known."""

    flops: float
    hours: float
    device_hours: float
    kwh: float
    money: float | None


def training_cost(
    flops: float, devices: int, device: Device, precision: str, assumed: Assumptions
) -> Cost:
    """Of `flops` on so many devices; precision: whose peak counts ("bfloat16", "float32", "fp8")."""
    if devices < 1:
        raise RequestError(f"it takes at least one device, not {devices}")
    device_hours = flops / (device.peak(precision) * assumed.mfu * assumed.availability * 3600)
    return Cost(
        flops,
        device_hours / devices,
        device_hours,
        device_hours * device.power / 1000 * assumed.pue,
        None if assumed.price is None else device_hours * assumed.price,
    )


def utilization(
    flops: float, device_hours: float, device: Device, precision: str = "bfloat16"
) -> float:
    """The overall share of peak that published hours imply."""
    return flops / (device_hours * 3600 * device.peak(precision))
