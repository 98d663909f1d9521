"""Advantages by hand, and what groups without variance give."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vla_razor.core.advantages import batch_normalized, group_normalized, one_zero, zero_variance

MIXED = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0, 0.0]])


def test_group_normalized_by_hand() -> None:
    std = math.sqrt((0.8**2 + 4 * 0.2**2) / 4)
    expected = torch.tensor([[0.8, -0.2, -0.2, -0.2, -0.2], [0.0] * 5, [0.0] * 5])
    expected[0] /= std + 0.01
    torch.testing.assert_close(group_normalized(MIXED, 0.01), expected)


def test_batch_normalized_by_hand() -> None:
    expected = (MIXED - 0.4) / (math.sqrt(15 * 0.4 * 0.6 / 14) + 0.01)
    torch.testing.assert_close(batch_normalized(MIXED, 0.01), expected)


def test_one_zero() -> None:
    assert torch.equal(one_zero(MIXED), MIXED)
    assert torch.equal(one_zero(MIXED.bool()), MIXED)
    with pytest.raises(ValueError, match="0 or 1"):
        one_zero(MIXED - 0.5)


def test_groups_without_variance_are_exactly_zero_and_counted() -> None:
    """0.1 has no exact mean of three: a plain (r - mean) / std would give a rounding error over a rounding error."""
    rewards = torch.full((2, 3), 0.1)
    assert torch.equal(group_normalized(rewards, 0.0), torch.zeros(2, 3))
    assert torch.equal(batch_normalized(rewards, 0.0), torch.zeros(2, 3))
    assert int(zero_variance(MIXED).sum()) == 2
    assert torch.equal(group_normalized(torch.ones(4, 1), 1e-4), torch.zeros(4, 1))


@settings(max_examples=50, deadline=None)
@given(
    rewards=st.lists(st.lists(st.integers(0, 1), min_size=5, max_size=5), min_size=1, max_size=6),
    scale=st.floats(0.1, 10),
    shift=st.floats(-5, 5),
)
def test_identities(rewards: list[list[int]], scale: float, shift: float) -> None:
    """Mean 0 and, in groups that vary, variance 1; unmoved by the rewards' scale and origin."""
    tensor = torch.tensor(rewards, dtype=torch.float64)
    advantages = group_normalized(tensor, 0.0)
    torch.testing.assert_close(advantages.mean(1), torch.zeros(len(rewards), dtype=torch.float64))
    torch.testing.assert_close(advantages.std(1), (~zero_variance(tensor)).double())
    torch.testing.assert_close(group_normalized(tensor * scale + shift, 0.0), advantages)


class TestExpectedDirection:
    """The policy gradient averaged over every group of four samples that a policy of three outcomes can draw, for two
    prompts with logits of their own. The paper says that advantages leave the expected direction unchanged (Appendix
    A): so does subtracting the mean, but not dividing by the standard deviation.
    """

    policies = torch.tensor([[0.6, 0.3, 0.1], [0.05, 0.25, 0.7]], dtype=torch.float64)

    def expected(self, advantages: Callable[[Tensor], Tensor], reward: Tensor) -> Tensor:
        groups = torch.cartesian_prod(*[torch.arange(3)] * 4)
        total = torch.zeros_like(self.policies)
        for prompt, pi in enumerate(self.policies):
            a = advantages(reward[groups])  # [groups, samples]
            scores = torch.eye(3, dtype=torch.float64)[groups] - pi  # d log pi(y) / d logits
            total[prompt] = (pi[groups].prod(1)[:, None] * (a[:, :, None] * scores).mean(1)).sum(0)
        return total

    def exact(self, reward: Tensor) -> Tensor:
        return self.policies * (reward - (self.policies @ reward)[:, None])

    @pytest.mark.parametrize("reward", [[0.0, 0.0, 1.0], [0.0, 0.5, 1.0]])
    def test_subtracting_the_mean_keeps_it(self, reward: list[float]) -> None:
        values = torch.tensor(reward, dtype=torch.float64)
        centred = self.expected(lambda r: r - r.mean(1, keepdim=True), values)
        torch.testing.assert_close(centred, 3 / 4 * self.exact(values))

    def test_of_binary_rewards_the_standard_deviation_only_reweighs_the_prompts(self) -> None:
        reward = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
        normalized, exact = self.expected(lambda r: group_normalized(r, 0.0), reward), self.exact(reward)
        torch.testing.assert_close(torch.cosine_similarity(normalized, exact), torch.ones(2, dtype=torch.float64))
        weights = normalized.norm(dim=1) / exact.norm(dim=1)
        assert weights[0] != pytest.approx(weights[1].item(), rel=1e-2)

    def test_of_graded_rewards_it_turns_the_gradient_of_each_prompt(self) -> None:
        reward = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
        normalized, exact = self.expected(lambda r: group_normalized(r, 0.0), reward), self.exact(reward)
        assert (torch.cosine_similarity(normalized, exact) < 1 - 1e-5).all()


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="groups"):
        group_normalized(torch.zeros(3), 1e-4)
    with pytest.raises(ValueError, match="groups"):
        batch_normalized(torch.zeros(0, 3), 1e-4)
    with pytest.raises(ValueError, match="finite"):
        group_normalized(torch.tensor([[math.nan, 1.0]]), 1e-4)
    with pytest.raises(ValueError, match="eps"):
        group_normalized(MIXED, -1.0)
