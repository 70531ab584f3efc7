"""A trained classifier: a text in, the probability that it is of the good kind out."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gristmill.data.classify.features import features
from gristmill.errors import RequestError
from gristmill.files import write_bytes, write_json

WEIGHTS, ABOUT = "classifier.safetensors", "classifier.json"


@dataclass(frozen=True)
class Classifier:
    """`weight` has a value a bucket; a probability is sigmoid(slope * (weight . text + bias) + offset)."""

    weight: NDArray[np.float32]
    bias: float
    slope: float
    offset: float
    about: dict[str, Any]  # how it was trained, and its report on held-out texts

    def score(self, text: str) -> float:
        """The uncalibrated logit of `text`."""
        found = features(text, len(self.weight))
        total = float(self.weight[found].sum(dtype=np.float64))
        return total / math.sqrt(max(1, len(found))) + self.bias

    def __call__(self, text: str) -> float:
        """The probability that `text` is good, if good and bad were as frequent as in the training texts."""
        return 0.5 * (1 + math.tanh(0.5 * (self.slope * self.score(text) + self.offset)))

    def save(self, folder: Path) -> None:
        """Writes classifier.safetensors and then classifier.json, each under a temporary name first."""
        from safetensors.numpy import save

        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / WEIGHTS, save({"weight": self.weight}))
        about = {
            "buckets": len(self.weight),
            "bias": self.bias,
            "slope": self.slope,
            "offset": self.offset,
            **self.about,
        }
        write_json(folder / ABOUT, about)

    @staticmethod
    def load(folder: Path) -> Classifier:
        """The classifier that `save` wrote. Raises RequestError where it is missing or does not fit together."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        folder = Path(folder)
        cure = "Train one with: gristmill data classifier train"
        try:
            about = json.loads((folder / ABOUT).read_text("utf-8"))
            weight = load_file(folder / WEIGHTS)["weight"]
            bias, slope, offset = (float(about.pop(name)) for name in ("bias", "slope", "offset"))
            buckets = int(about.pop("buckets"))
        except OSError as error:
            raise RequestError(
                f"{folder} holds no classifier ({error.strerror or error}). {cure}"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise RequestError(f"{folder} holds a broken classifier ({error!r}). {cure}") from None
        if (
            weight.shape != (buckets,)
            or buckets & (buckets - 1)
            or not math.isfinite(bias + slope + offset)
        ):
            raise RequestError(f"{folder}: {WEIGHTS} and {ABOUT} do not belong together. {cure}")
        return Classifier(weight, bias, slope, offset, about)
