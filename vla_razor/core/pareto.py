"""The trade-off between a new task and the prior ones: which models are on the Pareto frontier, and its curve.

The paper's protocol (Appendix B.1, Figure 6): train many models, keep those within 2 accuracy points of the frontier,
and draw an exponential function through what is left.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

_BENDS = (0.01, 100.0)
"""How often the fitted drop may grow e-fold over the points' width: from a straight line to a cliff at the end."""


def on_frontier(new: ArrayLike, prior: ArrayLike) -> NDArray[np.bool_]:
    """Which of the points (new [N], prior [N]) no other point beats by being at least as high in both and higher in
    one.

    Equal points are on the frontier together. Any unit, and the two may have different ones.

    Raises ValueError where the two are not vectors of one length, are empty, or hold a value that is not finite.
    """
    x, y = _checked(new, prior)
    # Sorted by x, then y. From the right, a point is on the frontier where it is higher than all points so far, which
    # are at least as far right. Equal points are one here, so that none of them beats the others.
    points, copies = np.unique(np.stack([x, y], 1), axis=0, return_inverse=True)
    from_the_right = points[::-1, 1]  # among equals of x, the highest first
    best_so_far = np.concatenate([[-np.inf], np.maximum.accumulate(from_the_right)[:-1]])
    return (from_the_right > best_so_far)[::-1][copies.reshape(-1)]


def shortfall(new: ArrayLike, prior: ArrayLike) -> NDArray[np.float64]:
    """By how much each point [N] falls short of the frontier of all: the least e >= 0 for which (new + e, prior + e) is
    strictly below no point in both coordinates. In the unit of `new` and `prior`, which must be the same.

    It is 0 on the frontier's staircase, and the distance to it in the maximum norm below (the additive epsilon
    indicator of one point; Zitzler et al., "Performance assessment of multiobjective optimizers", 2003).

    Raises ValueError as `on_frontier` does.
    """
    x, y = _checked(new, prior)
    frontier = on_frontier(x, y)
    # A point of the frontier stays above while e is below both gaps; the last one to be reached decides.
    gaps = np.minimum(x[frontier] - x[:, None], y[frontier] - y[:, None])
    return np.maximum(gaps.max(1), 0)


def near_frontier(new: ArrayLike, prior: ArrayLike, *, tolerance: float = 0.02) -> NDArray[np.bool_]:
    """Which points [N] lie within `tolerance` of the frontier: the paper's 2 accuracy points, where accuracies are
    fractions (Appendix B.1). The paper does not say how it measures the distance; here it is the `shortfall`.

    Raises ValueError as `on_frontier` does, or where `tolerance` is negative.
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance must not be negative, got {tolerance}")
    return shortfall(new, prior) <= tolerance + 1e-12  # 0.90 - 0.88 is a little more than 0.02


class Curve(NamedTuple):
    """prior = ceiling - drop * exp(rate * (new - right)), which never rises with `new`."""

    ceiling: float
    """What prior accuracy tends to far to the left."""
    drop: float
    """How far below the ceiling the curve is at `right`; 0 is a constant."""
    rate: float
    """Per unit of `new`."""
    right: float
    """The largest `new` among the fitted points."""

    def __call__(self, new: ArrayLike) -> NDArray[np.float64]:
        """Prior accuracy at `new`, of any shape."""
        return self.ceiling - self.drop * np.exp(self.rate * (np.asarray(new, dtype=np.float64) - self.right))


def fit_curve(new: ArrayLike, prior: ArrayLike) -> Curve:
    """The exponential trade-off curve through the points (new [N], prior [N]), by least squares in `prior`.

    The paper says "an exponential function" and draws curves that are flat where little has been learned and fall ever
    more steeply. That is a constant minus a growing exponential: three coefficients, of which `drop` and `rate` are
    held non-negative.

    Give it the points of `near_frontier`. Raises ValueError as `on_frontier` does, or where `new` takes fewer than
    three values.
    """
    x, y = _checked(new, prior)
    if len(np.unique(x)) < 3:
        raise ValueError(f"the curve has three coefficients: it needs three distinct values, got {np.unique(x)}")
    width = float(np.ptp(x))

    # For a given rate the other two coefficients are a linear fit, so only the rate is searched for (variable
    # projection): on a grid, then by Brent's method, so that there is no starting value to get wrong.
    def residual(log_bend: float) -> float:
        return float(np.square(y - _linear_part(x, y, math.exp(log_bend) / width)(x)).sum())

    grid = np.linspace(math.log(_BENDS[0]), math.log(_BENDS[1]), 41)
    best = int(np.argmin([residual(log_bend) for log_bend in grid]))
    bounds = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, len(grid) - 1)])
    found = float(cast("Any", minimize_scalar)(residual, bounds=bounds, method="bounded", options={"xatol": 1e-10}).x)
    log_bend = min(float(grid[best]), found, key=residual)
    return _linear_part(x, y, math.exp(log_bend) / width)


def _linear_part(x: NDArray[np.float64], y: NDArray[np.float64], rate: float) -> Curve:
    """The best curve of a given rate: a straight-line fit of y on exp(rate (x - right)), its slope at most 0."""
    right = float(x.max())
    growth = np.exp(rate * (x - right))
    centred = growth - growth.mean()
    drop = max(-float(centred @ y) / float(centred @ centred), 0.0)
    return Curve(float(y.mean() + drop * growth.mean()), drop, rate, right)


def _checked(new: ArrayLike, prior: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y = np.asarray(new, dtype=np.float64), np.asarray(prior, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or not len(x):
        raise ValueError(f"new and prior must be vectors of one length and not empty, got {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("new and prior must be finite: leave out runs that diverged")
    return x, y
