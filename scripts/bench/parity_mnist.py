"""How near the sweep of ParityMNIST comes to what the machine can multiply, and how far it is ahead of a plain loop.

In one run, in turns: the float32 matrix products of one training step, alone, in as many one-thread processes as the
sweep uses (the peak); training alone, four runs side by side in a process as in a sweep; the whole sweep with
evaluation and predictors; and the same runs by a plain PyTorch loop at its defaults (its own threads, one run at a
time, an unfused optimizer). Only the matrix products that the sweep does are counted: three forward passes' worth a
training image, without the pixels that are black in every digit, and one an evaluated image.

    python scripts/bench/parity_mnist.py [--data-dir DIR] [--methods grpo sft_1] [--rates 4] [--turns 3] [--json]
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional as F

from vla_razor.parity_mnist import data, measures, methods, model, sweep, training
from vla_razor.parity_mnist.training import Settings

WIDTHS = [512, 256, data.CLASSES]  # of the layers
TARGETS = {"training": 0.8, "sweep": 0.6, "ratio": 3.0}
EPOCHS = 2


def forward(inputs: int) -> int:
    """Floating-point operations an image of so many inputs."""
    return sum(2 * a * b for a, b in pairwise([inputs, *WIDTHS]))


def multiply(seconds: float, inputs: int) -> float:
    """FLOP/s of a training step's matrix products in this process."""
    batch = training.BATCH
    sizes = list(pairwise([inputs, *WIDTHS]))
    layers = [(torch.randn(batch, a), torch.randn(b, a), torch.randn(batch, b)) for a, b in sizes]
    count, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        for x, weight, gradient in layers:
            torch.mm(x, weight.T)
            torch.mm(gradient, weight)
            torch.mm(gradient.T, x)
        count += 1
    return count * 3 * forward(inputs) * batch / (time.perf_counter() - begin)


def train_alone(runs: list[Settings], job: sweep.Job) -> float:
    """Seconds in the training of runs side by side, without any measure."""
    base, task, _ = sweep._opened(runs[0], job)
    begin = time.perf_counter()
    for _ in training.finetune(runs, base.parameters, task, checkpoints=1):
        pass
    return time.perf_counter() - begin


def plain(runs: list[Settings], job: sweep.Job) -> None:
    """The same runs as one would first write them."""
    for run in runs:
        base, task, tests = sweep._opened(run, job)
        network = nn.Sequential(
            nn.Linear(model.INPUTS, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, data.CLASSES)
        )
        linear = [layer for layer in network if isinstance(layer, nn.Linear)]
        for index, layer in enumerate(linear):
            layer.weight.data.copy_(base.parameters[f"weight_{index}"][0].T)
            layer.bias.data.copy_(base.parameters[f"bias_{index}"][0])
        optimizer = torch.optim.AdamW(network.parameters(), lr=run.learning_rate, weight_decay=0.0, foreach=False)
        batches = [rows for _ in range(run.epochs) for rows in torch.randperm(len(task.inputs)).split(training.BATCH)]
        every = len(batches) // job.checkpoints
        for step, rows in enumerate(batches, 1):
            optimizer.zero_grad()
            logits = network(task.inputs[rows])
            if run.method == "sft_1":
                loss = F.cross_entropy(logits, task.chosen[rows])
            else:
                policy = torch.distributions.Categorical(logits=logits)
                answers = policy.sample(torch.Size([methods.SAMPLES]))
                rewards = (answers % 2 == task.digits[rows] % 2).float()
                advantage = (rewards - rewards.mean(0)) / (rewards.std(0) + 1e-4)
                loss = -(advantage * policy.log_prob(answers)).mean()
            loss.backward()
            optimizer.step()
            if step % every == 0:
                own = {}
                for index, layer in enumerate(linear):
                    own |= {
                        f"weight_{index}": layer.weight.detach().T[None],
                        f"bias_{index}": layer.bias.detach()[None],
                    }
                measures.measure(own, base, tests)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--methods", nargs="+", default=["grpo", "sft_1"], choices=["grpo", "sft_1"])
    parser.add_argument("--rates", type=int, default=4)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3, help="the best of which is reported")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    images = data.load(arguments.data_dir)
    origin = sweep.Origin(0, model.WIDTH)
    learning_rates = sweep.learning_rates(1e-5, 1e-3, arguments.rates)
    runs = sweep.grid(arguments.methods, learning_rates, ["constant"], [EPOCHS], [origin])
    groups = list(sweep.side_by_side(runs, "cpu"))
    count, checkpoints = len(images.mnist_train.labels), 4  # as the verb has it
    lit = int(images.mnist_train.images.any(0).sum()) + 1  # the indicator
    trained = len(runs) * 3 * forward(lit) * count * EPOCHS
    tested = len(images.mnist_test.labels) + len(images.fashion_test.labels)
    evaluated = len(runs) * checkpoints * forward(model.INPUTS) * tested
    rates: dict[str, list[float]] = {"peak": [], "training": [], "sweep": [], "plain": []}
    for _ in range(arguments.turns):
        with tempfile.TemporaryDirectory() as folder:
            job = sweep.Job(arguments.data_dir, Path(folder), checkpoints, "cpu")
            with ProcessPoolExecutor(arguments.jobs, get_context("spawn"), sweep._initialize) as pool:
                list(pool.map(sweep.prepare, [origin], [job]))
                list(pool.map(multiply, [0.1] * arguments.jobs, [lit] * arguments.jobs))
                rates["peak"].append(sum(pool.map(multiply, [2.0] * arguments.jobs, [lit] * arguments.jobs)))
                list(pool.map(train_alone, [[run] for run in runs[: arguments.jobs]], [job] * arguments.jobs))  # images
                seconds = sum(pool.map(train_alone, groups, [job] * len(groups))) / arguments.jobs
                rates["training"].append(trained / seconds)
                seconds = _timed(lambda pool=pool, job=job: list(pool.map(sweep.train, groups, [job] * len(groups))))
                rates["sweep"].append((trained + evaluated) / seconds)
            sweep._opened(runs[0], job)  # loads the images
            rates["plain"].append((trained + evaluated) / _timed(lambda job=job: plain(runs, job)))
    report(arguments, {name: max(values) for name, values in rates.items()}, len(runs))


def report(arguments: argparse.Namespace, rates: dict[str, float], runs: int) -> None:
    result = {
        "runs": runs,
        "jobs": arguments.jobs,
        "gflops": {name: rate / 1e9 for name, rate in rates.items()},
        "training_share": rates["training"] / rates["peak"],
        "sweep_share": rates["sweep"] / rates["peak"],
        "ratio": rates["sweep"] / rates["plain"],
    }
    table = Table("", "GFLOP/s", "", title=f"ParityMNIST, {runs} runs in {arguments.jobs} processes")
    table.add_row("matrix products alone", f"{rates['peak'] / 1e9:.0f}", "")
    table.add_row(
        "training",
        f"{rates['training'] / 1e9:.0f}",
        f"{result['training_share']:.0%}, target {TARGETS['training']:.0%}",
    )
    table.add_row(
        "the sweep", f"{rates['sweep'] / 1e9:.0f}", f"{result['sweep_share']:.0%}, target {TARGETS['sweep']:.0%}"
    )
    table.add_row(
        "a plain loop",
        f"{rates['plain'] / 1e9:.0f}",
        f"the sweep is {result['ratio']:.1f} times as fast, target {TARGETS['ratio']:.0f}",
    )
    Console().print(table)
    if arguments.json:
        print(json.dumps(result))


def _timed(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
