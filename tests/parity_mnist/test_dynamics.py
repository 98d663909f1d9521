"""What is seen of single updates."""

from typing import Any, cast

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr

from tests.parity_mnist.support import few
from vla_razor.parity_mnist import dynamics, measures, training
from vla_razor.parity_mnist.dynamics import record
from vla_razor.parity_mnist.training import Settings


@pytest.mark.slow
def test_rows_follow_the_training_update_by_update() -> None:
    images = few((192, 64), (64, 64))
    base = training.pretrain(images, 0, 32)
    run = Settings("sft_1", 1e-3, "constant", 1, 0, 32)
    task, tests = training.task_of("sft_1", images.mnist_train, base, 0), measures.Tests.of(images)
    rows = list(record(run, base, task, tests))
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert sum(row["kl_change"] for row in rows) == pytest.approx(rows[-1]["forward_kl"], rel=1e-4)
    assert rows[0]["kl_step"] == rows[0]["kl_change"] and all(row["kl_step"] > 0 for row in rows)
    assert all(0 < row["cknna"] <= 1 and 0 < row["cka"] <= 1 for row in rows)


def test_an_update_against_the_gradient_has_a_negative_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    images = few((64, 64), (64, 64))
    base, tests = training.pretrain(images, 0, 32), measures.Tests.of(images)
    downhill = {
        name: value - 1e-3 * gradient
        for (name, value), gradient in zip(base.items(), dynamics._gradient(base, tests, "prior").values(), strict=True)
    }
    monkeypatch.setattr(training, "finetune", lambda *_, **__: iter([(1, downhill)]))
    task = training.task_of("sft_1", images.mnist_train, base, 0)
    (row,) = record(Settings("sft_1", 1e-3, "constant", 1, 0, 32), base, task, tests)
    assert row["cosine_prior"] == pytest.approx(-1, abs=1e-3)


def test_a_correlation_is_scipys_and_its_interval_knows_of_neighbours() -> None:
    """A slow wave beside another: neighbours say nearly the same, so that 200 of them say little."""
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(2, 200))
    for kind, scipys in (("spearman", spearmanr), ("pearson", pearsonr)):
        found, expected = dynamics.correlation(x, x + y, kind), cast("Any", scipys(x, x + y))
        assert found.value == pytest.approx(expected.statistic)
        assert 0.5 < found.low < found.value < found.high < 0.85
    slow = [np.convolve(noise, np.ones(15) / 15, "valid") for noise in generator.normal(size=(2, 214))]
    wide, narrow = dynamics.correlation(slow[0], slow[1], "spearman"), dynamics.correlation(x, y, "spearman")
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)
    assert np.isnan(dynamics.correlation(x, np.zeros(200), "pearson").value)


def test_either_panel_has_its_correlation() -> None:
    """Larger steps go down the new task's gradient, and up the prior one's."""
    shift = np.linspace(0.1, 1, 40)
    columns = {"kl_change": shift, "kl_step": shift[::-1], "cosine_new": -shift, "cosine_prior": shift}
    found = dynamics.summarize({name: values.tolist() for name, values in columns.items()})
    assert {task: by["kl_change"]["pearson"]["value"] for task, by in found.items()} == pytest.approx(
        {"new": -1, "prior": 1}
    )
    assert dynamics.summarize({name: [1.0] for name in columns}) == {"new": {}, "prior": {}}, "one update"
    assert {task: by["kl_step"]["spearman"]["value"] for task, by in found.items()} == pytest.approx(
        {"new": 1, "prior": -1}
    )


def test_the_loss_of_the_new_task_counts_every_right_answer() -> None:
    """Moving mass between right answers leaves it alone, so that its gradient sums to zero over them."""
    images = few((64, 64), (64, 64))
    base, tests = training.pretrain(images, 0, 32), measures.Tests.of(images)
    even = measures.Tests(tests.new[:1], torch.tensor([4]), tests.prior, tests.classes)
    gradient = dynamics._gradient(base, even, "new")["bias_2"][0]
    assert gradient[1::2].min() > 0
    assert gradient[0::2].sum() == pytest.approx(-gradient[1::2].sum().item(), rel=1e-4)
