"""Pre-training the base, and fine-tuning it: R runs of one method side by side.

Runs that are trained together differ in learning rate and schedule alone; they see the same images in the same order.
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
    """A fine-tuning run: what it learns by, how fast, how long, from which base. `width` is that of the first hidden
    layer; the second has half of it.
    """

    method: str
    learning_rate: float
    schedule: str
    epochs: int
    seed: int
    width: int = model.WIDTH

    @property
    def name(self) -> str:
        """One for every run, fit for a file."""
        start = f"{self.method}-seed{self.seed}-width{self.width}"
        return f"{start}-lr{self.learning_rate:.6g}-{self.schedule}-{self.epochs}ep"


class Task(NamedTuple):
    """What fine-tuning learns from: inputs of the new task, their digits, and the labels an annotator gave them."""

    inputs: Float[Tensor, "N 785"]
    digits: Int[Tensor, " N"]
    base_logits: Float[Tensor, "N 10"]
    chosen: Int[Tensor, " N"]
    rejected: Int[Tensor, " N"]


def pretrain(data: Data, seed: int, width: int = model.WIDTH) -> Parameters:
    """The base (R = 1): 500 images of each task, digits labelled by a random one of their parity."""
    generator = generator_of(seed, "pretraining")
    digits, clothes = (_some(split, PRETRAINING_IMAGES, generator) for split in (data.mnist_train, data.fashion_train))
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
    """The images of the new task with the labels of the method's annotator."""
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
    """Trains the runs side by side; yields the update's number and all their parameters, `checkpoints` times, evenly
    spaced, the last one at the end. The parameters go on learning: whoever keeps them copies them.

    A run whose loss is not finite goes on as it is; its parameters say so.

    Pixels that are black in every image are left out: the weights behind them have no gradient and stay as they are.

    Another `order` shows the same images in another order and draws other answers. Weights, gradients and AdamW's
    averages are kept in `dtype`; products are of float32, whatever that is.
    """
    first = runs[0]
    objective = methods.METHODS[first.method].objective
    key = (first.seed, first.method, str(first.epochs), *(("order", order) if order else ()))
    generator = generator_of(*key, device=device)
    task = Task(*(part.to(device) for part in task))
    right = methods.right_answers(task.digits)
    lit = task.inputs.any(0).nonzero()[:, 0]
    inputs = task.inputs[:, lit]
    base = {name: value.to(device).to(dtype).float() for name, value in base.items()}
    whole = base["weight_0"].repeat(len(runs), 1, 1)
    narrow = base | {"weight_0": base["weight_0"][:, lit]}
    weights = model.flat(narrow).repeat(len(runs), 1)
    slopes = torch.empty_like(weights)
    parameters, gradients = (model.shaped(part, narrow) for part in (weights, slopes))
    optimizer = _AdamW(weights, slopes, runs, dtype)
    batches = [rows for _ in range(first.epochs) for rows in _shuffled(len(task.inputs), generator)]
    saves = {round(step) for step in np.linspace(len(batches), 0, checkpoints, endpoint=False)}
    for step, batch in enumerate(batches, 1):
        x = inputs.index_select(0, batch).expand(len(runs), -1, -1)
        outputs = model.forward(parameters, x)
        logits = outputs.logits.requires_grad_()
        shared = [part[batch] for part in (task.base_logits, right, task.chosen, task.rejected)]
        base_logits, allowed, chosen, rejected = (part.expand(len(runs), *part.shape) for part in shared)
        loss = objective(Batch(logits, base_logits, allowed, chosen, rejected, generator)).sum()
        (gradient,) = torch.autograd.grad(loss, logits)
        model.backward(parameters, x, outputs, gradient, gradients)
        optimizer.step(step, len(batches))
        if step in saves:
            yield step, parameters | {"weight_0": whole.index_copy_(1, lit, parameters["weight_0"])}


_kernel = torch._fused_adamw_  # pyright: ignore[reportPrivateImportUsage]


class _AdamW:
    """With a learning rate a run, without weight decay: all numbers of a network are one row, its gradients another.

    torch.optim's own kernel, called without its Python, which takes a seventh as long again for so small a network.

    What it keeps between updates is of `dtype`. In bfloat16, as the kernel has it for a model whose weights are that,
    an update below half a unit in a weight's last place leaves the weight where it was.
    """

    def __init__(
        self, rows: Float[Tensor, "R P"], gradients: Float[Tensor, "R P"], runs: Sequence[Settings], dtype: torch.dtype
    ) -> None:
        self.rows, self.gradients = rows, gradients
        self.kept, self.slopes = rows.to(dtype), gradients.to(dtype)  # the same memory, if they are of it already
        averages = torch.zeros_like(self.kept), torch.zeros_like(self.kept)
        self.runs = list(zip(runs, self.kept, self.slopes, *averages, strict=True))
        self.count = rows.new_zeros(())

    def step(self, step: int, total: int) -> None:
        """Update number `step` of `total`, by what the gradients hold now."""
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
    """A generator for each key."""
    words = [word if isinstance(word, int) else int.from_bytes(word.encode(), "little") for word in key]
    seed = int(np.random.SeedSequence(words).generate_state(2, np.uint64)[0] >> 1)
    return torch.Generator(device).manual_seed(seed)


def _shuffled(count: int, generator: torch.Generator) -> Sequence[Tensor]:
    return torch.randperm(count, generator=generator, device=generator.device).split(BATCH)


def _some(split: Split, count: int, generator: torch.Generator) -> Split:
    rows = torch.randperm(len(split.labels), generator=generator)[:count]
    return Split(split.images[rows], split.labels[rows])


@torch.no_grad()
def _logits(parameters: Parameters, inputs: Tensor) -> Tensor:
    return model.forward(parameters, inputs[None]).logits[0]
