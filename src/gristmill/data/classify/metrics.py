"""How good probabilities are: order (AUC), honesty (calibration), and what a threshold keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def auc(scores: Floats, labels: Floats) -> float:
    """The share of (good, bad) pairs in which the good one scores higher; ties count half."""
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    _, first, counts = np.unique(ranked, return_index=True, return_counts=True)
    ranks = np.empty(len(scores))
    ranks[order] = np.repeat(first + (counts + 1) / 2, counts)
    good = float(labels.sum())
    bad = len(labels) - good
    return float((ranks[labels == 1].sum() - good * (good + 1) / 2) / (good * bad))


def reliability(probabilities: Floats, labels: Floats, bins: int = 10) -> list[dict[str, float]]:
    """For bins of equal width: how many, the mean probability, the share of good ones. Empty bins are left out."""
    at = np.minimum((probabilities * bins).astype(int), bins - 1)
    rows = []
    for b in range(bins):
        inside = at == b
        if inside.any():
            rows.append(
                {
                    "from": b / bins,
                    "count": int(inside.sum()),
                    "predicted": round(float(probabilities[inside].mean()), 4),
                    "observed": round(float(labels[inside].mean()), 4),
                }
            )
    return rows


def calibration_error(probabilities: Floats, labels: Floats, bins: int = 10) -> float:
    """Expected calibration error: mean |predicted - observed| over bins, weighted by their counts."""
    at = np.minimum((probabilities * bins).astype(int), bins - 1)
    off = np.bincount(at, probabilities - labels, bins)
    return float(np.abs(off).sum() / len(labels))


def at_threshold(probabilities: Floats, labels: Floats, threshold: float) -> dict[str, float]:
    """Precision, recall and kept share of "probability >= threshold means good"."""
    kept = probabilities >= threshold
    right = float(labels[kept].sum())
    return {
        "threshold": threshold,
        "precision": round(right / max(1, int(kept.sum())), 4),
        "recall": round(right / max(1.0, float(labels.sum())), 4),
        "kept": round(float(kept.mean()), 4),
    }


def report(probabilities: Floats, labels: Floats) -> dict[str, Any]:
    """All of it on one held-out set, JSON-able."""
    return {
        "texts": len(labels),
        "good": int(labels.sum()),
        "auc": round(auc(probabilities, labels), 4),
        "calibration_error": round(calibration_error(probabilities, labels), 4),
        "accuracy": round(float(((probabilities >= 0.5) == (labels == 1)).mean()), 4),
        "reliability": reliability(probabilities, labels),
        "thresholds": [at_threshold(probabilities, labels, t) for t in (0.1, 0.3, 0.5, 0.7, 0.9)],
    }
