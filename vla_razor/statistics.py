"""Success rates that travel with their counts and intervals, and paired comparisons; the dicts of summary.json."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypedDict

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest


class Rate(TypedDict):
    """A share of episodes with its Wilson 95% interval."""

    successes: int
    episodes: int
    rate: float
    low: float
    high: float


class Success(TypedDict):
    """Both readings of success: the state after the last step, and the state after any step."""

    success_at_end: Rate
    success_once: Rate


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


def wilson(successes: int, episodes: int) -> Rate:
    """The rate with Wilson's score interval at 95% (Wilson, 1927), by SciPy.

    No episodes at all leave everything open: rate 0 within [0, 1]. Raises ValueError unless 0 <= successes <= episodes.
    """
    successes, episodes = int(successes), int(episodes)
    if not 0 <= successes <= episodes:
        raise ValueError(f"expected 0 <= successes <= episodes, got {successes} of {episodes}")
    if not episodes:
        return Rate(successes=0, episodes=0, rate=0.0, low=0.0, high=1.0)
    interval = binomtest(successes, episodes).proportion_ci(0.95, method="wilson")
    low, high = float(interval.low), float(interval.high)
    return Rate(successes=successes, episodes=episodes, rate=successes / episodes, low=low, high=high)


def success_summary(episodes: Iterable[Outcome]) -> Success:
    """Counts episodes; lost ones say nothing about the policy and are left out."""
    kept = [episode for episode in episodes if not episode.lost]
    return Success(
        success_at_end=wilson(sum(episode.success_at_end for episode in kept), len(kept)),
        success_once=wilson(sum(episode.success_once for episode in kept), len(kept)),
    )


def pooled_rate(rates: Iterable[Rate]) -> Rate:
    """The rate of all the episodes together."""
    parts = list(rates)
    return wilson(sum(part["successes"] for part in parts), sum(part["episodes"] for part in parts))


def pooled(summaries: Iterable[Success]) -> Success:
    """One summary of all the episodes together; with equally many a task, its rate is the mean over the tasks."""
    parts = list(summaries)
    return Success(
        success_at_end=pooled_rate(part["success_at_end"] for part in parts),
        success_once=pooled_rate(part["success_once"] for part in parts),
    )


def policy_summary(
    new_task: Mapping[str, Success], prior_tasks: Mapping[str, Success], forward_kl: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """One policy's entry in summary.json; what was not measured is null."""
    return {
        "new_task": dict(new_task),
        "prior_tasks": dict(prior_tasks),
        "prior_mean": pooled(prior_tasks.values()) if prior_tasks else None,
        "forward_kl": None if forward_kl is None else dict(forward_kl),
    }


def paired_difference(a: Sequence[bool] | ArrayLike, b: Sequence[bool] | ArrayLike) -> Difference:
    """rate(a) - rate(b) of two policies on the same n starts, with Newcombe's square-and-add score interval at 95%.

    Method 10 of Newcombe (Statistics in Medicine 17:2635, 1998): the Wilson limits of both rates, combined with the
    correlation of the paired outcomes (continuity-corrected). It stays within [-1, 1] and holds at rates of 0 and 1.

    Raises ValueError where the two differ in length or are empty.
    """
    x, y = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    if x.ndim != 1 or x.shape != y.shape or not len(x):
        raise ValueError(f"expected two vectors of one length, an entry a start, got {x.shape} and {y.shape}")
    rate_a, rate_b = wilson(int(x.sum()), len(x)), wilson(int(y.sum()), len(y))
    difference, correlation = (int(x.sum()) - int(y.sum())) / len(x), _correlation(x, y)

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(one**2 - 2 * correlation * one * other + other**2, 0.0))

    below = reach(rate_a["rate"] - rate_a["low"], rate_b["high"] - rate_b["rate"])
    above = reach(rate_b["rate"] - rate_b["low"], rate_a["high"] - rate_a["rate"])
    return Difference(difference, max(difference - below, -1.0), min(difference + above, 1.0))


def mean_with_interval(groups: Sequence[ArrayLike]) -> Difference:
    """The mean of the groups' means, each weighing the same, with its normal 95% interval; values within a group are
    independent.
    """
    mean = float(np.mean([np.asarray(group, dtype=float).mean() for group in groups]))
    reach = 1.96 * math.sqrt(sum(standard_error(group) ** 2 for group in groups)) / len(groups)
    return Difference(mean, mean - reach, mean + reach)


def standard_error(values: ArrayLike) -> float:
    """Of the mean of independent values; 0 for a single one, which says nothing of it.

    >>> standard_error([0.0, 1.0, 1.0, 0.0])
    0.28867513459481287
    """
    array = np.asarray(values, dtype=float)
    return float(array.std(ddof=1) / math.sqrt(array.size)) if array.size > 1 else 0.0


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Newcombe's phi, pulled towards 0 by n/2 where it is positive; 0 where one of the policies always does the
    same.
    """
    both, only_x, only_y, neither = (x & y).sum(), (x & ~y).sum(), (~x & y).sum(), (~x & ~y).sum()
    margins = float((both + only_x) * (only_y + neither) * (both + only_y) * (only_x + neither))
    product = float(both * neither - only_x * only_y)
    corrected = max(product - len(x) / 2, 0.0) if product > 0 else product
    return corrected / math.sqrt(margins) if margins else 0.0
