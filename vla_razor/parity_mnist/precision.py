"""Whether updates are sparse in float32 and in bfloat16 (paper, Section 6), and whether trainings agree on the weights.

The same trainings are done in both: from the same base, itself rounded to bfloat16, with the same images in the same
order and the same draws. *In bfloat16*, weights, gradients and AdamW's averages are bfloat16 from the first update to
the last, and every update is rounded, as where a model is loaded in bfloat16 and handed to an optimizer. The
literature's language models are trained by RL like this, and it is done here on purpose: elsewhere in this project what
learns is float32. Products are in float32 in both, so that only what is kept between updates differs.
"""

from itertools import combinations
from typing import Any

import numpy as np
import torch

from vla_razor.core import divergence, weight_change
from vla_razor.parity_mnist import model, training
from vla_razor.parity_mnist.measures import Tests, accuracies
from vla_razor.parity_mnist.model import Parameters
from vla_razor.parity_mnist.training import Settings, Task

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
ORDERS = 3
"""Trainings that differ only in the order of the images and in the answers that are drawn."""
AGREEMENT = weight_change.Agreement._fields


def rounded(base: Parameters) -> Parameters:
    """The base from which both kinds of training start: its weights rounded to bfloat16, held in float32."""
    return {name: value.bfloat16().float() for name, value in base.items()}


def record(run: Settings, base: Parameters, task: Task, tests: Tests, precision: str) -> list[dict[str, Any]]:
    """Trains like `run` at each of `RATES` and in each order, from the `rounded` base (R = 1); one row for each
    training.

    A row has `new` and `prior` accuracy, the prior accuracy `forgotten`, and `forward_kl` from the base in nats;
    `unchanged`, the share of weights that still equal the base's, and `unchanged_rounded`, that share after rounding
    the tuned weights to bfloat16; and, as means over the other orders, `jaccard`, `chance` and `chance_by_size` of the
    changed weights (`weight_change.agreement`).
    """
    start, prior = _logits(base, tests)
    before = accuracies(start, prior, tests)
    runs = [run._replace(learning_rate=rate) for rate in RATES]
    tuned: list[list[Parameters]] = []
    for order in range(ORDERS):
        ((_, parameters),) = training.finetune(runs, base, task, 1, order=order, dtype=DTYPES[precision])
        tuned.append([model.select(parameters, index) for index in range(len(runs))])
    rows = []
    for own, alike in zip(runs, zip(*tuned, strict=True), strict=True):
        # The changed weights of each training, compared with those of each of the others.
        pairs = {
            (one, other): weight_change.agreement(base, alike[one], alike[other])._asdict()
            for one, other in combinations(range(len(alike)), 2)
        }
        for order, parameters in enumerate(alike):
            logits, prior = _logits(parameters, tests)
            after = accuracies(logits, prior, tests)
            rows.append(
                {
                    "method": own.method,
                    "seed": own.seed,
                    "precision": precision,
                    "learning_rate": own.learning_rate,
                    "order": order,
                    **after,
                    "forgotten": before["prior"] - after["prior"],
                    "forward_kl": float(divergence.forward_kl(start, logits).mean()),
                    "unchanged": float(weight_change.sparsity(base, parameters)),
                    "unchanged_rounded": float(weight_change.sparsity(base, parameters, dtype=torch.bfloat16)),
                    **{
                        name: float(np.mean([found[name] for pair, found in pairs.items() if order in pair]))
                        for name in AGREEMENT
                    },
                }
            )
    return rows


@torch.no_grad()
def _logits(parameters: Parameters, tests: Tests) -> tuple[torch.Tensor, torch.Tensor]:
    """On the new and the prior task."""
    new, prior = (model.forward(parameters, inputs[None]).logits[0] for inputs in (tests.new, tests.prior))
    return new, prior
