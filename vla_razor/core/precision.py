"""What the measures compute in: float64 inside, float32 outside unless an argument is float64."""

from __future__ import annotations

import torch
from torch import Tensor


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
