"""The MLP of the paper's Appendix B.3, many at a time: every parameter has a leading axis over R runs.

One batched matrix product serves all of them, which keeps a GPU busy. On a CPU each process trains one (R = 1), with
the same code.
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
"""weight_i [R, in, out] and bias_i [R, out] of layer i. In this layout gradients need no transposition."""


class Outputs(NamedTuple):
    """What the networks compute from their inputs."""

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
            x = x.relu_()
            hidden.append(x)
    return Outputs(x, hidden)


def backward(
    parameters: Parameters,
    x: Float[Tensor, "R B 785"],
    outputs: Outputs,
    gradient: Float[Tensor, "R B 10"],
    into: Parameters,
) -> None:
    """The gradients of all parameters, given that of the logits; overwrites `into`.

    Autograd computes the same, but builds a graph and allocates memory for every update, which a small network notices.
    """
    inputs = [x, *outputs.hidden]
    for layer in reversed(range(len(inputs))):
        torch.bmm(inputs[layer].mT, gradient, out=into[f"weight_{layer}"])
        torch.sum(gradient, 1, out=into[f"bias_{layer}"])
        if layer:  # through the weights to the layer before, and through its ReLU: 0 where that was 0
            gradient = torch.bmm(gradient, parameters[f"weight_{layer}"].mT)
            gradient = torch.ops.aten.threshold_backward(gradient, inputs[layer], 0)


def flat(parameters: Parameters) -> Float[Tensor, "R P"]:
    """All parameters of each network as one row."""
    return torch.cat([value.flatten(1) for value in parameters.values()], 1)


def shaped(rows: Float[Tensor, "R P"], like: Parameters) -> Parameters:
    """Rows as made by `flat`, viewed as parameters with the names and shapes of `like`; the memory is shared. `like`
    may have any number of runs.
    """
    parts = rows.split([value[0].numel() for value in like.values()], 1)
    return {name: part.view(-1, *like[name].shape[1:]) for name, part in zip(like, parts, strict=True)}


def select(parameters: Parameters, run: int) -> Parameters:
    """The network of one run, detached, with its leading axis."""
    return {name: value.detach()[run : run + 1].clone() for name, value in parameters.items()}
