"""The forgetting law on the results table: what predicts forgetting, whether its residuals favour a method, and how far
off a forecast for runs that it has not seen would be (RL's Razor, Sections 4 and 6, Table 1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import kendalltau

from vla_razor.core import forgetting_law, pareto
from vla_razor.statistics import Difference
from vla_razor.study.table import Result, measures_of

DEGREE = 2
"""Of the polynomial, as in the paper."""
COVERAGE = 0.9
"""Of the forecast's interval."""
RESAMPLES = 1000
FOLDS = 20


class HeldOut(NamedTuple):
    """How forecasts of runs that were not in the fit came out: prior success lost, in [0, 1]."""

    runs: int
    checkpoints: int
    mean_absolute_error: float
    bias: float
    """Forecast minus truth."""
    covered: float
    """The share of checkpoints within the forecast's interval."""


def fittable(results: Sequence[Any], measure: str, degree: int = DEGREE) -> bool:
    """Whether forgetting varies, and there are runs and values of the measure enough for a polynomial."""
    values = {result.measures.get(measure) for result in results}
    enough = min(len({result.run for result in results}), len(values)) > degree
    return None not in values and enough and len({result.forgotten for result in results}) > 1


def predictors(results: Sequence[Any], measures: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """How well each measure (all that there are, unless named) predicts forgetting: R2 of the polynomial with its
    bootstrap interval over runs, and Kendall's tau, which asks for the order alone. Measures that hardly vary are left
    out.
    """
    found = {}
    for name in [name for name in measures or measures_of(results) if fittable(results, name)]:
        x, lost, runs = _columns(results, name)
        law = forgetting_law.fit(x, lost, runs, generator=np.random.default_rng(0))
        tau: Any = kendalltau(x, lost)[0]
        found[name] = {"r2": law.r2, "low": law.low, "high": law.high, "kendall_tau": float(tau)}
    return found


def residuals(
    results: Sequence[Result],
    measure: str = "forward_kl",
    part: Callable[[Result], str] = lambda result: result.method,
) -> dict[str, Difference]:
    """Of each part (a method, unless told otherwise), the mean of truth minus law, with its 95% bootstrap interval over
    its runs.

    A part above 0 forgets more than the law of all says. Checkpoints of a run count as one.
    """
    found = {}
    for name in dict.fromkeys(map(part, results)):
        runs = dict.fromkeys(result.run for result in results if part(result) == name)
        parts = [[result for result in results if result.run == run] for run in runs]
        found[name] = _bootstrapped(np.array([_errors(results, part, measure).mean() for part in parts]))
    return found


def frontier(results: Sequence[Result]) -> tuple[list[Result], pareto.Curve | None]:
    """The policies within 2 points of their frontier, by rising new-task success, and the exponential through them;
    None where they are too few for it.
    """
    near = pareto.near_frontier([r.new for r in results], [r.prior for r in results])
    kept = sorted((r for r, is_near in zip(results, near, strict=True) if is_near), key=lambda r: (r.new, r.prior))
    if len({r.new for r in kept}) < 3:
        return kept, None
    return kept, pareto.fit_curve([r.new for r in kept], [r.prior for r in kept])


def least_lost(results: Sequence[Result], level: float) -> Result | None:
    """Among the policies with at least `level` of the new task, the one that lost least: their frontier there."""
    return min((result for result in results if result.new >= level), key=lambda r: r.forgotten, default=None)


def least_moved(results: Sequence[Result], level: float) -> Result | None:
    """Among the policies with at least `level` of the new task, the one with the least forward KL."""
    return min((r for r in results if r.new >= level), key=lambda r: r.measures["forward_kl"], default=None)


def least_moved_by_success(results: Sequence[Any]) -> list[Any]:
    """The policies that are the least moved at some level of the new task, by rising success and forward KL."""
    found: list[Any] = []
    for result in sorted(results, key=lambda r: (-r.new, r.measures["forward_kl"])):
        if not found or result.measures["forward_kl"] < found[-1].measures["forward_kl"]:
            found.append(result)
    return found[::-1]


def spread(results: Sequence[Result], measure: str) -> tuple[float, float] | None:
    """How far truth lies from the forecast: the 5% and 95% quantiles of the residuals of every run against the law of
    the others, or of those outside its fold where there are many runs (cross-conformal; Barber et al., "Predictive
    inference with the jackknife+", 2021, without its correction). None where some of the others have no law.
    """
    fold = {run: number % FOLDS for number, run in enumerate(dict.fromkeys(result.run for result in results))}
    folds = _split(results, lambda result: fold[result.run])
    if not folds or not all(fittable(rest, measure) for rest, _ in folds):
        return None
    errors = np.concatenate([_errors(*parts, measure) for parts in folds])
    low, high = np.quantile(errors, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(low), float(high)


def validation(results: Sequence[Result], measure: str, held: Callable[[Result], Any]) -> dict[str, HeldOut]:
    """Forecasts for each part that `held` tells apart (a method, a seed), from the law of all the other parts.

    A part is left out where the others are too few to fit.
    """
    found = {}
    for rest, own in _split(results, held):
        interval = spread(rest, measure)
        if interval is None:
            continue
        errors, (low, high) = _errors(rest, own, measure), interval
        found[str(held(own[0]))] = HeldOut(
            len({result.run for result in own}),
            len(own),
            float(np.abs(errors).mean()),
            float(-errors.mean()),
            float(((low <= errors) & (errors <= high)).mean()),
        )
    return found


def value(coefficients: Sequence[float], x: float, reach: tuple[float, float]) -> float:
    """The law at a divergence x. Beyond `reach`, where it was fitted to nothing, it goes on as it ends there: a
    polynomial would rise or fall without limit.
    """
    return float(np.polynomial.Polynomial(coefficients)(np.clip(x, *reach)))


def reach_of(results: Sequence[Result], measure: str) -> tuple[float, float]:
    """The least and the greatest of the results' divergences, with the base's, which is 0."""
    values = [result.measures[measure] for result in results]
    return min(0.0, *values), max(0.0, *values)


def _split(results: Sequence[Result], held: Callable[[Result], Any]) -> list[tuple[list[Result], list[Result]]]:
    parts = dict.fromkeys(held(result) for result in results)
    return [([r for r in results if held(r) != part], [r for r in results if held(r) == part]) for part in parts]


def _errors(rest: Sequence[Result], own: Sequence[Result], measure: str) -> np.ndarray:
    """Truth minus forecast."""
    coefficients, reach = _fitted(rest, measure), reach_of(rest, measure)
    return np.array([r.forgotten - value(coefficients, r.measures[measure], reach) for r in own])


def _fitted(results: Sequence[Result], measure: str) -> tuple[float, ...]:
    x, lost, runs = _columns(results, measure)
    return forgetting_law.fit(x, lost, runs, resamples=1, generator=np.random.default_rng(0)).coefficients


def _columns(results: Sequence[Any], measure: str) -> tuple[list[float], list[float], list[str]]:
    return [r.measures[measure] for r in results], [r.forgotten for r in results], [r.run for r in results]


def _bootstrapped(values: np.ndarray) -> Difference:
    drawn = np.random.default_rng(0).choice(values, (RESAMPLES, len(values))).mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Difference(float(values.mean()), float(low), float(high))
