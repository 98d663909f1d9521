"""Losses by hand, against torch's own, and their gradients."""

import math

import pytest
import torch
from torch import Tensor

from vla_razor.core.divergence import reverse_kl
from vla_razor.core.losses import (
    cross_entropy,
    dr_grpo,
    on_policy_divergence,
    policy_gradient,
    simpo,
)

LOG_PROBS = torch.tensor([[-1.0, -2.0, -3.0], [-0.5, -0.5, -9.0]])
ADVANTAGES = torch.tensor([2.0, -1.0])
MASK = torch.tensor([[True, True, True], [True, False, False]])


@pytest.mark.parametrize(
    ("normalizer", "expected"),
    [
        ("length", (2 * 6 / 3 - 0.5) / 2),
        ("tokens", (2 * 6 - 0.5) / 4),
        ("episodes", (2 * 6 - 0.5) / 2),
        (10, (2 * 6 - 0.5) / 10),
    ],
)
def test_policy_gradient_by_hand(normalizer, expected: float) -> None:
    assert policy_gradient(LOG_PROBS, ADVANTAGES, MASK, normalizer=normalizer).item() == pytest.approx(expected)


def test_policy_gradient_raises_the_likelihood_of_what_went_well() -> None:
    log_probs = LOG_PROBS.clone().requires_grad_()
    policy_gradient(log_probs, ADVANTAGES, MASK, normalizer="length").backward()
    expected = torch.tensor([[-1 / 3] * 3, [0.5, 0, 0]])
    torch.testing.assert_close(log_probs.grad, expected)


def test_the_gradient_of_an_on_policy_divergence_is_that_of_its_expectation() -> None:
    """Of every sequence of three tokens out of three, against autograd through the expectation itself."""
    generator = torch.Generator().manual_seed(0)
    words, base = 3, {}
    prefixes = [(), *((a,) for a in range(words)), *((a, b) for a in range(words) for b in range(words))]
    logits = {p: torch.randn(words, generator=generator, dtype=torch.float64, requires_grad=True) for p in prefixes}
    base = {p: torch.randn(words, generator=generator, dtype=torch.float64) for p in prefixes}
    sequences = [(a, b, c) for a in range(words) for b in range(words) for c in range(words)]

    def along(y: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        log_policy = torch.stack([logits[y[:t]].log_softmax(-1) for t in range(3)])
        log_base = torch.stack([base[y[:t]].log_softmax(-1) for t in range(3)])
        return reverse_kl(log_base, log_policy), log_policy[torch.arange(3), list(y)]

    def gradients(value: Tensor) -> Tensor:
        return torch.cat(torch.autograd.grad(value, list(logits.values()), retain_graph=True))

    pairs = [along(y) for y in sequences]
    exact = sum(log_probs.sum().exp() * divergences.sum() for divergences, log_probs in pairs)
    sampled = sum(
        log_probs.sum().exp().detach() * on_policy_divergence(divergences[None], log_probs[None])[0]
        for divergences, log_probs in pairs
    )
    pathwise = sum(log_probs.sum().exp().detach() * divergences.sum() for divergences, log_probs in pairs)
    assert isinstance(exact, Tensor) and isinstance(sampled, Tensor) and isinstance(pathwise, Tensor)
    torch.testing.assert_close(sampled, exact, msg="in value the divergence itself")
    expected = gradients(exact)
    torch.testing.assert_close(gradients(sampled), expected)
    assert (gradients(pathwise) - expected).abs().max() > 0.01, "without the score of the prefix it is another"


def test_micro_batches_add_up() -> None:
    whole = policy_gradient(LOG_PROBS, ADVANTAGES, MASK, normalizer=7.0)
    parts = [
        policy_gradient(LOG_PROBS[i : i + 1], ADVANTAGES[i : i + 1], MASK[i : i + 1], normalizer=7.0) for i in (0, 1)
    ]
    torch.testing.assert_close(parts[0] + parts[1], whole)


@pytest.mark.parametrize(
    "loss",
    [lambda x: policy_gradient(x, ADVANTAGES, MASK, normalizer="length"), lambda x: dr_grpo(x, ADVANTAGES, MASK)],
)
def test_padding_reaches_nothing(loss) -> None:
    padded = torch.where(MASK, LOG_PROBS, -math.inf).requires_grad_()
    clean = torch.where(MASK, LOG_PROBS, 0).requires_grad_()
    for tensor in (padded, clean):
        loss(tensor).backward()
    torch.testing.assert_close(loss(padded), loss(clean))
    torch.testing.assert_close(padded.grad, clean.grad)
    assert padded.grad is not None
    assert (padded.grad[~MASK] == 0).all()


class TestDrGRPO:
    def test_on_policy_gradient_is_reinforce_over_a_constant_length(self) -> None:
        ours, reference = LOG_PROBS.clone().requires_grad_(), LOG_PROBS.clone().requires_grad_()
        dr_grpo(ours, ADVANTAGES, MASK, normalizer=16).backward()
        policy_gradient(reference, ADVANTAGES, MASK, normalizer=2 * 16).backward()
        torch.testing.assert_close(ours.grad, reference.grad)

    def test_clipping_by_hand(self) -> None:
        """Ratios 2 and 1/2. A positive advantage gains no more than 1.2; a negative one no less than 0.8."""
        old = torch.zeros(2, 2)
        new = torch.tensor([[2.0, 0.5], [2.0, 0.5]]).log().requires_grad_()
        mask = torch.ones(2, 2, dtype=torch.bool)
        loss = dr_grpo(new, torch.tensor([1.0, -1.0]), mask, old_log_probs=old, clip=0.2)
        assert loss.item() == pytest.approx(-((1.2 + 0.5) + (-2.0 - 0.8)) / 4)
        loss.backward()
        torch.testing.assert_close(new.grad, -torch.tensor([[0.0, 0.5], [-2.0, 0.0]]) / 4)

    def test_bad_input(self) -> None:
        with pytest.raises(ValueError, match="old_log_probs"):
            dr_grpo(LOG_PROBS, ADVANTAGES, MASK, old_log_probs=LOG_PROBS[:1])
        with pytest.raises(ValueError, match="positive"):
            dr_grpo(LOG_PROBS, ADVANTAGES, MASK, normalizer=0)


def test_simpo_by_hand() -> None:
    """The paper's equation: margin 1, no scale, no division by the length."""
    chosen, rejected = torch.tensor([-10.0, -3.0]), torch.tensor([-12.0, -3.0])
    expected = -sum(math.log(1 / (1 + math.exp(-(gap - 1)))) for gap in (2, 0)) / 2
    assert simpo(chosen, rejected).item() == pytest.approx(expected)
    assert simpo(chosen, rejected, margin=0.0).item() < simpo(chosen, rejected).item()
    with pytest.raises(ValueError, match="one length"):
        simpo(chosen, rejected[:1])
    with pytest.raises(ValueError, match="one length"):
        simpo(LOG_PROBS, LOG_PROBS)


class TestCrossEntropy:
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[0, 1, 2], [3, 4, 0]])

    def test_is_the_mean_negative_log_probability_of_the_masked_targets(self) -> None:
        log_probs = self.logits.log_softmax(-1).gather(-1, self.targets[..., None])[..., 0]
        torch.testing.assert_close(cross_entropy(self.logits, self.targets), -log_probs.mean())
        torch.testing.assert_close(cross_entropy(self.logits, self.targets, MASK), -log_probs[MASK].mean())

    def test_half_precision_is_summed_in_single(self) -> None:
        assert cross_entropy(self.logits.bfloat16(), self.targets).dtype == torch.float32

    def test_targets_out_of_the_mask_may_be_anything(self) -> None:
        targets = torch.where(MASK, self.targets, -1)
        torch.testing.assert_close(
            cross_entropy(self.logits, targets, MASK), cross_entropy(self.logits, self.targets, MASK)
        )

    def test_bad_input(self) -> None:
        with pytest.raises(ValueError, match="logits"):
            cross_entropy(self.logits, self.targets[:1])
        with pytest.raises(ValueError, match="empty"):
            cross_entropy(self.logits, self.targets, torch.zeros_like(MASK))


@pytest.mark.parametrize("loss", [lambda *a: policy_gradient(*a, normalizer="length"), dr_grpo])
def test_bad_input(loss) -> None:
    with pytest.raises(ValueError, match=r"\[B, T\]"):
        loss(LOG_PROBS, ADVANTAGES[:1], MASK)
    with pytest.raises(ValueError, match=r"\[B, T\]"):
        loss(LOG_PROBS[0], ADVANTAGES, MASK)
    with pytest.raises(ValueError, match="boolean"):
        loss(LOG_PROBS, ADVANTAGES, MASK.float())
    with pytest.raises(ValueError, match="empty"):
        loss(LOG_PROBS, ADVANTAGES, torch.zeros_like(MASK))


@pytest.mark.parametrize("normalizer", ["mean", 0, -1.0, math.nan])
def test_unknown_normalizers(normalizer) -> None:
    with pytest.raises(ValueError, match="normalizer"):
        policy_gradient(LOG_PROBS, ADVANTAGES, MASK, normalizer=normalizer)


def test_gradcheck() -> None:
    log_probs, old = LOG_PROBS.double().requires_grad_(), LOG_PROBS.double() + 0.05
    losses: list = [
        lambda x: policy_gradient(x, ADVANTAGES.double(), MASK, normalizer="length"),
        lambda x: dr_grpo(x, ADVANTAGES.double(), MASK, old_log_probs=old),
        lambda x: simpo(x[0], x[1]),
    ]
    for loss in losses:
        assert torch.autograd.gradcheck(loss, (log_probs,))
    logits: Tensor = TestCrossEntropy.logits.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, TestCrossEntropy.targets, MASK), (logits,))
