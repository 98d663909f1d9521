"""Pre-training the base, and fine-tuning it: R runs of one method side by side.

Runs that are trained together differ only in learning rate and schedule; they see the same images in the same order.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from vla_razor.core import schedule
from vla_razor.parity_mnist import methods, model
from vla_razor.parity_mnist.data import Data, Split
from vla_razor.parity_mnist.methods import Batch
from vla_razor.parity_mnist.model import NEW, PRIOR, Parameters

BATCH = 64
PRETRAINING_IMAGES = 500  # of each task
PRETRAINING_EPOCHS = 60
PRETRAINING_RATE = 1e-3
WARMUP = 0.05  # of a run's updates


class Settings(NamedTuple):
    """A fine-tuning run: its method, how fast and how long it learns, and the seed of its base. `width` is that of the
    first hidden layer; the second has half of it.
    """

    method: str
    learning_rate: float
    schedule: str
    epochs: int
    seed: int
    width: int = model.WIDTH

    @property
    def name(self) -> str:
        """Unique among the runs of a sweep, and fit for a file name."""
        start = f"{self.method}-seed{self.seed}-width{self.width}"
        return f"{start}-lr{self.learning_rate:.6g}-{self.schedule}-{self.epochs}ep"


class Task(NamedTuple):
    """What fine-tuning learns from: inputs of the new task, their digits, and the labels that an annotator gave."""

    inputs: Float[Tensor, "N 785"]
    digits: Int[Tensor, " N"]
    base_logits: Float[Tensor, "N 10"]
    chosen: Int[Tensor, " N"]
    rejected: Int[Tensor, " N"]


def pretrain(data: Data, seed: int, width: int = model.WIDTH) -> Parameters:
    """The base (R = 1), trained on 500 images of each task. A digit's label is a random one of its parity."""
    generator = generator_of(seed, "pretraining")
    drawn = []
    for split in (data.mnist_train, data.fashion_train):
        rows = torch.randperm(len(split.labels), generator=generator)[:PRETRAINING_IMAGES]
        drawn.append(Split(split.images[rows], split.labels[rows]))
    digits, clothes = drawn
    # Random, so that the base spreads over the right answers and prefers none.
    answers = torch.multinomial(methods.right_answers(digits.labels).float(), 1, generator=generator)[:, 0]
    images = torch.cat([model.inputs(digits.images, NEW), model.inputs(clothes.images, PRIOR)])
    labels = torch.cat([answers, clothes.labels])
    parameters = {name: value.requires_grad_() for name, value in model.initialize(1, generator, width).items()}
    optimizer = torch.optim.AdamW(parameters.values(), lr=PRETRAINING_RATE, weight_decay=0.0, fused=True)
    for _ in range(PRETRAINING_EPOCHS):
        for rows in torch.randperm(len(images), generator=generator).split(BATCH):
            logits = model.forward(parameters, images[rows][None]).logits[0]
            F.cross_entropy(logits, labels[rows]).backward()
            optimizer.step()
            optimizer.zero_grad()
    return {name: value.detach() for name, value in parameters.items()}


def task_of(method: str, split: Split, base: Parameters, seed: int, teacher: Parameters | None = None) -> Task:
    """The new task's images with the labels of the method's annotator."""
    inputs, unlabelled = model.inputs(split.images, NEW), torch.zeros_like(split.labels)
    task = Task(inputs, split.labels, _logits(base, inputs), unlabelled, unlabelled)
    return labelled(task, method, seed, teacher)


def labelled(task: Task, method: str, seed: int, teacher: Parameters | None = None) -> Task:
    """A task with the labels of the method's annotator, drawn once for all epochs.

    The annotator refers to the base, or to the `teacher` for a method that is taught.
    """
    generator = generator_of(seed, method, "labels")
    _, annotate, taught = methods.METHODS[method]
    reference = _logits(teacher, task.inputs) if taught and teacher is not None else task.base_logits
    chosen = annotate(task.digits, reference, generator) if annotate else torch.zeros_like(task.digits)
    return task._replace(chosen=chosen, rejected=methods.annotate_wrong(task.digits, generator))


def finetune(
    runs: Sequence[Settings],
    base: Parameters,
    task: Task,
    checkpoints: int,
    device: str = "cpu",
    *,
    order: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Iterator[tuple[int, Parameters]]:
    """Trains the runs side by side. Yields the number of the update and all their parameters, `checkpoints` times,
    evenly spaced, the last time at the end. Training goes on in the same tensors: whoever keeps them copies them.

    A run whose loss is not finite is trained on regardless, and its parameters end up not finite.

    Another `order` shows the same images in another order and draws other answers. Weights, gradients and AdamW's
    averages are kept in `dtype`; products are in float32, whatever `dtype` is.
    """
    first = runs[0]
    objective = methods.METHODS[first.method].objective
    key = (first.seed, first.method, str(first.epochs), *(("order", order) if order else ()))
    generator = generator_of(*key, device=device)
    task = Task(*(part.to(device) for part in task))
    right = methods.right_answers(task.digits)
    # Pixels that are black in every image are left out: the weights behind them have no gradient and never change.
    lit = task.inputs.any(0).nonzero()[:, 0]
    inputs = task.inputs[:, lit]
    base = {name: value.to(device).to(dtype).float() for name, value in base.items()}
    whole = base["weight_0"].repeat(len(runs), 1, 1)
    narrow = base | {"weight_0": base["weight_0"][:, lit]}
    # All weights of a run are one row [R, P], and so are its gradients: the optimizer then takes one kernel call per
    # run. `parameters` and `gradients` are views of these rows in the layers' shapes.
    weights = model.flat(narrow).repeat(len(runs), 1)
    slopes = torch.empty_like(weights)
    parameters, gradients = (model.shaped(part, narrow) for part in (weights, slopes))
    optimizer = _AdamW(weights, slopes, runs, dtype)
    orders = [
        torch.randperm(len(task.inputs), generator=generator, device=generator.device) for _ in range(first.epochs)
    ]
    batches = [rows for own in orders for rows in own.split(BATCH)]
    saves = {round(step) for step in np.linspace(len(batches), 0, checkpoints, endpoint=False)}
    for step, batch in enumerate(batches, 1):
        # The runs share their images, so [R, B, ...] is expanded, not copied.
        x = inputs.index_select(0, batch).expand(len(runs), -1, -1)
        outputs = model.forward(parameters, x)
        # Autograd goes from the loss to the logits. Through the network `model.backward` takes the gradient, straight
        # into `gradients`: no graph is built and no memory allocated for every update of a small network.
        logits = outputs.logits.requires_grad_()
        shared = [part[batch] for part in (task.base_logits, right, task.chosen, task.rejected)]
        base_logits, allowed, chosen, rejected = (part.expand(len(runs), *part.shape) for part in shared)
        # Summed, not averaged: a run's gradient must not depend on how many are trained beside it.
        loss = objective(Batch(logits, base_logits, allowed, chosen, rejected, generator)).sum()
        (gradient,) = torch.autograd.grad(loss, logits)
        model.backward(parameters, x, outputs, gradient, gradients)
        optimizer.step(step, len(batches))
        if step in saves:
            yield step, parameters | {"weight_0": whole.index_copy_(1, lit, parameters["weight_0"])}


_kernel = torch._fused_adamw_  # pyright: ignore[reportPrivateImportUsage]


class _AdamW:
    """AdamW without weight decay, with a learning rate per run. A run's weights are one row, its gradients another.

    It calls torch.optim's own kernel directly: for so small a network the Python around it takes a seventh as long
    again.

    What it keeps between updates is in `dtype`. In bfloat16, as in training a bfloat16 model, an update below half a
    unit in a weight's last place leaves the weight where it was.
    """

    def __init__(
        self, rows: Float[Tensor, "R P"], gradients: Float[Tensor, "R P"], runs: Sequence[Settings], dtype: torch.dtype
    ) -> None:
        self.rows, self.gradients = rows, gradients
        self.kept, self.slopes = rows.to(dtype), gradients.to(dtype)  # no copies where `dtype` is float32
        averages = torch.zeros_like(self.kept), torch.zeros_like(self.kept)
        self.runs = list(zip(runs, self.kept, self.slopes, *averages, strict=True))
        self.count = rows.new_zeros(())

    def step(self, step: int, total: int) -> None:
        """Update number `step` of `total`, from the present gradients."""
        self.count.fill_(step)
        if self.slopes is not self.gradients:
            self.slopes.copy_(self.gradients)
        warmup = max(1, round(WARMUP * total))
        kind = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "amsgrad": False, "maximize": False}
        for run, row, gradient, average, square in self.runs:
            rate = run.learning_rate * schedule.factor(step - 1, total, warmup, run.schedule)
            _kernel([row], [gradient], [average], [square], [], [self.count], lr=rate, **kind)
        if self.kept is not self.rows:
            self.rows.copy_(self.kept)


def generator_of(*key: int | str, device: str = "cpu") -> torch.Generator:
    """A generator seeded by the key: other keys give independent ones."""
    words = [word if isinstance(word, int) else int.from_bytes(word.encode(), "little") for word in key]
    seed = int(np.random.SeedSequence(words).generate_state(2, np.uint64)[0] >> 1)
    return torch.Generator(device).manual_seed(seed)


@torch.no_grad()
def _logits(parameters: Parameters, inputs: Tensor) -> Tensor:
    return model.forward(parameters, inputs[None]).logits[0]
