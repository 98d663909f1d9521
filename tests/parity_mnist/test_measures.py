"""What is measured of a checkpoint, against SciPy and NumPy on a handful of images."""

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy

from tests.parity_mnist.support import WIDTH, few, seeded, sequential
from vla_razor.parity_mnist import measures, model
from vla_razor.parity_mnist.analysis import PREDICTORS
from vla_razor.parity_mnist.measures import Base, fisher_of, measure
from vla_razor.parity_mnist.model import Parameters

PARAMETERS = model.initialize(1, seeded(), WIDTH)


def tuned(scale: float = 0.1) -> Parameters:
    draw = seeded(1)
    return {name: value + scale * torch.randn(value.shape, generator=draw) for name, value in PARAMETERS.items()}


@pytest.fixture(scope="module")
def tests() -> measures.Tests:
    return measures.Tests.of(few((1, 40), (1, 30)))


@pytest.fixture(scope="module")
def base(tests: measures.Tests) -> Base:
    return Base.of(PARAMETERS, fisher_of(PARAMETERS, tests), tests)


def test_the_tests_are_the_test_sets_with_their_tasks() -> None:
    images = few((5, 4), (5, 3))
    tests = measures.Tests.of(images)
    assert torch.equal(tests.new[:, :-1], images.mnist_test.images)
    assert torch.equal(tests.prior[:, :-1], images.fashion_test.images)
    assert (tests.new[:, -1] == 1).all()
    assert (tests.prior[:, -1] == -1).all()
    assert torch.equal(tests.digits, images.mnist_test.labels)
    assert torch.equal(tests.classes, images.fashion_test.labels)


def test_the_base_is_at_no_distance_from_itself(base: Base, tests: measures.Tests) -> None:
    found = measure(PARAMETERS, base, tests)
    unchanged = {"weight_sparsity": 1.0}
    distances = {name: value for name, value in found.items() if name not in ("new", "prior")}
    assert distances == dict.fromkeys(distances, 0.0) | unchanged
    assert set(PREDICTORS) == set(distances)


def test_accuracies(base: Base, tests: measures.Tests) -> None:
    network = sequential(tuned())
    found = measure(tuned(), base, tests)
    answers = network(tests.new).argmax(1)
    assert found["new"] == pytest.approx((answers % 2 == tests.digits % 2).double().mean().item())
    assert found["prior"] == pytest.approx((network(tests.prior).argmax(1) == tests.classes).double().mean().item())


def test_divergences_are_those_of_the_new_task(base: Base, tests: measures.Tests) -> None:
    found = measure(tuned(), base, tests)
    p, q = (softmax(sequential(n)(tests.new).detach().double().numpy(), 1) for n in (PARAMETERS, tuned()))
    expected = {
        "forward_kl": entropy(p, q, axis=1).mean(),
        "reverse_kl": entropy(q, p, axis=1).mean(),
        "total_variation": np.abs(p - q).sum(1).mean() / 2,
        "l2_distance": np.linalg.norm(p - q, axis=1).mean(),
    }
    assert expected["forward_kl"] != pytest.approx(expected["reverse_kl"], rel=1e-3)
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)


def test_changes_of_weights_and_activations(base: Base, tests: measures.Tests) -> None:
    found = measure(tuned(), base, tests)
    before, after = sequential(PARAMETERS), sequential(tuned())
    deltas = [(b - a).detach().double().numpy() for a, b in zip(before.parameters(), after.parameters(), strict=True)]
    hidden = [
        np.concatenate([n[:layers](tests.new).detach().double().numpy() for layers in (2, 4)], 1)
        for n in (before, after)
    ]
    expected = {
        "weight_l1": sum(np.abs(delta).sum() for delta in deltas),
        "weight_spectral": max(np.linalg.norm(delta, 2) for delta in deltas if delta.ndim == 2),
        "activation_l1": np.abs(hidden[1] - hidden[0]).sum(1).mean(),
        "activation_l2": np.linalg.norm(hidden[1] - hidden[0], axis=1).mean(),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)


def test_the_fisher_information_is_that_of_the_base_on_the_prior_task(base: Base, tests: measures.Tests) -> None:
    """The score of the last bias is the one-hot answer less the policy: its square's expectation is p (1 - p)."""
    p = sequential(PARAMETERS)(tests.prior).detach().softmax(1)
    expected = (p * (1 - p)).mean(0)
    torch.testing.assert_close(base.fisher["bias_2"][0].float(), expected)
    moved = {name: value.clone() for name, value in PARAMETERS.items()}
    moved["bias_2"][0, 3] += 2
    assert measure(moved, base, tests)["weight_fisher"] == pytest.approx(2 * math.sqrt(expected[3]), rel=1e-4)


def test_a_change_of_one_part_in_a_million_is_one(base: Base, tests: measures.Tests) -> None:
    nudged = {name: value * (1 + 1e-6) for name, value in PARAMETERS.items()}
    assert measure(nudged, base, tests)["weight_sparsity"] < 0.01


def test_the_size_of_a_forward_pass_does_not_matter(
    base: Base, tests: measures.Tests, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measure(tuned(), base, tests)
    monkeypatch.setattr(measures, "CHUNK", 7)
    assert measure(tuned(), base, tests) == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_network_that_is_not_finite_has_no_measure_at_all(base: Base, tests: measures.Tests, value: float) -> None:
    for name in PARAMETERS:
        broken = {**tuned(), name: tuned()[name].clone()}
        broken[name].view(-1)[0] = value
        found = measure(broken, base, tests)
        assert all(math.isnan(number) for number in found.values()), name
