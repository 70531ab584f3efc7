"""Predictions with intervals; registered before a run, scored after it; and how well the largest runs were foreseen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from gristmill.errors import RequestError
from gristmill.files import hash_file, read_json, write_json
from gristmill.scaling.fit import LEVEL, Fit, fit_chinchilla, spread
from gristmill.scaling.laws import Chinchilla
from gristmill.scaling.runs import Runs, results_file

FAR = 100.0  # times the largest run's compute; beyond, a prediction says that it reaches far
_LEFT_DECADES = (
    1.0  # that must be left without the largest runs; the interval tells how little that is
)
PREDICTION = "prediction.json"  # in a run's directory


@dataclass(frozen=True)
class Saved:
    """What a fit leaves on disk (fit.json), enough to predict: no runs, but what they spanned.

    noise: residuals in ln L, widened for the constants that were fitted. spans: (least, most) of N, D and C.
    """

    law: Chinchilla
    sampled: tuple[Chinchilla, ...]
    noise: tuple[float, ...]
    spans: Mapping[str, tuple[float, float]]
    source: str
    sha256: str = ""
    counted: str = ""


@dataclass(frozen=True)
class Prediction:
    """The loss of a run that is to come, in nats a token, and where LEVEL of such runs should end.

    reach: its compute over that of the largest run fitted to. low and high are nan where a law has no samples.
    """

    params: float
    tokens: float
    flops: float
    loss: float
    low: float
    high: float
    reach: float
    warnings: tuple[str, ...] = ()


def save(fit: Fit, place: Path) -> Saved:
    """The fit of the results at `place`, in the form that is written."""
    file = results_file(place)
    spans = {
        name: (float(column.min()), float(column.max()))
        for name, column in (
            ("params", fit.runs.params),
            ("tokens", fit.runs.tokens),
            ("flops", fit.runs.flops),
        )
    }
    return Saved(
        fit.law,
        tuple(fit.sampled),
        noise_of(fit),
        spans,
        str(file),
        hash_file(file),
        fit.runs.counted,
    )


def noise_of(fit: Fit) -> tuple[float, ...]:
    """Residuals, wider by what the fitted constants took of them."""
    free, count = len(fit.constants) - len(fit.fixed), len(fit.runs)
    wider = math.sqrt(count / max(1, count - free))
    return tuple(float(r) * wider for r in fit.residuals)


def write(saved: Saved, path: Path) -> None:
    sampled = [[law.E, law.A, law.B, law.alpha, law.beta] for law in saved.sampled]
    write_json(path, asdict(replace(saved, sampled=())) | {"sampled": sampled})


def read(path: Path) -> Saved:
    """A fit.json. Raises RequestError where it is none."""
    try:
        told = read_json(path)
        return Saved(
            law=Chinchilla(**told["law"]),
            sampled=tuple(Chinchilla(*row) for row in told["sampled"]),
            noise=tuple(told["noise"]),
            spans={name: (low, high) for name, (low, high) in told["spans"].items()},
            source=told["source"],
            sha256=told["sha256"],
            counted=told["counted"],
        )
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(
            f"{path} is not what `gristmill scaling fit` writes ({type(error).__name__}: {error}). Fit again."
        ) from None


def published(name: str, law: Chinchilla) -> Saved:
    return Saved(law, (), (), {}, f"published constants: {name}")


def predict(saved: Saved, params: float, tokens: float, seed: int = 0) -> Prediction:
    """The interval has both: what the bootstrap does not know of the law, and how runs lie about it."""
    loss = float(saved.law.loss(params, tokens))
    flops = 6 * params * tokens
    low = high = reach = math.nan
    warnings = []
    if saved.sampled:
        losses = np.array([law.loss(params, tokens) for law in saved.sampled])
        noise = np.random.default_rng([seed, 0x0415]).choice(saved.noise, len(losses))
        low, high = spread(losses * np.exp(noise))
        low, high = min(low, loss), max(high, loss)
    if saved.spans:
        reach = flops / saved.spans["flops"][1]
        if reach > FAR:
            warnings.append(
                f"{reach:,.0f} times the compute of the largest run fitted to: beyond {FAR:g} a law is a guess"
            )
        least, most = (
            s / t for s, t in zip(saved.spans["tokens"], saved.spans["params"], strict=True)
        )
        ratio, (lowest, highest) = tokens / params, sorted((least, most))
        if not lowest / 30 < ratio < highest * 30:
            warnings.append(
                f"{ratio:,.3g} tokens a parameter lie far from those of the runs fitted to"
            )
    return Prediction(params, tokens, flops, loss, low, high, reach, tuple(warnings))


@dataclass(frozen=True)
class HeldOut:
    """The largest runs (from half of the most compute on), foreseen from the others.

    errors: predicted over actual, less one.
    """

    flops: float
    predicted: tuple[float, ...]
    actual: tuple[float, ...]
    inside: int  # how many lie in their intervals

    @property
    def errors(self) -> tuple[float, ...]:
        return tuple(p / a - 1 for p, a in zip(self.predicted, self.actual, strict=True))

    @property
    def worst(self) -> float:
        return max(map(abs, self.errors))


def leave_largest_out(
    runs: Runs, *, exponents: tuple[float, float] | None = None, samples: int = 200, seed: int = 0
) -> HeldOut:
    """Fit without the largest runs and predict them. Raises RequestError where too few are left."""
    largest = runs.flops >= runs.flops.max() / 2
    kept = runs.only(~largest)
    if len(kept) < 3:
        raise RequestError("too few runs are left without the largest")
    fit = fit_chinchilla(
        kept, exponents=exponents, samples=samples, seed=seed, least_decades=_LEFT_DECADES
    )
    saved = Saved(fit.law, tuple(fit.sampled), noise_of(fit), {}, "")
    apart = runs.only(largest)
    found = [predict(saved, n, d) for n, d in zip(apart.params, apart.tokens, strict=True)]
    inside = sum(bool(p.low <= y <= p.high) for p, y in zip(found, apart.loss, strict=True))
    return HeldOut(
        float(runs.flops.max()),
        tuple(p.loss for p in found),
        tuple(map(float, apart.loss)),
        inside,
    )


def register(run_dir: Path, saved: Saved, prediction: Prediction) -> Path:
    """Write RUN/prediction.json, which the report sets against what came out.

    Raises RequestError where the run has begun to train: a prediction is made before.
    """
    begun = run_dir / "pretrain"
    if (begun / "manifest.json").is_file() or (begun / "metrics.jsonl").is_file():
        raise RequestError(
            f"{begun} has begun already; a prediction is registered before the run trains"
        )
    path = run_dir / PREDICTION
    if path.exists():
        raise RequestError(f"{path} is there: a registered prediction is not changed afterwards")
    write_json(
        path,
        {
            "predicted": {k: _plain(v) for k, v in asdict(prediction).items()},
            "level": LEVEL,
            "law": asdict(saved.law),
            "source": saved.source,
            "source_sha256": saved.sha256,
            "counted": saved.counted,
            "registered": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )
    return path


def _plain(value: Any) -> Any:
    """JSON has no nan."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Score:
    """A registered prediction against what came out. note: how the run was not the one predicted, or ""."""

    predicted: float
    low: float | None
    high: float | None
    actual: float
    note: str = ""

    @property
    def error(self) -> float:
        return self.predicted / self.actual - 1

    @property
    def inside(self) -> bool | None:
        if self.low is None or self.high is None:
            return None
        return self.low <= self.actual <= self.high


def score(registered: Mapping[str, Any], pretrain_metrics: Mapping[str, Any]) -> Score | None:
    """The content of prediction.json against a pretrain manifest's `metrics`; None: nothing was held out."""
    history = pretrain_metrics.get("history") or [{}]
    actual = history[-1].get("heldout_loss")
    told = registered["predicted"]
    if actual is None:
        return None
    trained, note = pretrain_metrics.get("tokens", told["tokens"]), ""
    if abs(trained / told["tokens"] - 1) > 0.01:
        note = f"The run trained on {trained:,} tokens; predicted was one of {told['tokens']:,.0f}."
    return Score(told["loss"], told["low"], told["high"], actual, note)
