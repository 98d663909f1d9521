"""The forgetting law on the results table: what predicts forgetting, whether the residuals favour a method, and how far
off a forecast for unseen runs would be (RL's Razor, Sections 4 and 6, Table 1).

The interval of a forecast holds 90% of unseen *runs*: it holds a run if it holds all of its checkpoints. A run's
checkpoints are not independent, and whoever watches a training watches all of them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import kendalltau

from vla_razor.core import forgetting_law, pareto
from vla_razor.statistics import Difference
from vla_razor.study.measures import FORWARD_KL
from vla_razor.study.table import Result, measures_of

DEGREE = 2
"""Degree of the polynomial, as in the paper."""
COVERAGE = 0.9
"""Share of unseen runs that the interval of a forecast holds."""
LEAST_RUNS = forgetting_law.LEAST_RUNS
"""With fewer runs there is no interval and no law; nine would suffice for `COVERAGE`."""
RESAMPLES = 1000
FOLDS = 20


class HeldOut(NamedTuple):
    """The errors of forecasts for runs that were not in the fit: prior success lost, in [0, 1]."""

    runs: int
    checkpoints: int
    mean_absolute_error: float
    bias: float
    """Forecast minus truth."""
    covered: float | None
    """The share of runs all of whose checkpoints lie within the forecast's interval; None where the forecast is from
    too few runs to have one."""


def fittable(results: Sequence[Any], measure: str, degree: int = DEGREE) -> bool:
    """Whether forgetting varies, and there are enough runs and values of the measure for a polynomial."""
    values = {result.measures.get(measure) for result in results}
    enough = min(len({result.run for result in results}), len(values)) > degree
    return None not in values and enough and len({result.forgotten for result in results}) > 1


def predictors(results: Sequence[Any], measures: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """How well each measure predicts forgetting, by default every measure that all policies have: R2 of the polynomial
    with its bootstrap interval over runs (low and high are None where there is none), the number of runs and of
    resamples that were kept, and Kendall's tau, which depends on the order alone. Measures that hardly vary are left
    out.
    """
    found = {}
    for name in [name for name in measures or measures_of(results) if fittable(results, name)]:
        x, lost, runs = _columns(results, name)
        law = forgetting_law.fit(x, lost, runs, generator=np.random.default_rng(0))
        tau: Any = kendalltau(x, lost)[0]
        ends = {"low": law.low, "high": law.high} if law.kept else {"low": None, "high": None}
        counts = {"runs": len(set(runs)), "resamples": law.kept}
        found[name] = {"r2": law.r2, **ends, **counts, "kendall_tau": float(tau)}
    return found


def in_words(predictor: Mapping[str, Any]) -> str:
    """R2 as it is printed, with its interval, or with the reason why there is none: 0.80 [0.66, 0.92]."""
    r2, runs = f"{predictor['r2']:.2f}", predictor["runs"]
    if predictor["low"] is not None:
        return f"{r2} [{predictor['low']:.2f}, {predictor['high']:.2f}]"
    few = f"{runs} runs, {LEAST_RUNS} are needed" if runs < LEAST_RUNS else "too few different values"
    return f"{r2} (no interval: {few})"


def residuals(
    results: Sequence[Result],
    measure: str = FORWARD_KL,
    part: Callable[[Result], str] = lambda result: result.method,
) -> dict[str, Difference]:
    """For each part (by default a method), the mean of truth minus law, with its 95% bootstrap interval over its runs.

    A part above 0 forgets more than the common law says. The checkpoints of a run count as one.
    """
    found = {}
    for name in dict.fromkeys(map(part, results)):
        runs = dict.fromkeys(result.run for result in results if part(result) == name)
        parts = [[result for result in results if result.run == run] for run in runs]
        # Runs are resampled rather than checkpoints, which are alike within a run.
        found[name] = _bootstrapped(np.array([_errors(results, part, measure).mean() for part in parts]))
    return found


def frontier(results: Sequence[Result]) -> tuple[list[Result], pareto.Curve | None]:
    """The policies within 2 points of their frontier, by rising new-task success, and the exponential through them;
    None where they are too few to fit it.
    """
    near = pareto.near_frontier([r.new for r in results], [r.prior for r in results])
    kept = sorted((r for r, is_near in zip(results, near, strict=True) if is_near), key=lambda r: (r.new, r.prior))
    if len({r.new for r in kept}) < 3:
        return kept, None
    return kept, pareto.fit_curve([r.new for r in kept], [r.prior for r in kept])


def least_lost(results: Sequence[Result], level: float) -> Result | None:
    """Among the policies with at least `level` on the new task, the one that lost least."""
    return min((result for result in results if result.new >= level), key=lambda r: r.forgotten, default=None)


def least_moved(results: Sequence[Result], level: float) -> Result | None:
    """Among the policies with at least `level` on the new task, the one with the least forward KL."""
    return min((r for r in results if r.new >= level), key=lambda r: r.measures[FORWARD_KL], default=None)


def least_moved_by_success(results: Sequence[Any]) -> list[Any]:
    """The policies that have the least forward KL at some level of the new task, by rising success."""
    found: list[Any] = []
    for result in sorted(results, key=lambda r: (-r.new, r.measures[FORWARD_KL])):  # from the highest success down
        if not found or result.measures[FORWARD_KL] < found[-1].measures[FORWARD_KL]:
            found.append(result)
    return found[::-1]


def spread(results: Sequence[Result], measure: str) -> tuple[float, float] | None:
    """How far truth lies from the forecast: the interval (low, high) around it that holds `COVERAGE` of unseen runs,
    each with all of its checkpoints.

    A run's number is the largest magnitude among its checkpoints' residuals, against the law of the other runs or,
    where there are many, of those outside its fold. For n such numbers the interval reaches to the ceil(COVERAGE (n +
    1))-th smallest on both sides. An unseen run, whose rank is equally likely to be any of n + 1, is then held with
    probability `COVERAGE` (cross-conformal; Barber et al., "Predictive inference with the jackknife+", 2021, without
    its correction).

    None for fewer than `LEAST_RUNS` runs, and where some of the others have no law.
    """
    fold = {run: number % FOLDS for number, run in enumerate(dict.fromkeys(result.run for result in results))}
    folds = _split(results, lambda result: fold[result.run])
    if len(fold) < LEAST_RUNS or not all(fittable(rest, measure) for rest, _ in folds):
        return None
    # One number per run, that of its worst checkpoint: whoever watches a training sees all of them.
    farthest = sorted(distance for parts in folds for distance in _farthest(*parts, measure))
    reach = farthest[math.ceil(COVERAGE * (len(farthest) + 1)) - 1]
    return -reach, reach


def validation(results: Sequence[Result], measure: str, held: Callable[[Result], Any]) -> dict[str, HeldOut]:
    """Forecasts for each part that `held` distinguishes (a method, a seed), from the law of all other parts.

    Errors are means over checkpoints. A part is left out where the others are too few for a law, or would be without
    one of them.
    """
    found = {}
    for rest, own in _split(results, held):
        interval, enough = spread(rest, measure), len({result.run for result in rest}) >= LEAST_RUNS
        if not fittable(rest, measure) or (enough and interval is None):
            continue
        errors, farthest = _errors(rest, own, measure), _farthest(rest, own, measure)
        found[str(held(own[0]))] = HeldOut(
            len(farthest),
            len(own),
            float(np.abs(errors).mean()),
            float(-errors.mean()),
            float(np.mean([distance <= interval[1] for distance in farthest])) if interval else None,
        )
    return found


def value(coefficients: Sequence[float], x: float, reach: tuple[float, float]) -> float:
    """The law at a divergence x. Beyond `reach`, the range it was fitted on, it is constant, since a polynomial would
    rise or fall without limit. Below a reach that begins above 0 it is the straight line to the base, which is at 0 and
    has lost nothing.
    """
    low, high = reach
    within = float(np.polynomial.Polynomial(coefficients)(np.clip(x, low, high)))
    return within * max(x, 0.0) / low if low > 0 and x < low else within


def reach_of(results: Sequence[Result], measure: str) -> tuple[float, float]:
    """The smallest and the largest divergence of the results."""
    values = [result.measures[measure] for result in results]
    return min(values), max(values)


def _split(results: Sequence[Result], held: Callable[[Result], Any]) -> list[tuple[list[Result], list[Result]]]:
    parts = dict.fromkeys(held(result) for result in results)
    return [([r for r in results if held(r) != part], [r for r in results if held(r) == part]) for part in parts]


def _errors(rest: Sequence[Result], own: Sequence[Result], measure: str) -> np.ndarray:
    """Truth minus forecast."""
    coefficients, reach = _fitted(rest, measure), reach_of(rest, measure)
    return np.array([r.forgotten - value(coefficients, r.measures[measure], reach) for r in own])


def _farthest(rest: Sequence[Result], own: Sequence[Result], measure: str) -> list[float]:
    """The largest magnitude of truth minus forecast, for each run of `own`."""
    errors, runs = np.abs(_errors(rest, own, measure)), np.array([result.run for result in own])
    return [float(errors[runs == run].max()) for run in dict.fromkeys(runs.tolist())]


def _fitted(results: Sequence[Result], measure: str) -> tuple[float, ...]:
    x, lost, runs = _columns(results, measure)
    return forgetting_law.fit(x, lost, runs, resamples=1, generator=np.random.default_rng(0)).coefficients


def _columns(results: Sequence[Any], measure: str) -> tuple[list[float], list[float], list[str]]:
    return [r.measures[measure] for r in results], [r.forgotten for r in results], [r.run for r in results]


def _bootstrapped(values: np.ndarray) -> Difference:
    # Not scipy.stats.bootstrap: it refuses a part of a single run.
    drawn = np.random.default_rng(0).choice(values, (RESAMPLES, len(values))).mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Difference(float(values.mean()), float(low), float(high))
