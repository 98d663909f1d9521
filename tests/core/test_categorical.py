"""The distribution of a policy's tokens, against torch's own."""

import pytest
import torch
from torch.distributions import Categorical as Reference
from torch.distributions import kl_divergence

from vla_razor.core.categorical import Categorical

IDS = range(1000, 1009)


def drawn(seed: int, ids: range = IDS) -> Categorical:
    """Of two decisions of three tokens, far from uniform."""
    logits = 3 * torch.randn(2, 3, len(ids), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Categorical(logits.requires_grad_(), ids)


TOKENS = torch.tensor([[1000, 1008, 1004], [1001, 1001, 1007]])


def test_it_is_torchs_categorical_over_its_ids() -> None:
    ours, reference = drawn(0), Reference(logits=drawn(0).logits)
    torch.testing.assert_close(ours.log_prob(TOKENS), reference.log_prob(TOKENS - 1000))
    torch.testing.assert_close(ours.entropy(), reference.entropy())
    torch.testing.assert_close(ours.cross_entropy(TOKENS), -reference.log_prob(TOKENS - 1000).mean())
    assert torch.equal(ours.likeliest(), reference.probs.argmax(-1) + 1000)


def test_its_divergence_is_summed_over_the_whole_support_and_pulls_both() -> None:
    one, other = drawn(0), drawn(1)
    found = one.kl(other)
    torch.testing.assert_close(found, kl_divergence(Reference(logits=one.logits), Reference(logits=other.logits)))
    assert (found > 0).all() and torch.equal(one.kl(one), torch.zeros(2, 3, dtype=torch.float64))
    found.sum().backward()
    assert all(each.logits.grad is not None and each.logits.grad.any() for each in (one, other))


def test_distributions_over_other_ids_have_none() -> None:
    with pytest.raises(ValueError, match="have no divergence"):
        drawn(0).kl(drawn(0, range(2000, 2009)))
