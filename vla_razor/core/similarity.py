"""How much of a policy's representation survived: two sets of activations of the same n inputs, [n, d] and [n, d'].

CKA and CKNNA compare how the inputs lie relative to each other, and are invariant to a rotation of the features, a
scale and a shift (paper, Appendices B.4 and C.1). The activation changes compare feature by feature (Section 6). All
compute in float64; the result is float32, or float64 where an argument is.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vla_razor.core.precision import at_least_float32, narrow, wide

_ROWS_AT_ONCE = 1024
"""Neighbours are looked for this many rows at a time, so that memory grows with n and not with its square."""


def cka(base: Float[Tensor, "n d"], tuned: Float[Tensor, "n d2"], *, unbiased: bool = False) -> Float[Tensor, ""]:
    """Linear centred kernel alignment <HKH, HLH> / (|HKH| |HLH|) of K = X X' and L = Y Y' (Kornblith et al., 2019;
    paper, Appendix B.4). In [0, 1], and 1 for equal geometries.

    That ratio tends to 1 for *any* two representations when d outgrows n. `unbiased` replaces its three inner
    products by their unbiased estimates (HSIC_1 of Song et al., 2012), so that independent representations score 0 on
    average; it may be negative. The paper's formula is the biased one.

    Memory grows with n and the smaller of n^2 and d d'. Raises ValueError where the two are not matrices of equally
    many rows, there are too few rows (two; four for `unbiased`) or a representation does not vary over them.
    """
    x, y = _centred(base, tuned, rows=4 if unbiased else 2)
    inner = _unbiased_hsic if unbiased else _squared_cross
    return narrow(inner(x, y) / (inner(x, x) * inner(y, y)).sqrt(), base, tuned)


def cknna(base: Float[Tensor, "n d"], tuned: Float[Tensor, "n d2"], *, k: int = 10) -> Float[Tensor, ""]:
    """CKA restricted to nearest neighbours (Huh et al., "The Platonic Representation Hypothesis", 2024, Section 2;
    paper, Appendix B.4). 1 for equal local geometries, about 0 where no neighbour is kept.

    With centred kernels K, L and a(K, L)_ij = 1 where j is among the k nearest neighbours of i in both, i != j, it is
    A(K, L) / sqrt(A(K, K) A(L, L)), A(K, L) = sum_ij a(K, L)_ij K_ij L_ij. The paper writes one mask, the common one,
    in the denominator too. Then neighbours that were lost would not count, so this follows Huh et al., whose measure
    it cites: each norm is over that representation's own neighbours.

    Neighbours are the nearest in Euclidean distance, which for the unit vectors of Huh et al. is the order of their
    inner products. Where several are equally near, which of them count is arbitrary.

    Memory grows with n (k + d). Raises ValueError as `cka` does, or where `k` is not in 1 ... n - 1.
    """
    x, y = _centred(base, tuned, rows=2)
    if not 1 <= k < len(x):
        raise ValueError(f"k must be at least 1 and below the number of inputs, {len(x)}, got {k}")
    near_x, near_y = _neighbours(x, k), _neighbours(y, k)
    # Kernels are needed only between neighbours: [n, k] entries of the n^2.
    shared = (near_x[:, :, None] == near_y[:, None, :]).any(2)
    of_x, of_y = _inner_products(x, near_x), _inner_products(y, near_y)
    both = (shared * of_x * _inner_products(y, near_x)).sum()
    return narrow(both / (of_x.square().sum() * of_y.square().sum()).sqrt(), base, tuned)


def activation_l1(base: Float[Tensor, "n d"], tuned: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """The L1 distance between the two activation vectors of an input, averaged over the n inputs (paper, Section 6).

    Raises ValueError where the two are not matrices of one shape.
    """
    return narrow(wide(_change(base, tuned).abs().sum(1)).mean(), base, tuned)


def activation_l2(base: Float[Tensor, "n d"], tuned: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """The Euclidean distance between the two activation vectors, as `activation_l1`."""
    return narrow(wide(_change(base, tuned).square().sum(1)).sqrt().mean(), base, tuned)


def _squared_cross(x: Tensor, y: Tensor) -> Tensor:
    """|X' Y|^2 = <X X', Y Y'>, computed through the smaller of the two products."""
    if len(x) ** 2 < x.shape[1] * y.shape[1]:
        return ((x @ x.T) * (y @ y.T)).sum()
    return (x.T @ y).square().sum()


def _unbiased_hsic(x: Tensor, y: Tensor) -> Tensor:
    """HSIC_1 of Song et al. (JMLR 2012, equation 5), up to the factor n (n - 3) that cancels in CKA.

    With centred features the rows of K sum to 0. Without their diagonals k and l, the kernels' inner product is
    <K, L> - k.l, their sums are -tr K and -tr L, and the inner product of their row sums is k.l.
    """
    n, k, l = len(x), x.square().sum(1), y.square().sum(1)  # noqa: E741
    return _squared_cross(x, y) - (k @ l) * n / (n - 2) + k.sum() * l.sum() / ((n - 1) * (n - 2))


def _neighbours(x: Tensor, k: int) -> Int[Tensor, "n k"]:
    found: list[Tensor] = []
    for start in range(0, len(x), _ROWS_AT_ONCE):
        distances = torch.cdist(x[start : start + _ROWS_AT_ONCE], x)
        distances.diagonal(start).fill_(torch.inf)  # not itself
        found.append(distances.topk(k, largest=False).indices)
    return torch.cat(found)


def _inner_products(x: Tensor, others: Tensor) -> Tensor:
    """x_i . x_j for j = others[i, :], one neighbour at a time so as never to hold [n, k, d]."""
    return torch.stack([(x * x[column]).sum(1) for column in others.T], 1)


def _change(base: Tensor, tuned: Tensor) -> Tensor:
    if base.ndim != 2 or base.shape != tuned.shape or 0 in base.shape:
        raise ValueError(f"expected two matrices [n, d] of one shape, got {tuple(base.shape)} and {tuple(tuned.shape)}")
    return at_least_float32(tuned) - at_least_float32(base)  # of nearly equal numbers, this is exact


def _centred(base: Tensor, tuned: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    if base.ndim != 2 or tuned.ndim != 2 or len(base) != len(tuned) or len(base) < rows:
        shapes = tuple(base.shape), tuple(tuned.shape)
        raise ValueError(f"expected [n, d] and [n, d'] with the same n of at least {rows}, got {shapes}")
    for tensor in (base, tuned):
        if not tensor.isfinite().all() or (tensor == tensor[0]).all():
            raise ValueError("the representations must be finite and must vary over the inputs")
    x, y = wide(base), wide(tuned)
    return x - x.mean(0), y - y.mean(0)
