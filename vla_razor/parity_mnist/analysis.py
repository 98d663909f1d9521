"""From the rows of a sweep to the paper's claims: frontiers, and what predicts forgetting."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from vla_razor.core import forgetting_law, pareto
from vla_razor.parity_mnist.model import WIDTH

PREDICTORS = (
    "forward_kl",
    "reverse_kl",
    "total_variation",
    "l2_distance",
    "weight_l1",
    "weight_fisher",
    "weight_spectral",
    "activation_l1",
    "activation_l2",
)
PAPER = {
    "forward_kl": 0.96,
    "reverse_kl": 0.93,
    "total_variation": 0.80,
    "l2_distance": 0.56,
    "weight_l1": 0.34,
    "weight_fisher": 0.58,
    "weight_spectral": 0.58,
    "activation_l1": 0.52,
    "activation_l2": 0.55,
}
"""R2 of the paper's Table 1."""
WIDTH_STUDY = "sft_1"
"""The method whose frontier is drawn for several widths (the question of the paper's Appendix C.2)."""
KL_RANGES = (2.0, 5.0, np.inf)
"""Upper bounds on forward KL, nats, that the fits are repeated for: the range decides who predicts best."""


class Point(NamedTuple):
    """A checkpoint that did not diverge: accuracies in [0, 1], and prior accuracy lost since its base."""

    method: str
    run: str
    seed: int
    width: int
    step: int
    new: float
    prior: float
    forgotten: float
    measures: Mapping[str, float]


def points_of(table: pa.Table) -> list[Point]:
    """The checkpoints of a sweep's table, the bases left out."""
    rows = table.to_pylist()
    bases = {(row["seed"], row["width"]): row["prior"] for row in rows if row["method"] == "base"}
    facts = ("method", "run", "seed", "width", "step", "new", "prior")
    return [
        Point(
            **{name: row[name] for name in facts},
            forgotten=bases[row["seed"], row["width"]] - row["prior"],
            measures={name: row[name] for name in PREDICTORS},
        )
        for row in rows
        if row["method"] != "base" and row["status"] == "done"
    ]


def frontier(points: Sequence[Point]) -> list[list[float]]:
    """[new, prior] of the points within 2 accuracy points of their frontier (paper, Appendix B.1), by rising new."""
    near = pareto.near_frontier([p.new for p in points], [p.prior for p in points])
    return sorted([p.new, p.prior] for p, kept in zip(points, near, strict=True) if kept)


def matched_accuracy(points: Sequence[Point]) -> float:
    """The highest new-task accuracy, in whole percent, that every method reaches: where they can be compared."""
    return math.floor(100 * min(max(p.new for p in own) for own in by_method(points).values())) / 100


def by_method(points: Sequence[Point]) -> dict[str, list[Point]]:
    """The points of each method."""
    names = dict.fromkeys(point.method for point in points)
    return {name: [point for point in points if point.method == name] for name in names}


def summarize(points: Sequence[Point]) -> dict[str, Any]:
    """The content of summary.json.

    Per method its frontier and, at the accuracy that all methods reach, the least that it lost of the prior task and
    the forward KL there (nats); per predictor R2 with its bootstrap interval over runs, for all models and for those
    that moved less; per width the frontier of SFT. All but the last are for the paper's width alone.
    """
    usual = [point for point in points if point.width == WIDTH]
    matched = matched_accuracy(usual)
    ranges = {
        f"forward_kl<={bound:g}": predictors([p for p in usual if p.measures["forward_kl"] <= bound])
        for bound in KL_RANGES
    }
    widths = sorted({point.width for point in points})
    of_width = {width: [p for p in points if p.width == width and p.method == WIDTH_STUDY] for width in widths}
    return {
        "matched_accuracy": matched,
        "methods": {name: _method(own, matched) for name, own in by_method(usual).items()},
        "predictors": ranges[f"forward_kl<={np.inf:g}"],
        "predictors_by_range": ranges,
        "widths": {str(width): {"frontier": frontier(own)} for width, own in of_width.items() if own},
    }


def _method(points: Sequence[Point], matched: float) -> dict[str, Any]:
    best = min((point for point in points if point.new >= matched), key=lambda point: point.forgotten)
    return {
        "frontier": frontier(points),
        "best_new": max(point.new for point in points),
        "forgotten_at_match": best.forgotten,
        "forward_kl_at_match": best.measures["forward_kl"],
        "models": len(points),
    }


def predictors(points: Sequence[Point]) -> dict[str, dict[str, float]]:
    """How well each measure predicts forgetting: R2 of a second-degree polynomial, over all methods together."""
    lost, runs = np.array([point.forgotten for point in points]), [point.run for point in points]
    if len(set(runs)) < 3 or np.ptp(lost) == 0:
        return {}
    found = {}
    for name in PREDICTORS:
        law = forgetting_law.fit([p.measures[name] for p in points], lost, runs, generator=np.random.default_rng(0))
        found[name] = {"r2": law.r2, "low": law.low, "high": law.high}
    return found
