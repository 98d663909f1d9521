"""Success rates that travel with their counts and intervals, and paired comparisons; the dicts of summary.json.

Episodes from one start are alike, whichever seed trained the policy: three seeds on 96 starts are worth fewer than 288
episodes and more than 96. All intervals here are clustered by start, through `effective_episodes`. They hold for the
policies at hand on starts of the same kind, and say nothing about seeds that were not trained.
"""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypedDict

import numpy as np
from numpy.typing import ArrayLike

PRIMARY = "success_once"
"""The reading of success that is headlined, and its only definition; docs/glossary.md says why."""
READINGS = (PRIMARY, "success_at_end")
"""In the order that they are shown in."""
Z = 1.959963984540054
"""The 97.5% quantile of the normal distribution."""


class Rate(TypedDict):
    """A share of episodes with its Wilson 95% interval. The interval is that of `effective` independent episodes: as
    many as there are `episodes` where each has a start of its own, fewer where several share one of the `starts`.
    """

    successes: int
    episodes: int
    starts: int
    effective: float
    rate: float
    low: float
    high: float


class Success(TypedDict):
    """Both readings of success: the state after any step, and the state after the last one."""

    success_once: Rate
    success_at_end: Rate


class Outcome(Protocol):
    """What an episode must tell to be counted."""

    @property
    def success_at_end(self) -> bool: ...
    @property
    def success_once(self) -> bool: ...
    @property
    def lost(self) -> bool: ...


class Difference(NamedTuple):
    """rate(a) - rate(b) with its 95% interval."""

    difference: float
    low: float
    high: float


class Mean(NamedTuple):
    """A mean with its 95% interval."""

    mean: float
    low: float
    high: float


def wilson(successes: int, episodes: int, *, starts: int | None = None, effective: float | None = None) -> Rate:
    """The rate with Wilson's score interval at 95% (Wilson, 1927). Every episode counts as independent and from a start
    of its own, unless told otherwise.

    Without any episode the rate is 0 and the interval [0, 1]. Raises ValueError unless 0 <= successes <= episodes.
    """
    successes, episodes = int(successes), int(episodes)
    if not 0 <= successes <= episodes:
        raise ValueError(f"expected 0 <= successes <= episodes, got {successes} of {episodes}")
    known = episodes if starts is None else starts
    size = float(episodes if effective is None else effective)
    rate = successes / episodes if episodes else 0.0
    low, high = _wilson_limits(rate, size)
    return Rate(successes=successes, episodes=episodes, starts=known, effective=size, rate=rate, low=low, high=high)


def clustered(outcomes: ArrayLike) -> Rate:
    """The rate of one task's outcomes [copies, starts], 1, 0 or NaN (lost), with a row for each policy or seed that
    played these starts. With one row it is `wilson`.
    """
    table = _table(outcomes)
    episodes = ~np.isnan(table)
    return wilson(
        int(np.nansum(table)),
        int(episodes.sum()),
        starts=int(episodes.any(0).sum()),
        effective=effective_episodes(table),
    )


def effective_episodes(outcomes: ArrayLike) -> float:
    """How many independent episodes would tell as much about the mean as these, [copies, starts] of 1, 0 or NaN (lost).

    This is the number of episodes divided by the design effect: the variance of the mean estimated from sums over
    starts, over that estimated from single episodes (Kish, Survey Sampling, 1965). It is at least the number of starts
    and at most that of episodes. Few successes or few failures tell little about how much the copies agree. So one
    made-up start is added, at which all copies succeed or all fail with equal chance: full agreement until there is
    evidence against it.
    """
    table = _table(outcomes)
    kept = table[:, ~np.isnan(table).all(0)]
    starts, episodes = kept.shape[1], int((~np.isnan(kept)).sum())
    if starts == episodes:  # one each, so that nothing is clustered; also where there are none
        return float(episodes)
    rate, copies = float(np.nanmean(kept)), episodes / starts
    extreme = (rate**2 + (1 - rate) ** 2) / 2  # the squared residual of the made-up start
    together, alone = copies**2 * extreme, copies * extreme
    if starts > 1:
        residuals = kept - rate
        together += float(np.square(np.nansum(residuals, 0)).sum()) * starts / (starts - 1)
        alone += float(np.nansum(np.square(residuals))) * episodes / (episodes - 1)
    return min(max(episodes * alone / together, float(starts)), float(episodes))


def cluster_means(copies: ArrayLike | Sequence[ArrayLike]) -> np.ndarray:
    """The mean over copies, [copies, starts] -> [starts] (or questions); NaN where all of them were lost."""
    table = _table(copies)
    episodes = (~np.isnan(table)).sum(0)
    return np.where(episodes, np.nansum(table, 0) / np.maximum(episodes, 1), np.nan)


def by_start(starts: Iterable[Hashable], values: Iterable[float]) -> np.ndarray:
    """The values as [copies, starts], by the names of their starts; NaN where a start has fewer than others."""
    found: dict[Hashable, list[float]] = {}
    for start, value in zip(starts, values, strict=True):
        found.setdefault(start, []).append(value)
    table = np.full((max(map(len, found.values()), default=0), len(found)), np.nan)
    for column, own in enumerate(found.values()):
        table[: len(own), column] = own
    return table


def success_summary(episodes: Iterable[Outcome]) -> Success:
    """Counts episodes, each from a start of its own. Lost ones say nothing about the policy and are left out."""
    kept = [episode for episode in episodes if not episode.lost]
    return Success(
        success_once=wilson(sum(episode.success_once for episode in kept), len(kept)),
        success_at_end=wilson(sum(episode.success_at_end for episode in kept), len(kept)),
    )


def pooled_rate(rates: Iterable[Rate]) -> Rate:
    """The rate of all the episodes together, where no two of the rates share a start.

    The design effects are averaged, weighted by what each rate adds to the variance: p (1 - p) n, with one success and
    one failure added, so that rates of 0 and 1 weigh little but not nothing. Summaries from before clustering was
    introduced count every episode as a start of its own.
    """
    parts = [(rate["episodes"], rate["successes"], rate) for rate in rates if rate["episodes"]]
    weights = [n * (k + 1) * (n - k + 1) / (n + 2) ** 2 for n, k, _ in parts]
    effects = [n / float(rate.get("effective", n)) for n, _, rate in parts]
    episodes = sum(n for n, _, _ in parts)
    effect = sum(w * e for w, e in zip(weights, effects, strict=True)) / sum(weights) if parts else 1.0
    return wilson(
        sum(k for _, k, _ in parts),
        episodes,
        starts=sum(rate.get("starts", n) for n, _, rate in parts),
        effective=episodes / effect,
    )


def pooled(summaries: Iterable[Success]) -> Success:
    """One summary of all the episodes together, by `pooled_rate`. With equally many episodes per task, its rate is the
    mean over the tasks.
    """
    parts = list(summaries)
    return Success(
        success_once=pooled_rate(part["success_once"] for part in parts),
        success_at_end=pooled_rate(part["success_at_end"] for part in parts),
    )


def policy_summary(
    new_task: Mapping[str, Success], prior_tasks: Mapping[str, Success], forward_kl: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """One policy's entry in summary.json; what was not measured is null."""
    return {
        "primary": PRIMARY,
        "new_task": dict(new_task),
        "prior_tasks": dict(prior_tasks),
        "prior_mean": pooled(prior_tasks.values()) if prior_tasks else None,
        "forward_kl": None if forward_kl is None else dict(forward_kl),
    }


def paired_difference(a: ArrayLike, b: ArrayLike) -> Difference:
    """rate(a) - rate(b) of policies on the same starts, [starts] or [copies, starts] of 1, 0 or NaN (lost), with
    Newcombe's square-and-add score interval at 95%, clustered by start.

    Method 10 of Newcombe (Statistics in Medicine 17:2635, 1998): the Wilson limits of both rates, combined with the
    correlation of the paired outcomes (continuity-corrected). It stays within [-1, 1] and holds at rates of 0 and 1.
    Copies (the policies of several seeds) are averaged at each start first. Their Wilson limits are those of their
    `effective_episodes`, and the correlation is that of the means at the starts. With one copy each this is Newcombe's
    own.

    A start that either side lost altogether does not count. Raises ValueError where the two differ in their number of
    starts, or no start is left.
    """
    one, other = _table(a), _table(b)
    if one.shape[1] != other.shape[1] or not one.size:
        raise ValueError(f"expected outcomes at the same starts, got {one.shape} and {other.shape}")
    kept = ~(np.isnan(one).all(0) | np.isnan(other).all(0))
    if not kept.any():
        raise ValueError("at every start an episode was lost: there is nothing to compare")
    one, other = one[:, kept], other[:, kept]
    x, y = cluster_means(one), cluster_means(other)
    rate_a, rate_b = float(x.mean()), float(y.mean())
    low_a, high_a = _wilson_limits(rate_a, effective_episodes(one))
    low_b, high_b = _wilson_limits(rate_b, effective_episodes(other))
    difference = float((x - y).mean())
    # Newcombe's phi of the means at the starts. Where it is positive its numerator is reduced by n/2; where one side
    # is the same at every start it is 0.
    n = len(x)
    spreads = [float(n * (side**2).sum() - side.sum() ** 2) for side in (x, y)]
    product = float(n * (x * y).sum() - x.sum() * y.sum())
    corrected = max(product - n / 2, 0.0) if product > 0 else product
    correlation = corrected / math.sqrt(spreads[0] * spreads[1]) if min(spreads) > 1e-9 else 0.0

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(one**2 - 2 * correlation * one * other + other**2, 0.0))

    below, above = reach(rate_a - low_a, high_b - rate_b), reach(rate_b - low_b, high_a - rate_a)
    return Difference(difference, max(difference - below, -1.0), min(difference + above, 1.0))


def mean_with_interval(groups: Sequence[ArrayLike]) -> Difference:
    """The mean of the groups' means, equally weighted, with its normal 95% interval; values within a group are
    independent.
    """
    mean = float(np.mean([np.asarray(group, dtype=float).mean() for group in groups]))
    reach = 1.96 * math.sqrt(sum(standard_error(group) ** 2 for group in groups)) / len(groups)
    return Difference(mean, mean - reach, mean + reach)


def clustered_mean(values: ArrayLike, clusters: ArrayLike) -> Difference:
    """The mean of values [N] with its normal 95% interval, in which those of one cluster [N], such as the states of an
    episode, may be alike. A single cluster says nothing of others: its interval is the mean alone.
    """
    array = np.asarray(values, dtype=float)
    mean = float(array.mean())
    _, inverse = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.bincount(inverse, array - mean)
    reach = Z * math.sqrt(float(np.square(sums).sum()) * len(sums) / max(len(sums) - 1, 1)) / array.size
    return Difference(mean, mean - reach, mean + reach)


def mean_over_runs(values: ArrayLike) -> Mean:
    """The mean over a few runs, such as the seeds of a training, with Student's 95% interval. A single run says nothing
    of others: its interval is the mean alone.

    >>> mean_over_runs([0.4, 0.5, 0.9])
    Mean(mean=0.6, low=-0.05725..., high=1.25725...)
    """
    from scipy.special import stdtrit  # its quantile; here, because most of those who import this module need none

    array = np.asarray(values, dtype=float)
    reach = float(stdtrit(array.size - 1, 0.975)) * standard_error(array) if array.size > 1 else 0.0
    return Mean(float(array.mean()), float(array.mean()) - reach, float(array.mean()) + reach)


def standard_error(values: ArrayLike) -> float:
    """The standard error of the mean of independent values; 0 for a single one, which says nothing about it.

    >>> standard_error([0.0, 1.0, 1.0, 0.0])
    0.28867513459481287
    """
    array = np.asarray(values, dtype=float)
    return float(array.std(ddof=1) / math.sqrt(array.size)) if array.size > 1 else 0.0


def _table(outcomes: ArrayLike | Sequence[ArrayLike]) -> np.ndarray:
    """[copies, starts], of one copy too."""
    table = np.atleast_2d(np.asarray(outcomes, dtype=float))
    if table.ndim != 2:
        raise ValueError(f"expected outcomes [starts] or [copies, starts], got {table.shape}")
    return table


def _wilson_limits(rate: float, size: float) -> tuple[float, float]:
    """Of a rate over `size` independent episodes, which need not be a whole number."""
    if not size:
        return 0.0, 1.0
    centre, shrunk = rate + Z**2 / (2 * size), 1 + Z**2 / size
    reach = Z * math.sqrt(rate * (1 - rate) / size + Z**2 / (4 * size**2))
    low, high = (centre - reach) / shrunk, (centre + reach) / shrunk
    # At rates of 0 and 1 the limit is exact: rounding must not put it a little to the wrong side.
    return (max(low, 0.0) if rate > 0 else 0.0), (min(high, 1.0) if rate < 1 else 1.0)
