"""How far a policy has moved from its base: divergences between categorical distributions, in nats.

The forgetting law of RL's Razor (arXiv:2509.04259, Section 4) is stated in the forward KL, KL(base || tuned), on the
new task; reverse KL, total variation and L2 are the alternatives of its Section 6. Every function takes logits
(log-probabilities are logits too), shifted by any constant.

A divergence of 1e-9 is the sum of terms around 1e-5 that cancel. Forward KL is therefore summed as
`q - p - p log(q / p)`, whose terms are never negative (the extra `q - p` sums to zero over the support), in float64.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from scipy.optimize import minimize_scalar  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]
from torch import Tensor

from vla_razor.core.precision import at_least_float32, narrow, wide, wide_dtype

Logits = Float[Tensor, "*batch V"]
PerRow = Float[Tensor, "*batch"]

_SERIES_BELOW = 1e-3
"""Below this |d| the five-term series of exp(d) - 1 - d is exact to double precision."""

_LOG_TEMPERATURES = [math.log(2) * k for k in range(-4, 5)]
"""Where the best temperature is looked for before it is refined."""


def forward_kl(base_logits: Logits, tuned_logits: Logits) -> PerRow:
    """KL(base || tuned) in nats, over the whole support in closed form (paper, Section 4: what predicts forgetting).

    Infinite where the base has support that the tuned policy lacks (a logit of -inf); 0 log 0 counts as 0.
    Differentiable in both arguments (an infinite row sends no gradient). The result is float32, or float64 where an
    argument is.

    Raises ValueError where the shapes differ.
    """
    base, tuned = _log_softmax(base_logits, tuned_logits)
    finite, missing = _finite_part(base, tuned)
    return narrow(finite.masked_fill(missing, math.inf), base_logits, tuned_logits)


def reverse_kl(base_logits: Logits, tuned_logits: Logits) -> PerRow:
    """KL(tuned || base) in nats, as `forward_kl` with the roles exchanged (paper, Section 6)."""
    return forward_kl(tuned_logits, base_logits)


def total_variation(base_logits: Logits, tuned_logits: Logits) -> PerRow:
    """Half the L1 distance between the two distributions, in [0, 1] (paper, Section 6)."""
    base, tuned = _log_softmax(base_logits, tuned_logits)
    return narrow((tuned.exp() - base.exp()).abs().sum(-1) / 2, base_logits, tuned_logits)


def l2_distance(base_logits: Logits, tuned_logits: Logits) -> PerRow:
    """Euclidean distance between the two probability vectors, in [0, sqrt(2)] (paper, Section 6)."""
    base, tuned = _log_softmax(base_logits, tuned_logits)
    squared = (tuned.exp() - base.exp()).square().sum(-1)
    apart = squared > 0  # the root has no gradient at 0
    return narrow(torch.where(apart, squared, 1).sqrt() * apart, base_logits, tuned_logits)


def k1(base_log_probs: PerRow, tuned_log_probs: PerRow) -> PerRow:
    """The plain one-sample estimate of forward KL, log p - log q, for samples drawn from the *base*.

    Unbiased, may be negative. A cross-check of the exact value, never the reported number (Schulman, "Approximating KL
    divergence", 2020).
    """
    _same_shape(base_log_probs, tuned_log_probs)
    return narrow(wide(base_log_probs) - wide(tuned_log_probs), base_log_probs, tuned_log_probs)


def k3(base_log_probs: PerRow, tuned_log_probs: PerRow) -> PerRow:
    """The one-sample estimate q/p - 1 - log(q/p) of forward KL, for samples drawn from the *base*.

    Unbiased, never negative, and of lower variance than `k1` where the two policies are close (Schulman, 2020).
    """
    _same_shape(base_log_probs, tuned_log_probs)
    ratio = wide(tuned_log_probs) - wide(base_log_probs)
    return narrow(_expm1_minus(ratio), base_log_probs, tuned_log_probs)


class Sharpening(NamedTuple):
    """Forward KL a token, in nats, split in two that sum to the total."""

    sharpening: float
    """KL(base || base tempered to `temperature`): what a change of temperature alone accounts for."""
    displacement: float
    """The rest. Negative where the tempered base is farther from the base than the tuned policy is."""
    temperature: float
    """t*, which brings the base closest to the tuned policy: argmin KL(base_t || tuned). Below 1 is sharper."""


def sharpening(base_logits: Logits, tuned_logits: Logits) -> Sharpening:
    """Split the mean forward KL into sharpening and displacement.

    One temperature serves all rows, and both parts are means over them. The objective need not be convex in log t, so
    a coarse search over [1/16, 16] comes before Brent's method. A policy compared with itself gives exactly
    (0, 0, 1), and an infinite divergence is all displacement.
    """
    base, tuned = _log_softmax(base_logits.detach(), tuned_logits.detach())
    total = float(forward_kl(base, tuned).mean())
    if total == 0 or not math.isfinite(total):
        return Sharpening(0.0, total, 1.0)
    temperature = _closest_temperature(base, tuned)
    part = float(forward_kl(base, base / temperature).mean())
    return Sharpening(part, total - part, temperature)


def forward_kl_from_hidden(
    base_hidden: Float[Tensor, "N H"],
    base_head: Float[Tensor, "V H"],
    tuned_hidden: Float[Tensor, "N H2"],
    tuned_head: Float[Tensor, "V H2"],
    *,
    chunk: int = 4096,
) -> Float[Tensor, " N"]:
    """KL(base || tuned) in nats of the distributions softmax(hidden @ head.T), without ever holding [N, V] logits.

    The vocabulary is read in pieces of `chunk` rows of the heads, once forward and once more for the gradient, so
    that memory grows with N * chunk. Differentiable in `tuned_hidden` and `tuned_head`; the base counts as a
    constant.

    Raises ValueError where shapes disagree or `chunk` is below 1.
    """
    _check_heads(base_hidden, base_head, tuned_hidden, tuned_head, chunk)
    return _ForwardKLFromHidden.apply(base_hidden, base_head, tuned_hidden, tuned_head, chunk)


class _ForwardKLFromHidden(torch.autograd.Function):
    """Forward: one pass of online log-sum-exp. Backward: d KL / d tuned logits = q - p, recomputed piece by piece."""

    @staticmethod
    def forward(
        ctx: Any, base_hidden: Tensor, base_head: Tensor, tuned_hidden: Tensor, tuned_head: Tensor, chunk: int
    ) -> Tensor:
        base, tuned = _OnlineSum(base_hidden), _OnlineSum(tuned_hidden)
        cross = torch.zeros_like(base.total)
        for start in range(0, base_head.shape[0], chunk):
            rows = slice(start, start + chunk)
            b, t = _logit_pair(base_hidden, base_head[rows], tuned_hidden, tuned_head[rows])
            weights, shrink = base.add(b)
            cross = cross * shrink + (weights * (b - t)).sum(-1)
            tuned.add(t)
        log_base, log_tuned = base.log_sum_exp(), tuned.log_sum_exp()
        ctx.save_for_backward(base_hidden, base_head, tuned_hidden, tuned_head, log_base, log_tuned)
        ctx.chunk = chunk
        divergence = (cross / base.total - (log_base - log_tuned)).clamp_min(0)
        return narrow(divergence, base_hidden, tuned_hidden)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[None, None, Tensor | None, Tensor | None, None]:
        (grad,) = grad_outputs
        base_hidden, base_head, tuned_hidden, tuned_head, log_base, log_tuned = ctx.saved_tensors
        hidden = at_least_float32(tuned_hidden)
        grad_hidden = torch.zeros_like(hidden) if ctx.needs_input_grad[2] else None
        grad_head = torch.empty_like(tuned_head) if ctx.needs_input_grad[3] else None
        for start in range(0, base_head.shape[0], ctx.chunk):
            rows = slice(start, start + ctx.chunk)
            b, t = _logit_pair(base_hidden, base_head[rows], tuned_hidden, tuned_head[rows])
            q_minus_p = (t - log_tuned[:, None]).exp() - (b - log_base[:, None]).exp()
            error = (q_minus_p * grad[:, None]).to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden += error @ tuned_head[rows].to(hidden.dtype)
            if grad_head is not None:
                grad_head[rows] = (error.T @ hidden).to(grad_head.dtype)
        return None, None, None if grad_hidden is None else grad_hidden.to(tuned_hidden.dtype), grad_head, None


class _OnlineSum:
    """Per row, a running sum of exp(logit - running maximum) (Milakov and Gimelshein, arXiv:1805.02867)."""

    def __init__(self, hidden: Tensor) -> None:
        self.total = torch.zeros(hidden.shape[0], dtype=wide_dtype(hidden), device=hidden.device)
        self.maximum = torch.full_like(self.total, -math.inf)

    def add(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Take in logits [N, C]; returns exp(logits - maximum), and the factor [N] by which older sums shrink."""
        maximum = torch.maximum(self.maximum, logits.amax(-1))
        weights, shrink = (logits - maximum[:, None]).exp(), (self.maximum - maximum).exp()
        self.maximum, self.total = maximum, self.total * shrink + weights.sum(-1)
        return weights, shrink

    def log_sum_exp(self) -> Tensor:
        return self.maximum + self.total.log()


def _finite_part(base: Tensor, tuned: Tensor) -> tuple[Tensor, Tensor]:
    """The sum over the common support, and which rows miss support of the base; log-probabilities [..., V] in.

    `torch.where` guards the inputs as well as the results: a branch not taken must not send NaN through its gradient.
    """
    out_of_base, out_of_tuned = base == -math.inf, tuned == -math.inf
    both = ~(out_of_base | out_of_tuned)
    p, q = base.exp(), tuned.exp()
    d = torch.where(both, tuned, 0) - torch.where(both, base, 0)
    close = both & (d.abs() < 1)
    near = p * _expm1_minus(torch.where(close, d, 0))
    far = q - p - p * torch.where(close, 0, d)
    terms = torch.where(close, near, torch.where(both, far, q - p))
    return terms.sum(-1), (out_of_tuned & ~out_of_base).any(-1)


def _expm1_minus(d: Tensor) -> Tensor:
    """exp(d) - 1 - d, never negative and to full relative precision at small d."""
    small = d.abs() < _SERIES_BELOW
    s, large = torch.where(small, d, 0), torch.where(small, 1, d)
    series = s * s / 2 * (1 + s / 3 * (1 + s / 4 * (1 + s / 5 * (1 + s / 6))))
    return torch.where(small, series, torch.expm1(large) - large)


def _closest_temperature(base: Tensor, tuned: Tensor) -> float:
    """argmin over t of mean KL(softmax(base / t) || tuned), for log-probabilities [..., V]."""
    outside = base == -math.inf
    inside_base, inside_tuned = base.masked_fill(outside, 0), tuned.masked_fill(outside, 0)

    def distance(log_temperature: float) -> float:
        inverse = math.exp(-log_temperature)
        normalizer = torch.logsumexp(base * inverse, -1)
        p = (base * inverse - normalizer[..., None]).exp()
        return float(((p * (inside_base * inverse - inside_tuned)).sum(-1) - normalizer).mean())

    values = [distance(u) for u in _LOG_TEMPERATURES]
    best = min(range(len(values)), key=values.__getitem__)
    bounds = _LOG_TEMPERATURES[max(best - 1, 0)], _LOG_TEMPERATURES[min(best + 1, len(values) - 1)]
    refined: Any = minimize_scalar(distance, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return math.exp(refined.x) if refined.fun < distance(0.0) else 1.0


def _log_softmax(base_logits: Tensor, tuned_logits: Tensor) -> tuple[Tensor, Tensor]:
    _same_shape(base_logits, tuned_logits)
    if base_logits.ndim == 0 or base_logits.shape[-1] == 0:
        raise ValueError(f"logits need a last axis of at least one category, got shape {tuple(base_logits.shape)}")
    return torch.log_softmax(wide(base_logits), -1), torch.log_softmax(wide(tuned_logits), -1)


def _logit_pair(
    base_hidden: Tensor, base_head: Tensor, tuned_hidden: Tensor, tuned_head: Tensor
) -> tuple[Tensor, Tensor]:
    """Both policies' logits [N, C], multiplied in float32 or wider and returned in the accumulator's type.

    Two float32 products of nearly equal inputs differ by their rounding. Where the sizes allow it, the tuned logits are
    therefore the base's plus the product of the *changes*, which keeps the digits of a small divergence.
    """
    x, head = at_least_float32(base_hidden), at_least_float32(base_head)
    y, tuned = at_least_float32(tuned_hidden), at_least_float32(tuned_head)
    kind = wide_dtype(base_hidden)
    b = (x @ head.T).to(kind)
    if x.shape != y.shape or x.dtype != y.dtype:
        return b, (y @ tuned.T).to(kind)
    change = (y - x) @ tuned.T
    if not torch.equal(tuned, head):
        change += x @ (tuned - head).T
    return b, b + change


def _same_shape(base: Tensor, tuned: Tensor) -> None:
    if base.shape != tuned.shape:
        raise ValueError(f"base and tuned must have the same shape, got {tuple(base.shape)} and {tuple(tuned.shape)}")


def _check_heads(base_hidden: Tensor, base_head: Tensor, tuned_hidden: Tensor, tuned_head: Tensor, chunk: int) -> None:
    shapes = [tuple(tensor.shape) for tensor in (base_hidden, base_head, tuned_hidden, tuned_head)]
    if any(len(shape) != 2 for shape in shapes):
        raise ValueError(f"hidden states [N, H] and heads [V, H] must be matrices, got {shapes}")
    (n, h), (v, head_h), (tuned_n, tuned_h), (tuned_v, tuned_head_h) = shapes
    if h != head_h or tuned_h != tuned_head_h or n != tuned_n or v != tuned_v:
        raise ValueError(
            f"expected hidden [N, H] with head [V, H] and the same N and V for both policies, got {shapes}"
        )
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
