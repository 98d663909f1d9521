"""What happens during training: to the representations (paper, Appendix C.1) and in single updates (Appendix C.3)."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.stats import rankdata
from torch.nn import functional as F

from vla_razor.core import divergence, similarity, weight_change
from vla_razor.parity_mnist import model, training
from vla_razor.parity_mnist.measures import Tests, accuracies
from vla_razor.parity_mnist.methods import right_answers
from vla_razor.parity_mnist.model import Parameters
from vla_razor.parity_mnist.training import Settings, Task

IMAGES = 1000  # of each test set; representations are compared on those of the prior task, which training never sees
RECORDS = 100  # updates that are looked at, evenly spaced
BLOCK = 10  # recorded updates that the bootstrap keeps together, since neighbouring updates are alike
RESAMPLES = 1000
SHIFTS = ("kl_change", "kl_step")


class Correlation(NamedTuple):
    """A coefficient with its 95% interval; NaN where one of the two series does not vary."""

    value: float
    low: float
    high: float


def record(run: Settings, base: Parameters, task: Task, tests: Tests) -> Iterator[dict[str, Any]]:
    """Trains one run and yields a row for each update that is looked at.

    A row has `new` and `prior` accuracy, `cka` and `cknna` (k = 10) between the last hidden layer and the base's, and
    `forward_kl` from the base in nats. Of the update alone it has `kl_change`, by how much it raised the forward KL;
    `kl_step`, the KL from the policy before it to the policy after it; and its cosine with the *gradient* of each
    task's loss, where a positive one raises that loss. The paper's "change in KL divergence between the output
    distributions before and after the update" may mean `kl_change` or `kl_step`.
    """
    tests = Tests(*(part[:IMAGES] for part in tests))
    total = run.epochs * -(-len(task.inputs) // training.BATCH)
    looked_at = {round(step) for step in np.linspace(1, total, min(total, RECORDS))}
    start = _look(base, tests)
    before = base
    for step, parameters in training.finetune([run], base, task, checkpoints=total):
        # Copied at every update, also where it is not looked at: the next one changes the same tensors.
        after = {name: value.clone() for name, value in parameters.items()}
        if step in looked_at:
            earlier = _look(before, tests)[0]
            logits, hidden, prior = _look(after, tests)
            now = _kl(start[0], logits)
            update = weight_change.update(before, after)
            yield {
                "method": run.method,
                "step": step,
                **accuracies(logits, prior, tests),
                "cka": float(similarity.cka(start[1], hidden)),
                "cknna": float(similarity.cknna(start[1], hidden)),
                "forward_kl": now,
                "kl_change": now - _kl(start[0], earlier),
                "kl_step": _kl(earlier, logits),
                # The gradients are those at the weights before the update.
                "cosine_new": float(weight_change.cosine(update, _gradient(before, tests, "new"))),
                "cosine_prior": float(weight_change.cosine(update, _gradient(before, tests, "prior"))),
            }
        before = after


def summarize(columns: Mapping[str, Sequence[float]]) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Whether updates that shift the policy more follow a task's gradient more (paper, Figure 10, both panels).

    By task, kind of shift (`SHIFTS`) and kind of coefficient (`COEFFICIENTS`): the correlation, over a training's
    updates, of the shift and the cosine with the task's gradient. Where there is none, as with a single update, it is
    left out.
    """
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {"new": {}, "prior": {}}
    for task, shift in product(found, SHIFTS):
        both = {kind: correlation(columns[shift], columns[f"cosine_{task}"], kind) for kind in COEFFICIENTS}
        if not any(np.isnan(one).any() for one in both.values()):
            found[task][shift] = {kind: one._asdict() for kind, one in both.items()}
    return found


def correlation(x: ArrayLike, y: ArrayLike, kind: str) -> Correlation:
    """Pearson's or Spearman's correlation of two series, with the 2.5% and 97.5% quantiles of a moving-block bootstrap
    (Kunsch, "The jackknife and the bootstrap for general stationary observations", 1989).
    """
    pairs = np.array([x, y], dtype=float)
    coefficient = COEFFICIENTS[kind]
    count = pairs.shape[1]
    length = min(BLOCK, count)
    # Not scipy.stats.bootstrap: it draws single updates, and neighbours are alike; blocks keep them together.
    starts = np.random.default_rng(0).integers(count - length + 1, size=(RESAMPLES, -(-count // length), 1))
    rows = (starts + np.arange(length)).reshape(RESAMPLES, -1)[:, :count]
    found = np.array([coefficient(pairs[:, own]) for own in rows])
    known = found[~np.isnan(found)]
    low, high = np.quantile(known, [0.025, 0.975]).tolist() if len(known) else (float("nan"), float("nan"))
    return Correlation(coefficient(pairs), low, high)


def _pearson(pairs: np.ndarray) -> float:
    return float(np.corrcoef(pairs)[0, 1]) if np.ptp(pairs, axis=1).all() else float("nan")


COEFFICIENTS = {"pearson": _pearson, "spearman": lambda pairs: _pearson(rankdata(pairs, axis=1))}
"""The paper does not say which it means. A few updates move the policy far and most hardly at all, so the two differ.
"""


def _kl(base: torch.Tensor, tuned: torch.Tensor) -> float:
    return float(divergence.forward_kl(base, tuned).mean())


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
