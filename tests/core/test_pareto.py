"""The frontier against brute force, and its curve on data whose answer is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import curve_fit

from vla_razor.core.pareto import fit_curve, near_frontier, on_frontier, shortfall

quick = settings(max_examples=60, deadline=None)
accuracies = st.integers(0, 8).map(lambda tenths: tenths / 10)  # few values, so that ties are common
clouds = st.lists(st.tuples(accuracies, accuracies), min_size=1, max_size=30).map(lambda rows: np.array(rows).T)


def brute_force(new: np.ndarray, prior: np.ndarray) -> list[bool]:
    points = list(zip(new, prior, strict=True))
    return [not any(p >= a and q >= b and (p > a or q > b) for p, q in points) for a, b in points]


@quick
@given(cloud=clouds)
def test_the_frontier_against_brute_force(cloud: np.ndarray) -> None:
    assert on_frontier(*cloud).tolist() == brute_force(*cloud)


@quick
@given(cloud=clouds)
def test_shortfall_lifts_a_point_to_the_frontier_and_no_less_does(cloud: np.ndarray) -> None:
    new, prior = cloud

    def strictly_below(lift: np.ndarray) -> np.ndarray:
        x, y = (new + lift)[:, None], (prior + lift)[:, None]
        return ((new > x + 1e-12) & (prior > y + 1e-12)).any(1)

    short = shortfall(new, prior)
    assert (short[on_frontier(new, prior)] == 0).all()
    assert not strictly_below(short).any()
    assert strictly_below(short - 1e-6)[short > 0].all()


def test_by_hand() -> None:
    new, prior = [0.5, 0.8, 0.9, 0.9, 0.78, 0.6], [0.9, 0.8, 0.5, 0.5, 0.78, 0.7]
    assert on_frontier(new, prior).tolist() == [True, True, True, True, False, False]
    np.testing.assert_allclose(shortfall(new, prior), [0, 0, 0, 0, 0.02, 0.1], atol=1e-12)
    assert near_frontier(new, prior).tolist() == [True, True, True, True, True, False]
    assert near_frontier(new, prior, tolerance=0.1).all()


@pytest.mark.parametrize("rate", [0.3, 3.0, 30.0])
def test_a_curve_is_found_again(rate: float) -> None:
    new = np.linspace(0.2, 0.95, 30)
    prior = 0.8 - 0.3 * np.exp(rate * (new - 0.95))
    curve = fit_curve(new, prior)
    assert (curve.ceiling, curve.drop, curve.rate, curve.right) == pytest.approx((0.8, 0.3, rate, 0.95), rel=1e-4)
    np.testing.assert_allclose(curve(new), prior, atol=1e-7)
    assert curve(0.95) == pytest.approx(0.5)


def test_noisy_points_against_scipy() -> None:
    """SciPy's iterative fit, started from the right answer, does no better."""
    new = np.linspace(0.3, 0.99, 80)
    prior = 0.7 - 0.4 * np.exp(8 * (new - 0.99)) + np.random.default_rng(0).normal(0, 0.01, len(new))
    curve = fit_curve(new, prior)
    reference = curve_fit(lambda x, c, d, r: c - d * np.exp(r * (x - 0.99)), new, prior, p0=(0.7, 0.4, 8))[0]
    assert curve[:3] == pytest.approx(reference, rel=1e-4)


def test_what_no_falling_curve_fits_is_a_constant() -> None:
    curve = fit_curve([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert (curve.drop, curve.ceiling) == (0, pytest.approx(0.5))
    assert fit_curve([0.1, 0.2, 0.3], [0.5, 0.5, 0.5])([0.0, 1.0]) == pytest.approx([0.5, 0.5])


@quick
@given(cloud=clouds.filter(lambda cloud: len(np.unique(cloud[0])) > 2))
def test_the_curve_never_rises_and_beats_a_constant(cloud: np.ndarray) -> None:
    new, prior = cloud
    curve = fit_curve(new, prior)
    assert (np.diff(curve(np.linspace(0, 1, 20))) <= 0).all()
    assert np.square(curve(new) - prior).sum() <= np.square(prior - prior.mean()).sum() + 1e-12


@pytest.mark.parametrize("function", [on_frontier, shortfall, near_frontier, fit_curve])
@pytest.mark.parametrize(
    ("new", "prior", "message"),
    [
        ([0.1, 0.2], [0.1], "one length"),
        ([[0.1, 0.2]], [[0.1, 0.2]], "vectors"),
        ([], [], "empty"),
        ([0.1, np.nan], [0.1, 0.2], "finite"),
        ([0.1, 0.2], [0.1, np.inf], "finite"),
    ],
)
def test_bad_input(function, new, prior, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        function(new, prior)


def test_bad_numbers() -> None:
    with pytest.raises(ValueError, match="tolerance"):
        near_frontier([0.1], [0.1], tolerance=-0.01)
    with pytest.raises(ValueError, match="three distinct"):
        fit_curve([0.1, 0.1, 0.2], [0.3, 0.4, 0.5])
