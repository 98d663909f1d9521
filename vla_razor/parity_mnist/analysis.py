"""From the rows of a sweep to the paper's claims: frontiers, and what predicts forgetting."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from vla_razor.core import pareto
from vla_razor.parity_mnist.methods import PAPER_METHODS
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
UPDATES = ("weight_rank", "weight_sparsity")
"""Predictors for which the paper has no number: it found every update dense and of full rank."""
PREDICTORS = (*PAPER, *UPDATES)
SPARSE = 0.05
"""Share of unchanged weights below which an update counts as dense."""
PRECISIONS = ("float32", "bfloat16")
FULL = 0.99
"""Share of the largest possible rank from which an update counts as of full rank."""
TEACHER = "teacher"
"""The method's name in the row of the policy that `sft_distilled` learns from."""
WITHIN = 0.02
"""How near a student must come to its teacher in both accuracies to match it: the paper's tolerance (Appendix B.1)."""
WIDTH_STUDY = "sft_1"
"""The method whose frontier is drawn for several widths (the question of the paper's Appendix C.2)."""
ROUNDING = 1e-6
"""Accuracies are float32: 0.58 is a little less."""
KL_RANGES = (2.0, 5.0, np.inf)
"""Upper bounds on forward KL, in nats, for which the fits are repeated: which measure predicts best depends on them."""


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
    rows, bases = table.to_pylist(), _bases(table)
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
    """The highest new-task accuracy, in whole percent, that every method reaches: there they can be compared."""
    return math.floor(100 * min(max(p.new for p in own) for own in by_method(points).values()) + 100 * ROUNDING) / 100


def by_method(points: Sequence[Point]) -> dict[str, list[Point]]:
    """The points of each method."""
    names = dict.fromkeys(point.method for point in points)
    return {name: [point for point in points if point.method == name] for name in names}


def diverged_of(table: pa.Table) -> dict[str, int]:
    """How many checkpoints diverged, of each method that has any."""
    return dict(Counter(row["method"] for row in table.to_pylist() if row["status"] == "diverged"))


def teachers(table: pa.Table, points: Sequence[Point]) -> list[dict[str, Any]]:
    """For each base of the paper's width, the teacher's accuracies, its forgetting and its forward KL (nats), and the
    student that comes nearest to it. `gap` is how much that student lacks, in the accuracy in which it lacks more.

    `table` holds the teachers' rows beside those of the bases.
    """
    bases, found = _bases(table), []
    for row in table.to_pylist():
        own = [p for p in points if (p.method, p.seed, p.width) == ("sft_distilled", row["seed"], row["width"])]
        if (row["method"], row["width"]) != (TEACHER, WIDTH) or not own:
            continue
        teacher = {name: row[name] for name in ("seed", "new", "prior", "forward_kl")}
        gaps = [max(row["new"] - point.new, row["prior"] - point.prior, 0.0) for point in own]
        best = own[int(np.argmin(gaps))]
        student = {name: getattr(best, name) for name in ("run", "step", "new", "prior", "forgotten")}
        student["forward_kl"] = best.measures["forward_kl"]
        lost = bases[row["seed"], row["width"]] - row["prior"]
        found.append(teacher | {"forgotten": lost, "student": student, "gap": min(gaps)})
    return found


def precisions(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """By method and learning rate, the results of its trainings in each precision, as means over the orders
    (`precision.record`).
    """
    settings = dict.fromkeys((row["method"], row["learning_rate"]) for row in rows)
    names = [name for name in rows[0] if name not in ("method", "seed", "precision", "learning_rate", "order")]
    found = []
    for method, rate in settings:
        entry: dict[str, Any] = {"method": method, "learning_rate": rate}
        for precision in PRECISIONS:
            own = [r for r in rows if (r["method"], r["learning_rate"], r["precision"]) == (method, rate, precision)]
            entry[precision] = {name: float(np.mean([row[name] for row in own])) for name in names}
        found.append(entry)
    return found


def _bases(table: pa.Table) -> dict[tuple[int, int], float]:
    """Prior accuracy of the bases, by seed and width."""
    return {(row["seed"], row["width"]): row["prior"] for row in table.to_pylist() if row["method"] == "base"}


def summarize(points: Sequence[Point]) -> dict[str, Any]:
    """The content of summary.json.

    Per method: its frontier; the least that it forgot at the accuracy that all methods reach, and the forward KL there,
    in nats; the medians of its updates' rank and sparsity. Per predictor: R2 with its bootstrap interval over runs, for
    all models, for those below each bound on forward KL, and for the methods of the paper's own fit. Per width: the
    frontier of SFT. All but the last are for the paper's width alone.
    """
    usual = [point for point in points if point.width == WIDTH]  # the other widths answer one question of their own
    matched = matched_accuracy(usual)
    ranges = {
        f"forward_kl<={bound:g}": predictors([p for p in usual if p.measures["forward_kl"] <= bound])
        for bound in KL_RANGES
    }
    methods = {}
    for name, own in by_method(usual).items():
        least = min((point for point in own if point.new >= matched - ROUNDING), key=lambda point: point.forgotten)
        methods[name] = {
            "frontier": frontier(own),
            "best_new": max(point.new for point in own),
            "forgotten_at_match": least.forgotten,
            "forward_kl_at_match": least.measures["forward_kl"],
            "updates": {name: float(np.median([point.measures[name] for point in own])) for name in UPDATES},
            "models": len(own),
        }
    widths = sorted({point.width for point in points})
    of_width = {width: [p for p in points if p.width == width and p.method == WIDTH_STUDY] for width in widths}
    return {
        "matched_accuracy": matched,
        "methods": methods,
        "predictors": ranges[f"forward_kl<={np.inf:g}"],
        "predictors_by_range": ranges,
        "predictors_of_paper_methods": predictors([p for p in usual if p.method in PAPER_METHODS]),
        "widths": {str(width): {"frontier": frontier(own)} for width, own in of_width.items() if own},
    }


class Claim(NamedTuple):
    """A statement of the paper's, its number, ours, and whether they agree."""

    text: str
    paper: str
    ours: str
    agrees: bool


def claims(summary: Mapping[str, Any]) -> list[Claim]:
    """What the paper claims of ParityMNIST and a sweep can test, checked against the content of summary.json."""
    lost, at = _lost(summary), f"prior accuracy lost at {summary['matched_accuracy']:.0%} on the new task"

    def order(text: str, less: str, more: str) -> list[Claim]:
        if not {less, more} <= lost.keys():
            return []
        ours = f"{lost[less]:.1%} against {lost[more]:.1%}"
        return [Claim(f"{text} ({at})", f"{less} < {more}", ours, lost[less] < lost[more])]

    checked = [
        *order("RL forgets less than SFT", "grpo", "sft_1"),
        *order("... whatever the labels of SFT", "grpo", "sft_2"),
        *order("SFT on the oracle distribution forgets less than RL", "sft_oracle", "grpo"),
    ]
    if summary.get("teachers"):
        gap = max(teacher["gap"] for teacher in summary["teachers"])
        text = "SFT on a teacher's answers comes as far as the teacher in both tasks (Figure 9)"
        checked.append(Claim(text, "within noise", f"nearest student {100 * gap:.1f} points short", gap <= WITHIN))
    found = summary["predictors_of_paper_methods"]
    for name in [name for name in PAPER if name in found]:
        low, high = (found[name][end] for end in ("low", "high"))
        agrees = low is not None and low <= PAPER[name] <= high
        checked.append(Claim(f"R2 of {name}", f"{PAPER[name]:.2f}", law.in_words(found[name]), agrees))
    ranges = {"the paper's methods": found} | {
        "all models" if "inf" in bound else bound: by_name for bound, by_name in summary["predictors_by_range"].items()
    }
    for name, by_name in ranges.items():
        if by_name:
            best = max(by_name, key=lambda measure: by_name[measure]["r2"])
            ours = f"{best}, {by_name[best]['r2']:.2f}; forward_kl {by_name['forward_kl']['r2']:.2f}"
            checked.append(Claim(f"Forward KL predicts best ({name})", "forward_kl", ours, best == "forward_kl"))
    checked += _sparsity(summary)
    checked += _steps(summary.get("updates", {}))
    ranks = [entry["updates"]["weight_rank"] for entry in summary["methods"].values()]
    ours = f"{min(ranks):.0%} to {max(ranks):.0%}"
    return [*checked, Claim("Rank of the update, median of each method", "full", ours, min(ranks) >= FULL)]


def beyond(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Findings of a sweep for which the paper has no ParityMNIST number to compare with: a text and the finding."""
    lost, level = _lost(summary), f"{summary['matched_accuracy']:.0%}"
    found: list[tuple[str, str]] = []
    for name, text in (
        ("one_zero_reinforce", "1-0 REINFORCE: on-policy, without negative examples"),
        ("simpo", "SimPO: offline, with negative examples"),
    ):
        if {name, "grpo", "sft_1"} <= lost.keys():
            ours = f"{lost[name]:.1%}; GRPO {lost['grpo']:.1%}, SFT 1 {lost['sft_1']:.1%}"
            found.append((f"{text} (prior accuracy lost at {level}; the paper compares it on Science Q&A)", ours))
    if "cknna" in summary:
        ours = f"GRPO {summary['cknna']['on_policy']:.2f}, SFT 1 {summary['cknna']['offline']:.2f}"
        text = "CKNNA to the base at matched accuracy (the paper has that of a language model on Wikipedia)"
        found.append((text, ours))
    for precision in PRECISIONS if summary.get("precision") else ():
        own = [entry[precision] for entry in summary["precision"]]
        ours = f"{_reach(own, 'jaccard')}; by chance {_reach(own, 'chance')}"
        ours += f", with as many of each size {_reach(own, 'chance_by_size')}"
        text = f"Weights that two trainings of one base in {precision} both changed, of those that either did (Jaccard)"
        found.append((text, ours))
    return found


def cell(value: float | None, digits: str = ".2f") -> str:
    """A number of a table; empty where it is not defined, as for the agreement of trainings that changed no weight. In
    summary.json that is null.
    """
    return "" if value is None or math.isnan(value) else f"{value:{digits}}"


def _reach(entries: Sequence[Mapping[str, float]], name: str, digits: str = ".2f") -> str:
    known = [entry[name] for entry in entries if cell(entry[name])]
    return f"{min(known):{digits}} to {max(known):{digits}}" if known else "not defined"


def _sparsity(summary: Mapping[str, Any]) -> list[Claim]:
    """What the paper says of sparse updates, which it explains by bfloat16 (Section 6)."""
    dense = [own["updates"]["weight_sparsity"] for own in summary["methods"].values()]
    ours = f"{min(dense):.1%} to {max(dense):.1%} of the weights"
    found = [Claim("Weights unchanged in float32, median of each method", "about none", ours, max(dense) < SPARSE)]
    entries = summary.get("precision", [])
    by_method = {name: [e for e in entries if e["method"] == name] for name in ("grpo", "sft_1")}
    if not all(by_method.values()):
        return found
    wide, narrow = ([entry[precision] for entry in by_method["grpo"]] for precision in PRECISIONS)
    other = [entry["bfloat16"] for entry in by_method["sft_1"]]
    ours = f"{_reach(narrow, 'unchanged', '.0%')} unchanged, in float32 {_reach(wide, 'unchanged', '.0%')}"
    sparser = all(one["unchanged"] > two["unchanged"] for one, two in zip(narrow, wide, strict=True))
    found.append(Claim("RL's updates are sparse where it is trained in bfloat16", "yes", ours, sparser))
    pairs = list(zip(by_method["grpo"], narrow, other, strict=True))
    ours = "; ".join(f"{e['learning_rate']:g}: {a['unchanged']:.0%} against {b['unchanged']:.0%}" for e, a, b in pairs)
    sparser = all(one["unchanged"] > two["unchanged"] for _, one, two in pairs)
    found.append(Claim("... and sparser than SFT's (grpo against sft_1, by learning rate)", "yes", ours, sparser))
    apart = [abs(e["float32"][name] - e["bfloat16"][name]) for e in entries for name in ("new", "prior")]
    ours = f"up to {100 * max(apart):.1f} points apart"
    return [*found, Claim("Either precision gives the same accuracies", "identical", ours, max(apart) <= WITHIN)]


def _steps(updates: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]]) -> list[Claim]:
    """Figure 10, panel by panel, for each training that was followed: whether both coefficients have its sign."""
    found = []
    for task, sign, paper in (("new", -1, "negative"), ("prior", 1, "positive")):
        for method, by_task in updates.items():
            if not (both := by_task[task].get("kl_change")):
                continue
            ours = "; ".join(
                f"{name} {one['value']:+.2f} [{one['low']:+.2f}, {one['high']:+.2f}]" for name, one in both.items()
            )
            text = f"Figure 10, {task} task: correlation of a step's KL and its cosine with the gradient ({method})"
            agrees = all(min(sign * one["low"], sign * one["high"]) > 0 for one in both.values())
            found.append(Claim(text, paper, ours, agrees))
    return found


def _lost(summary: Mapping[str, Any]) -> dict[str, float]:
    return {name: entry["forgotten_at_match"] for name, entry in summary["methods"].items()}


def matched_similarity(on_policy: pa.Table, offline: pa.Table) -> dict[str, float]:
    """CKNNA with the base, for each of two trainings where it first reaches the new-task accuracy that both reach."""
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
