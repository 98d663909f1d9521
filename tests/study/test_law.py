"""The law on tables whose law is known: predictors, residuals by method, forecasts of what was held out."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.study.support import rows, write
from vla_razor import plots
from vla_razor.errors import UserError
from vla_razor.study import figures, forecast, law, table
from vla_razor.study.forecast import FittedLaw, Guard
from vla_razor.study.table import Result


def results(folder: Path, **settings) -> list[Result]:
    return table.read([write(folder, rows(**settings))]).results


def test_a_law_without_noise_is_found(tmp_path: Path) -> None:
    found = law.predictors(results(tmp_path))
    assert (found["forward_kl_per_token"]["runs"], found["forward_kl_per_token"]["resamples"]) == (12, law.RESAMPLES)
    assert found["forward_kl_per_token"]["r2"] == pytest.approx(1) == found["forward_kl_per_token"]["kendall_tau"]
    assert found["reverse_kl_per_token"]["r2"] < 1 and found["reverse_kl_per_token"]["kendall_tau"] < 1, (
        "it is shifted at odd seeds"
    )
    assert set(law.predictors(results(tmp_path), ["reverse_kl_per_token"])) == {"reverse_kl_per_token"}


def test_residuals_name_the_method_that_forgets_more(tmp_path: Path) -> None:
    even = law.residuals(results(tmp_path / "even", noise=0.01))
    assert all(found.low < 0 < found.high for found in even.values())
    apart = law.residuals(results(tmp_path / "apart", noise=0.01, shift=0.1))
    assert apart["sft"].low > 0 > apart["rl"].high
    assert apart["sft"].difference - apart["rl"].difference == pytest.approx(0.1, abs=0.02)


def test_forecasts_of_seeds_that_were_not_in_the_fit(tmp_path: Path) -> None:
    known = results(tmp_path, seeds=20, noise=0.02)
    held = law.validation(known, "forward_kl_per_token", lambda result: result.seed)
    assert len(held) == 20 and {one.runs for one in held.values()} == {2}
    assert np.mean([one.covered or 0.0 for one in held.values()]) == pytest.approx(law.COVERAGE, abs=0.06)
    expected = 0.02 * (2 / np.pi) ** 0.5  # the mean absolute value of the noise
    assert np.mean([one.mean_absolute_error for one in held.values()]) == pytest.approx(expected, rel=0.2)


def test_a_method_with_a_law_of_its_own_is_forecast_wrongly(tmp_path: Path) -> None:
    known = results(tmp_path, noise=0.01, shift=0.1, seeds=12)
    held = law.validation(known, "forward_kl_per_token", lambda result: result.method)
    assert held["sft"].bias == pytest.approx(-0.1, abs=0.02) and held["rl"].bias == pytest.approx(0.1, abs=0.02)
    assert held["sft"].covered is not None and held["sft"].covered < 0.3


def test_a_forecast_from_few_runs_has_an_error_and_no_interval(tmp_path: Path) -> None:
    """Nine runs of each method: each is forecast from the nine of the other."""
    known = results(tmp_path, noise=0.01, seeds=9)
    held = law.validation(known, "forward_kl_per_token", lambda result: result.method)
    assert set(held) == {"sft", "rl"} and all(one.covered is None for one in held.values())
    assert all(0 < one.mean_absolute_error < 0.05 for one in held.values())


def test_the_interval_holds_runs_and_not_checkpoints() -> None:
    """A run is held where all of its checkpoints are, which takes more than to hold as many checkpoints."""
    covered = []
    for seed in range(25):
        known = _noisy(np.random.default_rng(seed), 40)
        held = law.validation(known, "forward_kl_per_token", lambda result: "unseen" if result.seed >= 20 else "seen")[
            "unseen"
        ]
        assert (held.runs, held.checkpoints) == (20, 80)
        covered.append(held.covered)
    assert np.mean(covered) == pytest.approx(law.COVERAGE, abs=0.05)
    low, high = law.spread(_noisy(np.random.default_rng(0), 40), "forward_kl_per_token") or (0.0, 0.0)
    of_checkpoints = 0.02 * 1.645  # 90% of the noise
    assert -low == high > 1.2 * of_checkpoints


def _noisy(draw: np.random.Generator, runs: int) -> list[Result]:
    """Runs of four checkpoints on a law with noise."""
    return [
        Result(
            domain="robot",
            method="sft",
            model="",
            run=f"run{run}",
            seed=run,
            step=step,
            learning_rate=1e-4,
            new=0.5,
            prior=0.5,
            priors={},
            forgotten=0.05 * kl**2 + 0.02 * draw.normal(),
            measures={"forward_kl_per_token": float(kl)},
        )
        for run in range(runs)
        for step, kl in enumerate(draw.uniform(0.1, 3, 4), 1)
    ]


def test_an_interval_is_as_wide_as_ten_runs_can_tell() -> None:
    """Of ten, nine tenths of the next is all ten: the interval reaches to the farthest of them."""
    known = _noisy(np.random.default_rng(0), 10)
    low, high = law.spread(known, "forward_kl_per_token") or (0.0, 0.0)
    farthest = 0.0
    for run in range(10):
        rest = [r for r in known if r.seed != run]
        fitted = np.polynomial.Polynomial.fit(
            [r.measures["forward_kl_per_token"] for r in rest], [r.forgotten for r in rest], 2
        )
        ends = law.reach_of(rest, "forward_kl_per_token")
        own = [r for r in known if r.seed == run]
        law_of_rest = [float(number) for number in fitted.convert().coef]
        farthest = max(
            farthest,
            *(abs(r.forgotten - law.value(law_of_rest, r.measures["forward_kl_per_token"], ends)) for r in own),
        )
    assert (low, high) == pytest.approx((-farthest, farthest))
    assert law.spread(known[:36], "forward_kl_per_token") is None, "nine"


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
    known = [first._replace(new=new, measures={"forward_kl_per_token": kl}) for new, kl in points]
    assert law.least_moved(known, 0.5) == known[3] and law.least_moved(known, 0.4) == known[0]
    assert law.least_moved(known, 0.75) == known[4] and law.least_moved(known, 0.9) is None
    assert law.least_moved_by_success(known) == [known[0], known[3], known[4]]


def test_a_policy_that_has_not_moved_can_be_drawn(tmp_path: Path) -> None:
    """A run without a reward stays at the base: a logarithm has no place for it."""
    still = [one._replace(measures={**one.measures, "forward_kl_per_token": 0.0}) for one in results(tmp_path)]
    figures.accuracy(tmp_path / "accuracy", still, plots.colours_of(still))
    figures.least_kl(tmp_path / "least_kl", {"all": still}, {})
    assert {path.name for path in tmp_path.glob("*.png")} == {"accuracy.png", "least_kl.png"}


def test_too_few_runs_have_no_law(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="4 runs are too few"):
        forecast.fit(results(tmp_path, seeds=2))
    few = law.predictors(results(tmp_path, seeds=2, noise=0.01))["forward_kl_per_token"]
    assert few["low"] is None and few["high"] is None and few["resamples"] == 0
    assert law.in_words(few).endswith("(no interval: 4 runs, 10 are needed)")
    assert re.fullmatch(
        r"0\.\d\d \[0\.\d\d, \d\.\d\d\]", law.in_words(law.predictors(results(tmp_path))["reverse_kl_per_token"])
    )
    flat = [one._replace(forgotten=0.1) for one in results(tmp_path)]
    with pytest.raises(UserError, match="do not vary"):
        forecast.fit(flat)


def test_a_measure_that_only_one_run_varies_has_no_forecast(tmp_path: Path) -> None:
    """As the share of unchanged weights, which is 0 for nearly all: without that run there is nothing to fit."""
    known = results(tmp_path, noise=0.02)
    one = [
        r._replace(
            measures={"forward_kl_per_token": r.measures["forward_kl_per_token"] if r.run == known[0].run else 0}
        )
        for r in known
    ]
    assert set(law.predictors(one)) == {"forward_kl_per_token"} and law.spread(one, "forward_kl_per_token") is None
    assert law.validation(one, "forward_kl_per_token", lambda result: result.seed) == {}
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
    forecast.save(tmp_path / "law.json", fitted._replace(runs=9))
    with pytest.raises(UserError, match=r"was fitted on 9 runs.*at least 10"):
        forecast.load(tmp_path, "robot")
    for broken in ({}, whole | {"below": None}, whole | {"coefficients": []}, whole | {"measure": "entropy"}):
        (tmp_path / "law.json").write_text(json.dumps(broken))
        with pytest.raises(UserError, match="cannot be read"):
            forecast.load(tmp_path, "robot")


def test_a_law_with_a_flipped_bit_is_not_believed(tmp_path: Path) -> None:
    fitted = FittedLaw("robot", "spillover", (0.0, 0.0, 0.05), 1.0, (-1.0, 2.0), -0.1, 0.2, 12)
    path, draw, refused = tmp_path / "law.json", np.random.default_rng(0), 0
    forecast.save(path, fitted)
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << int(draw.integers(8))]) + whole[at + 1 :])
        try:
            assert forecast.load(path, "robot") == fitted
        except UserError:
            refused += 1
    assert refused > len(whole) / 2


def test_beyond_what_was_seen_the_law_stays_where_it_is() -> None:
    fitted = FittedLaw("robot", "spillover", (0.0, 0.0, 0.05), 1.0, (-1.0, 2.0), -0.1, 0.2, 6)
    far, below = fitted.forecast(50.0), fitted.forecast(-3.0)
    assert far.forgotten == pytest.approx(0.2) and (far.low, far.high) == pytest.approx((0.1, 0.4)) and not far.known
    assert below.forgotten == pytest.approx(0.05) and not below.known and fitted.forecast(-1.0).known


def test_below_the_least_that_was_seen_the_law_goes_to_the_base() -> None:
    """As of runs of SFT alone, which all moved far: a parabola through them says nothing of a policy near the base."""
    fitted = FittedLaw("robot", "forward_kl_per_token", (9.0, -4.0, 0.5), 1.0, (4.0, 6.0), -0.1, 0.1, 12)
    assert fitted.forecast(4.0).forgotten == pytest.approx(1.0) and fitted.forecast(6.0).forgotten == pytest.approx(3.0)
    assert fitted.forecast(1.0).forgotten == pytest.approx(0.25) and fitted.forecast(1.0).known
    assert fitted.forecast(0.0).forgotten == 0 and not fitted.forecast(-0.1).known


def test_a_law_of_what_a_policy_does_not_tell_is_one_message() -> None:
    guard = Guard(FittedLaw("robot", "activation_l2", (0.0, 0.1, 0.0), 1.0, (0.0, 2.0), -0.1, 0.1, 12), 0.05)
    with pytest.raises(UserError, match="the law is of activation_l2, which this policy does not tell"):
        guard.forecast({"forward_kl_per_token": 0.1})


def test_a_budget_is_spent_where_the_forecast_reaches_it() -> None:
    guard = Guard(FittedLaw("robot", "forward_kl_per_token", (0.0, 0.1, 0.0), 1.0, (0.0, 2.0), -0.1, 0.2, 6), 0.05)
    assert not guard.is_spent({"forward_kl_per_token": 0.4}) and guard.is_spent({"forward_kl_per_token": 0.6})
    logged = guard.scalars({"forward_kl_per_token": 0.4})
    assert [logged[f"predicted_{name}"] for name in ("forgetting", "low", "high")] == pytest.approx([0.04, -0.06, 0.24])
