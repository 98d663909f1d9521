"""What happens during a training: representations (paper, Appendix C.1) and single updates (Appendix C.3)."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from vla_razor.core import divergence, similarity, weight_change
from vla_razor.parity_mnist import model, training
from vla_razor.parity_mnist.measures import Tests, accuracies
from vla_razor.parity_mnist.methods import right_answers
from vla_razor.parity_mnist.model import Parameters
from vla_razor.parity_mnist.training import Settings, Task

IMAGES = 1000  # of each test set; representations are compared on those of the prior task, which training never sees
RECORDS = 100  # updates that are looked at, evenly spaced


def record(run: Settings, base: Parameters, task: Task, tests: Tests) -> Iterator[dict[str, Any]]:
    """Trains one run and yields a row for each update that is looked at.

    `new` and `prior` accuracy; `cka` and `cknna` (k = 10) of the last hidden layer to the base's; `forward_kl` from the
    base, nats; of this update alone, `kl_change` (the forward KL's growth) and the cosine between the update and the
    *gradient* of either task's loss: a positive one raises that loss.
    """
    tests = Tests(*(part[:IMAGES] for part in tests))
    total = run.epochs * -(-len(task.inputs) // training.BATCH)
    looked_at = {round(step) for step in np.linspace(1, total, min(total, RECORDS))}
    start = _look(base, tests)
    before, earlier = base, 0.0
    for step, parameters in training.finetune([run], base, task, checkpoints=total):
        after = {name: value.clone() for name, value in parameters.items()}
        if step in looked_at:
            if step > 1:
                earlier = float(divergence.forward_kl(start[0], _look(before, tests)[0]).mean())
            logits, hidden, prior = _look(after, tests)
            now = float(divergence.forward_kl(start[0], logits).mean())
            update = weight_change.update(before, after)
            yield {
                "method": run.method,
                "step": step,
                **accuracies(logits, prior, tests),
                "cka": float(similarity.cka(start[1], hidden)),
                "cknna": float(similarity.cknna(start[1], hidden)),
                "forward_kl": now,
                "kl_change": now - earlier,
                "cosine_new": float(weight_change.cosine(update, _gradient(before, tests, "new"))),
                "cosine_prior": float(weight_change.cosine(update, _gradient(before, tests, "prior"))),
            }
        before = after


@torch.no_grad()
def _look(parameters: Parameters, tests: Tests) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits on the new task, last hidden layer and logits on the prior task."""
    prior = model.forward(parameters, tests.prior[None])
    return model.forward(parameters, tests.new[None]).logits[0], prior.hidden[-1][0], prior.logits[0]


def _gradient(parameters: Parameters, tests: Tests, which: str) -> Parameters:
    """The gradient of a task's test loss: cross-entropy to the class, or to any answer of the right parity."""
    leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    logits = model.forward(leaves, (tests.new if which == "new" else tests.prior)[None]).logits[0]
    if which == "new":
        wrong = ~right_answers(tests.digits)
        loss = -logits.log_softmax(-1).masked_fill(wrong, -torch.inf).logsumexp(-1).mean()
    else:
        loss = F.cross_entropy(logits, tests.classes)
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
