"""From the rows of a sweep to the paper's claims: frontiers, and what predicts forgetting."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from vla_razor.core import pareto
from vla_razor.parity_mnist.model import WIDTH
from vla_razor.study import law

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
UPDATES = ("weight_rank", "weight_sparsity", "weight_sparsity_bfloat16")
"""Predictors that the paper gives no number for: it found every update dense and of full rank."""
PREDICTORS = (*PAPER, *UPDATES)
SPARSE = 0.05
"""An update that leaves a smaller share of the weights unchanged counts as dense."""
FULL = 0.99
"""An update of this share of the largest possible rank counts as of full rank."""
WIDTH_STUDY = "sft_1"
"""The method whose frontier is drawn for several widths (the question of the paper's Appendix C.2)."""
ROUNDING = 1e-6
"""Accuracies are float32: 0.58 is a little less."""
KL_RANGES = (2.0, 5.0, np.inf)
"""Upper bounds on forward KL, nats, that the fits are repeated for: the range decides who predicts best."""


class Point(NamedTuple):
    """A checkpoint that did not diverge: accuracies in [0, 1], and prior accuracy lost since its base."""

    method: str
    run: str
    seed: int
    width: int
    schedule: str
    epochs: int
    step: int
    new: float
    prior: float
    forgotten: float
    measures: Mapping[str, float]


def points_of(table: pa.Table) -> list[Point]:
    """The checkpoints of a sweep's table, the bases left out."""
    rows = table.to_pylist()
    bases = {(row["seed"], row["width"]): row["prior"] for row in rows if row["method"] == "base"}
    facts = ("method", "run", "seed", "width", "schedule", "epochs", "step", "new", "prior")
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
    return math.floor(100 * min(max(p.new for p in own) for own in by_method(points).values()) + 100 * ROUNDING) / 100


def by_method(points: Sequence[Point]) -> dict[str, list[Point]]:
    """The points of each method."""
    names = dict.fromkeys(point.method for point in points)
    return {name: [point for point in points if point.method == name] for name in names}


def diverged_of(table: pa.Table) -> dict[str, int]:
    """How many checkpoints diverged, of each method that has any."""
    methods = [row["method"] for row in table.to_pylist() if row["status"] == "diverged"]
    return dict(Counter(methods))


def summarize(points: Sequence[Point]) -> dict[str, Any]:
    """The content of summary.json.

    Per method its frontier, at the accuracy that all methods reach the least that it lost of the prior task and the
    forward KL there (nats), and the medians of its updates' rank and sparsity; per predictor R2 with its bootstrap
    interval over runs, for all models and for those that moved less; per width the frontier of SFT. All but the last
    are for the paper's width alone.
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


class Claim(NamedTuple):
    """Something that the paper says, its number, ours, and whether they agree."""

    text: str
    paper: str
    ours: str
    agrees: bool


def claims(summary: Mapping[str, Any]) -> list[Claim]:
    """The paper's claims that a sweep with all methods can test, against the content of summary.json."""
    methods, found = summary["methods"], summary["predictors"]
    lost = {name: entry["forgotten_at_match"] for name, entry in methods.items()}
    at = f"prior accuracy lost at {summary['matched_accuracy']:.0%} on the new task"

    def order(text: str, less: str, more: str) -> list[Claim]:
        if not {less, more} <= lost.keys():
            return []
        ours = f"{lost[less]:.1%} against {lost[more]:.1%}"
        return [Claim(f"{text} ({at})", f"{less} < {more}", ours, lost[less] < lost[more])]

    checked = [
        *order("RL forgets less than SFT", "grpo", "sft_1"),
        *order("... whatever the labels of SFT", "grpo", "sft_2"),
        *order("SFT on the oracle distribution forgets less than RL", "sft_oracle", "grpo"),
        *order("On-policy without negative examples forgets less than SFT", "one_zero_reinforce", "sft_1"),
        *order("Offline with negative examples forgets more than RL", "grpo", "simpo"),
    ]
    for name in [name for name in PAPER if name in found]:
        low, high = (found[name][end] for end in ("low", "high"))
        agrees = low is not None and low <= PAPER[name] <= high
        checked.append(Claim(f"R2 of {name}", f"{PAPER[name]:.2f}", law.in_words(found[name]), agrees))
    checked += _updates({name: entry["updates"] for name, entry in methods.items()})
    for bound, by_name in summary["predictors_by_range"].items():
        if by_name:
            best = max(by_name, key=lambda name: by_name[name]["r2"])
            ours = f"{best}, {by_name[best]['r2']:.2f}; forward_kl {by_name['forward_kl']['r2']:.2f}"
            text = (
                f"Forward KL predicts best ({bound})" if "inf" not in bound else "Forward KL predicts best (all models)"
            )
            checked.append(Claim(text, "forward_kl", ours, best == "forward_kl"))
    for kind, paper in (("on_policy", 0.94), ("offline", 0.56)):
        if kind in summary.get("cknna", {}):
            ours = summary["cknna"][kind]
            text = f"CKNNA to the base at matched accuracy, {kind.replace('_', '-')}"
            checked.append(Claim(text, f"{paper:.2f}", f"{ours:.2f}", abs(ours - paper) <= 0.1))
    return checked


def _updates(methods: Mapping[str, Mapping[str, float]]) -> list[Claim]:
    """What the paper says of the updates' sparsity and rank (Section 6)."""
    rank, dense = ([own[name] for own in methods.values()] for name in UPDATES[:2])
    ours = f"{min(dense):.1%} to {max(dense):.1%} of the weights"
    claims = [
        Claim("Weights unchanged in float32, median of each method", "about none", ours, max(dense) < SPARSE),
        Claim(
            "Rank of the update, median of each method",
            "full",
            f"{min(rank):.0%} to {max(rank):.0%}",
            min(rank) >= FULL,
        ),
    ]
    if {"grpo", "sft_1"} <= methods.keys():
        rl, sft = (methods[name]["weight_sparsity_bfloat16"] for name in ("grpo", "sft_1"))
        text = "Rounded to bfloat16, RL's updates look sparser than SFT's"
        claims.append(Claim(text, "yes", f"{rl:.0%} against {sft:.0%} unchanged", rl > sft))
    return claims


def matched_similarity(on_policy: pa.Table, offline: pa.Table) -> dict[str, float]:
    """CKNNA to the base of either training where it first reaches the new-task accuracy that both reach."""
    tables = {"on_policy": on_policy.to_pydict(), "offline": offline.to_pydict()}
    level = min(max(table["new"]) for table in tables.values())
    at = {name: next(i for i, new in enumerate(table["new"]) if new >= level) for name, table in tables.items()}
    return {name: table["cknna"][at[name]] for name, table in tables.items()}


def predictors(points: Sequence[Point]) -> dict[str, dict[str, Any]]:
    """How well each measure predicts forgetting, over all methods together: R2 with its interval, None where the runs
    are too few for one.
    """
    found = law.predictors(points, PREDICTORS)
    return {name: {key: entry[key] for key in ("r2", "low", "high", "runs")} for name, entry in found.items()}


def _method(points: Sequence[Point], matched: float) -> dict[str, Any]:
    best = min((point for point in points if point.new >= matched - ROUNDING), key=lambda point: point.forgotten)
    return {
        "frontier": frontier(points),
        "best_new": max(point.new for point in points),
        "forgotten_at_match": best.forgotten,
        "forward_kl_at_match": best.measures["forward_kl"],
        "updates": {name: float(np.median([point.measures[name] for point in points])) for name in UPDATES},
        "models": len(points),
    }
