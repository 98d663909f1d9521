"""`vla-razor llm sweep`: which runs it comes to, a whole one on two random models, interrupted once, and bad input."""

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tests.llm.support import small_data, small_model
from tests.verbs.support import CommandLine, until
from vla_razor import cli
from vla_razor.config import compose
from vla_razor.errors import UserError
from vla_razor.llm import annotations
from vla_razor.llm.tasks import number
from vla_razor.runs import read_config
from vla_razor.verbs.study.language import Language

SMALL = [
    *("task=math", "direct=true", "dtype=float32", "device=cpu", "logger=none", "method=sft", "checkpoints=2"),
    *("llm_sft.batch_size=4", "llm_sft.max_steps=2", "llm_sft.save_every=1", "llm_sft.warmup_steps=0"),
    *("llm_sft.probe_prompts=2", "llm_sft.max_new_tokens=4", "llm_eval.max_new_tokens=4", "llm_eval.examples=4"),
    "llm_eval.prior_tasks=[text,winogrande]",
]


def runs(*words: str) -> dict[str, dict[str, Any]]:
    plan = Language(compose("llm_sweep", words), Path("out")).plan()
    return {training.folder.name: dict(training.changes) for training in plan}


def test_models_are_an_axis_like_any_other() -> None:
    found = runs("method=sft,grpo", "model=a/A,B", "learning_rate=1e-5,3e-5", "seed=0,1", "llm_grpo.group_size=8,64")
    assert len(found) == 2 * 2 * 2 + 2 * 2 * 2 * 2
    assert found["sft_1_seed0"] == {"model": "a/A", "learning_rate": 1e-5}
    assert found["sft_4_seed1"] == {"model": "B", "learning_rate": 3e-5}
    assert found["grpo_8_seed1"] == {"model": "B", "learning_rate": 3e-5, "group_size": 64}
    assert set(runs()) == {"sft_seed0", "grpo_seed0"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["learning_rat=1e-5,3e-5"], "Did you mean learning_rate"),
        (["method=stf"], "Did you mean sft"),
        (["method=rl"], "unknown method 'rl'"),
        (["learning_rate=1e-5,0"], "learning_rate=0"),
        (["method=sft", "llm_grpo.group_size=8,64"], "unknown key 'llm_grpo.group_size'"),
        (["task=math,science"], "unknown key 'task'"),
        (["seed=0,x"], "seed=x"),
        (["llm_eval.prior_tasks=[textt]"], "Did you mean text"),
    ],
)
def test_bad_input_is_one_message(words: list[str], says: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.app, ["llm", "sweep", *words, "data_dir=nowhere", f"out={tmp_path / 'run'}"])
    assert result.exit_code == 2 and says in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_text_of_ones_own_needs_a_folder(tmp_path: Path) -> None:
    words = ["llm", "sweep", "llm_eval.prior_tasks=[text]", f"out={tmp_path / 'run'}"]
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 2 and "data_dir=DIR with text/*.jsonl" in result.stderr


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two models of the same shape, and data."""
    folder = tmp_path_factory.mktemp("given")
    models = [str(small_model(folder / name, seed)) for seed, name in enumerate(("one", "two"))]
    data = small_data(folder / "rows")
    (data / "text").mkdir()
    (data / "text" / "some.jsonl").write_text("".join(json.dumps({"text": f"Text {n}."}) + "\n" for n in range(4)))
    return [*SMALL, f"model={','.join(models)}", f"data_dir={data}"]


@pytest.fixture(scope="module")
def finished(given: list[str], vla_razor: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models at two learning rates, one of which diverges; killed once one run has ended, then gone on with."""
    out = tmp_path_factory.mktemp("sweep") / "run"
    process = vla_razor.start("llm", "sweep", *given, "learning_rate=1e-3,1e30", f"out={out}")
    until(lambda: process.poll() is not None or (out / "results" / "sft_1_seed0.parquet").is_file())
    assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)
    assert "resume" in process.communicate()[1] and process.returncode == 130
    assert not (out / "sft_3_seed0").exists(), "those that wait are not begun"
    first = (out / "sft_1_seed0" / "summary.json").stat().st_mtime_ns
    done = vla_razor.run("resume", out)
    assert (out / "sft_1_seed0" / "summary.json").stat().st_mtime_ns == first
    assert (
        "sft_2_seed0 failed: " in done.stdout
        and "the model has diverged" in done.stdout
        and "vla-razor report" in done.stdout
    )
    return out


def rows(out: Path) -> dict[tuple[str, int | None], dict[str, Any]]:
    return {(row["run"], row["step"]): row for row in pq.read_table(out / "results.parquet").to_pylist()}


@pytest.mark.slow
def test_what_a_sweep_leaves(finished: Path, given: list[str]) -> None:
    found = rows(finished)
    names = {run for run, _ in found}
    assert names == {"base_1", "base_2", "sft_1_seed0", "sft_2_seed0", "sft_3_seed0", "sft_4_seed0"}
    one, two = given[-2].removeprefix("model=").split(",")
    assert {row["model"] for (run, _), row in found.items() if run in ("base_1", "sft_1_seed0")} == {one}
    assert found["sft_4_seed0", None]["status"] == "failed" and found["sft_4_seed0", None]["model"] == two
    tuned = [found["sft_3_seed0", step] for step in (1, 2)]
    for row in tuned:
        assert row["domain"] == "language" and row["status"] == "done" and row["learning_rate"] == 1e-3
        divergences = ("forward_kl_per_token", "reverse_kl_per_token", "total_variation", "l2_distance")
        assert min(row[name] for name in divergences) > 0
        assert row["prior"] == pytest.approx((row["prior_text"] + row["prior_winogrande"]) / 2)
    assert tuned[1]["weight_l2"] > tuned[0]["weight_l2"] > 0 < tuned[0]["weight_spectral"] < tuned[0]["weight_l2"]
    moved = [row["forward_kl_per_token"] for row in (found["base_2", 0], *tuned)]
    assert moved[0] == 0 < moved[1] < moved[2]
    summary = json.loads((finished / "summary.json").read_text())
    assert set(summary["policies"]) == {"base one", "base two", "sft_1", "sft_3"}
    assert set(summary["failed"]) == {"sft_2_seed0", "sft_4_seed0"}
    lost = found["sft_3_seed0", 2]["prior"] - found["base_2", 0]["prior"]
    assert summary["changes"]["sft_3"]["prior"]["right"]["difference"] == pytest.approx(lost)
    answers = [json.loads((finished / name / "answers.json").read_text()) for name in ("base_2", "sft_3_seed0_step_2")]
    assert np.mean(answers[1]["text"]) - np.mean(answers[0]["text"]) == pytest.approx(
        found["sft_3_seed0", 2]["prior_text"] - found["base_2", 0]["prior_text"]
    )
    assert "two" in (finished / "table.txt").read_text()


@pytest.mark.slow
def test_a_report_tells_the_models_apart(finished: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.app, ["report", str(finished), f"out={tmp_path / 'run'}"])
    assert result.exit_code == 0, result.output + str(result.exception)
    entry = json.loads((tmp_path / "run" / "summary.json").read_text())["domains"]["language"]
    assert set(entry["bases"]) == {"one", "two"} and set(entry["frontiers"]) == {"sft one", "sft two"}
    assert (tmp_path / "run" / "plots" / "language" / "1_trade_off.svg").is_file()
    assert result.output.count("in no fit: sft_") == 2


def test_labels_are_drawn_for_each_model_and_seed(tmp_path: Path) -> None:
    words = (
        "task=number",
        "method=sft,sft_own,sft_oracle,grpo",
        "model=A,B",
        "seed=0,1",
        "llm_grpo.kl_coefficient=0,0.1",
    )
    study = Language(compose("llm_sweep", words), tmp_path)
    plan = study.plan()
    assert {one.label for one in plan} == {"sft", "sft_own", "sft_oracle", "grpo", "grpo kl_coefficient=0.1"}
    folders = {one.folder.name: study._labels(one) for one in plan}
    assert folders["sft_own_2_seed1"] == tmp_path / "own_2_seed1"
    assert folders["sft_oracle_1_seed0"] == tmp_path / "oracle_1_seed0"
    assert folders["sft_1_seed0"] is None is folders["grpo_4_seed1"]
    with pytest.raises(UserError, match="right answers of task=science cannot be listed"):
        Language(compose("llm_sweep", ("task=science", "method=sft,sft_oracle")), tmp_path).plan()


@pytest.mark.slow
def test_a_sweep_of_the_task_with_many_right_answers(vla_razor: CommandLine, tmp_path: Path) -> None:
    """The oracle's labels, GRPO, and a prior task of one's own, as a process."""
    data = small_data(tmp_path / "rows")
    (data / "questions").mkdir()
    questions = [{"question": f"Which is {n}?", "choices": ["A", "B"], "answer": n % 2} for n in range(4)]
    (data / "questions" / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    words = ["task=number", f"data_dir={data}", f"model={small_model(tmp_path / 'model')}", "launcher=here"]
    words += ["method=sft_oracle,grpo", "dtype=float32", "device=cpu", "logger=none"]
    for verb in ("llm_sft", "llm_grpo"):
        words += [f"{verb}.{word}" for word in ("max_steps=2", "save_every=1", "warmup_steps=0", "learning_rate=1e-3")]
        words += [f"{verb}.{word}" for word in ("probe_prompts=2", "max_new_tokens=8", "gradient_checkpointing=false")]
    words += ["llm_sft.batch_size=4", "llm_grpo.group_size=4", "llm_grpo.prompts_per_step=2"]
    words += ["llm_eval.prior_tasks=[own]", "llm_eval.temperature=1.0", "llm_eval.max_new_tokens=8"]
    out = tmp_path / "out"
    vla_razor.run("llm", "sweep", *words, f"out={out}")
    labels = annotations.read(out / "oracle_seed0")
    assert labels and all(number.rewards([one.chosen or ""], [one.gold]) == [1.0] for one in labels)
    config = read_config(out / "sft_oracle_seed0" / "config.yaml")
    assert config.annotations == str(out / "oracle_seed0")
    found = rows(out)
    assert {run for run, _ in found} == {"base", "sft_oracle_seed0", "grpo_seed0"}
    assert found["sft_oracle_seed0", 2]["forward_kl_per_token"] > 0 == found["base", 0]["forward_kl_per_token"]
    assert found["sft_oracle_seed0", 2]["prior"] == found["sft_oracle_seed0", 2]["prior_own"]
    steps = [json.loads(line) for line in (out / "grpo_seed0" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps if "format_entropy" in row] == [0, 1, 2]
    assert found["grpo_seed0", 2]["format_entropy"] is not None
