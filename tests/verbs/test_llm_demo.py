"""`vla-razor llm demo`: a whole one on a random model, one that is interrupted, its arithmetic, and bad input."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tests.llm.support import small_data, small_model
from vla_razor import cli
from vla_razor.verbs.study import comparison
from vla_razor.verbs.study.comparison import Outcome

SMALL = [
    *("task=tool", "dtype=float32", "device=cpu", "logger=none", "seed=0,1", "cold_start={max_examples: 4}"),
    *("llm_sft.batch_size=4", "llm_sft.max_steps=2", "llm_sft.probe_prompts=2", "llm_sft.learning_rate=1e-3"),
    *("llm_grpo.group_size=2", "llm_grpo.prompts_per_step=2", "llm_grpo.max_steps=2", "llm_grpo.probe_prompts=2"),
    *("llm_sft.max_new_tokens=4", "llm_grpo.max_new_tokens=4", "llm_eval.max_new_tokens=4"),
    *("llm_eval.prior_tasks=[winogrande]", "llm_eval.examples=4"),
]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Model, data and a cache of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLA_RAZOR_CACHE", str(tmp_path_factory.mktemp("cache")))
        model, data = (
            small_model(tmp_path_factory.mktemp("model")),
            small_data(tmp_path_factory.mktemp("data") / "rows"),
        )
        yield [*SMALL, f"model={model}", f"data_dir={data}"]


def demo(*words: object, verb: tuple[str, ...] = ("llm", "demo")) -> Any:
    return CliRunner().invoke(cli.app, [*verb, *map(str, words)], env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def finished(given: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "run"
    result = demo(*given, f"out={out}")
    assert result.exit_code == 0, result.output + str(result.exception)
    assert "winogrande" in result.output and "forward KL a token" in result.output
    return out


@pytest.mark.slow
def test_what_a_demo_leaves(finished: Path) -> None:
    runs = {f"{method}_seed{seed}{part}" for method in ("sft", "grpo") for seed in (0, 1) for part in ("", "_step_2")}
    assert {path.parent.name for path in finished.glob("*/summary.json")} == {"cold_start", "base", *runs}
    summary = json.loads((finished / "summary.json").read_text())
    assert set(summary["policies"]) == {"base", "sft", "grpo"}
    moved = {name: entry["forward_kl"]["per_token"] for name, entry in summary["policies"].items()}
    assert moved["base"] == 0 < moved["sft"]
    own = [json.loads((finished / f"sft_seed{seed}" / "summary.json").read_text())["forward_kl"] for seed in (0, 1)]
    assert moved["sft"] == pytest.approx(np.mean([one["per_token"] for one in own]))
    rate = summary["policies"]["sft"]["prior_tasks"]["winogrande"]["right"]
    assert rate["examples"] == 4 and rate["low"] <= rate["rate"] <= rate["high"]
    assert set(summary["changes"]["grpo"]) == {"new", "prior"}
    assert {row["run"] for row in pq.read_table(finished / "results.parquet").to_pylist()} == {
        "base",
        *(f"{method}_seed{seed}" for method in ("sft", "grpo") for seed in (0, 1)),
    }
    assert (finished / "plots" / "retention.png").is_file()
    assert "winogrande" in (finished / "table.txt").read_text()


@pytest.mark.slow
def test_an_interrupted_demo_goes_on_with_the_stage_it_was_in(finished: Path) -> None:
    before = json.loads((finished / "summary.json").read_text())["policies"]
    kept = (finished / "sft_seed0" / "summary.json").stat().st_mtime_ns
    for path in (finished / "summary.json", finished / "grpo_seed1_step_2" / "summary.json"):
        path.unlink()
    result = demo(finished, verb=("resume",))
    assert result.exit_code == 0, result.output
    assert json.loads((finished / "summary.json").read_text())["policies"] == before
    assert (finished / "sft_seed0" / "summary.json").stat().st_mtime_ns == kept


def test_changes_by_hand() -> None:
    """Means over seeds are within an example, so that its answers do not count as independent ones."""
    base = outcome("base", [0.0, 0.0, 1.0, 1.0], [0.0, 0.0])
    tuned = [outcome("sft", [1.0, 0.0, 1.0, 1.0], [1.0, 0.0]), outcome("sft", [1.0, 1.0, 1.0, 1.0], [0.0, 1.0])]
    found = comparison.change(tuned, [base], "new")
    assert found.difference == pytest.approx(0.375)
    reach = 1.96 * np.std([1.0, 0.5, 0, 0], ddof=1) / 2
    assert (found.low, found.high) == pytest.approx((0.375 - reach, 0.375 + reach))
    assert comparison.change(tuned, [base], "prior").difference == pytest.approx((0.5 + 0.25) / 2), (
        "tasks weigh the same"
    )
    _, column = comparison.columns_of([base, tuned[0]])
    assert column.entry({"completions": 3})["forward_kl"] == {"per_completion": 6.0, "per_token": 2.0, "completions": 3}


def outcome(method: str, new: list[float], prior: list[float]) -> Outcome:
    """A model as it was evaluated on one new task and two prior ones, the second of which it never learns."""
    earned = {"new": {"right": {"tool": np.array(new)}}}
    earned |= {"prior": {"right": {"one": np.array(prior), "other": np.array([*prior, 0.0, 0.0])}}}
    base = Outcome.of_base("language", "somewhere", earned, 0)
    drift = {"forward_kl_per_token": 2.0, "forward_kl_per_completion": 6.0}
    return base if method == "base" else replace(base, method=method, setting=method, run=method, drift=drift)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["cold_start={max_exmples: 4}"], "Did you mean max_examples"),
        (["task=science", "easy=true"], "task=science has no easier slice"),
        (["seeds=[0,1]"], "which earlier versions had. Say seed=0,1,2."),
    ],
)
def test_bad_input_is_one_message(words: list[str], says: str, given: list[str], tmp_path: Path) -> None:
    result = demo(*given, *words, f"out={tmp_path / 'run'}")
    assert result.exit_code == 2 and says in result.stderr
