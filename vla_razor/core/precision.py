"""What the measures compute in: float64 inside, float32 outside unless an argument is float64."""

from __future__ import annotations

import torch
from torch import Tensor

_SERIES_BELOW = 1e-3
"""Below this |d| the five-term series of exp(d) - 1 - d is exact to double precision."""


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """float64, or float32 on Apple's GPUs, which have no float64."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def wide(tensor: Tensor) -> Tensor:
    """The tensor in `wide_dtype`."""
    return tensor.to(wide_dtype(tensor))


def narrow(result: Tensor, *inputs: Tensor) -> Tensor:
    """The result in float32, or as it is where one of the `inputs` is float64."""
    return result if any(tensor.dtype == torch.float64 for tensor in inputs) else result.float()


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32 where its type is narrower."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def expm1_minus(d: Tensor) -> Tensor:
    """exp(d) - 1 - d, never negative and to full relative precision at small d."""
    small = d.abs() < _SERIES_BELOW
    s, large = torch.where(small, d, 0), torch.where(small, 1, d)
    series = s * s / 2 * (1 + s / 3 * (1 + s / 4 * (1 + s / 5 * (1 + s / 6))))
    return torch.where(small, series, torch.expm1(large) - large)
