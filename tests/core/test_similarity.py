"""CKA and CKNNA against their definitions with explicit kernels, masks and centring matrices."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vla_razor.core import similarity
from vla_razor.core.similarity import activation_l1, activation_l2, cka, cknna

quick = settings(max_examples=30, deadline=None)
seeds = st.integers(0, 10_000)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unbiased_cka(x: Tensor, y: Tensor, **_) -> Tensor:
    return cka(x, y, unbiased=True)


MEASURES = [cka, unbiased_cka, cknna]


def centred_kernels(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    h = torch.eye(len(x), dtype=x.dtype) - 1 / len(x)
    return h @ x @ x.T @ h, h @ y @ y.T @ h


@pytest.mark.parametrize("shape", [(40, 3, 5), (6, 30, 20)])
def test_cka_is_its_definition(shape: tuple[int, int, int]) -> None:
    n, d, d2 = shape
    x, y = randn(n, d) + 3, randn(n, d2, seed=1)
    k, l = centred_kernels(x, y)  # noqa: E741
    torch.testing.assert_close(cka(x, y), torch.trace(k @ l) / (k.norm() * l.norm()))


def hsic_of_distinct_inputs(k: Tensor, l: Tensor) -> float:  # noqa: E741
    """HSIC as a U-statistic: the average of k_ij (l_ij + l_qr - 2 l_iq) over all ordered distinct i, j, q, r."""
    terms = [k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q]) for i, j, q, r in itertools.permutations(range(len(k)), 4)]
    return float(torch.stack(terms).mean())


def test_unbiased_cka_averages_over_distinct_inputs() -> None:
    x, y = randn(7, 3) + 2, randn(7, 4, seed=1)
    y[:, :2] += x[:, :2]
    k, l = x @ x.T, y @ y.T  # noqa: E741
    xy, xx, yy = (hsic_of_distinct_inputs(a, b) for a, b in ((k, l), (k, k), (l, l)))
    assert cka(x, y, unbiased=True).item() == pytest.approx(xy / math.sqrt(xx * yy))


def test_independent_representations() -> None:
    """With more features than inputs plain CKA is near 1 for pure noise; the unbiased one is near 0."""
    values = [
        (
            cka(randn(20, 200, seed=s), randn(20, 200, seed=-s - 1)).item(),
            cka(randn(20, 200, seed=s), randn(20, 200, seed=-s - 1), unbiased=True).item(),
        )
        for s in range(50)
    ]
    biased, unbiased = torch.tensor(values).mean(0).tolist()
    assert biased > 0.85
    assert abs(unbiased) < 0.02


@pytest.mark.parametrize("k", [1, 3, 10, 24])
def test_cknna_is_its_definition(k: int) -> None:
    x = randn(25, 4) + 1
    y = torch.cat([x[:, :2] + 0.3 * randn(25, 2, seed=1), randn(25, 1, seed=2)], 1)
    kernel_x, kernel_y = centred_kernels(x, y)

    def mask(z: Tensor) -> Tensor:
        order = [sorted((j for j in range(25) if j != i), key=lambda j: math.dist(z[i], z[j]))[:k] for i in range(25)]
        return torch.tensor([[j in order[i] for j in range(25)] for i in range(25)])

    own_x, own_y = mask(x), mask(y)
    expected = (own_x * own_y * kernel_x * kernel_y).sum() / (
        ((own_x * kernel_x**2).sum() * (own_y * kernel_y**2).sum()).sqrt()
    )
    torch.testing.assert_close(cknna(x, y, k=k), expected)


def test_cknna_by_hand() -> None:
    """Points on a line, k = 1. In x the pairs are (0, 1) and (2, 3)."""
    x = torch.tensor([[-3.0], [-2], [2], [3]])
    assert cknna(x, x, k=1).item() == pytest.approx(1)
    assert cknna(x, x[[0, 2, 1, 3]], k=1).item() == 0  # the pairs are (0, 2) and (1, 3)
    y = torch.tensor([[-2.0], [-3], [3], [10]])  # centred -4, -5, 1, 8; the neighbour of 2 is now 0
    shared = 2 * (6 * 20) + 6 * 8
    assert cknna(x, y, k=1).item() == pytest.approx(shared / math.sqrt(4 * 6**2 * (2 * 20**2 + 4**2 + 8**2)))


def test_pieces_of_rows_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = randn(50, 6), randn(50, 6, seed=1) + randn(50, 6)
    whole = cknna(x, y)
    monkeypatch.setattr(similarity, "_ROWS_AT_ONCE", 7)
    torch.testing.assert_close(cknna(x, y), whole)


@pytest.mark.parametrize("measure", MEASURES)
@quick
@given(seed=seeds, scale=st.floats(1e-3, 1e3), shift=st.floats(-10, 10))
def test_unmoved_by_rotation_scale_and_shift(measure, seed: int, scale: float, shift: float) -> None:
    x, y = randn(30, 5, seed=seed), randn(30, 5, seed=seed + 1)
    y = x + y
    rotation = torch.linalg.qr(randn(5, 5, seed=seed + 2)).Q
    torch.testing.assert_close(measure(scale * x @ rotation + shift, y), measure(x, y), rtol=1e-6, atol=1e-9)
    assert measure(x, scale * x @ rotation + shift).item() == pytest.approx(1)


@pytest.mark.parametrize("measure", MEASURES)
@quick
@given(seed=seeds, n=st.integers(12, 40), noise=st.floats(0, 10))
def test_symmetric_and_at_most_one(measure, seed: int, n: int, noise: float) -> None:
    x = randn(n, 4, seed=seed)
    y = torch.cat([x + noise * randn(n, 4, seed=seed + 1), randn(n, 2, seed=seed + 2)], 1)
    torch.testing.assert_close(measure(x, y), measure(y, x))
    assert measure(x, y) <= 1 + 1e-12


def test_cknna_sees_what_cka_does_not() -> None:
    """Two far clusters, their insides reshuffled: the global geometry is kept, the neighbourhoods are not."""
    centres = torch.cat([torch.full((50, 3), -10.0), torch.full((50, 3), 10.0)])
    x, y = centres + randn(100, 3), centres + randn(100, 3, seed=1)
    assert cka(x, y).item() > 0.95
    assert cknna(x, y).item() < 0.5


def test_activation_changes_by_hand() -> None:
    base, tuned = torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([[3.0, -4.0], [1.0, 1.0]])
    assert activation_l1(base, tuned).item() == pytest.approx(3.5)
    assert activation_l2(base, tuned).item() == pytest.approx(2.5)
    assert activation_l1(base, base).item() == activation_l2(base, base).item() == 0


@pytest.mark.parametrize("measure", [cka, cknna, activation_l1, activation_l2])
def test_precision(measure) -> None:
    x, y = randn(30, 5), randn(30, 5, seed=1)
    assert measure(x.bfloat16(), y.bfloat16()).dtype == torch.float32
    assert measure(x, y.float()).dtype == torch.float64
    offset = (x + 1000).float(), (y + 1000).float()  # a large mean costs nothing
    exact = measure(offset[0].double(), offset[1].double())
    torch.testing.assert_close(measure(*offset), exact.float())


def test_bad_input() -> None:
    x = randn(20, 4)
    for measure in MEASURES:
        with pytest.raises(ValueError, match="same n"):
            measure(x, x[:19])
        with pytest.raises(ValueError, match="same n"):
            measure(x[0], x[0])
        with pytest.raises(ValueError, match="vary"):
            measure(x, torch.ones(20, 4))
        with pytest.raises(ValueError, match="finite"):
            measure(x * math.nan, x)
    for change in (activation_l1, activation_l2):
        with pytest.raises(ValueError, match="one shape"):
            change(x, x[:, :3])
    with pytest.raises(ValueError, match="at least 4"):
        cka(x[:3], x[:3], unbiased=True)
    for k in (0, 20):
        with pytest.raises(ValueError, match="k must be"):
            cknna(x, x, k=k)
