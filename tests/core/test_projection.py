"""Projections against SciPy's optimisers, and what the paper's Appendix A says about them: where it holds, exactly, and
where it does not.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from scipy.optimize import minimize, minimize_scalar
from scipy.special import rel_entr, softmax
from torch import Tensor

from vla_razor.core.divergence import forward_kl, total_variation
from vla_razor.core.projection import alternate, exponential_family, i_projection, m_projection, oracle

INF = torch.inf
quick = settings(max_examples=20, deadline=None)
seeds = st.integers(0, 10_000)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some(n: int, seed: int) -> Tensor:
    """A proper, non-empty subset of n outcomes."""
    order = randn(n, seed=seed).argsort()
    return order < 1 + seed % (n - 1)


def kl(first: Tensor, second: Tensor) -> float:
    return forward_kl(first, second).item()


def close(first: Tensor, second: Tensor, tolerance: float = 1e-12) -> None:
    """Equal probabilities."""
    torch.testing.assert_close(first.exp(), second.exp(), rtol=0, atol=tolerance)


class TestIProjection:
    def test_by_hand(self) -> None:
        base = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]).log()
        rewarded = torch.tensor([[True, False, True], [False, True, False]])
        expected = torch.tensor([[5 / 7, 0, 2 / 7], [0, 1, 0]])
        for function in (i_projection, oracle):
            torch.testing.assert_close(function(base, rewarded).exp(), expected)

    @quick
    @given(seed=seeds)
    def test_lemma_a1(self, seed: int) -> None:
        """KL(q || p) = KL(q || p(.|S)) - log p(S) for every q on S: p(.|S) is the only minimum, at -log p(S)."""
        p, rewarded = 2 * randn(7, seed=seed), some(7, seed)
        projection = i_projection(p, rewarded)
        least = -p.softmax(-1)[rewarded].sum().log().item()
        assert kl(projection, p) == pytest.approx(least)
        q = randn(7, seed=seed + 1).masked_fill(~rewarded, -INF)
        assert kl(q, p) == pytest.approx(kl(q, projection) + least)

    def test_lemma_a1_against_an_optimizer(self) -> None:
        p, rewarded = randn(5), torch.tensor([True, False, True, True, False])
        base = softmax(p.numpy())
        found = minimize(
            lambda q: rel_entr(q, base).sum(),
            np.full(5, 0.2),
            bounds=[(0, 1)] * 5,
            constraints=[
                {"type": "eq", "fun": lambda q: q.sum() - 1},
                {"type": "eq", "fun": lambda q: q @ rewarded.numpy() - 1},
            ],
            options={"ftol": 1e-14},
        )
        np.testing.assert_allclose(i_projection(p, rewarded).exp(), found.x, atol=1e-5)

    def test_the_direction_that_the_paper_writes_is_infinite(self) -> None:
        base = torch.tensor([0.6, 0.4]).log()
        best = oracle(base, torch.tensor([True, False]))
        assert kl(base, best) == INF
        assert kl(best, base) == pytest.approx(-np.log(0.6))

    def test_bad_input(self) -> None:
        with pytest.raises(ValueError, match="one shape"):
            i_projection(torch.zeros(2, 3), torch.ones(3, dtype=torch.bool))
        with pytest.raises(ValueError, match="boolean"):
            i_projection(torch.zeros(3), torch.ones(3))
        with pytest.raises(ValueError, match="no optimal policy"):
            i_projection(torch.zeros(2, 3), torch.tensor([[True] * 3, [False] * 3]))
        with pytest.raises(ValueError, match="no optimal policy"):
            oracle(torch.tensor([0.0, -INF]), torch.tensor([False, True]))


class TestMProjection:
    @quick
    @given(seed=seeds, outcomes=st.integers(3, 12), features=st.integers(1, 4), scale=st.floats(0.1, 5))
    def test_matches_moments_and_the_pythagorean_identity(
        self, seed: int, outcomes: int, features: int, scale: float
    ) -> None:
        """KL(q || p') = KL(q || p) + KL(p || p') for every member p' of the family; q may lack any outcomes."""
        f, carrier = randn(outcomes, features, seed=seed), randn(outcomes, seed=seed + 1)
        q = (scale * randn(outcomes, seed=seed + 2)).masked_fill(~some(outcomes, seed), -INF)
        p = m_projection(q, f, carrier)
        torch.testing.assert_close(p.exp() @ f, q.softmax(-1) @ f, rtol=0, atol=1e-12)
        other = exponential_family(randn(features, seed=seed + 3), f, carrier)
        assert kl(q, other) == pytest.approx(kl(q, p) + kl(p, other))

    def test_against_an_optimizer(self) -> None:
        f, carrier, q = randn(6, 2), randn(6, seed=1), randn(6, seed=2)
        found = minimize(lambda t: kl(q, exponential_family(torch.tensor(t), f, carrier)), np.zeros(2), tol=1e-12)
        close(m_projection(q, f, carrier), exponential_family(torch.tensor(found.x), f, carrier), 1e-5)

    def test_a_member_is_its_own_projection(self) -> None:
        f, carrier = randn(8, 3), randn(8, seed=1)
        member = exponential_family(5 * randn(3, seed=2), f, carrier)
        close(m_projection(member, f, carrier), member)
        close(m_projection(member, torch.cat([f, f, f[:, :1] * 0 + 1], 1), carrier), member)  # redundant features

    def test_a_table_holds_every_distribution(self) -> None:
        q = randn(5, seed=2).masked_fill(torch.tensor([False, True, False, False, True]), -INF)
        close(m_projection(q, torch.eye(5, dtype=torch.float64), randn(5)), q.log_softmax(-1))

    def test_what_the_carrier_lacks_does_not_exist(self) -> None:
        f, carrier, q = randn(5, 2), randn(5, seed=1), randn(5, seed=2)
        carrier[2] = q[2] = -INF
        p, kept = m_projection(q, f, carrier), torch.tensor([0, 1, 3, 4])
        assert p[2] == -INF
        torch.testing.assert_close(p[kept], m_projection(q[kept], f[kept], carrier[kept]))

    def test_masses_of_many_orders_of_magnitude(self) -> None:
        for seed in range(10):
            f, carrier, q = randn(9, 4, seed=seed), 10 * randn(9, seed=seed + 1), 30 * randn(9, seed=seed + 2)
            expected = q.softmax(-1) @ f
            torch.testing.assert_close(m_projection(q, f, carrier).exp() @ f, expected, rtol=0, atol=1e-7)

    def test_on_the_boundary_it_is_the_limit(self) -> None:
        """The corners of a square with one inner point. Mass on one edge stays there; on a diagonal, it spreads."""
        f = torch.tensor([[0.0, 0], [1, 0], [0, 1], [1, 1], [0.5, 0.5]], dtype=torch.float64)
        carrier = torch.zeros(5, dtype=torch.float64)
        edge = torch.tensor([0.3, 0.7, 0, 0, 0], dtype=torch.float64).log()
        close(m_projection(edge, f, carrier), edge)
        corner = torch.tensor([0.0, 0, 0, 1, 0], dtype=torch.float64).log()
        close(m_projection(corner, f, carrier), corner)
        diagonal = torch.tensor([0.5, 0, 0, 0.5, 0], dtype=torch.float64).log()
        close(m_projection(diagonal, f, carrier), torch.full((5,), 0.2, dtype=torch.float64).log())
        near = exponential_family(torch.tensor([np.log(7 / 3), -30.0], dtype=torch.float64), f, carrier)
        close(m_projection(edge, f, carrier), near, 1e-6)

    @pytest.mark.parametrize("mass", [1e-3, 1e-9, 1e-15])
    def test_small_masses_keep_their_digits(self, mass: float) -> None:
        """Bernoulli features: the projection of a rare event has exactly that event's rate."""
        f = torch.tensor([[0.0], [1.0], [1.0]], dtype=torch.float64)
        target = torch.tensor([1 - mass, mass, 0], dtype=torch.float64).log()
        p = m_projection(target, f, torch.zeros(3, dtype=torch.float64)).exp()
        assert p[1:].tolist() == pytest.approx([mass / 2, mass / 2], rel=1e-5)

    @quick
    @given(seed=seeds, flat=st.booleans())
    def test_lemma_a2(self, seed: int, flat: bool) -> None:
        """The policy gradient of any non-negative reward is Z times the gradient of E_q[log pi], q ~ pi R, for any
        parametrisation: here of an exponential family and of another one.
        """
        f = randn(6, 3, seed=seed)
        logits: Callable[[Tensor], Tensor] = (lambda t: f @ t) if flat else (lambda t: torch.tanh(f @ t) * t.sum())
        reward = randn(6, seed=seed + 1).abs() * some(6, seed)
        t = randn(3, seed=seed + 2).requires_grad_()
        log_pi = logits(t).log_softmax(-1)
        pi = log_pi.exp().detach()
        z = float(pi @ reward)
        (of_reward,) = torch.autograd.grad(log_pi.exp() @ reward, t, retain_graph=True)
        (of_surrogate,) = torch.autograd.grad((pi * reward) @ log_pi, t, retain_graph=True)
        (of_likelihood,) = torch.autograd.grad((pi * reward / z) @ log_pi, t)
        torch.testing.assert_close(of_reward, of_surrogate)
        torch.testing.assert_close(of_reward, z * of_likelihood)

    def test_bad_input(self) -> None:
        f, carrier = randn(4, 2), torch.zeros(4, dtype=torch.float64)
        with pytest.raises(ValueError, match=r"features \[Y, F\]"):
            m_projection(carrier, f[:3], carrier)
        with pytest.raises(ValueError, match="target_logits"):
            m_projection(carrier[:3], f, carrier)
        with pytest.raises(ValueError, match="finite"):
            m_projection(carrier, f * INF, carrier)
        with pytest.raises(ValueError, match="at least one feature"):
            m_projection(carrier, f[:, :0], carrier)
        with pytest.raises(ValueError, match="infinite"):
            m_projection(carrier, f, torch.tensor([0.0, 0, 0, -INF], dtype=torch.float64))
        with pytest.raises(ValueError, match=r"parameters \[F\]"):
            exponential_family(torch.zeros(3), f, carrier)


def em(start: Tensor, features: Tensor, rewarded: Tensor, steps: int) -> Tensor:
    """The exact iteration over the exponential family around `start`."""
    return alternate(
        start, lambda p: i_projection(p, rewarded), lambda q: m_projection(q, features, start), steps=steps
    )


class TestTheoremA3:
    @quick
    @given(seed=seeds)
    def test_policy_gradient_is_the_first_gradient_step_of_the_m_projection(self, seed: int) -> None:
        """The gradient of E_pi[R] is pi(rewarded) times that of -KL(q_t || pi), q_t the I-projection of pi."""
        f, start, rewarded = randn(6, 2, seed=seed), randn(6, seed=seed + 1), some(6, seed)
        t = randn(2, seed=seed + 2).requires_grad_()
        policy = exponential_family(t, f, start)
        q = i_projection(policy.detach(), rewarded)
        success = policy.exp()[rewarded].sum()
        (ascent,) = torch.autograd.grad(success, t, retain_graph=True)
        (descent,) = torch.autograd.grad(forward_kl(q, policy), t)
        torch.testing.assert_close(ascent, -success.detach() * descent, rtol=1e-6, atol=1e-12)

    @quick
    @given(seed=seeds)
    def test_every_round_is_more_often_right(self, seed: int) -> None:
        rewarded = some(8, seed)
        path = em(randn(8, seed=seed + 1), randn(8, 2, seed=seed), rewarded, steps=8)
        success = path.exp()[:, rewarded].sum(-1)
        assert (success.diff() >= -1e-12).all()


class TestPropositionA4Exact:
    @quick
    @given(seed=seeds)
    def test_it_holds_where_the_reward_is_a_linear_function_of_the_features(self, seed: int) -> None:
        """One step reaches the base restricted to the rewarded outcomes, which no optimal policy undercuts."""
        start, rewarded = randn(8, seed=seed), some(8, seed)
        mix = torch.linalg.qr(randn(3, 3, seed=seed + 1)).Q
        features = torch.cat([rewarded[:, None].double(), randn(8, 2, seed=seed + 2)], 1) @ mix
        path = em(start, features, rewarded, steps=3)
        best = i_projection(start, rewarded)
        for policy in path[1:]:
            close(policy, best)
        for other in range(3):  # optimal policies in the family's closure: members of it, restricted
            policy = exponential_family(randn(3, seed=seed + other), features, start)
            optimal = i_projection(policy, rewarded)
            assert kl(optimal, start) == pytest.approx(kl(optimal, best) + kl(best, start))

    def test_it_fails_in_an_exponential_family_otherwise(self) -> None:
        """Three outcomes, one feature. Both ends are rewarded and each is an optimal policy on the boundary; the nearer
        to the base is the left one. The iteration goes right, and so does policy gradient itself: there is one
        parameter, and the expected reward rises with it.
        """
        start = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64).log()
        feature = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)
        rewarded = torch.tensor([True, False, True])
        limit = em(start, feature, rewarded, steps=40)[-1]
        left, right = (torch.eye(3, dtype=torch.float64)[i].log() for i in (0, 2))
        close(limit, right)
        assert (kl(left, start), kl(right, start)) == pytest.approx((-np.log(0.5), -np.log(0.3)))
        for t in torch.linspace(0, 10, 50, dtype=torch.float64):
            parameter = t[None].requires_grad_()
            success = exponential_family(parameter, feature, start).exp()[rewarded].sum()
            assert torch.autograd.grad(success, parameter)[0] > 0

    def test_it_fails_in_a_convex_family_that_is_not_e_flat(self) -> None:
        """Mixtures of three policies, two of them optimal: "convex", as Theorem 5.2 has it, but not exponential."""
        parts = np.array([[0.8, 0.1, 0.1, 0], [0.2, 0.2, 0.6, 0], [0, 0.5, 0.1, 0.4]])
        rewarded = torch.tensor([True, True, True, False])

        def m_step(q: Tensor) -> Tensor:
            """Maximum likelihood of the mixture's weights; certified by its optimality condition."""
            weights, target = np.full(3, 1 / 3), q.exp().numpy()
            for _ in range(400):
                weights *= parts @ (target / (weights @ parts))
            ratios = parts @ (target / (weights @ parts))
            np.testing.assert_allclose(np.where(weights > 1e-9, ratios, 1), 1, atol=1e-9)
            assert ratios.max() < 1 + 1e-9
            return torch.from_numpy(weights @ parts).log()

        start = torch.from_numpy(np.array([0.2, 0.2, 0.6]) @ parts).log()
        limit = alternate(start, lambda p: i_projection(p, rewarded), m_step, steps=25)[-1]
        assert limit.exp()[3] < 1e-12

        def distance(share: float) -> float:
            return kl(torch.from_numpy(share * parts[0] + (1 - share) * parts[1]).log(), start)

        nearest: Any = minimize_scalar(distance, bounds=(0, 1), method="bounded", options={"xatol": 1e-10})
        share = (limit.exp()[0].item() - 0.2) / 0.6
        assert distance(share) == pytest.approx(kl(limit, start))
        assert share == pytest.approx(0.2254, abs=1e-3)
        assert nearest.x == pytest.approx(0.2653, abs=1e-3)
        assert kl(limit, start) > nearest.fun + 1e-3


TABLE = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).log()
HALF = torch.tensor([True, True, False, False])


class TestPropositionA4Inexact:
    """In a table of probabilities the exact M-projection of q_t is q_t itself, and a step's error is KL(q_t || pi)."""

    def test_it_holds_for_natural_policy_gradient(self) -> None:
        """Logits + rate * reward: the errors -log pi_t(rewarded) sum to a finite number and the limit is the oracle."""
        errors = []

        def step(q: Tensor) -> Tensor:
            policy = (path[-1] + 0.5 * HALF).log_softmax(-1)
            errors.append(kl(q, policy))
            path.append(policy)
            return policy

        path = [TABLE]
        policies = alternate(TABLE, lambda p: i_projection(p, HALF), step, steps=100)
        close(policies[-1], i_projection(TABLE, HALF))
        assert sum(errors) < 1
        assert errors[-1] < 1e-12

    def test_other_errors_move_the_limit_but_not_far(self) -> None:
        """KL(q_t || q_(t+1)) <= e_t, so by Pinsker's inequality it moves by at most sum sqrt(e_t / 2)."""
        errors = []

        def step(q: Tensor) -> Tensor:
            push = 0.5 ** len(errors)
            tilt = torch.tensor([push, 0, 0, 0], dtype=torch.float64)
            leak = torch.tensor([1.0, 1.0, 0.01 * push, 0.01 * push], dtype=torch.float64)
            policy = (torch.where(HALF, q, 0) + tilt + leak.log()).log_softmax(-1)
            errors.append(kl(q, policy))
            return policy

        limit = i_projection(alternate(TABLE, lambda p: i_projection(p, HALF), step, steps=60)[-1], HALF)
        moved = total_variation(limit, i_projection(TABLE, HALF)).item()
        assert 0.1 < moved <= np.sqrt(np.array(errors) / 2).sum()
        assert sum(errors) < 0.2

    def test_summable_errors_may_prevent_a_limit(self) -> None:
        """Steps of 0.25 / t to and fro between 0.3 and 0.7: each costs less than (0.55 / t)^2, and they never end."""
        errors, turns, direction = [], [], 1.0

        def step(q: Tensor) -> Tensor:
            nonlocal direction
            p = q.exp()[0].item()
            if not 0.3 < p + direction * 0.25 / (len(errors) + 1) < 0.7:
                direction = -direction
                turns.append(len(errors))
            p += direction * 0.25 / (len(errors) + 1)
            policy = torch.tensor([p, 1 - p, 0, 0], dtype=torch.float64).log()
            errors.append(kl(q, policy))
            return policy

        alternate(TABLE, lambda p: i_projection(p, HALF), step, steps=1000)
        assert len(turns) >= 5
        assert all(error < (0.55 / t) ** 2 for t, error in enumerate(errors, start=1))

    def test_gradient_ascent_on_logits_ends_in_one_outcome(self) -> None:
        """The flow of softmax policy gradient, logit_y' = pi_y (R_y - E[R]), keeps exp(-logit_a) - exp(-logit_b) of any
        two rewarded outcomes. The likeliest one's logit grows without end and the others' stay bounded: the odds, which
        the KL-minimal policy keeps, go to infinity.
        """

        def flow(_: float, logits: np.ndarray) -> np.ndarray:
            pi = softmax(logits)
            return pi * (HALF.numpy() - pi[HALF.numpy()].sum())

        path = solve_ivp(flow, (0, 1e6), TABLE.numpy(), method="LSODA", rtol=1e-10, atol=1e-12).y
        kept = np.exp(-path[0]) - np.exp(-path[1])
        np.testing.assert_allclose(kept, kept[0], rtol=1e-5)
        limit = torch.from_numpy(path[:, -1])
        assert limit.softmax(-1)[HALF].sum() > 0.999
        assert (limit[0] - limit[1]).exp() > 100 * (TABLE[0] - TABLE[1]).exp()
        assert kl(limit, TABLE) > kl(i_projection(TABLE, HALF), TABLE) + 0.2


def test_precision_and_devices() -> None:
    base, rewarded = torch.zeros(3), torch.tensor([True, True, False])
    features = torch.tensor([[0.0], [1.0], [2.0]])
    assert i_projection(base.bfloat16(), rewarded).dtype == torch.float32
    assert m_projection(base, features, base).dtype == torch.float32
    assert m_projection(base.double(), features.double(), base.double()).dtype == torch.float64
    assert alternate(base, lambda p: p, lambda q: q, steps=2).shape == (3, 3)
