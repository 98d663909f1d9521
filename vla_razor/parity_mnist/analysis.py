"""From the rows of a sweep to the paper's claims: frontiers, and what predicts forgetting."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from vla_razor.core import forgetting_law, pareto

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
MATCHED = 0.95
"""New-task accuracy at which the methods are compared."""
KL_RANGES = (2.0, 5.0, np.inf)
"""Upper bounds on forward KL, nats, that the fits are repeated for: the range decides who predicts best."""


class Point(NamedTuple):
    """A checkpoint that did not diverge: accuracies in [0, 1], and prior accuracy lost since its base."""

    method: str
    run: str
    seed: int
    step: int
    new: float
    prior: float
    forgotten: float
    measures: Mapping[str, float]


def points_of(table: pa.Table) -> list[Point]:
    """The checkpoints of a sweep's table, the bases left out."""
    rows = table.to_pylist()
    bases = {row["seed"]: row["prior"] for row in rows if row["method"] == "base"}
    facts = ("method", "run", "seed", "step", "new", "prior")
    return [
        Point(
            *(row[name] for name in facts), bases[row["seed"]] - row["prior"], {name: row[name] for name in PREDICTORS}
        )
        for row in rows
        if row["method"] != "base" and row["status"] == "done"
    ]


def frontier(points: Sequence[Point]) -> list[list[float]]:
    """[new, prior] of the points within 2 accuracy points of their frontier (paper, Appendix B.1), by rising new."""
    near = pareto.near_frontier([p.new for p in points], [p.prior for p in points])
    return sorted([p.new, p.prior] for p, kept in zip(points, near, strict=True) if kept)


def summarize(points: Sequence[Point]) -> dict[str, Any]:
    """The content of summary.json: per method its frontier, and prior accuracy lost and forward KL where it first
    reaches 95% on the new task; per predictor R2 with its bootstrap interval over runs, for all points and by range.
    """
    methods = {}
    for method in dict.fromkeys(point.method for point in points):
        own = [point for point in points if point.method == method]
        reached = [point for point in own if point.new >= MATCHED]
        best = min(reached, key=lambda point: point.forgotten, default=None)
        methods[method] = {
            "frontier": frontier(own),
            "best_new": max(point.new for point in own),
            "least_forgotten": best.forgotten if best else None,
            "forward_kl_there": best.measures["forward_kl"] if best else None,
            "models": len(own),
        }
    ranges = {
        f"forward_kl<={bound:g}": predictors([p for p in points if p.measures["forward_kl"] <= bound])
        for bound in KL_RANGES
    }
    return {"methods": methods, "predictors": ranges[f"forward_kl<={np.inf:g}"], "predictors_by_range": ranges}


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
