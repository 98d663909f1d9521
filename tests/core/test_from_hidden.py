"""Divergences from hidden states, against those of the whole logits."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.core.test_divergence import ALL, quick, randn
from vla_razor.core import from_hidden
from vla_razor.core.divergence import divergences_from_hidden, forward_kl, forward_kl_from_hidden


@pytest.fixture(autouse=True, scope="module", params=[4096, 10])
def pieces_of_the_vocabulary(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(from_hidden, "WORDS", request.param)
        yield


def inputs(n: int = 9, v: int = 37, h: int = 5, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [randn(*shape, seed=i, dtype=dtype) for i, shape in enumerate([(n, h), (v, h), (n, h), (v, h)])]


@pytest.mark.parametrize("chunk", [1, 4, 36, 37, 1000])
def test_agrees_with_the_whole_logits(chunk: int) -> None:
    base_hidden, base_head, tuned_hidden, tuned_head = inputs()
    expected = forward_kl(base_hidden @ base_head.T, tuned_hidden @ tuned_head.T)
    result = forward_kl_from_hidden(base_hidden, base_head, tuned_hidden, tuned_head, chunk=chunk)
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=0)


def test_policies_of_different_width() -> None:
    base_hidden, base_head, _, _ = inputs()
    tuned_hidden, tuned_head = randn(9, 8, seed=7), randn(37, 8, seed=8)
    expected = forward_kl(base_hidden @ base_head.T, tuned_hidden @ tuned_head.T)
    result = forward_kl_from_hidden(base_hidden, base_head, tuned_hidden, tuned_head, chunk=10)
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=0)


@quick
@given(scale=st.floats(0, 1), chunk=st.integers(1, 40), seed=st.integers(0, 1000))
def test_chunkings_agree_and_are_never_negative(scale: float, chunk: int, seed: int) -> None:
    base_hidden, base_head, _, _ = inputs()
    tuned_hidden = base_hidden + scale * randn(9, 5, seed=seed)
    once = forward_kl_from_hidden(base_hidden, base_head, tuned_hidden, base_head, chunk=37)
    pieces = forward_kl_from_hidden(base_hidden, base_head, tuned_hidden, base_head, chunk=chunk)
    torch.testing.assert_close(pieces, once, rtol=1e-9, atol=1e-14)
    assert (pieces >= 0).all()


def test_equal_policies_are_at_zero() -> None:
    hidden, head, _, _ = inputs(dtype=torch.float32)
    assert (forward_kl_from_hidden(hidden, head, hidden, head, chunk=10) == 0).all()


def test_gradients() -> None:
    base_hidden, base_head, tuned_hidden, tuned_head = inputs(n=3, v=11)

    def divergence_of(hidden: Tensor, head: Tensor) -> Tensor:
        return forward_kl_from_hidden(base_hidden, base_head, hidden, head, chunk=4)

    leaves = tuned_hidden.requires_grad_(), tuned_head.requires_grad_()
    assert torch.autograd.gradcheck(divergence_of, leaves)


def test_gradients_for_one_input_alone() -> None:
    base_hidden, base_head, tuned_hidden, tuned_head = inputs(dtype=torch.float32)
    tuned_hidden.requires_grad_()
    forward_kl_from_hidden(base_hidden, base_head, tuned_hidden, tuned_head, chunk=4).sum().backward()
    reference = tuned_hidden.detach().clone().requires_grad_()
    forward_kl(base_hidden @ base_head.T, reference @ tuned_head.T).sum().backward()
    torch.testing.assert_close(tuned_hidden.grad, reference.grad)
    assert tuned_head.grad is None


@pytest.mark.parametrize("move_head", [False, True])
def test_nearly_equal_policies_keep_their_digits_in_float32(move_head: bool) -> None:
    hidden, head = randn(64, 32, dtype=torch.float32), randn(5000, 32, seed=1, dtype=torch.float32)
    tuned_hidden = hidden + 1e-5 * randn(64, 32, seed=2, dtype=torch.float32)
    tuned_head = head + (1e-5 * randn(5000, 32, seed=3, dtype=torch.float32) if move_head else 0)
    exact = forward_kl(hidden.double() @ head.double().T, tuned_hidden.double() @ tuned_head.double().T)
    assert exact.median() < 1e-8
    result = forward_kl_from_hidden(hidden, head, tuned_hidden, tuned_head, chunk=512)
    np.testing.assert_allclose(result, exact, rtol=2e-3)


@pytest.mark.parametrize("change", [1e-4, 1e-3, 3e-3, 1e-2, 0.1])
def test_with_a_head_each_digits_are_kept_at_every_distance(change: float) -> None:
    """Whether close policies take a product more or not; also of tokens that are nearly certain."""
    hidden, head = randn(64, 32, dtype=torch.float32), randn(5000, 32, seed=1, dtype=torch.float32)
    tuned_hidden = hidden + change * randn(64, 32, seed=2, dtype=torch.float32)
    tuned_head = head + change * randn(5000, 32, seed=3, dtype=torch.float32)
    exact = forward_kl(hidden.double() @ head.double().T, tuned_hidden.double() @ tuned_head.double().T)
    result = forward_kl_from_hidden(hidden, head, tuned_hidden, tuned_head, chunk=512)
    np.testing.assert_allclose(result, exact, rtol=1e-3)


def test_never_holds_the_logits() -> None:
    """The largest tensor made, forward or backward, is far below [N, V]."""
    n, v, h, chunk = 64, 5_000, 8, 200
    base_hidden, base_head, tuned_hidden, tuned_head = inputs(n, v, h, torch.float32)
    tuned_hidden.requires_grad_()
    tuned_head.requires_grad_()
    with LargestTensor() as largest:
        forward_kl_from_hidden(base_hidden, base_head, tuned_hidden, tuned_head, chunk=chunk).sum().backward()
    assert largest.elements <= max(n * chunk, v * h)


def test_shapes_are_checked() -> None:
    a, b, c, d = inputs()
    with pytest.raises(ValueError, match="matrices"):
        forward_kl_from_hidden(a[0], b, c, d, chunk=4)
    with pytest.raises(ValueError, match="same N and V"):
        forward_kl_from_hidden(a, b, c[:4], d, chunk=4)
    with pytest.raises(ValueError, match="same N and V"):
        forward_kl_from_hidden(a, b, c, d[:4], chunk=4)
    with pytest.raises(ValueError, match="same N and V"):
        forward_kl_from_hidden(a, b[:, :3], c, d, chunk=4)
    with pytest.raises(ValueError, match="chunk"):
        forward_kl_from_hidden(a, b, c, d, chunk=0)


@pytest.mark.parametrize("move_head", [False, True])
def test_policies_far_apart(move_head: bool) -> None:
    """Words whose probability grew by more than float32 can hold, and gradients that are nearly those of one word."""
    hidden, head = randn(6, 16, dtype=torch.float32), randn(50, 16, seed=1, dtype=torch.float32)
    tuned_hidden = (30 * randn(6, 16, seed=2, dtype=torch.float32)).requires_grad_()
    tuned_head = randn(50, 16, seed=3, dtype=torch.float32) if move_head else head
    reference = tuned_hidden.detach().double().requires_grad_()
    exact = forward_kl(hidden.double() @ head.double().T, reference @ tuned_head.double().T)
    assert exact.max() > 60
    result = forward_kl_from_hidden(hidden, head, tuned_hidden, tuned_head, chunk=20)
    np.testing.assert_allclose(result.detach(), exact.detach(), rtol=1e-5)
    result.sum().backward()
    exact.sum().backward()
    assert tuned_hidden.grad is not None and reference.grad is not None
    torch.testing.assert_close(tuned_hidden.grad, reference.grad.float(), rtol=1e-4, atol=1e-4)


def test_a_shift_of_all_logits_changes_nothing() -> None:
    """A hidden feature on which every word of the tuned head weighs the same."""
    hidden, head = randn(6, 16, dtype=torch.float32), randn(50, 16, seed=1, dtype=torch.float32)
    tuned = hidden + 1e-2 * randn(6, 16, seed=2, dtype=torch.float32)
    plain = forward_kl_from_hidden(hidden, head, tuned, head, chunk=20)
    ones, shift = torch.ones(6, 1), torch.tensor([0.0, 1.0, -5.0, 20.0, 90.0, -90.0])[:, None]
    wider = torch.cat([head, torch.ones(50, 1)], 1)
    shifted = forward_kl_from_hidden(
        torch.cat([hidden, 0 * ones], 1), wider, torch.cat([tuned, shift], 1), wider, chunk=20
    )
    np.testing.assert_allclose(shifted, plain, rtol=1e-2)
    np.testing.assert_allclose(shifted[:4], plain[:4], rtol=2e-3)


def test_all_divergences_are_those_of_the_whole_logits() -> None:
    base_hidden, base_head, tuned_hidden, tuned_head = inputs()
    found = divergences_from_hidden(base_hidden, base_head, tuned_hidden, tuned_head, chunk=8)
    for measure, values in zip(ALL, found, strict=True):
        expected = measure(base_hidden @ base_head.T, tuned_hidden @ tuned_head.T)
        torch.testing.assert_close(values, expected, rtol=1e-10, atol=0)
        assert values is getattr(found, measure.__name__)


class LargestTensor(TorchDispatchMode):
    """Records the most elements of any tensor that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result
