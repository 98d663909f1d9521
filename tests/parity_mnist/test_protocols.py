"""Points whose law depends on how the sweep was made."""

import numpy as np
import pytest

from vla_razor.parity_mnist import protocols
from vla_razor.parity_mnist.analysis import PREDICTORS, Point

GENERATOR = np.random.default_rng(0)


def point(method: str, run: int, step: int, kl: float, lost: float) -> Point:
    measures = dict(zip(PREDICTORS, GENERATOR.uniform(size=len(PREDICTORS)).tolist(), strict=True)) | {"forward_kl": kl}
    return Point(method, f"{method}{run}", 0, 512, "constant", 2, step, 0.9, 0.8 - lost, lost, measures)


def sweep(law: dict[str, float]) -> list[Point]:
    """Ten runs of two checkpoints by each method of `law`, which names what a nat costs."""
    return [
        point(method, run, step, 0.1 * (run + 1) * step, cost * 0.1 * (run + 1) * step)
        for method, cost in law.items()
        for run in range(10)
        for step in (1, 2)
    ]


def test_one_law_holds_under_every_protocol() -> None:
    found = protocols.compare(sweep({"grpo": 0.2, "sft_1": 0.2}))
    assert list(found) == [
        "all models",
        "finished runs alone",
        "on-policy methods",
        "offline methods",
        "degree 1",
        "degree 3",
    ]
    assert [by_measure["forward_kl"] for by_measure in found.values()] == pytest.approx([1] * 6)
    assert {protocols.best(by_measure) for by_measure in found.values()} == {"forward_kl"}


def test_a_law_of_one_kind_of_method_shows_there_alone() -> None:
    found = protocols.compare(sweep({"grpo": 0.2, "one_zero_reinforce": 0.2, "sft_1": -0.2, "simpo": -0.2}))
    assert found["all models"]["forward_kl"] < 0.1
    assert found["on-policy methods"]["forward_kl"] == pytest.approx(1)
    assert found["offline methods"]["forward_kl"] == pytest.approx(1)


def test_seeds_schedules_and_lengths_are_compared_where_there_are_several() -> None:
    first, other, third = sweep({"grpo": 0.2}), sweep({"grpo": -0.2}), sweep({"grpo": 0.2})
    points = first + [p._replace(run=f"{p.run} again", seed=1) for p in other]
    points += [p._replace(run=f"{p.run} shorter", schedule="cosine", epochs=1) for p in third]
    found = protocols.compare(points)
    assert found["all models"]["forward_kl"] < 0.5
    for name in ("seed 1 alone", "cosine schedule", "1-epoch runs"):
        assert found[name]["forward_kl"] == pytest.approx(1), name
    assert "offline methods" not in found, "there are none"


def test_only_the_end_of_each_run_counts_as_finished() -> None:
    ends = sweep({"grpo": 0.2, "sft_1": 0.2})
    spoiled = [p._replace(forgotten=0.9) if p.step == 1 else p for p in ends]
    found = protocols.compare(spoiled)
    assert found["finished runs alone"]["forward_kl"] == pytest.approx(1)
    assert found["all models"]["forward_kl"] < 0.9


def test_methods_that_seek_a_small_divergence_are_left_out_of_a_row_of_their_own() -> None:
    """They lose more a nat than the others do."""
    found = protocols.compare(sweep({"grpo": 0.2, "sft_1": 0.2, "grpo_kl": 0.6}))
    assert found["all models"]["forward_kl"] < 0.9
    assert found["without grpo_kl and sft_oracle"]["forward_kl"] == pytest.approx(1)
    assert found["... up to 2 nats"]["forward_kl"] == pytest.approx(1)
