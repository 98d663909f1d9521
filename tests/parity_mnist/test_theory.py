"""The three ways to an optimal policy, and what normalising does."""

import pytest
import torch
from typer.testing import CliRunner

from vla_razor import cli
from vla_razor.core import advantages
from vla_razor.parity_mnist import theory


@pytest.mark.parametrize("seed", range(3))
def test_where_the_ways_lead(seed: int) -> None:
    alternation, natural, plain = theory.paths(seed, 300)
    assert alternation.distance[1] == pytest.approx(0, abs=1e-9)
    assert natural.distance[-1] == pytest.approx(0, abs=1e-9)
    assert natural.reward[-1] == pytest.approx(1, abs=1e-9)
    assert plain.reward[-1] > 0.99
    assert plain.distance[-1] > 0.1
    assert plain.base_kl[-1] > natural.base_kl[-1], "it is right as often, and farther from the base"
    assert alternation.base_kl[-1] == pytest.approx(alternation.distance[0].item(), rel=1e-9), "-log of being right"


def test_normalisation_against_samples() -> None:
    """The weights on the inputs, estimated by sampling groups."""
    inputs, samples, groups = 4, 8, 40000
    generator = torch.Generator().manual_seed(5)
    p = torch.rand(inputs, generator=generator, dtype=torch.float64)
    draws = torch.bernoulli(p[:, None, None].expand(-1, groups, samples), generator=generator)
    advantage = advantages.group_normalized(draws.flatten(0, 1), eps=0).view_as(draws)
    weights = (advantage * (draws - p[:, None, None])).mean((1, 2))
    expected = torch.cosine_similarity(weights, p * (1 - p), dim=0)
    found = theory.normalization(5, inputs, samples)
    assert found.mean_subtracted == pytest.approx(1, abs=1e-12)
    assert found.divided_by_std == pytest.approx(expected.item(), abs=2e-3)
    assert found.divided_by_std < 0.9999


def test_the_verb_prints_them() -> None:
    result = CliRunner().invoke(cli.app, ["mnist", "theory"])
    assert result.exit_code == 0
    words = result.output.split()
    assert {"natural", "plain", "1000"} <= set(words)
    assert "standard deviation" in " ".join(words)
