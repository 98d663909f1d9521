"""The forgetting law's fit on data whose answer is known."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import linregress

from vla_razor.core.forgetting_law import fit

X = np.linspace(0, 2, 20)
RUNS = np.repeat(np.arange(5), 4)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_an_exact_parabola() -> None:
    law = fit(X, 0.1 + 0.5 * X - 0.2 * X**2, RUNS, resamples=50, generator=seeded())
    np.testing.assert_allclose(law.coefficients, [0.1, 0.5, -0.2], atol=1e-12)
    assert law.r2 == pytest.approx(1)
    assert law.low == pytest.approx(1)
    assert law.high == pytest.approx(1)


def test_a_line_against_scipy() -> None:
    y = X + np.random.default_rng(0).normal(0, 0.5, len(X))
    law = fit(X, y, RUNS, degree=1, resamples=50, generator=seeded())
    reference: Any = linregress(X, y)
    np.testing.assert_allclose(law.coefficients, [reference.intercept, reference.slope])
    assert law.r2 == pytest.approx(reference.rvalue**2)


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e6])
def test_the_unit_of_the_divergence_does_not_matter(unit: float) -> None:
    y = X**2 + np.random.default_rng(0).normal(0, 0.5, len(X))
    expected = fit(X, y, RUNS, resamples=50, generator=seeded())
    law = fit(X * unit, y, RUNS, resamples=50, generator=seeded())
    assert law[1:] == pytest.approx(expected[1:])
    assert law.coefficients[2] == pytest.approx(expected.coefficients[2] / unit**2)


def test_the_bootstrap_draws_runs_and_not_rows() -> None:
    """Five runs of a hundred equal checkpoints carry the information of five points, not of five hundred."""
    divergence, forgetting = np.array([0.0, 1, 2, 3, 4]), np.array([0.0, 1.3, 1.5, 3.4, 3.3])
    few = fit(divergence, forgetting, range(5), degree=1, resamples=400, generator=seeded())
    x, y, runs = (np.repeat(values, 100) for values in (divergence, forgetting, np.arange(5)))
    many = fit(x, y, runs, degree=1, resamples=400, generator=seeded())
    assert many.r2 == pytest.approx(few.r2)
    assert (many.low, many.high) == pytest.approx((few.low, few.high))
    rows = fit(x, y, range(500), degree=1, resamples=400, generator=seeded())
    assert rows.high - rows.low < (few.high - few.low) / 4


def test_the_interval_covers_the_fit_and_follows_the_seed() -> None:
    y = X + np.random.default_rng(0).normal(0, 0.5, len(X))
    law = fit(X, y, RUNS, resamples=300, generator=seeded())
    assert law.low < law.r2 < law.high
    assert fit(X, y, RUNS, resamples=300, generator=seeded()) == law
    assert fit(X, y, RUNS, resamples=300, generator=seeded(1)) != law


def test_tensors_names_and_numpy_generators_will_do() -> None:
    y = X + np.random.default_rng(0).normal(0, 0.5, len(X))
    names = [f"run-{run}" for run in RUNS]
    law = fit(torch.tensor(X), torch.tensor(y), names, resamples=20, generator=np.random.default_rng(0))
    assert law.r2 == pytest.approx(fit(X, y, RUNS, resamples=20, generator=seeded()).r2)


def test_resamples_in_which_nothing_varies_are_left_out() -> None:
    y = np.where(RUNS == 0, 1.0 + X, 1.0)
    assert math.isfinite(fit(X, y, RUNS, resamples=100, generator=seeded()).low)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X, X[:-1], RUNS), "one length"),
        ((X, X, RUNS[:-1]), "one length"),
        ((np.where(X > 1, np.inf, X), X, RUNS), "finite"),
        ((X, X * np.nan, RUNS), "finite"),
        ((X, X, RUNS * 0), "at least two"),
        ((X > 1, X, RUNS), "distinct"),
        ((X, X * 0, RUNS), "vary"),
    ],
)
def test_bad_input(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(*arguments, resamples=10, generator=seeded())


def test_bad_numbers() -> None:
    with pytest.raises(ValueError, match="degree"):
        fit(X, X, RUNS, degree=0, resamples=10, generator=seeded())
    with pytest.raises(ValueError, match="resamples"):
        fit(X, X, RUNS, resamples=0, generator=seeded())


def test_no_resample_with_an_r2_leaves_the_interval_open() -> None:
    """One run of three varies, and a single draw of three runs misses it for some seed."""
    y = [0.0, 0.0, 0.0, 0.0, 0.1, 0.2]
    laws = [fit(range(6), y, [0, 0, 1, 1, 2, 2], resamples=1, generator=seeded(seed)) for seed in range(20)]
    open_ended = [math.isnan(law.low) for law in laws]
    assert any(open_ended)
    assert not all(open_ended)
    assert all(math.isnan(law.high) == is_open for law, is_open in zip(laws, open_ended, strict=True))
    assert len({law.r2 for law in laws}) == 1
