"""From rewards to advantages: how much better an episode did than the others it is compared with.

Rewards come as [G, K]: G groups (grid points of the start state, or prompts) of K episodes each.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vla_razor.core.precision import at_least_float32


def group_normalized(rewards: Float[Tensor, "G K"], eps: float = 1e-4) -> Float[Tensor, "G K"]:
    """(r - mean) / (std + eps) within each group: GRPO's advantage (Shao et al., arXiv:2402.03300; paper, Section 5.1).

    The standard deviation is the sample one (K - 1), as in GRPO's common implementations. A group whose rewards are
    all equal teaches nothing and gets exactly 0; `zero_variance` finds and counts such groups.

    Raises ValueError where rewards are no matrix or not finite, or eps is negative.
    """
    rewards = _checked(rewards, eps)
    return _normalized(rewards, eps).masked_fill(_are_equal(rewards)[:, None], 0)


def batch_normalized(rewards: Float[Tensor, "G K"], eps: float = 1e-4) -> Float[Tensor, "G K"]:
    """(r - mean) / (std + eps) over the whole batch (the paper's REINFORCE baseline, Appendix B.2); all equal gives
    exactly 0.
    """
    return group_normalized(_checked(rewards, eps).reshape(1, -1), eps).reshape(rewards.shape)


def one_zero(rewards: Float[Tensor, "G K"]) -> Float[Tensor, "G K"]:
    """1 for a success and 0 for a failure: "1-0 Reinforce", on-policy without negative examples (paper, Section 5.1).

    Raises ValueError where a reward is neither 0 nor 1.
    """
    rewards = _checked(rewards)
    if not torch.isin(rewards, torch.tensor([0.0, 1.0], dtype=rewards.dtype, device=rewards.device)).all():
        raise ValueError("one_zero needs binary rewards, 0 or 1")
    return rewards


def zero_variance(rewards: Float[Tensor, "G K"]) -> Bool[Tensor, " G"]:
    """Which groups have all rewards equal, and so give no gradient."""
    return _are_equal(_checked(rewards))


def _are_equal(rewards: Tensor) -> Tensor:
    return (rewards == rewards[:, :1]).all(1)


def _normalized(rewards: Tensor, eps: float) -> Tensor:
    centred = rewards - rewards.mean(1, keepdim=True)
    std = (centred.square().sum(1, keepdim=True) / max(rewards.shape[1] - 1, 1)).sqrt()
    return centred / (std + eps)


def _checked(rewards: Tensor, eps: float = 0.0) -> Tensor:
    if rewards.ndim != 2 or 0 in rewards.shape:
        raise ValueError(f"rewards must be [groups, episodes of a group], got shape {tuple(rewards.shape)}")
    if eps < 0:
        raise ValueError(f"eps must not be negative, got {eps}")
    rewards = at_least_float32(rewards.detach())
    if not rewards.isfinite().all():
        raise ValueError("rewards must be finite")
    return rewards
