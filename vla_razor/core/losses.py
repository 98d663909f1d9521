"""Training objectives of the paper's Section 5.1, as scalars to minimise.

Log-probabilities are those of the sampled tokens, padded to [B, T]; `mask` is true on an episode's own tokens. Padding
may hold anything, infinities included: it reaches neither the loss nor the gradient.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vla_razor.core.precision import at_least_float32

Normalizer = Literal["length", "tokens", "episodes"]


def policy_gradient(
    log_probs: Float[Tensor, "B T"],
    advantages: Float[Tensor, " B"],
    mask: Bool[Tensor, "B T"],
    *,
    normalizer: Normalizer | float,
) -> Float[Tensor, ""]:
    """REINFORCE: -sum_b A_b sum_t log pi(token) over the masked tokens, divided by `normalizer`.

    - "length": each episode's sum is divided by its own number of tokens, then averaged over the B episodes. Failures
      run longer than successes; this keeps them from outweighing successes and raising the entropy.
    - "tokens": one division by the number of masked tokens in the batch.
    - "episodes": one division by B, the unbiased gradient of the expected reward.
    - a positive number: division by that constant.

    With a number, the losses of micro-batches add up to that of the whole batch.
    Raises ValueError where the shapes disagree, no token is masked in, or `normalizer` is none of these.
    """
    _check_tokens(log_probs, advantages, mask)
    per_episode = -advantages.detach() * _masked_sum(log_probs, mask)
    if normalizer == "length":
        return (per_episode / mask.sum(1).clamp_min(1)).mean()
    return per_episode.sum() / _divisor(normalizer, mask)


def on_policy_divergence(divergences: Float[Tensor, "B T"], log_probs: Float[Tensor, "B T"]) -> Float[Tensor, " B"]:
    """sum_t D_t of sequences that the policy has sampled, with the gradient of its expectation over such sequences.

    D_t is a divergence of the policy's next-token distribution, in closed form, after the tokens before t; `log_probs`
    are the policy's log-probabilities of the sampled tokens. The policy also decides at which prefixes D is taken, so
    the score of a token is multiplied by the divergence that comes after it,

        d E_y sum_t D_t(y_<t) = E_y [sum_t dD_t + sum_t d log pi(y_t | y_<t) sum_{s > t} D_s],

    the policy gradient with the divergence to come as its cost. The value is sum_t D_t: the second term adds none.
    """
    passed = divergences.detach()
    to_come = passed.sum(1, keepdim=True) - passed.cumsum(1)
    return (divergences + to_come * (log_probs - log_probs.detach())).sum(1)


def dr_grpo(
    log_probs: Float[Tensor, "B T"],
    advantages: Float[Tensor, " B"],
    mask: Bool[Tensor, "B T"],
    *,
    normalizer: float | None = None,
    old_log_probs: Float[Tensor, "B T"] | None = None,
    clip: float = 0.2,
) -> Float[Tensor, ""]:
    """Dr. GRPO (Liu et al., arXiv:2503.20783; the paper's GRPO loss, Table 2): PPO's clipped surrogate, summed over
    tokens and divided by the constant B * `normalizer`, so that an episode's length does not weight it.

    `normalizer` is the longest length allowed (default T). `old_log_probs` are those the tokens were sampled under
    (default: the current ones, for an exactly on-policy update). Give it advantages r - mean, not divided by the
    standard deviation; with the division, and T = 1, it is GRPO. A KL penalty is one more term, in closed form: `+ 0.1
    * reverse_kl(base_logits, logits).mean()` of `core.divergence`.

    Raises ValueError where the shapes disagree, no token is masked in, or a number is not positive.
    """
    _check_tokens(log_probs, advantages, mask)
    old = log_probs if old_log_probs is None else old_log_probs
    if old.shape != log_probs.shape:
        raise ValueError(
            f"old_log_probs must have the shape of log_probs, got {tuple(old.shape)} and {tuple(log_probs.shape)}"
        )
    length = log_probs.shape[1] if normalizer is None else normalizer
    if length <= 0 or clip <= 0:
        raise ValueError(f"normalizer and clip must be positive, got {length} and {clip}")
    ratio = (torch.where(mask, log_probs, 0) - torch.where(mask, old, 0).detach()).exp()
    advantage = advantages.detach()[:, None]
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    return -_masked_sum(surrogate, mask).sum() / (len(advantages) * length)


def simpo(
    chosen_log_probs: Float[Tensor, " B"], rejected_log_probs: Float[Tensor, " B"], *, margin: float = 1.0
) -> Float[Tensor, ""]:
    """-log sigmoid(log pi(chosen) - log pi(rejected) - margin), averaged over the pairs, as in the paper's Section 5.1.

    The log-probabilities are sums over each whole answer: unlike SimPO's own (Meng et al., 2024) they are neither
    averaged over the length nor scaled.

    Raises ValueError where the two are not vectors of one length.
    """
    if chosen_log_probs.ndim != 1 or chosen_log_probs.shape != rejected_log_probs.shape or not len(chosen_log_probs):
        shapes = tuple(chosen_log_probs.shape), tuple(rejected_log_probs.shape)
        raise ValueError(f"simpo needs one summed log-probability an answer, two vectors of one length, got {shapes}")
    return -torch.nn.functional.logsigmoid(chosen_log_probs - rejected_log_probs - margin).mean()


def cross_entropy(
    logits: Float[Tensor, "*batch V"], targets: Int[Tensor, "*batch"], mask: Bool[Tensor, "*batch"] | None = None
) -> Float[Tensor, ""]:
    """-log pi(target), averaged over the masked targets: SFT's objective (paper, Section 5.1).

    `targets` index the last axis of `logits`. Raises ValueError where the shapes disagree or no target is masked in.
    """
    mask = torch.ones_like(targets, dtype=torch.bool) if mask is None else mask
    if logits.shape[:-1] != targets.shape or mask.shape != targets.shape:
        shapes = [tuple(tensor.shape) for tensor in (logits, targets, mask)]
        raise ValueError(f"cross_entropy needs logits [..., V] with targets and mask [...], got {shapes}")
    if not mask.any():
        raise ValueError("the mask is empty: there is no target to learn from")
    kept = logits[mask]
    return torch.nn.functional.cross_entropy(at_least_float32(kept), targets[mask])


def _masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum over T. `where` rather than a product, because 0 * inf is NaN."""
    return torch.where(mask, values, 0).sum(1)


def _divisor(normalizer: Normalizer | float, mask: Tensor) -> float | Tensor:
    if normalizer == "tokens":
        return mask.sum()
    if normalizer == "episodes":
        return float(len(mask))
    if isinstance(normalizer, str) or not normalizer > 0:
        raise ValueError(f"normalizer must be 'length', 'tokens', 'episodes' or a positive number, got {normalizer!r}")
    return normalizer


def _check_tokens(log_probs: Tensor, advantages: Tensor, mask: Tensor) -> None:
    if log_probs.ndim != 2 or mask.shape != log_probs.shape or advantages.shape != log_probs.shape[:1]:
        shapes = [tuple(tensor.shape) for tensor in (log_probs, advantages, mask)]
        raise ValueError(f"expected log_probs [B, T], advantages [B] and mask [B, T], got {shapes}")
    if mask.dtype != torch.bool:
        raise ValueError(f"the mask must be boolean, got {mask.dtype}")
    if not mask.any():
        raise ValueError("the mask is empty: there is no token to learn from")
