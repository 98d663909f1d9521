"""Projections between sets of distributions over finitely many outcomes (paper, Section 5.2 and Appendix A).

The I-projection of p onto a set is the member q with the least KL(q || p); the M-projection of q is the member p with
the least KL(q || p). Functions take logits and return log-probabilities, -inf for an outcome without mass. They compute
in float64; the result is float32, or float64 where an argument is.

What the paper states about the alternation of the two (Proposition A.4) needs care. `tests/core/test_projection.py`
holds an exact example for each of these points:

- A family with full support contains no optimal policy as long as some outcome is not rewarded, so the limit is on the
  family's boundary. `m_projection` therefore projects onto the closure.
- The limit is the KL-minimal optimal policy where the rewarded outcomes are a *face* of the family: where their reward
  is a linear function of the features, as in any table of probabilities. One exact step then reaches it. Otherwise it
  need not be, even in an exponential family.
- Errors of the M-step that sum to a finite number do not preserve the limit, and may prevent there being one.
- Natural policy gradient, logits + rate * reward, keeps p(y | rewarded) and so reaches the KL-minimal policy. Plain
  gradient ascent on a table's logits does not: it ends in the single most likely rewarded outcome.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy.optimize import linprog, minimize  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]
from torch import Tensor

from vla_razor.core.precision import narrow, wide

Logits = Float[Tensor, "*batch Y"]
Array = NDArray[np.float64]

_NEWTON_STEPS = 50

_LOOSEST = 1e-8
"""How far the moments of an M-projection may be off, with features scaled to 1. Nearly always they agree to 1e-14; the
exceptions are targets whose masses span many orders of magnitude."""


def i_projection(base_logits: Logits, rewarded: Bool[Tensor, "*batch Y"]) -> Logits:
    """The distribution nearest to the base, in KL(q || base), of those that give all their mass to rewarded outcomes:
    the base itself, restricted to them and renormalised. Rejection sampling from the base yields it (paper, Lemmas 5.1
    and A.1), and KL(q || base) = -log base(rewarded).

    Raises ValueError where the shapes differ or the base gives no rewarded outcome any mass.
    """
    if base_logits.shape != rewarded.shape or rewarded.dtype != torch.bool:
        raise ValueError(
            f"expected logits and a boolean `rewarded` of one shape, got {tuple(base_logits.shape)} and "
            f"{tuple(rewarded.shape)} of {rewarded.dtype}"
        )
    kept = wide(base_logits).masked_fill(~rewarded, -torch.inf)
    if not (kept > -torch.inf).any(-1).all():
        raise ValueError("there is no optimal policy: the base gives no rewarded outcome any probability")
    return narrow(torch.log_softmax(kept, -1), base_logits)


def oracle(base_logits: Logits, rewarded: Bool[Tensor, "*batch Y"]) -> Logits:
    """The paper's oracle distribution (Section 4, Appendix B.3): of all that are always right, the nearest to the base.

    Appendix B.3 writes the minimum of KL(base || q). That is infinite for every q that is always right, unless the base
    is too. It must mean the minimum of KL(q || base), which Lemma A.1 is about: `i_projection`. Restricted to the
    rewarded outcomes the oracle *is* the base, in either direction.
    """
    return i_projection(base_logits, rewarded)


def exponential_family(
    parameters: Float[Tensor, " F"], features: Float[Tensor, "Y F"], carrier_logits: Float[Tensor, " Y"]
) -> Float[Tensor, " Y"]:
    """log p(y) of p(y) ~ carrier(y) exp(features(y) . parameters): an e-flat set of policies as `parameters` varies,
    and the carrier itself at 0. Differentiable in `parameters`.

    Raises ValueError where the shapes disagree.
    """
    if carrier_logits.ndim != 1 or features.shape != (len(carrier_logits), *parameters.shape) or parameters.ndim != 1:
        shapes = [tuple(tensor.shape) for tensor in (parameters, features, carrier_logits)]
        raise ValueError(f"expected parameters [F], features [Y, F] and carrier_logits [Y], got {shapes}")
    return torch.log_softmax(carrier_logits + features @ parameters, -1)


def m_projection(
    target_logits: Float[Tensor, " Y"], features: Float[Tensor, "Y F"], carrier_logits: Float[Tensor, " Y"]
) -> Float[Tensor, " Y"]:
    """The member p of the closure of an `exponential_family` with the least KL(target || p). This is maximum
    likelihood, and matches E_p[features] to E_target[features] (paper, Lemma A.2).

    Where the target's mean features lie on the boundary of the possible ones, no parameter attains the minimum, but a
    limit of parameters does. That limit has mass only on the outcomes of the smallest face that holds the target's
    support. A linear program finds these outcomes, and Newton's method the parameters among them.

    Raises ValueError where the shapes disagree, there is no feature or one is not finite, or the target has mass
    outside the carrier's support; RuntimeError where the moments are not matched to 1e-8.
    """
    if not features.numel() or not features.isfinite().all():
        raise ValueError("there must be at least one feature, and all of them finite")
    exponential_family(features.new_zeros(features.shape[-1:]), features, carrier_logits)  # for its shape check
    if target_logits.shape != carrier_logits.shape:
        shapes = tuple(target_logits.shape), tuple(carrier_logits.shape)
        raise ValueError(f"expected target_logits and carrier_logits of one shape, got {shapes}")
    target = np.asarray(torch.softmax(wide(target_logits.detach()), -1).cpu())
    carrier, f = np.asarray(wide(carrier_logits.detach()).cpu()), np.asarray(wide(features.detach()).cpu())
    possible = carrier > -np.inf
    if (target > 0)[~possible].any():
        raise ValueError("the target has mass where the family has none: every divergence is infinite")
    possible[possible] = _smallest_face(f[possible], (target > 0)[possible])
    result = np.full(len(target), -np.inf)
    result[possible] = _moment_match(target[possible], f[possible], carrier[possible])
    return narrow(torch.tensor(result, device=target_logits.device), target_logits)


def alternate(
    start_logits: Float[Tensor, " Y"],
    i_step: Callable[[Tensor], Tensor],
    m_step: Callable[[Tensor], Tensor],
    *,
    steps: int,
) -> Float[Tensor, "steps+1 Y"]:
    """The policies pi_0, pi_1, ... with q_t = i_step(pi_t) and pi_(t+1) = m_step(q_t), as log-probabilities, the start
    first. The paper reads policy gradient as this EM with information projections (Theorem A.3, Figure 5).

    For the exact iteration, bind the other arguments of `i_projection` and `m_projection`. No round of it lowers the
    expected reward, pi_t(rewarded) (Dempster et al., 1977). A step of policy gradient is only the first gradient step
    of such an M-projection.
    """
    path = [torch.log_softmax(start_logits, -1)]
    for _ in range(steps):
        path.append(m_step(i_step(path[-1])))
    return torch.stack(path)


def _smallest_face(features: Array, supported: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which points [Y, F] lie on the smallest face of their convex hull that holds the `supported` ones."""
    if supported.all():
        return supported
    # A point is outside the face where some direction has it lower than the supported points, which are all equal
    # along it, with no point higher. The linear program finds one direction for all such points at once. Its variables
    # are the direction and, for every other point, by how much it is pushed down, capped at 1; the sum of these is
    # maximised. Directions add up and can be scaled, so every point outside reaches 1 and every point of the face 0.
    offsets = features - features[supported.argmax()]
    inside, outside = offsets[supported], offsets[~supported]
    width, others = features.shape[1], len(outside)
    found: Any = cast("Any", linprog)(
        np.concatenate([np.zeros(width), -np.ones(others)]),
        A_ub=np.concatenate([outside, np.eye(others)], 1),
        b_ub=np.zeros(others),
        A_eq=np.concatenate([inside, np.zeros((len(inside), others))], 1),
        b_eq=np.zeros(len(inside)),
        bounds=[(None, None)] * width + [(0, 1)] * others,
    )
    if not found.success:
        raise RuntimeError(f"the face of the family was not found: {found.message}")
    face = supported.copy()
    face[~supported] = found.x[width:] < 0.5  # they are 0 or 1, up to the solver's tolerance
    return face


def _moment_match(target: Array, features: Array, carrier: Array) -> Array:
    """log p of the p ~ carrier exp(features . parameters) that has the target's mean features, which must not lie on
    the boundary.
    """
    # Relative to the target's likeliest outcome, so that the digits of small masses are not lost beside it.
    offsets = features - features[target.argmax()]
    offsets = offsets / np.maximum(np.abs(offsets).max(0), np.finfo(np.float64).tiny)
    # A trust region comes near from anywhere; Newton's method then goes on to rounding.
    log_p = _log_softmax(carrier + offsets @ _trust_region(target, offsets, carrier))
    gap = np.full(offsets.shape[1], np.inf)
    for _ in range(_NEWTON_STEPS):
        p = np.exp(log_p)
        gap = (target - p) @ offsets
        if (np.abs(gap) <= 1e-14 * ((target + p) @ np.abs(offsets)) + 1e-16).all():
            break
        # The Hessian is the covariance of the features under p. Scaled to a unit diagonal, it is inverted without
        # losing the features that vary little.
        centred = offsets - p @ offsets
        spread = np.sqrt(p @ np.square(centred))
        spread[spread == 0] = 1
        centred = centred / spread
        inverse = np.asarray(np.linalg.pinv((centred.T * p) @ centred), dtype=np.float64)  # features may be redundant
        change = centred @ inverse @ (gap / spread)
        # A step that changes the logits by a range d is shortened to log(1 + d), so as not to overshoot (Sun and
        # Tran-Dinh, "Generalized self-concordant functions", 2019).
        length = float(np.ptp(change))
        log_p = _log_softmax(log_p + change * (math.log1p(length) / length if length else 0.0))
    if np.abs(gap).max() > _LOOSEST:
        raise RuntimeError(f"no member of the family was found that matches the target's moments: off by {gap}")
    return log_p


def _trust_region(target: Array, offsets: Array, carrier: Array) -> Array:
    """Parameters near the minimum of log sum carrier exp(offsets . t) - E_target[offsets] . t, which is convex."""

    def value_and_gradient(t: Array) -> tuple[float, Array]:
        logits = carrier + offsets @ t
        log_p = _log_softmax(logits)
        return float((logits - log_p)[0] - target @ offsets @ t), (np.exp(log_p) - target) @ offsets

    def hessian(t: Array) -> Array:
        p = np.exp(_log_softmax(carrier + offsets @ t))
        centred = offsets - p @ offsets
        return (centred.T * p) @ centred

    options = {"gtol": _LOOSEST / 10, "initial_trust_radius": 10.0, "max_trust_radius": 1000.0}
    found: Any = cast("Any", minimize)(
        value_and_gradient, np.zeros(offsets.shape[1]), jac=True, hess=hessian, method="trust-exact", options=options
    )
    return found.x


def _log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max()
    return shifted - math.log(np.exp(shifted).sum())
