"""The same trainings in float32 and in bfloat16, end to end on a few images."""

import pytest
import torch

from tests.parity_mnist.support import WIDTH, few
from vla_razor.parity_mnist import measures, precision, training
from vla_razor.parity_mnist.training import Settings


@pytest.mark.slow
def test_both_precisions_train_the_same_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """From one base and on the same draws; only what is kept differs, so that they part where updates are small."""
    monkeypatch.setattr(precision, "RATES", (1e-6, 1e-3))
    images = few()
    tests, run = measures.Tests.of(images), Settings("grpo", 0.0, "constant", 2, 0, WIDTH)
    base = precision.rounded(training.pretrain(images, 0, WIDTH))
    assert all(torch.equal(value, value.bfloat16().float()) for value in base.values())
    task = training.task_of("grpo", images.mnist_train, base, 0)
    found = {name: precision.record(run, base, task, tests, name) for name in precision.DTYPES}
    for rows in found.values():
        settings = [(row["learning_rate"], row["order"]) for row in rows]
        assert settings == [(rate, order) for rate in (1e-6, 1e-3) for order in range(3)]
        assert len({row["forward_kl"] for row in rows}) == len(rows), "every order is another training"
        assert all(0 <= row["jaccard"] <= 1 and 0 <= row["chance"] <= 1 for row in rows)
    assert all(row["unchanged"] == row["unchanged_rounded"] for row in found["bfloat16"])
    slow, fast = ([found[name][place]["unchanged"] for name in ("float32", "bfloat16")] for place in (0, 3))
    assert slow[1] - slow[0] > 0.3 > abs(fast[1] - fast[0])
    jaccard, chance = (found["bfloat16"][3][name] for name in ("jaccard", "chance"))
    assert jaccard > chance, "units that no digit switches on are those of the base"
