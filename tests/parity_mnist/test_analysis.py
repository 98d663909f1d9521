"""From points whose law is known to frontiers, predictors and the summary."""

import math
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from vla_razor.core import forgetting_law
from vla_razor.parity_mnist import analysis, figures
from vla_razor.parity_mnist.analysis import PAPER, PREDICTORS, Point
from vla_razor.parity_mnist.model import WIDTH


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forgetting_law, "fit", partial(forgetting_law.fit, resamples=40))


def law(kl: float) -> float:
    return 0.02 + 0.1 * kl - 0.005 * kl**2


def point(method: str, run: str, kl: float, new: float = 0.9, width: int = WIDTH, lost: float | None = None) -> Point:
    """A checkpoint that forgot by the law, or `lost`; the other predictors know nothing of it."""
    noise = np.random.default_rng(int(1e6 * kl) + len(run)).uniform(size=len(PREDICTORS))
    measures = dict(zip(PREDICTORS, noise.tolist(), strict=True)) | {"forward_kl": kl}
    forgotten = law(kl) if lost is None else lost
    return Point(method, f"{method}-{run}", 0, width, "constant", 2, 10, new, 0.8 - forgotten, forgotten, measures)


def family(method: str, kls: list[float], top: float) -> list[Point]:
    """Runs of two checkpoints each, that learn more the further they go, up to `top`."""
    return [point(method, f"run{n // 2}", kl, top * (1 - math.exp(-3 * kl))) for n, kl in enumerate(kls)]


POINTS = [
    *family("grpo", np.linspace(0.1, 4, 12).tolist(), 0.95),
    *family("sft_1", np.linspace(0.15, 8, 12).tolist(), 0.9),
]


def test_points_are_checkpoints_beside_their_own_base() -> None:
    facts = dict.fromkeys(PREDICTORS, 0.5) | {
        "step": 3,
        "new": 0.9,
        "status": "done",
        "schedule": "cosine",
        "epochs": 1,
    }
    rows = [
        facts | {"method": method, "run": f"{method}{seed}{width}", "seed": seed, "width": width, "prior": prior}
        for method, seed, width, prior in (
            ("base", 0, 256, 0.8),
            ("base", 0, 512, 0.7),
            ("base", 1, 512, 0.6),
            ("grpo", 1, 512, 0.55),
            ("sft_1", 0, 256, 0.5),
        )
    ]
    rows.append(rows[-1] | {"run": "diverged", "status": "diverged", "prior": math.nan})
    points = analysis.points_of(pa.Table.from_pylist(rows))
    assert [(p.method, p.run, p.seed, p.width, p.step) for p in points] == [
        ("grpo", "grpo1512", 1, 512, 3),
        ("sft_1", "sft_10256", 0, 256, 3),
    ]
    assert [p.forgotten for p in points] == pytest.approx([0.05, 0.3])
    assert set(points[0].measures) == set(PREDICTORS) > set(PAPER)


def test_the_frontier_keeps_what_is_within_two_points_of_it() -> None:
    cloud = {0.5: 0.8, 0.9: 0.5, 0.89: 0.49, 0.87: 0.47, 0.4: 0.6}
    points = [point("grpo", "a", 1.0, new, lost=0.8 - prior) for new, prior in cloud.items()]
    found = analysis.frontier(points)
    assert found == [[new, pytest.approx(prior)] for new, prior in ((0.5, 0.8), (0.89, 0.49), (0.9, 0.5))]


def test_methods_are_compared_at_the_accuracy_that_all_reach() -> None:
    points = [
        point("grpo", "a", 1.0, 0.957, lost=0.3),
        point("grpo", "b", 0.5, 0.91, lost=0.1),
        point("grpo", "c", 0.1, 0.9, lost=0.05),
        point("sft_1", "a", 2.0, 0.913, lost=0.4),
        point("sft_1", "b", 1.5, 0.905, lost=0.2),
        point("sft_1", "c", 1.7, 0.2, lost=0.0, width=256),
    ]
    summary = analysis.summarize(points)
    assert summary["matched_accuracy"] == 0.91
    grpo, sft = (summary["methods"][name] for name in ("grpo", "sft_1"))
    assert (grpo["forgotten_at_match"], grpo["forward_kl_at_match"]) == (0.1, 0.5)
    assert (sft["forgotten_at_match"], sft["forward_kl_at_match"]) == (0.4, 2.0)
    assert (grpo["best_new"], sft["best_new"], grpo["models"], sft["models"]) == (0.957, 0.913, 3, 2)


def test_an_exact_parabola_in_one_predictor_is_found() -> None:
    found = analysis.predictors(POINTS)
    assert set(found) == set(PREDICTORS)
    assert found["forward_kl"] == pytest.approx({"r2": 1, "low": 1, "high": 1, "runs": 12})
    others = [entry for name, entry in found.items() if name != "forward_kl"]
    assert max(entry["r2"] for entry in others) < 0.6
    assert all(entry["low"] < entry["high"] for entry in others)
    assert analysis.predictors(POINTS) == found, "the bootstrap follows a seed"


def test_the_range_decides() -> None:
    """Forgetting that stops growing from 5 nats on spoils the fit over all models, and none below."""
    saturated = [p if p.measures["forward_kl"] <= 5 else p._replace(forgotten=law(5)) for p in POINTS]
    summary = analysis.summarize(saturated)
    ranges = {name: entry["forward_kl"]["r2"] for name, entry in summary["predictors_by_range"].items()}
    assert list(ranges) == ["forward_kl<=2", "forward_kl<=5", "forward_kl<=inf"]
    assert ranges["forward_kl<=2"] == ranges["forward_kl<=5"] == pytest.approx(1)
    assert ranges["forward_kl<=inf"] < 0.999
    assert summary["predictors"] == summary["predictors_by_range"]["forward_kl<=inf"]


def test_too_little_predicts_nothing() -> None:
    assert analysis.predictors(POINTS[:4]) == {}, "two runs"
    assert analysis.predictors([p._replace(forgotten=0.1) for p in POINTS]) == {}, "nothing varies"
    few = [p for p in POINTS if p.measures["forward_kl"] > 2] + POINTS[:1]
    assert analysis.summarize(few)["predictors_by_range"]["forward_kl<=2"] == {}


def test_a_measure_that_hardly_varies_predicts_nothing() -> None:
    flat = [p._replace(measures={**p.measures, "weight_rank": 1.0}) for p in POINTS]
    assert set(analysis.predictors(flat)) == set(PREDICTORS) - {"weight_rank"}


def test_updates_are_judged_by_their_medians() -> None:
    def updated(p: Point, rank: float, dense: float, rounded: float) -> Point:
        return p._replace(measures={**p.measures, **dict(zip(analysis.UPDATES, (rank, dense, rounded), strict=True))})

    thin = [updated(p, 1.0, 0.0, 0.9 if p.method == "grpo" else 0.4) for p in POINTS]
    thin[0] = updated(thin[0], 0.1, 1.0, 0.0)  # one run does not turn a median
    found = {claim.text: claim for claim in analysis.claims(analysis.summarize(thin))}
    unchanged, rank, rounded = (
        next(c for text, c in found.items() if word in text) for word in ("float32", "Rank", "bfl")
    )
    assert (unchanged.agrees, unchanged.ours) == (True, "0.0% to 0.0% of the weights")
    assert (rank.agrees, rank.ours) == (True, "100% to 100%")
    assert (rounded.agrees, rounded.ours) == (True, "90% against 40% unchanged")
    sparse = {c.text: c for c in analysis.claims(analysis.summarize([updated(p, 0.5, 0.2, 0.4) for p in POINTS]))}
    assert not any(sparse[claim.text].agrees for claim in (unchanged, rank, rounded))


def test_diverged_checkpoints_are_counted_by_method() -> None:
    rows = [
        {"method": method, "status": status} for method, status in (("a", "done"), ("a", "diverged"), ("b", "diverged"))
    ]
    assert analysis.diverged_of(pa.Table.from_pylist(rows)) == {"a": 1, "b": 1}


def test_widths_are_studied_apart_from_the_headline() -> None:
    narrow = [p._replace(width=256, prior=0.1) for p in POINTS if p.method == "sft_1"]
    summary = analysis.summarize([*POINTS, *narrow])
    headline = analysis.summarize(POINTS)
    assert {name: summary[name] for name in summary if name != "widths"} == {
        name: headline[name] for name in headline if name != "widths"
    }
    assert set(summary["widths"]) == {"256", str(WIDTH)}
    assert summary["widths"]["256"] == {"frontier": analysis.frontier(narrow)}
    assert analysis.summarize(POINTS[:12])["widths"] == {}, "without SFT there is no study"


@pytest.mark.slow
def test_every_figure_is_a_picture_and_a_drawing(tmp_path: Path) -> None:
    summary = analysis.summarize(POINTS)
    figures.draw(tmp_path, POINTS, summary)
    names = {"trade_off", "quadrants", "forgetting_against_kl", "accuracy_against_kl", "predictors", "widths"}
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    for path in tmp_path.glob("*.png"):
        with Image.open(path) as image:
            image.verify()
    assert all(path.read_text().rstrip().endswith("</svg>") for path in tmp_path.glob("*.svg"))
    assert set(figures.COLOURS) >= {p.method for p in POINTS}
