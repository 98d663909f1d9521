"""Projections between sets of distributions over finitely many outcomes (paper, Section 5.2 and Appendix A).

The I-projection of p onto a set is its member q with the least KL(q || p); the M-projection of q is the member p with
the least KL(q || p). Distributions are logits in and log-probabilities out, float64 inside, -inf for an outcome without
mass. The result is float32, or float64 where an argument is.

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
"""How far the moments of an M-projection may be off, features being scaled to 1. Nearly always they agree to 1e-14; the
rest are targets whose masses span many orders of magnitude."""


def i_projection(base_logits: Logits, rewarded: Bool[Tensor, "*batch Y"]) -> Logits:
    """The distribution nearest to the base, in KL(q || base), among those that give all their mass to rewarded
    outcomes: the base itself, restricted to them and renormalised. It is what rejection sampling from the base yields
    (paper, Lemma 5.1 and A.1), and KL(q || base) = -log base(rewarded).

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

    Appendix B.3 writes the minimum of KL(base || q), which is infinite for every q that is always right as soon as the
    base sometimes is not. What it can mean, and what Lemma A.1 proves, is the minimum of KL(q || base): `i_projection`.
    Both directions agree about the rewarded outcomes alone: restricted to these the oracle *is* the base.
    """
    return i_projection(base_logits, rewarded)


def exponential_family(
    parameters: Float[Tensor, " F"], features: Float[Tensor, "Y F"], carrier_logits: Float[Tensor, " Y"]
) -> Float[Tensor, " Y"]:
    """log of p(y) ~ carrier(y) exp(features(y) . parameters), an e-flat set of policies as `parameters` varies.
    Differentiable in `parameters`; at 0 it is the carrier.

    Raises ValueError where the shapes disagree.
    """
    if carrier_logits.ndim != 1 or features.shape != (len(carrier_logits), *parameters.shape) or parameters.ndim != 1:
        shapes = [tuple(tensor.shape) for tensor in (parameters, features, carrier_logits)]
        raise ValueError(f"expected parameters [F], features [Y, F] and carrier_logits [Y], got {shapes}")
    return torch.log_softmax(carrier_logits + features @ parameters, -1)


def m_projection(
    target_logits: Float[Tensor, " Y"], features: Float[Tensor, "Y F"], carrier_logits: Float[Tensor, " Y"]
) -> Float[Tensor, " Y"]:
    """The member p of the closure of an `exponential_family` with the least KL(target || p): maximum likelihood, which
    matches E_p[features] to E_target[features] (paper, Lemma A.2).

    Where the target's mean features lie on the boundary of the possible ones, no parameter attains the minimum, but the
    limit does: it lives on the outcomes of the smallest face that holds the target's support. A linear program finds
    these, and Newton's method the parameters on the face.

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
    """The policies pi_0, pi_1, ... with q_t = i_step(pi_t) and pi_(t+1) = m_step(q_t): the paper's reading of policy
    gradient as EM with information projections (Theorem A.3, Figure 5). As log-probabilities, the start first.

    The exact iteration takes `i_projection` and `m_projection` with their other arguments bound, and no round lowers
    the expected reward, pi_t(rewarded) (Dempster et al., 1977). A step of policy gradient is the first gradient step of
    such an M-projection, not the whole of it.
    """
    path = [torch.log_softmax(start_logits, -1)]
    for _ in range(steps):
        path.append(m_step(i_step(path[-1])))
    return torch.stack(path)


def _smallest_face(features: Array, supported: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which points [Y, F] lie on the smallest face of their convex hull that holds the `supported` ones.

    The linear program looks for a direction along which all supported points are equal and no other is higher, and
    pushes as many others as it can at least 1 below. Those that it can push are outside the face.
    """
    if supported.all():
        return supported
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
    face[~supported] = found.x[width:] < 0.5
    return face


def _moment_match(target: Array, features: Array, carrier: Array) -> Array:
    """log p, p ~ carrier exp(features . parameters) with the target's mean features, which must not be on the boundary.

    A trust region comes near from anywhere. Newton's method then finishes to rounding, its steps shortened from their
    range d to log(1 + d) so as not to overshoot (Sun and Tran-Dinh, "Generalized self-concordant functions", 2019).
    Features are taken relative to the target's likeliest outcome, and the Hessian relative to its diagonal: both keep
    the digits of small masses.
    """
    offsets = features - features[target.argmax()]
    offsets = offsets / np.maximum(np.abs(offsets).max(0), np.finfo(np.float64).tiny)
    log_p = _log_softmax(carrier + offsets @ _trust_region(target, offsets, carrier))
    gap = np.full(offsets.shape[1], np.inf)
    for _ in range(_NEWTON_STEPS):
        p = np.exp(log_p)
        gap = (target - p) @ offsets
        if (np.abs(gap) <= 1e-14 * ((target + p) @ np.abs(offsets)) + 1e-16).all():
            break
        centred = offsets - p @ offsets
        spread = np.sqrt(p @ np.square(centred))
        spread[spread == 0] = 1
        centred = centred / spread
        inverse = np.asarray(np.linalg.pinv((centred.T * p) @ centred), dtype=np.float64)  # features may be redundant
        change = centred @ inverse @ (gap / spread)
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
