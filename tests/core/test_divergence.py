"""Divergences against mpmath, SciPy and torch.distributions, and their identities."""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import log_softmax, rel_entr, softmax
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from vla_razor.core import divergence
from vla_razor.core.divergence import (
    forward_kl,
    k1,
    k3,
    l2_distance,
    reverse_kl,
    total_variation,
)

ALL = (forward_kl, reverse_kl, total_variation, l2_distance)
INF = math.inf
quick = settings(max_examples=40, deadline=None)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def logits_pair(low: float = -20, high: float = 20):
    """Two float64 arrays of one shape [.., V]."""
    shape = hnp.array_shapes(min_dims=1, max_dims=3, max_side=5)
    return shape.flatmap(lambda s: st.tuples(*[hnp.arrays(np.float64, s, elements=st.floats(low, high))] * 2))


def test_values_by_hand() -> None:
    base, tuned = torch.tensor([0.5, 0.25, 0.25]).log(), torch.tensor([0.25, 0.25, 0.5]).log()
    assert forward_kl(base, tuned).item() == pytest.approx(0.25 * math.log(2))
    assert reverse_kl(base, tuned).item() == pytest.approx(0.25 * math.log(2))
    assert total_variation(base, tuned).item() == pytest.approx(0.25)
    assert l2_distance(base, tuned).item() == pytest.approx(math.sqrt(0.125))


def test_agrees_with_scipy_and_torch_distributions() -> None:
    base, tuned = 3 * randn(4, 7, 256), 3 * randn(4, 7, 256, seed=1)
    p, q = softmax(base.numpy(), -1), softmax(tuned.numpy(), -1)
    np.testing.assert_allclose(forward_kl(base, tuned), rel_entr(p, q).sum(-1), rtol=1e-12)
    np.testing.assert_allclose(reverse_kl(base, tuned), rel_entr(q, p).sum(-1), rtol=1e-12)
    np.testing.assert_allclose(total_variation(base, tuned), np.abs(p - q).sum(-1) / 2, rtol=1e-12)
    np.testing.assert_allclose(l2_distance(base, tuned), np.linalg.norm(p - q, axis=-1), rtol=1e-12)
    exact = kl_divergence(Categorical(logits=base), Categorical(logits=tuned))
    torch.testing.assert_close(forward_kl(base, tuned), exact, rtol=1e-12, atol=0)


@pytest.mark.parametrize("scale", [1e-6, 1e-5, 4e-5, 1e-4, 1e-3, 1e-1, 1.0])
@pytest.mark.parametrize("shift", [0.0, 30.0])
def test_nearly_equal_policies_keep_their_digits_in_float32(scale: float, shift: float) -> None:
    """Around scale 4e-5 the divergence is 1e-9; the reference has sixty digits."""
    base = 4 * randn(1, 256, dtype=torch.float32) + shift
    tuned = base + scale * randn(1, 256, seed=1, dtype=torch.float32)
    exact = [mpmath_kl(b, t) for b, t in zip(base.tolist(), tuned.tolist(), strict=True)]
    result = forward_kl(base, tuned)
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result, np.array(exact), rtol=1e-6)


def mpmath_kl(base: list[float], tuned: list[float]) -> float:
    with mpmath.workdps(60):
        b, t = [mpmath.mpf(x) for x in base], [mpmath.mpf(x) for x in tuned]
        log_b, log_t = (mpmath.log(sum(map(mpmath.exp, x))) for x in (b, t))
        return float(sum(mpmath.exp(x - log_b) * (x - log_b - y + log_t) for x, y in zip(b, t, strict=True)))


@pytest.mark.parametrize("function", ALL)
@quick
@given(pair=logits_pair())
def test_zero_iff_equal(function, pair: tuple[np.ndarray, np.ndarray]) -> None:
    base, tuned = map(torch.from_numpy, pair)
    value = function(base, tuned)
    assert (value >= 0).all()
    assert (function(base, base) == 0).all()
    gap = (log_softmax(pair[0], -1) - log_softmax(pair[1], -1)) * (softmax(pair[0], -1) > 1e-6)
    assert (value.numpy()[np.abs(gap).max(-1) > 1e-3] > 0).all()


@pytest.mark.parametrize("function", ALL)
@quick
@given(pair=logits_pair(), shift=st.floats(-50, 50))
def test_unmoved_by_a_shift_of_the_logits(function, pair: tuple[np.ndarray, np.ndarray], shift: float) -> None:
    base, tuned = map(torch.from_numpy, pair)
    torch.testing.assert_close(function(base + shift, tuned), function(base, tuned), rtol=1e-6, atol=1e-12)


@quick
@given(pair=logits_pair())
def test_known_inequalities(pair: tuple[np.ndarray, np.ndarray]) -> None:
    base, tuned = map(torch.from_numpy, pair)
    variation = total_variation(base, tuned)
    assert (variation <= 1 + 1e-12).all()
    assert (l2_distance(base, tuned) <= 2 * variation + 1e-12).all()
    assert (2 * variation.square() <= forward_kl(base, tuned) + 1e-12).all()  # Pinsker


def test_support() -> None:
    base, tuned = torch.tensor([0.0, 0.0, -INF]), torch.tensor([1.0, 0.0, 0.0])
    inside = np.array([0.5, 0.5]), np.array([math.e, 1.0]) / (math.e + 2)
    assert forward_kl(base, tuned).item() == pytest.approx(rel_entr(*inside).sum())
    assert forward_kl(tuned, base).item() == INF
    assert reverse_kl(base, tuned).item() == INF
    both_missing = torch.tensor([1.0, 2.0, -INF])
    assert forward_kl(both_missing, both_missing).item() == 0
    expected = forward_kl(base[:2], both_missing[:2])
    torch.testing.assert_close(forward_kl(base, both_missing), expected)
    disjoint = torch.tensor([0.0, -INF]), torch.tensor([-INF, 0.0])
    assert forward_kl(*disjoint).item() == INF
    assert total_variation(*disjoint).item() == 1
    assert l2_distance(*disjoint).item() == pytest.approx(math.sqrt(2))


def test_vanishing_probabilities_are_not_missing_support() -> None:
    """exp(-1000) is 0 even in float64, but the divergence is finite."""
    base, tuned = torch.tensor([0.0, 0.0]), torch.tensor([0.0, -1000.0])
    assert forward_kl(base, tuned).item() == pytest.approx(500 - math.log(2))
    assert reverse_kl(base, tuned).item() == pytest.approx(math.log(2))


def test_nan_is_not_hidden() -> None:
    assert forward_kl(torch.tensor([0.0, math.nan]), torch.zeros(2)).isnan()
    assert forward_kl(torch.zeros(2), torch.tensor([0.0, math.nan])).isnan()


@pytest.mark.parametrize("function", ALL)
def test_gradients(function) -> None:
    base, tuned = (x.requires_grad_() for x in (randn(2, 4), randn(2, 4, seed=1)))
    assert torch.autograd.gradcheck(function, (base, tuned))
    near = (base + 1e-4 * randn(2, 4, seed=2)).detach().requires_grad_()
    assert torch.autograd.gradcheck(function, (base, near), eps=1e-7, atol=1e-4)


def test_gradient_of_forward_kl_is_q_minus_p() -> None:
    base, tuned = 3 * randn(6, 11), (3 * randn(6, 11, seed=1)).requires_grad_()
    forward_kl(base, tuned).sum().backward()
    assert tuned.grad is not None
    torch.testing.assert_close(tuned.grad, tuned.detach().softmax(-1) - base.softmax(-1))


@pytest.mark.parametrize("function", ALL)
def test_gradients_stay_finite_at_equality_and_at_missing_support(function) -> None:
    base = torch.tensor([[0.0, 1.0, -INF], [0.0, 1.0, 2.0], [0.0, -INF, 1.0]], requires_grad=True)
    tuned = torch.tensor([[2.0, 1.0, -INF], [0.0, 1.0, 2.0], [-INF, 1.0, 0.0]], requires_grad=True)
    values = function(base, tuned)
    values[values.isfinite()].sum().backward()
    for tensor in (base, tuned):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
        assert (tensor.grad[1] == 0).all()


@pytest.mark.parametrize("function", ALL)
def test_types(function) -> None:
    narrow = torch.zeros(2, 3, dtype=torch.bfloat16)
    assert function(narrow, narrow).dtype == torch.float32
    assert function(narrow, narrow.double()).dtype == torch.float64


@pytest.mark.parametrize("function", ALL)
def test_shapes_are_checked(function) -> None:
    with pytest.raises(ValueError, match="same shape"):
        function(torch.zeros(2, 3), torch.zeros(3))
    with pytest.raises(ValueError, match="at least one category"):
        function(torch.zeros(2, 0), torch.zeros(2, 0))


def test_sampled_estimators_agree_with_the_exact_value() -> None:
    base, tuned = randn(256), randn(256) + 0.3 * randn(256, seed=1)
    tokens = torch.multinomial(base.softmax(-1), 200_000, replacement=True, generator=torch.Generator().manual_seed(0))
    log_p, log_q = base.log_softmax(-1)[tokens], tuned.log_softmax(-1)[tokens]
    exact = forward_kl(base, tuned).item()
    for estimator in (k1, k3):
        samples = estimator(log_p, log_q)
        assert abs(samples.mean() - exact) < 4 * samples.std() / math.sqrt(len(samples))
    assert (k3(log_p, log_q) >= 0).all()
    assert k3(log_p, log_q).std() < k1(log_p, log_q).std()
    assert (k3(log_p, log_p) == 0).all()


class TestSharpening:
    def test_a_tempered_base_is_all_sharpening(self) -> None:
        base = 2 * randn(50, 16)
        for temperature in (0.3, 0.8, 1.7):
            split = divergence.sharpening(base, base / temperature)
            assert split.temperature == pytest.approx(temperature, rel=1e-4)
            assert split.sharpening == pytest.approx(forward_kl(base, base / temperature).mean().item(), rel=1e-4)
            assert split.displacement == pytest.approx(0, abs=1e-4 * split.sharpening)

    def test_the_parts_sum_to_the_total(self) -> None:
        base = 2 * randn(50, 16)
        tuned = base * 1.4 + 0.5 * randn(50, 16, seed=1)
        split = divergence.sharpening(base, tuned)
        assert split.sharpening + split.displacement == pytest.approx(forward_kl(base, tuned).mean().item())
        assert 0 < split.displacement < split.sharpening

    def test_finds_the_minimum(self) -> None:
        base = 2 * randn(50, 16)
        tuned = base * 1.4 + 0.5 * randn(50, 16, seed=1)
        found = divergence.sharpening(base, tuned).temperature
        temperatures = np.geomspace(1 / 16, 16, 400)
        distances = [forward_kl(base / t, tuned).mean().item() for t in temperatures]
        assert found == pytest.approx(temperatures[int(np.argmin(distances))], rel=0.02)
        assert forward_kl(base / found, tuned).mean() <= min(distances)

    def test_a_policy_and_itself(self) -> None:
        logits = randn(5, 16, dtype=torch.float32)
        assert divergence.sharpening(logits, logits) == (0, 0, 1)
        shifted = divergence.sharpening(logits, logits + 3)
        assert shifted.sharpening == pytest.approx(0, abs=1e-9)

    def test_displacement_may_be_negative(self) -> None:
        """The tuned policy avoids all but one of the base's likelier tokens, so that the closest tempered base is a
        point mass, farther from the base than the tuned policy is.
        """
        base, tuned = torch.tensor([0.4, 0.3, 0.2, 0.1]).log(), torch.tensor([0.35, 0.01, 0.01, 0.63]).log()
        split = divergence.sharpening(base, tuned)
        assert split.displacement < 0 < split.sharpening
        assert split.sharpening + split.displacement == pytest.approx(forward_kl(base, tuned).item())

    def test_missing_support(self) -> None:
        base = torch.tensor([[0.0, 1.0, -INF]])
        assert divergence.sharpening(base, torch.tensor([[0.0, -INF, -INF]])) == (0, INF, 1)
        split = divergence.sharpening(base, torch.tensor([[0.0, 2.0, -INF]]))
        assert split.temperature == pytest.approx(0.5, rel=1e-4)
