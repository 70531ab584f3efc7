"""Scaling laws: closed forms, ladders of small trainings, fits with intervals, predictions registered and scored."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gristmill.scaling.approaches import Growth, Profile, envelope, isoflop, parametric, profiles
from gristmill.scaling.downstream import TwoStep, fit_two_step
from gristmill.scaling.fit import Fit, fit_chinchilla, fit_kaplan, fit_power, fit_repeated
from gristmill.scaling.laws import (
    BESIROGLU,
    HOFFMANN,
    KAPLAN,
    MUENNIGHOFF,
    PUBLISHED,
    Chinchilla,
    Kaplan,
    Optimum,
    PowerLaw,
    Repeated,
    training_flops,
)
from gristmill.scaling.page import fit_page, predicted_against_actual
from gristmill.scaling.predict import (
    PREDICTION,
    Prediction,
    Saved,
    Score,
    leave_largest_out,
    predict,
    register,
    score,
)
from gristmill.scaling.rates import BestRate, RateLaw, best_rate, rate_law, rates_of
from gristmill.scaling.runs import Runs, make_runs, read_runs

if TYPE_CHECKING:
    from gristmill.scaling.ladder import Ladder, Rung, counted, plan_ladder
    from gristmill.scaling.sweep import train_ladder

_NEEDS_TORCH = {
    "Ladder": "ladder",
    "Rung": "ladder",
    "counted": "ladder",
    "plan_ladder": "ladder",
    "train_ladder": "sweep",
}

__all__ = [
    "BESIROGLU",
    "HOFFMANN",
    "KAPLAN",
    "MUENNIGHOFF",
    "PREDICTION",
    "PUBLISHED",
    "BestRate",
    "Chinchilla",
    "Fit",
    "Growth",
    "Kaplan",
    "Ladder",
    "Optimum",
    "PowerLaw",
    "Prediction",
    "Profile",
    "RateLaw",
    "Repeated",
    "Rung",
    "Runs",
    "Saved",
    "Score",
    "TwoStep",
    "best_rate",
    "counted",
    "envelope",
    "fit_chinchilla",
    "fit_kaplan",
    "fit_page",
    "fit_power",
    "fit_repeated",
    "fit_two_step",
    "isoflop",
    "leave_largest_out",
    "make_runs",
    "parametric",
    "plan_ladder",
    "predict",
    "predicted_against_actual",
    "profiles",
    "rate_law",
    "rates_of",
    "read_runs",
    "register",
    "score",
    "train_ladder",
    "training_flops",
]


def __getattr__(name: str) -> Any:
    """What trains is loaded on first use, so that fits and predictions cost no torch."""
    if name in _NEEDS_TORCH:
        return getattr(import_module(f"gristmill.scaling.{_NEEDS_TORCH[name]}"), name)
    raise AttributeError(f"module 'gristmill.scaling' has no attribute {name!r}")
