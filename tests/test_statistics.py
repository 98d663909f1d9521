"""Intervals against published values, and the dicts of summary.json."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_razor.statistics import paired_difference, policy_summary, pooled, success_summary, wilson


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


def test_no_episodes_leave_everything_open() -> None:
    assert wilson(0, 0) == {"successes": 0, "episodes": 0, "rate": 0.0, "low": 0.0, "high": 1.0}


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


def test_pairing_narrows_the_interval() -> None:
    agreeing, opposed = paired_difference(*paired_table(25, 5, 0, 20)), paired_difference(*paired_table(10, 20, 15, 5))
    assert agreeing.high - agreeing.low < opposed.high - opposed.low


def test_unequal_lengths() -> None:
    with pytest.raises(ValueError, match="one length"):
        paired_difference([True], [True, False])
    with pytest.raises(ValueError, match="one length"):
        paired_difference([], [])


def test_summaries() -> None:
    episodes = [Ended(True, True), Ended(False, True), Ended(False, False), Ended(False, False, lost=True)]
    summary = success_summary(episodes)
    assert summary["success_at_end"] == wilson(1, 3)
    assert summary["success_once"] == wilson(2, 3)
    both = pooled([summary, success_summary([Ended(True, True)])])
    assert both == {"success_at_end": wilson(2, 4), "success_once": wilson(3, 4)}
    entry = policy_summary({"pick_can": summary}, {"a": summary, "b": summary}, {"per_token": 0.1})
    assert entry["prior_mean"] == {"success_at_end": wilson(2, 6), "success_once": wilson(4, 6)}
    assert entry["forward_kl"] == {"per_token": 0.1}
    assert policy_summary({"pick_can": summary}, {})["prior_mean"] is None
