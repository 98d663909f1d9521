"""How far a policy has moved from its base: divergences between categorical distributions, in nats.

The forgetting law of RL's Razor (arXiv:2509.04259, Section 4) is stated in forward KL, KL(base || tuned), on the new
task; reverse KL, total variation and L2 are the alternatives of its Section 6. Every function takes logits, shifted by
any constant; log-probabilities are logits too.

The terms p log(p / q) of a divergence of 1e-9 are around 1e-5 and cancel. Forward KL is therefore summed in float64 as
`q - p - p log(q / p)`, whose terms are never negative. The extra `q - p` sums to zero over the support.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from scipy.optimize import minimize_scalar  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]
from torch import Tensor

from vla_razor.core.from_hidden import check_heads, logit_pieces, same, slices
from vla_razor.core.from_hidden import forward_kl_from_hidden as forward_kl_from_hidden
from vla_razor.core.precision import narrow, wide

Logits = Float[Tensor, "*batch V"]
PerRow = Float[Tensor, "*batch"]

_SERIES_BELOW = 1e-3
"""Below this |d| the five-term series of exp(d) - 1 - d is exact to float64."""

_LOG_TEMPERATURES = [math.log(2) * k for k in range(-4, 5)]
"""The coarse grid on which the best temperature is looked for before it is refined: 1/16 to 16."""


def forward_kl(base_logits: Logits, tuned_logits: Logits) -> PerRow:
    """KL(base || tuned) in nats, over the whole support in closed form (paper, Section 4: what predicts forgetting).

    Infinite where the tuned policy lacks support that the base has (a logit of -inf); 0 log 0 counts as 0.
    Differentiable in both arguments; a row that is infinite has no gradient. The result is float32, or float64 where an
    argument is.

    Raises ValueError where the shapes differ.
    """
    return narrow(_kl(*_log_softmax(base_logits, tuned_logits)), base_logits, tuned_logits)


def reverse_kl(base_logits: Logits, tuned_logits: Logits) -> PerRow:
    """KL(tuned || base) in nats, as `forward_kl` with the roles exchanged (paper, Section 6)."""
    return forward_kl(tuned_logits, base_logits)


def total_variation(base_logits: Logits, tuned_logits: Logits) -> PerRow:
    """Half the L1 distance between the two distributions, in [0, 1] (paper, Section 6)."""
    return narrow(_total_variation(*_log_softmax(base_logits, tuned_logits)), base_logits, tuned_logits)


def l2_distance(base_logits: Logits, tuned_logits: Logits) -> PerRow:
    """Euclidean distance between the two probability vectors, in [0, sqrt(2)] (paper, Section 6)."""
    return narrow(_l2_distance(*_log_softmax(base_logits, tuned_logits)), base_logits, tuned_logits)


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


class Divergences(NamedTuple):
    """The results of the functions of these names, [N] each."""

    forward_kl: Tensor
    reverse_kl: Tensor
    total_variation: Tensor
    l2_distance: Tensor


def divergences(base_logits: Logits, tuned_logits: Logits) -> Divergences:
    """All of them at once, each [*batch]. Raises ValueError where the shapes differ."""
    pair = _log_softmax(base_logits, tuned_logits)
    found = _kl(*pair), _kl(*reversed(pair)), _total_variation(*pair), _l2_distance(*pair)
    return Divergences(*(narrow(one, base_logits, tuned_logits) for one in found))


@torch.no_grad()
def divergences_from_hidden(
    base_hidden: Float[Tensor, "N H"],
    base_head: Float[Tensor, "V H"],
    tuned_hidden: Float[Tensor, "N H2"],
    tuned_head: Float[Tensor, "V H2"],
    *,
    chunk: int = 4096,
) -> Divergences:
    """All divergences of the distributions softmax(hidden @ head.T), a few tokens at a time, so that at most
    N * `chunk` logits exist at once. Without gradients; `forward_kl_from_hidden` has them, and is faster.

    Raises ValueError where shapes disagree or `chunk` is below 1.
    """
    check_heads(base_hidden, base_head, tuned_hidden, tuned_head, chunk)
    tokens, words = base_hidden.shape[0], base_head.shape[0]
    heads, same_head = (base_head, tuned_head), same(base_head, tuned_head)
    found: list[Divergences] = []
    # Reverse KL and the others need normalized probabilities, so each token meets the whole vocabulary in one piece.
    for rows in slices(tokens, max(1, tokens * chunk // words)):
        hidden = base_hidden[rows], tuned_hidden[rows]
        ((b, d),) = logit_pieces(*hidden, *heads, words, same_head=same_head)
        found.append(divergences(b, wide(b) + wide(d)))
    return Divergences(*(narrow(torch.cat(parts), base_hidden, tuned_hidden) for parts in zip(*found, strict=True)))


class Sharpening(NamedTuple):
    """Forward KL per token, in nats, split into two parts that sum to it."""

    sharpening: float
    """KL(base || base tempered to `temperature`): what a change of temperature alone accounts for."""
    displacement: float
    """The rest. It is negative where the tempered base is farther from the base than the tuned policy is."""
    temperature: float
    """t*, the temperature at which the base is closest to the tuned policy: argmin KL(base_t || tuned). Below 1 the
    policy has become sharper.
    """


def sharpening(base_logits: Logits, tuned_logits: Logits) -> Sharpening:
    """Split the mean forward KL into sharpening and displacement.

    One temperature serves all rows, and both parts are means over rows. A policy compared with itself gives exactly
    (0, 0, 1), and an infinite divergence is all displacement.
    """
    base, tuned = _log_softmax(base_logits.detach(), tuned_logits.detach())
    total = float(forward_kl(base, tuned).mean())
    if total == 0 or not math.isfinite(total):
        return Sharpening(0.0, total, 1.0)
    temperature = _closest_temperature(base, tuned)
    part = float(forward_kl(base, base / temperature).mean())
    return Sharpening(part, total - part, temperature)


def _kl(base: Tensor, tuned: Tensor) -> Tensor:
    """KL(base || tuned) of log-probabilities [..., V]."""
    finite, missing = _finite_part(base, tuned)
    return finite.masked_fill(missing, math.inf)


def _total_variation(base: Tensor, tuned: Tensor) -> Tensor:
    return (tuned.exp() - base.exp()).abs().sum(-1) / 2


def _l2_distance(base: Tensor, tuned: Tensor) -> Tensor:
    squared = (tuned.exp() - base.exp()).square().sum(-1)
    apart = squared > 0  # the root has no gradient at 0
    return torch.where(apart, squared, 1).sqrt() * apart


def _finite_part(base: Tensor, tuned: Tensor) -> tuple[Tensor, Tensor]:
    """KL over the common support, and which rows lack support that the base has, of log-probabilities [..., V]."""
    out_of_base, out_of_tuned = base == -math.inf, tuned == -math.inf
    both = ~(out_of_base | out_of_tuned)
    p, q = base.exp(), tuned.exp()
    # `torch.where` masks the inputs as well as the results: the gradient also flows through the branch not taken, and
    # -inf - -inf there would make it NaN.
    d = torch.where(both, tuned, 0) - torch.where(both, base, 0)
    # Two forms of one term, q - p - p log(q / p). As p (exp(d) - 1 - d) it keeps its digits where q is near p. Far
    # apart exp(d) may overflow where q itself does not.
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
        # Temperatures multiply, so that they are searched for on a logarithmic scale.
        inverse = math.exp(-log_temperature)
        normalizer = torch.logsumexp(base * inverse, -1)
        p = (base * inverse - normalizer[..., None]).exp()
        return float(((p * (inside_base * inverse - inside_tuned)).sum(-1) - normalizer).mean())

    # The objective need not be convex, and Brent's method finds one minimum of several: a coarse search comes first.
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


def _same_shape(base: Tensor, tuned: Tensor) -> None:
    if base.shape != tuned.shape:
        raise ValueError(f"base and tuned must have the same shape, got {tuple(base.shape)} and {tuple(tuned.shape)}")
