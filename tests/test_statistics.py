"""Intervals against published values, and the dicts of summary.json."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import binomtest

from vla_razor.statistics import (
    Rate,
    by_start,
    cluster_means,
    clustered,
    effective_episodes,
    paired_difference,
    policy_summary,
    pooled,
    pooled_rate,
    success_summary,
    wilson,
)


@dataclass
class Ended:
    success_at_end: bool
    success_once: bool
    lost: bool = False


def paired_table(both: int, only_a: int, only_b: int, neither: int) -> tuple[list[bool], list[bool]]:
    a = [True] * (both + only_a) + [False] * (only_b + neither)
    b = [True] * both + [False] * only_a + [True] * only_b + [False] * neither
    return a, b


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_against_newcombe(successes: int, episodes: int, low: float, high: float) -> None:
    """Newcombe, Statistics in Medicine 17:857 (1998), Table I, method 3."""
    rate = wilson(successes, episodes)
    assert (rate["successes"], rate["episodes"], rate["rate"]) == (successes, episodes, successes / episodes)
    assert (rate["low"], rate["high"]) == pytest.approx((low, high), abs=6e-5)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_against_scipy(counts: tuple[int, int]) -> None:
    interval = binomtest(*counts).proportion_ci(0.95, method="wilson")
    rate = wilson(*counts)
    assert (rate["low"], rate["high"]) == pytest.approx((interval.low, interval.high), abs=1e-12)
    assert 0 <= rate["low"] <= rate["rate"] <= rate["high"] <= 1
    assert rate["starts"] == rate["effective"] == counts[1]


def test_no_episodes_leave_everything_open() -> None:
    nothing = {"successes": 0, "episodes": 0, "starts": 0, "effective": 0, "rate": 0.0, "low": 0.0, "high": 1.0}
    assert wilson(0, 0) == clustered(np.full((3, 4), np.nan)) == pooled_rate([]) == nothing


@pytest.mark.parametrize(("successes", "episodes"), [(3, 2), (-1, 2), (0, -1)])
def test_impossible_counts(successes: int, episodes: int) -> None:
    with pytest.raises(ValueError, match="successes"):
        wilson(successes, episodes)


@pytest.mark.parametrize(
    ("table", "difference", "low", "high"),
    [
        ((36, 12, 2, 0), 0.2, 0.0569, 0.3404),  # Newcombe, Statistics in Medicine 17:2635 (1998), method 10
        ((14, 5, 0, 22), 0.122, 0.011, 0.226),  # Altman et al., Statistics with Confidence (2000), Table 6.2
    ],
)
def test_paired_difference_against_published_values(table, difference: float, low: float, high: float) -> None:
    result = paired_difference(*paired_table(*table))
    assert result == pytest.approx((difference, low, high), abs=6e-4)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_paired_difference_is_antisymmetric_and_bounded(pairs: list[tuple[bool, bool]]) -> None:
    a, b = map(list, zip(*pairs, strict=True))
    forth, back = paired_difference(a, b), paired_difference(b, a)
    assert -1 <= forth.low <= forth.difference <= forth.high <= 1
    assert (forth.difference, forth.low, forth.high) == pytest.approx((-back.difference, -back.high, -back.low))


def test_paired_difference_covers_the_truth() -> None:
    """Two policies of 60% and 45% that agree more often than chance, on 50 starts."""
    generator = np.random.default_rng(0)
    tables = generator.multinomial(50, [0.38, 0.22, 0.07, 0.33], size=400)
    intervals = [paired_difference(*paired_table(*table)) for table in tables.tolist()]
    covered = np.mean([interval.low <= 0.15 <= interval.high for interval in intervals])
    assert 0.92 <= covered <= 0.99


OUTCOMES = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40)


@settings(max_examples=50, deadline=None)
@given(OUTCOMES)
def test_starts_that_are_played_once_are_no_clusters(pairs: list[tuple[bool, bool]]) -> None:
    a, b = map(list, zip(*pairs, strict=True))
    assert clustered(a) == clustered([a]) == wilson(sum(a), len(a))
    assert pooled_rate([clustered(a), clustered(b)]) == wilson(sum(a) + sum(b), 2 * len(a))


@settings(max_examples=50, deadline=None)
@given(OUTCOMES, st.integers(2, 5))
def test_copies_that_agree_count_once(pairs: list[tuple[bool, bool]], copies: int) -> None:
    """However often a policy without chance is played from the same starts, nothing more is learned of it."""
    a, b = map(list, zip(*pairs, strict=True))
    once, often = wilson(sum(a), len(a)), clustered([a] * copies)
    assert (often["successes"], often["episodes"]) == (copies * sum(a), copies * len(a))
    assert often["starts"] == len(a) == pytest.approx(often["effective"])
    assert (often["low"], often["high"]) == pytest.approx((once["low"], once["high"]))
    assert effective_episodes([b] * copies) == pytest.approx(len(b))
    assert paired_difference([a] * copies, [b] * copies) == pytest.approx(paired_difference(a, b))


def test_effective_episodes_by_hand() -> None:
    """Four starts, two copies that agree at three of them: 5 successes of 8, and the made-up start beside them."""
    outcomes = [[1, 1, 0, 1], [1, 1, 0, 0]]
    extreme = (0.375**2 + 0.625**2) / 2
    by_starts = (0.75**2 + 0.75**2 + 1.25**2 + 0.25**2) * 4 / 3 + 2**2 * extreme
    alone = (5 * 0.375**2 + 3 * 0.625**2) * 8 / 7 + 2 * extreme
    assert effective_episodes(outcomes) == pytest.approx(8 * alone / by_starts)
    assert 4 < effective_episodes(outcomes) < 8


def test_what_nobody_ever_does_says_nothing_of_how_starts_differ() -> None:
    none, one = clustered(np.zeros((3, 96))), clustered(np.eye(3, 96)[:1].repeat(3, 0) * [[1], [0], [0]])
    assert none["effective"] == 96 and none["high"] == wilson(0, 96)["high"]
    assert one["successes"] == 1 and none["effective"] < one["effective"] < 288
    assert one["high"] > wilson(1, 288)["high"]


def test_lost_episodes_are_no_outcomes() -> None:
    lost = float("nan")
    rate = clustered([[1, lost, 0, lost], [1, 0, lost, lost]])
    assert (rate["successes"], rate["episodes"], rate["starts"]) == (2, 4, 3)
    means = cluster_means([[1, lost, 0, lost], [0, 0, lost, lost]])
    assert means[:3].tolist() == [0.5, 0, 0] and np.isnan(means[3])
    pair = paired_difference([[1, lost, 1, 1], [0, 0, lost, 1]], [0, 0, 1, lost])
    assert pair.difference == pytest.approx((0.5 + 0 + 0) / 3), "each start weighs the same"
    with pytest.raises(ValueError, match="nothing to compare"):
        paired_difference([lost, 1], [1, lost])


def test_outcomes_by_their_starts() -> None:
    table = by_start(["a", "b", "a", "c"], [1, 0, 0, 1])
    assert np.array_equal(table, [[1, 0, 1], [0, np.nan, np.nan]], equal_nan=True)
    assert by_start([], []).size == 0


def test_summaries_of_before_there_were_clusters_are_pooled() -> None:
    old: Rate = {"successes": 1, "episodes": 4, "rate": 0.25, "low": 0.05, "high": 0.7}  # pyright: ignore
    assert pooled_rate([old, wilson(2, 4)]) == wilson(3, 8)


class Scenario:
    """Tasks of `starts` starts with the base's rate and that of the tuned policies, which differ from start to start by
    `spread` in logits, alike for both."""

    def __init__(self, *tasks: tuple[int, float, float], spread: float) -> None:
        self.tasks, self.spread = tasks, spread
        self.truth = tuple(float(np.average([t[k] for t in tasks], weights=[t[0] for t in tasks])) for k in (1, 2))

    def play(self, draw: np.random.Generator, seeds: int = 3) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """By task, what became of the base's one episode a start and of each seed's."""
        base, tuned = [], []
        for starts, before, after in self.tasks:
            ease = self.spread * draw.normal(size=starts)
            base.append((draw.random(starts) < expit(_middle(before, self.spread) + ease)).astype(float))
            tuned.append((draw.random((seeds, starts)) < expit(_middle(after, self.spread) + ease)).astype(float))
        return base, tuned


@cache
def _middle(rate: float, spread: float) -> float:
    """The logit whose rate, over all starts, is `rate`."""
    eases, logits = spread * np.random.default_rng(0).normal(size=4000), np.linspace(-12, 12, 2401)
    rates = expit(logits[:, None] + eases).mean(1)
    return float(np.interp(rate, rates, logits))


DRAWERS = [(24, 0.5, 0.55)] * 3 + [(24, 0.99, 0.98)] * 3
SCENARIOS = {
    "the can": Scenario((96, 0.28, 0.5), spread=1.5),
    "starts that do not differ": Scenario((96, 0.28, 0.5), spread=0.0),
    "nothing learned": Scenario((96, 0.28, 0.28), spread=1.5),
    "hardly ever": Scenario((96, 0.02, 0.06), spread=1.0),
    "nearly always": Scenario((96, 0.98, 0.94), spread=1.0),
    "few starts": Scenario((24, 0.28, 0.5), spread=1.5),
    "prior tasks": Scenario(*DRAWERS, spread=1.0),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_intervals_cover_the_truth_where_seeds_share_their_starts(name: str) -> None:
    scenario, draw, played = SCENARIOS[name], np.random.default_rng(0), 800
    before, after = scenario.truth
    of_rate = of_difference = of_copies = 0
    for _ in range(played):
        base, tuned = scenario.play(draw)
        rate = pooled_rate(map(clustered, tuned))
        of_rate += rate["low"] <= after <= rate["high"]
        ends, starts = np.concatenate(tuned, 1), np.concatenate(base)
        found = paired_difference(ends, starts)
        of_difference += found.low <= after - before <= found.high
        copied = paired_difference(ends.ravel(), np.tile(starts, 3))
        of_copies += copied.low <= after - before <= copied.high
    assert 0.93 <= of_rate / played <= 0.99
    assert 0.93 <= of_difference / played <= 0.99
    assert of_copies / played < 0.92, "as if the base had played three times as many episodes"


def test_pairing_narrows_the_interval() -> None:
    agreeing, opposed = paired_difference(*paired_table(25, 5, 0, 20)), paired_difference(*paired_table(10, 20, 15, 5))
    assert agreeing.high - agreeing.low < opposed.high - opposed.low


def test_unequal_lengths() -> None:
    with pytest.raises(ValueError, match="the same starts"):
        paired_difference([True], [True, False])
    with pytest.raises(ValueError, match="the same starts"):
        paired_difference([], [])


def test_summaries() -> None:
    episodes = [Ended(True, True), Ended(False, True), Ended(False, False), Ended(False, False, lost=True)]
    summary = success_summary(episodes)
    assert summary["success_at_end"] == wilson(1, 3)
    assert summary["success_once"] == wilson(2, 3)
    both = pooled([summary, success_summary([Ended(True, True)])])
    assert both == {"success_at_end": wilson(2, 4), "success_once": wilson(3, 4)}
    assert list(both) == ["success_once", "success_at_end"], "the primary one first"
    entry = policy_summary({"pick_can": summary}, {"a": summary, "b": summary}, {"per_token": 0.1})
    assert entry["prior_mean"] == {"success_at_end": wilson(2, 6), "success_once": wilson(4, 6)}
    assert entry["forward_kl"] == {"per_token": 0.1} and entry["primary"] == "success_once"
    assert policy_summary({"pick_can": summary}, {})["prior_mean"] is None
