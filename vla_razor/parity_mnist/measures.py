"""What a checkpoint can do, and how far it is from its base: the predictors of the paper's Table 1."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vla_razor.core import divergence, similarity, weight_change
from vla_razor.parity_mnist import model
from vla_razor.parity_mnist.data import Data
from vla_razor.parity_mnist.methods import right_answers
from vla_razor.parity_mnist.model import NEW, PRIOR, Outputs, Parameters

FISHER_IMAGES = 200  # of the prior task
CHUNK = 500  # test images in one forward pass: so few that the activations stay in the cache
ACTIVATION_CHANGES = (similarity.activation_l1, similarity.activation_l2)


class Tests(NamedTuple):
    """Inputs and labels of both test sets."""

    new: Float[Tensor, "N 785"]
    digits: Int[Tensor, " N"]
    prior: Float[Tensor, "M 785"]
    classes: Int[Tensor, " M"]

    @classmethod
    def of(cls, data: Data) -> "Tests":
        new, prior = model.inputs(data.mnist_test.images, NEW), model.inputs(data.fashion_test.images, PRIOR)
        return cls(new, data.mnist_test.labels, prior, data.fashion_test.labels)


class Base(NamedTuple):
    """The base (R = 1), and what the measures compare with, computed once."""

    parameters: Parameters
    logits: Float[Tensor, "N 10"]
    hidden: Float[Tensor, "N H"]
    fisher: Parameters

    @classmethod
    @torch.no_grad()
    def of(cls, parameters: Parameters, fisher: Parameters, tests: Tests) -> "Base":
        parts = list(_outputs(parameters, tests.new))
        hidden = torch.cat([torch.cat(part.hidden, -1)[0] for part in parts])
        return cls(parameters, _logits(parts), hidden, fisher)


def fisher_of(parameters: Parameters, tests: Tests) -> Parameters:
    """The diagonal Fisher information of a network (R = 1) over inputs of the prior task."""
    found = weight_change.diagonal_fisher(_one, _unstacked(parameters), tests.prior[:FISHER_IMAGES])
    return {name: value[None] for name, value in found.items()}


@torch.no_grad()
def measure(parameters: Parameters, base: Base, tests: Tests) -> dict[str, float]:
    """Accuracies and distances of one network (R = 1).

    `new` is the share of test digits answered with the right parity, `prior` the accuracy on the prior test set.
    Divergences, in nats, and activation changes, of all hidden layers, are on the new task's test set. Rank and
    sparsity of the update are shares. All are NaN for a network that is not finite.
    """
    # A chunk's activations are compared with the base's at once, and need not be kept for the whole test set.
    outputs, changes = [], []
    for part, hidden in zip(_outputs(parameters, tests.new), base.hidden.split(CHUNK), strict=True):
        outputs.append(part)
        tuned = torch.cat(part.hidden, -1)[0]
        changes.append([len(hidden) * change(hidden, tuned) for change in ACTIVATION_CHANGES])
    logits, prior = _logits(outputs), _logits(_outputs(parameters, tests.prior))
    activation_l1, activation_l2 = (sum(change) / len(logits) for change in zip(*changes, strict=True))
    before, after, fisher = (_unstacked(part) for part in (base.parameters, parameters, base.fisher))
    spectrum = weight_change.spectrum(before, after)
    found: dict[str, Any] = {
        **accuracies(logits, prior, tests),
        **{name: rows.mean() for name, rows in divergence.divergences(base.logits, logits)._asdict().items()},
        "weight_l1": weight_change.l1(before, after),
        "weight_fisher": weight_change.fisher_l2(before, after, fisher),
        "weight_spectral": spectrum.norm,
        "weight_rank": spectrum.rank,
        "weight_sparsity": weight_change.sparsity(before, after),
        "activation_l1": activation_l1,
        "activation_l2": activation_l2,
    }
    # A network may have diverged without every measure showing it: then none of them counts.
    finite = all(bool(part.isfinite().all()) for part in (*parameters.values(), logits, prior))
    return {name: float(value) if finite else float("nan") for name, value in found.items()}


def accuracies(new: Float[Tensor, "N 10"], prior: Float[Tensor, "M 10"], tests: Tests) -> dict[str, float]:
    """From the logits on both test sets: `new`, the share of digits answered with the right parity, and `prior`."""
    right = right_answers(tests.digits).gather(-1, new.argmax(-1, keepdim=True))
    return {"new": float(right.float().mean()), "prior": float((prior.argmax(-1) == tests.classes).float().mean())}


def _unstacked(parameters: Parameters) -> Parameters:
    return {name: value[0] for name, value in parameters.items()}


def _one(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    """The logits of one input."""
    stacked = {name: value[None] for name, value in parameters.items()}
    return model.forward(stacked, x[None, None]).logits[0, 0]


def _outputs(parameters: Parameters, inputs: Tensor) -> Iterator[Outputs]:
    """What the network (R = 1) computes from all inputs, a chunk at a time."""
    return (model.forward(parameters, part[None]) for part in inputs.split(CHUNK))


def _logits(parts: Iterable[Outputs]) -> Tensor:
    return torch.cat([part.logits[0] for part in parts])
