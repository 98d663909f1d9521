"""The MLP of the paper's Appendix B.3, many at a time: every parameter has a leading axis over R runs.

One batched matrix product serves them all, which is what keeps a GPU busy; on a CPU a process trains one (R = 1), and
the code is the same.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vla_razor.parity_mnist.data import CLASSES, SIDE

INPUTS = SIDE * SIDE + 1
WIDTH = 512  # of the first hidden layer; the second has half of it
NEW, PRIOR = 1.0, -1.0  # the last input: which task an image belongs to

Parameters = dict[str, Tensor]
"""weight_i [R, in, out] and bias_i [R, out] of layer i: gradients then need no transposition."""


class Outputs(NamedTuple):
    """What the network computes from its inputs."""

    logits: Float[Tensor, "R B 10"]
    hidden: list[Float[Tensor, "R B H"]]
    """The activations of the hidden layers, after their ReLU."""


def initialize(runs: int, generator: torch.Generator, width: int = WIDTH) -> Parameters:
    """Random parameters, uniform within 1/sqrt(in) as torch's linear layers are."""
    sizes = [INPUTS, width, width // 2, CLASSES]
    parameters: Parameters = {}
    for layer, (size, out) in enumerate(pairwise(sizes)):
        for name, shape in ((f"weight_{layer}", (runs, size, out)), (f"bias_{layer}", (runs, out))):
            parameters[name] = (2 * torch.rand(shape, generator=generator) - 1) / size**0.5
    return parameters


def inputs(images: Float[Tensor, "*B 784"], task: float) -> Float[Tensor, "*B 785"]:
    """Images with the indicator of their task."""
    return torch.cat([images, torch.full_like(images[..., :1], task)], -1)


def forward(parameters: Parameters, x: Float[Tensor, "R B 785"]) -> Outputs:
    """Run the networks, each on its own batch."""
    hidden: list[Tensor] = []
    layers = len(parameters) // 2
    for layer in range(layers):
        weight, bias = parameters[f"weight_{layer}"], parameters[f"bias_{layer}"]
        x = torch.baddbmm(bias[:, None], x, weight)
        if layer < layers - 1:
            x = x.relu()
            hidden.append(x)
    return Outputs(x, hidden)


def repeat(parameters: Parameters, runs: int) -> Parameters:
    """The one network of `parameters`, `runs` times."""
    return {name: value.repeat(runs, *[1] * (value.ndim - 1)) for name, value in parameters.items()}


def select(parameters: Parameters, run: int) -> Parameters:
    """The network of one run, detached, with its leading axis."""
    return {name: value.detach()[run : run + 1].clone() for name, value in parameters.items()}
