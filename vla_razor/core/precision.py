"""What the measures compute in: float64 inside, float32 outside unless an argument is float64."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float64, or in float32 on Apple's GPUs, which have no float64."""
    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def narrow(result: Tensor, *inputs: Tensor) -> Tensor:
    """The result in float32, or as it is where one of the `inputs` is float64."""
    return result if any(tensor.dtype == torch.float64 for tensor in inputs) else result.float()


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32 where its type is narrower."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
