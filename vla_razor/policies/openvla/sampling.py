"""Drawing bins from logits, by inverting the cumulative distribution at uniform numbers drawn beforehand."""

import torch
from jaxtyping import Float, Float32, Float64, Int
from torch import Tensor
from torch.nn import functional as F


def uniforms(batch: int, tokens: int, generator: torch.Generator | None) -> Float64[Tensor, "batch tokens"]:
    """Uniform numbers in [0, 1) on the generator's own device (None: torch's global generator)."""
    device = "cpu" if generator is None else generator.device
    return torch.rand(batch, tokens, dtype=torch.float64, device=device, generator=generator)


def prepared(
    uniforms_given: Float[Tensor, "B A"] | None,
    temperature: float,
    shape: tuple[int, int],
    generator: torch.Generator | None,
    device: torch.device,
) -> Float[Tensor, "B A"] | None:
    """The numbers that a decision of this shape is sampled by, drawn where none are given; None at temperature 0, where
    the likeliest tokens are taken. Raises `ValueError` for a negative temperature.
    """
    if temperature < 0:
        raise ValueError(f"temperature must not be negative, got {temperature}")
    if not temperature:
        return None
    return (uniforms(*shape, generator) if uniforms_given is None else uniforms_given).to(device)


def log_probs_of(
    chosen: Int[Tensor, "B A"], logits: Float32[Tensor, "B A 256"], temperature: float
) -> Float32[Tensor, "B A"]:
    """Of the chosen bins, under the sampling temperature (under 1 where the choice was greedy), in nats."""
    return F.log_softmax(logits / (temperature or 1.0), -1).gather(-1, chosen[..., None])[..., 0]


def choose(
    logits: Float32[Tensor, "B 256"], temperature: float, uniforms: Float[Tensor, "B A"] | None, step: int
) -> Int[Tensor, " B"]:
    """The likeliest bins, or those where the cumulative probability passes the uniform numbers."""
    if uniforms is None:
        return logits.argmax(-1)
    cumulative = torch.softmax(logits.double() / temperature, -1).cumsum(-1)
    target = uniforms[:, step : step + 1] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp_(max=logits.shape[-1] - 1)
