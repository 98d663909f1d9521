"""From points whose law is known to frontiers, predictors and the summary."""

import math
from functools import partial
from pathlib import Path
from typing import Any

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


def test_the_papers_numbers_are_compared_with_those_of_its_own_experiment_alone() -> None:
    """Its CKNNA is a language model's, its 1-0 REINFORCE and SimPO answered science questions; its R2 is over the five
    methods of its Appendix B.3, and the others may follow another law.
    """
    names = "one_zero_reinforce", "simpo", "sft_distilled"
    others = [p for name in names for p in family(name, [0.2, 4.0] * 6, 0.95)]
    spoiled = [p._replace(forgotten=0.9 - p.forgotten) for p in others]
    summary = analysis.summarize([*POINTS, *spoiled])
    summary["cknna"] = {"on_policy": 0.94, "offline": 0.56}
    found = {claim.text: claim for claim in analysis.claims(summary)}
    assert not any(word in text.lower() for text in found for word in ("cknna", "negative", "simpo"))
    assert found["R2 of forward_kl"].ours.startswith("1.00") and summary["predictors"]["forward_kl"]["r2"] < 0.9
    assert summary["predictors_of_paper_methods"]["forward_kl"]["r2"] == pytest.approx(1)
    beyond = dict(analysis.beyond(summary))
    assert any("SimPO" in text for text in beyond) and any("1-0 REINFORCE" in text for text in beyond)
    assert any("CKNNA" in text for text in beyond)


def test_a_teacher_is_measured_itself_beside_its_nearest_student() -> None:
    """The teacher of seed 1 has no student within two points in both."""
    students = [
        point("sft_distilled", "a", 1.0, 0.95, lost=0.30),
        point("sft_distilled", "b", 2.0, 0.94, lost=0.11),
        point("sft_distilled", "c", 2.0, 0.96, lost=0.25)._replace(seed=1),
    ]
    facts = dict.fromkeys(PREDICTORS, 0.5) | {"width": WIDTH, "status": "done", "step": 0}
    base = [facts | {"method": "base", "run": f"base{s}", "seed": s, "new": 0.5, "prior": 0.8} for s in (0, 1)]
    taught = facts | {"method": "teacher", "run": "t", "new": 0.955, "prior": 0.7, "forward_kl": 1.5}
    rows = [*base, taught | {"seed": 0}, taught | {"seed": 1}, taught | {"seed": 0, "width": 256}]
    first, second = analysis.teachers(pa.Table.from_pylist(rows), students)
    assert (first["seed"], first["new"], first["forward_kl"]) == (0, 0.955, 1.5)
    assert first["forgotten"] == pytest.approx(0.1)
    assert (first["student"]["run"], first["gap"]) == ("sft_distilled-b", pytest.approx(0.015))
    assert (second["seed"], second["gap"]) == (1, pytest.approx(0.15))
    summary = analysis.summarize([*POINTS, *students]) | {"teachers": [first, second]}
    (claim,) = [claim for claim in analysis.claims(summary) if "teacher" in claim.text]
    assert not claim.agrees and "15.0" in claim.ours
    (claim,) = [c for c in analysis.claims(summary | {"teachers": [first]}) if "teacher" in c.text]
    assert claim.agrees


def test_updates_are_judged_by_their_medians() -> None:
    def updated(p: Point, rank: float, dense: float) -> Point:
        return p._replace(measures={**p.measures, **dict(zip(analysis.UPDATES, (rank, dense), strict=True))})

    thin = [updated(p, 1.0, 0.0) for p in POINTS]
    thin[0] = updated(thin[0], 0.1, 1.0)  # one run does not turn a median
    found = {claim.text: claim for claim in analysis.claims(analysis.summarize(thin))}
    unchanged, rank = (next(c for text, c in found.items() if word in text) for word in ("float32", "Rank"))
    assert (unchanged.agrees, unchanged.ours) == (True, "0.0% to 0.0% of the weights")
    assert (rank.agrees, rank.ours) == (True, "100% to 100%")
    sparse = {c.text: c for c in analysis.claims(analysis.summarize([updated(p, 0.5, 0.2) for p in POINTS]))}
    assert not any(sparse[claim.text].agrees for claim in (unchanged, rank))
    assert not any("bfloat16" in text for text in found), "nothing is said of it that was only rounded afterwards"


def precision_rows(unchanged: dict[str, float], new: float = 0.9) -> list[dict[str, Any]]:
    """Two orders of each method at one rate, in either precision; `unchanged` by method where trained in bfloat16."""
    row = {"prior": 0.7, "forgotten": 0.1, "forward_kl": 1.0, "jaccard": 0.8, "chance": 0.3, "chance_by_size": 0.4}
    return [
        {
            "method": method,
            "seed": 0,
            "precision": precision,
            "learning_rate": 1e-4,
            "order": order,
            "new": new if precision == "bfloat16" else 0.9,
            "unchanged": (share if precision == "bfloat16" else 0.02) + 0.1 * (2 * order - 1),
            "unchanged_rounded": share,
            **row,
        }
        for method, share in unchanged.items()
        for precision in ("float32", "bfloat16")
        for order in (0, 1)
    ]


def test_sparsity_is_that_of_trainings_in_either_precision() -> None:
    rows = precision_rows({"grpo": 0.6, "sft_1": 0.4})
    summary = analysis.summarize(POINTS) | {"precision": analysis.precisions(rows)}
    grpo, sft = summary["precision"]
    assert (grpo["method"], grpo["learning_rate"], sft["method"]) == ("grpo", 1e-4, "sft_1")
    assert grpo["bfloat16"]["unchanged"] == pytest.approx(0.6) and grpo["float32"]["unchanged"] == pytest.approx(0.02)
    claims = [claim for claim in analysis.claims(summary) if "bfloat16" in claim.text or "precision" in claim.text]
    sparser, than_sft = (claim for claim in analysis.claims(summary) if "spars" in claim.text)
    assert sparser.agrees and than_sft.agrees and "60% against 40%" in than_sft.ours
    assert all(claim.agrees for claim in claims)
    assert any("0.80 to 0.80; by chance 0.30" in ours for _, ours in analysis.beyond(summary))
    still = analysis.precisions([row | {"jaccard": math.nan} for row in rows])
    assert any(ours.startswith("not defined; by") for _, ours in analysis.beyond(summary | {"precision": still}))
    assert (analysis.cell(None), analysis.cell(math.nan), analysis.cell(0.5)) == ("", "", "0.50")
    other = analysis.precisions(precision_rows({"grpo": 0.3, "sft_1": 0.4}, new=0.8))
    found = {claim.text: claim for claim in analysis.claims(summary | {"precision": other})}
    assert not found[than_sft.text].agrees
    (same,) = (claim for text, claim in found.items() if "same accuracies" in text)
    assert not same.agrees and same.ours == "up to 10.0 points apart"


@pytest.mark.parametrize(("low", "high", "agrees"), [(-0.5, -0.1, (True, False)), (-0.2, 0.1, (False, False))])
def test_either_panel_of_figure_10_has_its_sentence(low: float, high: float, agrees: tuple[bool, bool]) -> None:
    """Both coefficients have to have the sign that the paper reads off its picture."""
    sure = {"value": -0.9, "low": -0.95, "high": -0.85}
    one = {"kl_change": {"pearson": sure, "spearman": {"value": -0.1, "low": low, "high": high}}}
    summary = analysis.summarize(POINTS) | {"updates": {"grpo": {"new": one, "prior": one}}}
    found = [claim for claim in analysis.claims(summary) if "Figure 10" in claim.text]
    assert [claim.paper for claim in found] == ["negative", "positive"]
    assert tuple(claim.agrees for claim in found) == agrees
    assert found[0].ours == f"pearson -0.90 [-0.95, -0.85]; spearman -0.10 [{low:+.2f}, {high:+.2f}]"


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
    figures.draw_precision(tmp_path, analysis.precisions(precision_rows({"grpo": 0.6, "sft_1": 0.4})))
    names = {"trade_off", "quadrants", "forgetting_against_kl", "accuracy_against_kl", "predictors", "widths"}
    names |= {"kl_at_matched_accuracy", "precision"}
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    for path in tmp_path.glob("*.png"):
        with Image.open(path) as image:
            image.verify()
    assert all(path.read_text().rstrip().endswith("</svg>") for path in tmp_path.glob("*.svg"))
    assert set(figures.COLOURS) >= {p.method for p in POINTS}
