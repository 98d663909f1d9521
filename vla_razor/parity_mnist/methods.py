"""The objectives that are compared, one function each (paper, Sections 4-5 and Appendix B.3).

All see the same `Batch` and return one loss per run, [R]. Offline methods learn labels that were annotated before
training (`METHODS` names the annotators); on-policy methods sample their own answers.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from vla_razor.core import advantages, divergence, projection
from vla_razor.parity_mnist.data import CLASSES

SAMPLES = 8
"""Answers that an on-policy method samples per image."""
KL_COEFFICIENT = 0.1
MARGIN = 1.0


class Batch(NamedTuple):
    """What an objective may look at. The images are not part of it: their logits are computed once, for all of it."""

    logits: Float[Tensor, "R B 10"]
    base_logits: Float[Tensor, "R B 10"]
    right: Bool[Tensor, "R B 10"]
    """Which answers have the digit's parity."""
    chosen: Int[Tensor, "R B"]
    """The annotator's labels; zeros for a method that samples its own answers."""
    rejected: Int[Tensor, "R B"]
    """Labels of the wrong parity."""
    generator: torch.Generator


def right_answers(digits: Int[Tensor, "*B"]) -> Bool[Tensor, "*B 10"]:
    """Which of the ten answers have the parity of the digit."""
    return digits[..., None] % 2 == torch.arange(CLASSES, device=digits.device) % 2


def supervised(batch: Batch) -> Float[Tensor, " R"]:
    """SFT: cross-entropy with the annotator's labels."""
    return -_log_probs(batch.logits, batch.chosen[..., None])[..., 0].mean(1)


def grpo(batch: Batch) -> Float[Tensor, " R"]:
    """GRPO: on-policy, with negative examples; rewards are normalised within the samples of an image."""
    return _policy_gradient(batch, advantages.group_normalized)


def grpo_kl(batch: Batch) -> Float[Tensor, " R"]:
    """GRPO with a penalty of 0.1 on KL(policy || base), in closed form rather than estimated from the samples."""
    return grpo(batch) + KL_COEFFICIENT * divergence.reverse_kl(batch.base_logits, batch.logits).mean(1)


def one_zero_reinforce(batch: Batch) -> Float[Tensor, " R"]:
    """On-policy, without negative examples: right samples weigh 1, wrong ones 0."""
    return _policy_gradient(batch, advantages.one_zero)


def simpo(batch: Batch) -> Float[Tensor, " R"]:
    """Offline, with negative examples: the annotator's label shall be likelier than a wrong one by a margin."""
    pairs = _log_probs(batch.logits, torch.stack([batch.chosen, batch.rejected], -1))
    return -F.logsigmoid(pairs[..., 0] - pairs[..., 1] - MARGIN).mean(1)


def annotate_first(digits: Int[Tensor, " N"], reference: Tensor, generator: torch.Generator) -> Int[Tensor, " N"]:
    """SFT 1: 0 for even digits, 1 for odd ones."""
    return digits % 2


def annotate_second(digits: Int[Tensor, " N"], reference: Tensor, generator: torch.Generator) -> Int[Tensor, " N"]:
    """SFT 2: 0 or 4 at random for even digits, 1 or 5 for odd ones."""
    return digits % 2 + 4 * torch.randint(2, digits.shape, generator=generator)


def annotate_oracle(
    digits: Int[Tensor, " N"], reference: Float[Tensor, "N 10"], generator: torch.Generator
) -> Int[Tensor, " N"]:
    """Labels sampled from the oracle: of the distributions that are always right, the closest to the base.

    See `projection.oracle` for what the paper writes and what it can mean.
    """
    oracle = projection.oracle(reference, right_answers(digits))
    return torch.multinomial(oracle.exp(), 1, generator=generator)[:, 0]


def annotate_policy(
    digits: Int[Tensor, " N"], reference: Float[Tensor, "N 10"], generator: torch.Generator
) -> Int[Tensor, " N"]:
    """Labels sampled from another policy, its wrong answers included: distillation."""
    return torch.multinomial(reference.softmax(-1), 1, generator=generator)[:, 0]


def annotate_wrong(digits: Int[Tensor, " N"], generator: torch.Generator) -> Int[Tensor, " N"]:
    """Labels of the wrong parity, drawn uniformly: what SimPO rejects."""
    return torch.multinomial((~right_answers(digits)).float(), 1, generator=generator)[:, 0]


class Method(NamedTuple):
    """An objective, its annotator (None where it samples its own answers), and whether the annotator refers to a
    teacher rather than to the base.
    """

    objective: Callable[[Batch], Tensor]
    annotate: Callable[[Tensor, Tensor, torch.Generator], Tensor] | None = None
    taught: bool = False


METHODS = {
    "grpo": Method(grpo),
    "grpo_kl": Method(grpo_kl),
    "one_zero_reinforce": Method(one_zero_reinforce),
    "sft_1": Method(supervised, annotate_first),
    "sft_2": Method(supervised, annotate_second),
    "sft_oracle": Method(supervised, annotate_oracle),
    "sft_distilled": Method(supervised, annotate_policy, taught=True),
    "simpo": Method(simpo, annotate_first),
}
PAPER_METHODS = ("grpo", "grpo_kl", "sft_1", "sft_2", "sft_oracle")
"""The five that the paper runs on ParityMNIST (Appendix B.3) and computes its R2 over. `sft_distilled` is the method of
its Figure 9. `one_zero_reinforce` and `simpo`, which it compares on Science Q&A alone (Section 5.1), are run here too.
"""


def _policy_gradient(batch: Batch, advantage_of: Callable[[Tensor], Tensor]) -> Float[Tensor, " R"]:
    """REINFORCE on sampled answers; `advantage_of` takes rewards [G, K], the K samples of an image being a group."""
    log_policy = batch.logits.log_softmax(-1)
    # Detached: the gradient goes through the log-probability of the answers, not through how they were drawn.
    answers = _sampled(log_policy.detach().exp(), batch.generator)
    rewards = batch.right.gather(-1, answers).float()
    advantage = advantage_of(rewards.flatten(0, 1)).view_as(rewards)  # an image of one run is a group: [R * B, K]
    return -(advantage * log_policy.gather(-1, answers)).mean((1, 2))


def _sampled(policy: Float[Tensor, "R B 10"], generator: torch.Generator) -> Int[Tensor, "R B K"]:
    """Answers drawn from probabilities, by inverting their cumulative sums.

    All runs share the draws from [0, 1) and each finds its own answers by them, so that what a run samples does not
    depend on the runs that are trained beside it.
    """
    draws = torch.rand(policy.shape[1], SAMPLES, 1, generator=generator, device=policy.device)
    # Without the last bound, which is 1: the answer is then at most 9, even where rounding or a diverged network (NaN)
    # leaves the sum below the draw.
    bounds = policy.cumsum(-1)[..., None, :-1]
    return (bounds <= draws).sum(-1)


def _log_probs(logits: Tensor, answers: Tensor) -> Tensor:
    return logits.log_softmax(-1).gather(-1, answers)
