"""The law on tables whose law is known: predictors, residuals by method, forecasts of what was held out."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.study.support import rows, write
from vla_razor.errors import UserError
from vla_razor.study import figures, forecast, law, table
from vla_razor.study.forecast import FittedLaw, Guard
from vla_razor.study.table import Result


def results(folder: Path, **settings) -> list[Result]:
    return table.read([write(folder, rows(**settings))]).results


def test_a_law_without_noise_is_found(tmp_path: Path) -> None:
    found = law.predictors(results(tmp_path))
    assert found["forward_kl"]["r2"] == pytest.approx(1) == found["forward_kl"]["kendall_tau"]
    assert found["reverse_kl"]["r2"] < 1 and found["reverse_kl"]["kendall_tau"] < 1, "it is shifted at odd seeds"
    assert set(law.predictors(results(tmp_path), ["reverse_kl"])) == {"reverse_kl"}


def test_residuals_name_the_method_that_forgets_more(tmp_path: Path) -> None:
    even = law.residuals(results(tmp_path / "even", noise=0.01))
    assert all(found.low < 0 < found.high for found in even.values())
    apart = law.residuals(results(tmp_path / "apart", noise=0.01, shift=0.1))
    assert apart["sft"].low > 0 > apart["rl"].high
    assert apart["sft"].difference - apart["rl"].difference == pytest.approx(0.1, abs=0.02)


def test_forecasts_of_seeds_that_were_not_in_the_fit(tmp_path: Path) -> None:
    known = results(tmp_path, seeds=20, noise=0.02)
    held = law.validation(known, "forward_kl", lambda result: result.seed)
    assert len(held) == 20 and {one.runs for one in held.values()} == {2}
    assert np.mean([one.covered for one in held.values()]) == pytest.approx(law.COVERAGE, abs=0.06)
    expected = 0.02 * (2 / np.pi) ** 0.5  # the mean absolute value of the noise
    assert np.mean([one.mean_absolute_error for one in held.values()]) == pytest.approx(expected, rel=0.2)


def test_a_method_with_a_law_of_its_own_is_forecast_wrongly(tmp_path: Path) -> None:
    held = law.validation(results(tmp_path, noise=0.01, shift=0.1), "forward_kl", lambda result: result.method)
    assert held["sft"].bias == pytest.approx(-0.1, abs=0.02) and held["rl"].bias == pytest.approx(0.1, abs=0.02)
    assert held["sft"].covered < 0.3


def test_the_frontier_is_what_nothing_beats(tmp_path: Path) -> None:
    known = results(tmp_path)
    kept, curve = law.frontier(known)
    assert curve is not None and [one.new for one in kept] == sorted(one.new for one in kept)
    best = max(known, key=lambda one: one.new)
    assert best in kept


def test_who_lost_least_at_a_level(tmp_path: Path) -> None:
    first, *_ = results(tmp_path)
    known = [first._replace(new=new, forgotten=lost) for new, lost in ((0.4, 0.0), (0.6, 0.3), (0.7, 0.2))]
    assert law.least_lost(known, 0.5) == known[2] and law.least_lost(known, 0.4) == known[0]
    assert law.least_lost(known, 0.8) is None


def test_who_moved_least_at_a_level(tmp_path: Path) -> None:
    first, *_ = results(tmp_path)
    points = ((0.4, 0.5), (0.6, 2.0), (0.6, 1.5), (0.7, 1.0), (0.8, 3.0))
    known = [first._replace(new=new, measures={"forward_kl": kl}) for new, kl in points]
    assert law.least_moved(known, 0.5) == known[3] and law.least_moved(known, 0.4) == known[0]
    assert law.least_moved(known, 0.75) == known[4] and law.least_moved(known, 0.9) is None
    assert law.least_moved_by_success(known) == [known[0], known[3], known[4]]


def test_a_policy_that_has_not_moved_can_be_drawn(tmp_path: Path) -> None:
    """A run without a reward stays at the base: a logarithm has no place for it."""
    still = [one._replace(measures={**one.measures, "forward_kl": 0.0}) for one in results(tmp_path)]
    figures.accuracy(tmp_path / "accuracy", still, figures.colours_of(still))
    figures.least_kl(tmp_path / "least_kl", {"all": still}, {})
    assert {path.name for path in tmp_path.glob("*.png")} == {"accuracy.png", "least_kl.png"}


def test_too_few_runs_have_no_law(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="2 runs are too few"):
        forecast.fit(results(tmp_path, seeds=1))
    flat = [one._replace(forgotten=0.1) for one in results(tmp_path)]
    with pytest.raises(UserError, match="do not vary"):
        forecast.fit(flat)


def test_a_measure_that_only_one_run_varies_has_no_forecast(tmp_path: Path) -> None:
    """As the share of unchanged weights, which is 0 for nearly all: without that run there is nothing to fit."""
    known = results(tmp_path, noise=0.02)
    one = [r._replace(measures={"forward_kl": r.measures["forward_kl"] if r.run == known[0].run else 0}) for r in known]
    assert set(law.predictors(one)) == {"forward_kl"} and law.spread(one, "forward_kl") is None
    assert law.validation(one, "forward_kl", lambda result: result.seed) == {}
    with pytest.raises(UserError, match="do not vary"):
        forecast.fit(one)


def test_a_law_is_read_back(tmp_path: Path) -> None:
    fitted = forecast.fit(results(tmp_path, noise=0.02))
    forecast.save(tmp_path / "law.json", fitted)
    assert forecast.load(tmp_path, "robot") == fitted
    found = fitted.forecast(1.0)
    assert found.forgotten == pytest.approx(0.05, abs=0.02) and found.low < 0.05 < found.high and found.known
    with pytest.raises(UserError, match="of robot runs, this one is of language"):
        forecast.load(tmp_path / "law.json", "language")
    whole = json.loads((tmp_path / "law.json").read_text())
    for broken in ({}, whole | {"below": None}, whole | {"coefficients": []}, whole | {"measure": "entropy"}):
        (tmp_path / "law.json").write_text(json.dumps(broken))
        with pytest.raises(UserError, match="cannot be read"):
            forecast.load(tmp_path, "robot")


def test_beyond_what_was_seen_the_law_stays_where_it_is() -> None:
    fitted = FittedLaw("robot", "spillover", (0.0, 0.0, 0.05), 1.0, (-1.0, 2.0), -0.1, 0.2, 6)
    far, below = fitted.forecast(50.0), fitted.forecast(-3.0)
    assert far.forgotten == pytest.approx(0.2) and (far.low, far.high) == pytest.approx((0.1, 0.4)) and not far.known
    assert below.forgotten == pytest.approx(0.05) and not below.known and fitted.forecast(-1.0).known


def test_a_budget_is_spent_where_the_forecast_reaches_it() -> None:
    guard = Guard(FittedLaw("robot", "forward_kl", (0.0, 0.1, 0.0), 1.0, (0.0, 2.0), -0.1, 0.2, 6), 0.05)
    assert not guard.is_spent({"forward_kl": 0.4}) and guard.is_spent({"forward_kl": 0.6})
    logged = guard.scalars({"forward_kl": 0.4})
    assert [logged[f"predicted_{name}"] for name in ("forgetting", "low", "high")] == pytest.approx([0.04, -0.06, 0.24])
