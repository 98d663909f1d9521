"""How far the weights moved: the measures with which the paper's Section 6 compares forward KL as a predictor.

Weights are mappings from name to tensor, as `state_dict()` or `dict(named_parameters())` gives them. Entries that are
not floating-point, such as counters, are left out. Differences are taken in float64, and results are float64 scalars.
Every function but `agreement` works under `torch.vmap`: the weights of many runs, stacked on a leading axis, are
measured at once by `torch.vmap(l1, in_dims=(None, 0))(base, stacked)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor

from vla_razor.core.precision import wide

Weights = Mapping[str, Tensor]
Scalar = Float[Tensor, ""]


def update(base: Weights, tuned: Weights) -> dict[str, Tensor]:
    """tuned - base, entry by entry, in float64.

    Raises ValueError where the two have different names or shapes, or nothing in common to compare.
    """
    return {name: _constant(tuned[name]) - _constant(base[name]) for name in _floating(base, tuned)}


def l1(base: Weights, tuned: Weights) -> Scalar:
    """Sum of the absolute changes of all weights. Raises ValueError as `update` does."""
    return _total(delta.abs().sum() for delta in update(base, tuned).values())


def l2(base: Weights, tuned: Weights) -> Scalar:
    """Euclidean norm of the change of all weights. Raises ValueError as `update` does."""
    return _total(delta.square().sum() for delta in update(base, tuned).values()).sqrt()


def fisher_l2(base: Weights, tuned: Weights, fisher: Weights) -> Scalar:
    """sqrt(sum_i F_i change_i^2), where F is the base's diagonal Fisher information (`diagonal_fisher`), in the paper
    over inputs of the prior task.

    Half its square estimates the KL from the base on those inputs to second order, without the terms off the diagonal
    (elastic weight consolidation: Kirkpatrick et al., 2017). Raises ValueError as `update` does.
    """
    _floating(base, fisher)
    return _total((_constant(fisher[name]) * d.square()).sum() for name, d in update(base, tuned).items()).sqrt()


class Spectrum(NamedTuple):
    """From the singular values of a change: `norm`, the largest one of any weight matrix, and `rank`, a share."""

    norm: Scalar
    rank: Scalar


def spectrum(base: Weights, tuned: Weights) -> Spectrum:
    """The spectral norm of the change and its numerical rank, from one decomposition of each weight matrix.

    The norm is that of all matrices as the blocks of one block-diagonal operator; the paper does not say how it
    combines its matrices. The rank is a share of the largest possible one, averaged over the matrices, in [0, 1].

    A singular value counts towards the rank where rounding the weights cannot explain it. Storage rounds each entry by
    at most eps/2 of its size, and no singular value moves by more than the Frobenius norm of that error. So the
    threshold is eps/2 (|base| + |tuned|), with the eps of the coarser of the two types. The usual threshold, eps times
    the largest singular value *of the change*, is far below that error where the change is small: any rank-one update
    would count as full-rank as soon as it has been added to weights.

    Vectors (biases, norms) are left out; tensors of three or more axes (convolutions) count as [first axis, the rest].
    NaN where a weight is not finite. Raises ValueError as `update` does, or where there is no matrix.
    """
    norms: list[Tensor] = []
    shares: list[Tensor] = []
    for name, delta in _matrices(update(base, tuned)).items():
        before, after = base[name], tuned[name]
        eps = max(torch.finfo(before.dtype).eps, torch.finfo(after.dtype).eps)
        noise = eps / 2 * (_norm(before) + _norm(after))
        values = _singular_values(delta, eps)
        norms.append(values.amax())
        shares.append(torch.where(values.isnan().any(), torch.nan, (values > noise).double().mean()))
    return Spectrum(torch.stack(norms).amax(), torch.stack(shares).mean())


def sparsity(base: Weights, tuned: Weights, *, dtype: torch.dtype = torch.float32, tolerance: float = 0.0) -> Scalar:
    """Share of the weights that did not change, after both are rounded to `dtype`; in [0, 1].

    With bfloat16 it shows the paper's explanation of sparse RL updates: a change below half a unit in the last of eight
    binary digits vanishes. The paper gives no tolerance, and unchanged means equal here. Mukherjee et al.
    (arXiv:2505.11711) take changes of up to 1e-5 for none; that tolerance finds "sparsity" in float32 as well.

    Raises ValueError as `update` does, or where `tolerance` is negative.
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance must not be negative, got {tolerance}")
    names = _floating(base, tuned)
    deltas = [_constant(tuned[name].to(dtype)) - _constant(base[name].to(dtype)) for name in names]
    unchanged = _total((delta.abs() <= tolerance).double().sum() for delta in deltas)
    return unchanged / sum(delta.numel() for delta in deltas)


class Agreement(NamedTuple):
    """How far two trainings of one base changed the same weights: the Jaccard index of their sets of changed weights,
    and its expected value for sets drawn at random. In [0, 1].
    """

    jaccard: Scalar
    chance: Scalar
    """For random sets that are as large in each tensor."""
    chance_by_size: Scalar
    """For random sets that hold as many weights of each binade of the base in each tensor. In low precision an update
    is lost where it is small *beside the weight*, which has nothing to do with the training.
    """


def agreement(base: Weights, first: Weights, second: Weights) -> Agreement:
    """The overlap of two updates, each weight counting as changed where it is not equal to the base's.

    A chance is the ratio of the expected intersection to the expected union. NaN where nothing changed. Raises
    ValueError as `update` does.
    """
    # The expected overlap of two random subsets of n weights, with a and b members, is a b / n. It is summed over the
    # parts that are drawn from: whole tensors, or the weights of one binade in a tensor.
    names = [name for name in _floating(base, first) if name in _floating(base, second)]
    both = either = base[names[0]].new_zeros((), dtype=torch.float64)
    expected = {"tensor": [both.clone(), both.clone()], "binade": [both.clone(), both.clone()]}
    for name in names:
        a, b = (first[name] != base[name]).double().flatten(), (second[name] != base[name]).double().flatten()
        both, either = both + (a * b).sum(), either + torch.maximum(a, b).sum()
        binades = torch.frexp(_constant(base[name])).exponent.flatten()
        parts = {"tensor": torch.zeros_like(binades), "binade": binades - binades.amin()}
        for kind, part in parts.items():
            size, one, other = (torch.bincount(part.long(), weight) for weight in (torch.ones_like(a), a, b))
            shared = one * other / size.clamp_min(1)
            expected[kind][0] += shared.sum()
            expected[kind][1] += (one + other - shared).sum()
    return Agreement(both / either, *(shared / union for shared, union in expected.values()))


def summary(
    base: Weights, tuned: Weights, *, largest: float = 2048, done: Callable[[], object] = lambda: None
) -> dict[str, float | None]:
    """`l1`, `l2`, `spectral` (the norm of `spectrum`), `rank` and `sparsity` of a whole model's change, as the
    functions of these names compute them, and `rank_bfloat16` and `sparsity_bfloat16` of the weights rounded to
    bfloat16. A matrix that did not change has rank 0.

    Weights are read one pair at a time, so that mappings which read from a file hold no more in memory; `done` is
    called after each. `spectral` and the ranks are None where a matrix that changed has more than `largest` rows and
    columns: decomposing the matrices of billions of parameters takes hours. Raises ValueError as `update` does.
    """
    if base.keys() != tuned.keys():
        update(base, tuned)
    absolute = squares = weights = same = same_rounded = 0.0
    spectra: list[tuple[float, float, float]] = []
    too_large = False
    for name in base:
        before, after = {name: base[name]}, {name: tuned[name]}
        weight = before[name]
        absolute += float(l1(before, after))
        squares += float(l2(before, after)) ** 2
        weights += weight.numel()
        same += weight.numel() * float(sparsity(before, after))
        same_rounded += weight.numel() * float(sparsity(before, after, dtype=torch.bfloat16))
        if weight.ndim > 1 and torch.equal(weight, after[name]):
            spectra.append((0.0, 0.0, 0.0))
        elif weight.ndim > 1 and min(weight.flatten(1).shape) <= largest:
            found = spectrum(before, after)
            rounded = spectrum({name: weight.bfloat16()}, {name: after[name].bfloat16()})
            spectra.append((float(found.norm), float(found.rank), float(rounded.rank)))
        elif weight.ndim > 1:
            too_large = True
        done()
    norms, ranks, rounded_ranks = zip(*spectra, strict=True) if spectra else ((), (), ())
    known = bool(spectra) and not too_large
    return {
        "l1": absolute,
        "l2": squares**0.5,
        "spectral": max(norms) if known else None,
        "rank": sum(ranks) / len(ranks) if known else None,
        "rank_bfloat16": sum(rounded_ranks) / len(rounded_ranks) if known else None,
        "sparsity": same / weights,
        "sparsity_bfloat16": same_rounded / weights,
    }


def cosine(first: Weights, second: Weights) -> Scalar:
    """Cosine of the angle between two directions in weight space, each a mapping like the weights; NaN where one is 0.

    With the gradient of the prior task's loss and the `update` of a training step, a positive cosine is a step that
    raises that loss, to first order (paper, Appendix C.3). Raises ValueError as `update` does.
    """
    names = _floating(first, second)
    pairs = [(_constant(first[name]), _constant(second[name])) for name in names]
    a, b = _total(x.square().sum() for x, _ in pairs), _total(y.square().sum() for _, y in pairs)
    return _total((x * y).sum() for x, y in pairs) / (a.sqrt() * b.sqrt())


def diagonal_fisher(
    logits: Callable[[dict[str, Tensor], Tensor], Float[Tensor, " V"]],
    parameters: Weights,
    inputs: Float[Tensor, "N ..."],
    *,
    chunk: int = 2,
) -> dict[str, Tensor]:
    """E_x E_{y ~ pi(.|x)} (d log pi(y|x) / d weight)^2 for every weight: the diagonal of the Fisher information.

    The expectation over y is exact, under the policy itself and over all V outcomes. With labels from data instead it
    would be the "empirical Fisher", which is something else (Kunstner et al., 2019). `logits(parameters, x)` returns
    the logits of one input, as `torch.func.functional_call(model, parameters, (x,))` does. `chunk` inputs are
    differentiated at a time, which takes memory for chunk * V copies of the parameters; small chunks are fastest on a
    CPU, larger ones on a GPU.

    Raises ValueError where there is no input or `chunk` is below 1.
    """
    if len(inputs) == 0 or chunk < 1:
        raise ValueError(f"diagonal_fisher needs inputs and a chunk of at least 1, got {len(inputs)} and {chunk}")
    weights = {name: tensor.detach() for name, tensor in parameters.items()}

    def scores(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        """sqrt(pi) log pi with the root held constant: the squares of its derivatives sum to the expectation over y."""
        log_probs = torch.log_softmax(logits(parameters, x), -1)
        return (log_probs.detach() / 2).exp() * log_probs

    jacobians: Any = torch.vmap(torch.func.jacrev(scores), in_dims=(None, 0))
    total = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in weights.items()}
    for start in range(0, len(inputs), chunk):
        for name, jacobian in cast("dict[str, Tensor]", jacobians(weights, inputs[start : start + chunk])).items():
            total[name] += jacobian.square().sum((0, 1))
    return {name: tensor / len(inputs) for name, tensor in total.items()}


def _matrices(deltas: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {name: delta.flatten(1) for name, delta in deltas.items() if delta.ndim > 1 and delta.numel()}
    if not found:
        raise ValueError("there is no weight matrix to measure")
    return found


def _singular_values(delta: Tensor, eps: float) -> Tensor:
    """The singular values of a change of weights that are precise to `eps`; all NaN where an entry is not finite, on
    which the decomposition would fail.
    """
    # The eigenvalues of the smaller Gram matrix take half the time. They lose what is below 1e-8 of the largest
    # singular value, the root of float64's precision; weights in float32 or less do not hold that either.
    finite = delta.isfinite().all()
    delta, linalg = torch.where(finite, delta, 0), cast("Any", torch.linalg)
    if eps < torch.finfo(torch.float32).eps:
        values: Tensor = linalg.svdvals(delta)
    else:
        gram = delta @ delta.mT if delta.shape[0] < delta.shape[1] else delta.mT @ delta
        values = linalg.eigvalsh(gram).clamp_min(0).sqrt()
    return torch.where(finite, values, torch.nan)


def _norm(weight: Tensor) -> Tensor:
    return _constant(weight).square().sum().sqrt()


def _total(parts: Any) -> Tensor:
    return torch.stack(list(parts)).sum()


def _constant(weight: Tensor) -> Tensor:
    return wide(weight.detach())


def _floating(base: Weights, tuned: Weights) -> list[str]:
    """Names of the floating-point entries, which both must have in the same shapes."""
    if base.keys() != tuned.keys():
        raise ValueError(
            f"the weights have different names: only one of the two has {sorted(base.keys() ^ tuned.keys())}"
        )
    for name in base:
        if base[name].shape != tuned[name].shape:
            raise ValueError(f"{name} has two shapes: {tuple(base[name].shape)} and {tuple(tuned[name].shape)}")
    names = [name for name in base if base[name].is_floating_point() and tuned[name].is_floating_point()]
    if not names:
        raise ValueError("there are no floating-point weights to compare")
    return names
