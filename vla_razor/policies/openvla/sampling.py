"""Drawing bins from logits, by inverting the cumulative distribution at uniform numbers drawn beforehand."""

import torch
from jaxtyping import Float, Float32, Float64, Int
from torch import Tensor


def uniforms(batch: int, tokens: int, generator: torch.Generator | None) -> Float64[Tensor, "batch tokens"]:
    """Uniform numbers in [0, 1) on the generator's own device (None: torch's global generator)."""
    device = "cpu" if generator is None else generator.device
    return torch.rand(batch, tokens, dtype=torch.float64, device=device, generator=generator)


def choose(
    logits: Float32[Tensor, "B 256"], temperature: float, uniforms: Float[Tensor, "B A"] | None, step: int
) -> Int[Tensor, " B"]:
    """The likeliest bins, or those where the cumulative probability passes the uniform numbers."""
    if uniforms is None:
        return logits.argmax(-1)
    cumulative = torch.softmax(logits.double() / temperature, -1).cumsum(-1)
    target = uniforms[:, step : step + 1] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp_(max=logits.shape[-1] - 1)
