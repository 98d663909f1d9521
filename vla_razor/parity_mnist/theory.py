"""The theory of Section 5.2 and Appendix A, iterated on a finite set of outcomes, where everything is exact.

Three ways from one base to a policy that is always right: the paper's alternation of I- and M-projection, natural
policy gradient and plain policy gradient on a table of logits. The paper says of policy gradient what holds for the
first two: they end in the KL-minimal optimal policy. The third ends in the single likeliest right outcome. What else
the theorem needs is in `core/projection.py`.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vla_razor.core import divergence, projection

OUTCOMES, FEATURES = 10, 3
RATE = 1.0


class Path(NamedTuple):
    """The policies [T, Y] on a way, as log-probabilities, and what the paper's theorem is about at each."""

    name: str
    reward: Float[Tensor, " T"]
    distance: Float[Tensor, " T"]
    """KL(KL-minimal optimal policy || policy), nats."""
    base_kl: Float[Tensor, " T"]
    """KL(policy || base), nats."""


class Normalization(NamedTuple):
    """The cosine of an expected update with the gradient of the expected reward over several inputs."""

    mean_subtracted: float
    divided_by_std: float


def paths(seed: int, steps: int) -> list[Path]:
    """The three ways from a random base, its first half of the outcomes being right."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(OUTCOMES, generator=generator, dtype=torch.float64).log_softmax(-1)
    right = torch.arange(OUTCOMES) < OUTCOMES // 2
    others = torch.randn(OUTCOMES, FEATURES, generator=generator, dtype=torch.float64)
    features = torch.cat([right.double()[:, None], others], 1)
    found = {
        "I- and M-projection": projection.alternate(
            base,
            lambda policy: projection.i_projection(policy, right),
            lambda target: projection.m_projection(target, features, base),
            steps=steps,
        ),
        "natural policy gradient": _ascend(base, right, steps, natural=True),
        "plain policy gradient": _ascend(base, right, steps, natural=False),
    }
    return [_path(name, policies, base, right) for name, policies in found.items()]


def normalization(seed: int, inputs: int = 8, samples: int = 8) -> Normalization:
    """What subtracting the mean does to the expected update, and what dividing by the standard deviation does, of a
    group of `samples` binary rewards. The `inputs` differ in their probability p of being right. Exact: a sum over how
    many of the samples are right.

    Each input's gradient of the expected reward is p (1 - p) along a direction of its own. So the only thing that a
    normalisation can change is the weight that the update gives to each input.
    """
    generator = torch.Generator().manual_seed(seed)
    p = torch.rand(inputs, generator=generator, dtype=torch.float64)
    k = torch.arange(samples + 1, dtype=torch.float64)
    binomial = torch.distributions.Binomial(samples, p[:, None]).log_prob(k).exp()
    share = k / samples
    spread = (share * (1 - share) * samples / (samples - 1)).sqrt()
    # Sum over the samples of advantage * d log pi / d logit, where the logit is that of being right.
    centred = k * (1 - share) * (1 - p[:, None]) + (samples - k) * share * p[:, None]
    weights = {
        "mean_subtracted": (binomial * centred).sum(1),
        "divided_by_std": (binomial * torch.where(spread > 0, centred / spread, 0)).sum(1),
    }
    gradient = p * (1 - p)
    cosines = {name: float(torch.cosine_similarity(weight, gradient, dim=0)) for name, weight in weights.items()}
    return Normalization(**cosines)


def _ascend(base: Tensor, right: Tensor, steps: int, natural: bool) -> Float[Tensor, "T Y"]:
    """Exact gradient ascent on the expected reward, in a table of logits; the plain gradient or the natural one."""
    policies = [base]
    for _ in range(steps):
        policy = policies[-1].exp()
        advantage = right.double() - policy[right].sum()
        # The gradient by a logit is pi(y) advantage(y). The natural gradient multiplies it by the inverse Fisher
        # information, which for a table takes pi(y) away again, up to a constant that the softmax removes.
        policies.append((policies[-1] + RATE * (advantage if natural else policy * advantage)).log_softmax(-1))
    return torch.stack(policies)


def _path(name: str, policies: Tensor, base: Tensor, right: Tensor) -> Path:
    goal = projection.i_projection(base, right)
    goals, bases = goal.expand_as(policies), base.expand_as(policies)
    reward = policies[:, right].exp().sum(1)
    return Path(name, reward, divergence.forward_kl(goals, policies), divergence.forward_kl(policies, bases))
