"""Weight changes by hand, against NumPy, and the Fisher information against its definition."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vla_razor.core.divergence import forward_kl
from vla_razor.core.weight_change import (
    agreement,
    cosine,
    diagonal_fisher,
    fisher_l2,
    l1,
    l2,
    sparsity,
    spectrum,
    summary,
    update,
)


def spectral(base, tuned) -> Tensor:
    return spectrum(base, tuned).norm


def relative_rank(base, tuned) -> Tensor:
    return spectrum(base, tuned).rank


MEASURES = [l1, l2, spectral, relative_rank, sparsity]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weights(seed: int = 0, scale: float = 1.0) -> dict[str, Tensor]:
    generator = seeded(seed)
    shapes = {"a.weight": (6, 4), "a.bias": (6,), "conv": (3, 2, 2, 2)}
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def moved(base: dict[str, Tensor], by: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: base[name] + by[name] for name in base}


def flattened(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


BASE = {"w": torch.zeros(2, 2), "b": torch.ones(2), "steps": torch.tensor(3)}
TUNED = {"w": torch.tensor([[3.0, 0.0], [0.0, -4.0]]), "b": torch.tensor([1.0, 13.0]), "steps": torch.tensor(9)}


def test_by_hand() -> None:
    assert l1(BASE, TUNED).item() == 19
    assert l2(BASE, TUNED).item() == 13
    assert spectral(BASE, TUNED).item() == pytest.approx(4)
    assert relative_rank(BASE, TUNED).item() == 1
    assert sparsity(BASE, TUNED).item() == pytest.approx(3 / 6)
    fisher = {"w": torch.tensor([[4.0, 1], [1, 0]]), "b": torch.tensor([1.0, 0.25]), "steps": torch.tensor(0)}
    assert fisher_l2(BASE, TUNED, fisher).item() == pytest.approx(math.sqrt(4 * 9 + 0.25 * 144))
    assert update(BASE, TUNED).keys() == {"w", "b"}


def test_against_numpy() -> None:
    base, tuned = weights(), weights(1)
    delta = {name: (tuned[name].double() - base[name].double()).numpy() for name in base}
    flat = np.concatenate([d.ravel() for d in delta.values()])
    assert l1(base, tuned).item() == pytest.approx(np.linalg.norm(flat, 1))
    assert l2(base, tuned).item() == pytest.approx(np.linalg.norm(flat))
    matrices = delta["a.weight"], delta["conv"].reshape(3, 8)
    assert spectral(base, tuned).item() == pytest.approx(max(np.linalg.norm(m, 2) for m in matrices))
    ones = {name: torch.ones_like(tensor) for name, tensor in base.items()}
    assert fisher_l2(base, tuned, ones).item() == pytest.approx(l2(base, tuned).item())
    assert cosine(base, tuned).item() == pytest.approx(
        torch.cosine_similarity(flattened(base), flattened(tuned), 0).item()
    )


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(1e-4, 1e4))
def test_norms(seed: int, scale: float) -> None:
    """They grow with the change, satisfy the triangle inequality and do not care about the direction."""
    a, b, c = ({name: tensor.double() for name, tensor in weights(seed + i).items()} for i in range(3))
    fisher = {name: tensor.square() for name, tensor in weights(seed + 3).items()}
    for norm in (l1, l2, spectral, lambda x, y: fisher_l2(x, y, fisher)):
        assert norm(a, a).item() == 0
        torch.testing.assert_close(norm(a, b), norm(b, a))
        assert norm(a, c) <= norm(a, b) + norm(b, c) + 1e-9
        far = {name: a[name] + scale * (b[name] - a[name]) for name in a}
        torch.testing.assert_close(norm(a, far), scale * norm(a, b), rtol=1e-6, atol=1e-9)
    assert spectral(a, b) <= l2(a, b)


@pytest.mark.parametrize("rank", [0, 1, 2, 5, 16])
@pytest.mark.parametrize("size", [1e-4, 1e-2, 1.0])
def test_rank_survives_the_rounding_of_the_weights(rank: int, size: float) -> None:
    """A low-rank update added to float32 weights is full-rank by the usual threshold, and is not by ours."""
    base = torch.randn(32, 16, generator=seeded())
    change = size * torch.randn(32, rank, generator=seeded(1)) @ torch.randn(rank, 16, generator=seeded(2))
    tuned = base + change
    assert relative_rank({"w": base}, {"w": tuned}).item() == rank / 16
    if 0 < rank < 16:
        assert torch.linalg.matrix_rank(tuned.double() - base.double()) == 16


def test_a_summary_is_of_the_whole_model_though_it_sees_one_weight_at_a_time() -> None:
    base = weights()
    tuned = moved(base, weights(1, 1e-3)) | {"a.bias": base["a.bias"]}
    found = summary(base, tuned)
    expected = {"l1": l1, "l2": l2, "spectral": spectral, "rank": relative_rank, "sparsity": sparsity}
    assert found.keys() == {*expected, "sparsity_bfloat16", "rank_bfloat16"}
    for name, measure in expected.items():
        assert found[name] == pytest.approx(float(measure(base, tuned)))
    assert found["sparsity_bfloat16"] == pytest.approx(float(sparsity(base, tuned, dtype=torch.bfloat16)))
    rounded = [{name: weight.bfloat16() for name, weight in of.items()} for of in (base, tuned)]
    assert found["rank_bfloat16"] == pytest.approx(float(relative_rank(*rounded)))
    assert found["rank_bfloat16"] != found["rank"]
    still = dict.fromkeys(("l1", "l2", "spectral", "rank", "rank_bfloat16"), 0)
    still |= {"sparsity": 1, "sparsity_bfloat16": 1}
    assert summary(base, base) == still
    unknown = summary(base, tuned, largest=3)
    assert unknown == found | {"spectral": None, "rank": None, "rank_bfloat16": None}, "6 x 4 is too large"
    with pytest.raises(ValueError, match="different names"):
        summary(base, {"a.bias": base["a.bias"]})


def test_sparsity_in_bfloat16() -> None:
    """bfloat16 holds eight binary digits: around 1 it keeps steps of 2^-7, and a change by a quarter of one is lost."""
    base = {"w": torch.ones(4)}
    tuned = {"w": torch.tensor([1.0, 1 + 2**-9, 1 - 2**-10, 1 + 2**-7])}
    assert sparsity(base, tuned).item() == 0.25
    assert sparsity(base, tuned, dtype=torch.bfloat16).item() == 0.75
    assert sparsity(base, tuned, tolerance=2**-9).item() == 0.75
    same = {"w": torch.tensor([1.0 + 1e-9, 1, 1, 1], dtype=torch.float64)}
    assert sparsity({"w": base["w"].double()}, same).item() == 1
    assert sparsity({"w": base["w"].double()}, same, dtype=torch.float64).item() == 0.75


def test_cosine_by_hand() -> None:
    a, b = {"w": torch.tensor([1.0, 0]), "b": torch.tensor([0.0])}, {"w": torch.tensor([1.0, 1]), "b": torch.zeros(1)}
    opposite = {name: -2 * tensor for name, tensor in a.items()}
    assert cosine(a, b).item() == pytest.approx(math.sqrt(0.5))
    assert cosine(a, opposite).item() == -1
    assert math.isnan(cosine(a, {name: 0 * tensor for name, tensor in a.items()}).item())


@pytest.mark.parametrize("measure", MEASURES)
def test_many_runs_at_once(measure) -> None:
    base, runs = weights(), [moved(weights(), weights(seed, scale=0.1)) for seed in (1, 2, 3)]
    stacked = {name: torch.stack([run[name] for run in runs]) for name in base}
    together = torch.vmap(measure, in_dims=(None, 0))(base, stacked)
    torch.testing.assert_close(together, torch.stack([measure(base, run) for run in runs]))


@pytest.mark.parametrize("measure", [l1, l2, spectral, relative_rank])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_diverged_run_spoils_only_itself(measure, bad: float) -> None:
    base, good = weights(), weights(1)
    broken = good | {"a.weight": good["a.weight"] * bad}
    stacked = {name: torch.stack([good[name], broken[name]]) for name in base}
    together = torch.vmap(measure, in_dims=(None, 0))(base, stacked)
    torch.testing.assert_close(together[0], measure(base, good))
    assert not together[1].isfinite()


class TestDiagonalFisher:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5)).double()
    inputs = torch.randn(7, 3, generator=seeded(), dtype=torch.float64)

    def logits(self, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(self.model, parameters, (x,))

    def test_is_its_definition(self) -> None:
        """Squared gradients of every outcome's log-probability, weighted by its probability, one by one."""
        parameters = dict(self.model.named_parameters())
        expected = {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}
        for x in self.inputs:
            log_probs = self.model(x).log_softmax(-1)
            for log_prob in log_probs:
                gradients = torch.autograd.grad(log_prob, list(parameters.values()), retain_graph=True)
                for name, gradient in zip(parameters, gradients, strict=True):
                    expected[name] += log_prob.exp().detach() * gradient.square() / len(self.inputs)
        for chunk in (1, 3, 100):
            fisher = diagonal_fisher(self.logits, parameters, self.inputs, chunk=chunk)
            torch.testing.assert_close(fisher, {name: tensor.detach() for name, tensor in expected.items()})
            assert not any(tensor.requires_grad for tensor in fisher.values())

    def test_softmax_in_closed_form(self) -> None:
        p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
        fisher = diagonal_fisher(lambda w, _: w["logits"], {"logits": p.log()}, torch.zeros(1, 1))
        torch.testing.assert_close(fisher["logits"], p * (1 - p))

    def test_half_its_square_is_the_kl_of_a_small_change(self) -> None:
        """Of one weight, so that nothing is off the diagonal."""
        base = {name: tensor.detach() for name, tensor in self.model.named_parameters()}
        tuned = {name: tensor.clone() for name, tensor in base.items()}
        tuned["2.weight"][1, 2] += 1e-4
        distance = fisher_l2(base, tuned, diagonal_fisher(self.logits, base, self.inputs))
        kl = forward_kl(self.logits(base, self.inputs), self.logits(tuned, self.inputs)).mean()
        assert distance.item() ** 2 / 2 == pytest.approx(kl.item(), rel=1e-3)

    def test_bad_input(self) -> None:
        with pytest.raises(ValueError, match="chunk"):
            diagonal_fisher(self.logits, {}, self.inputs, chunk=0)
        with pytest.raises(ValueError, match="inputs"):
            diagonal_fisher(self.logits, {}, self.inputs[:0])


@pytest.mark.parametrize("measure", [*MEASURES, cosine, update, lambda a, b: fisher_l2(a, a, b)])
def test_bad_input(measure) -> None:
    base = weights()
    with pytest.raises(ValueError, match=r"only one of the two has \['conv'\]"):
        measure(base, {name: base[name] for name in base if name != "conv"})
    with pytest.raises(ValueError, match=r"conv has two shapes: \(3, 2, 2, 2\) and \(3,\)"):
        measure(base, base | {"conv": torch.zeros(3)})
    with pytest.raises(ValueError, match="no floating-point"):
        measure({"steps": torch.tensor(1)}, {"steps": torch.tensor(1)})


def test_bad_numbers() -> None:
    with pytest.raises(ValueError, match="tolerance"):
        sparsity(BASE, TUNED, tolerance=-1.0)
    with pytest.raises(ValueError, match="no weight matrix"):
        spectrum({"b": torch.zeros(3)}, {"b": torch.ones(3)})


def test_agreement_by_hand() -> None:
    """Eight weights, of two binades: the small ones change in both, one of the large ones in one each."""
    base = {"a": torch.tensor([0.5, 0.5, 0.5, 0.5, 4.0, 4.0, 4.0, 4.0])}
    first = {"a": base["a"] + torch.tensor([1.0, 1, 1, 1, 1, 0, 0, 0])}
    second = {"a": base["a"] + torch.tensor([1.0, 1, 1, 1, 0, 1, 0, 0])}
    found = agreement(base, first, second)
    assert found.jaccard == pytest.approx(4 / 6)
    expected = 8 * (5 / 8) ** 2
    assert found.chance == pytest.approx(expected / (10 - expected))
    by_size = 4 + 4 * (1 / 4) ** 2
    assert found.chance_by_size == pytest.approx(by_size / (10 - by_size))
    assert agreement(base, first, first).jaccard == 1
    assert agreement(base, base, base).jaccard.isnan(), "nothing changed"
    with pytest.raises(ValueError, match="two shapes"):
        agreement(base, first, {"a": torch.zeros(3)})


def test_sets_drawn_at_random_agree_as_chance_has_them() -> None:
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(200, 300, generator=generator) for name in ("a", "b")}
    first, second = (
        {n: w + (torch.rand(w.shape, generator=generator) < share) for n, w in base.items()} for share in (0.2, 0.3)
    )
    found = agreement(base, first, second)
    assert found.jaccard == pytest.approx(0.06 / 0.44, abs=0.005)
    assert float(found.chance) == pytest.approx(float(found.jaccard), abs=0.005)
    assert float(found.chance_by_size) == pytest.approx(float(found.chance), abs=1e-3)
