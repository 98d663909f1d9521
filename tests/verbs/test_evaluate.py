"""`vla-razor eval` on the real tasks, with the scripted expert against an untrained policy."""

import json
from pathlib import Path

import imageio_ffmpeg
import pytest
import torch
from omegaconf import DictConfig
from rich.console import Console

from vla_razor import config
from vla_razor.errors import UserError
from vla_razor.policies import opening
from vla_razor.policies.openvla.tiny import make_tiny
from vla_razor.runs import Run
from vla_razor.statistics import Success, policy_summary, wilson
from vla_razor.tables import report
from vla_razor.verbs.measure import evaluate

STATISTICS = {"q01": [-0.07] * 3 + [-0.25] * 3 + [-1.0], "q99": [0.07] * 3 + [0.25] * 3 + [1.0], "mask": [True] * 7}


def untrained(folder: Path) -> str:
    stats = {"vla_razor_panda": {"action": STATISTICS}}
    make_tiny(["pick can"], torch.Generator().manual_seed(0), norm_stats=stats).save_pretrained(folder)
    return str(folder)


def settings(*overrides: str) -> DictConfig:
    return config.compose("eval", ["num_envs=2", "num_workers=1", "logger=none", "device=cpu", *overrides])


@pytest.mark.slow
def test_the_expert_against_an_untrained_policy(tmp_path: Path) -> None:
    policy, out = untrained(tmp_path / "policy"), tmp_path / "run"
    chosen = settings("env=pick_can", f"against={policy}", "policy=scripted", "episodes=2", "videos=1")
    with Run.create(out, chosen, "eval") as run:
        evaluate.run(run.config, run)
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["policies"]) == ["scripted", policy]
    for name in (policy, "scripted"):
        entry = summary["policies"][name]
        assert (entry["prior_tasks"], entry["prior_mean"], entry["forward_kl"]) == ({}, None, None)
        assert entry["new_task"]["pick_can"]["success_at_end"]["episodes"] == 2
    assert summary["policies"]["scripted"]["new_task"]["pick_can"]["success_once"] == wilson(2, 2)
    assert summary["policies"][policy]["new_task"]["pick_can"]["success_once"] == wilson(0, 2)
    difference = summary["comparison"]["tasks"]["pick_can"]["success_once"]
    assert difference["difference"] == 1
    assert difference["low"] > 0

    rows = [json.loads(line) for line in (out / "episodes.jsonl").read_text().splitlines()]
    starts = {row["policy"]: [r["start"] for r in rows if r["policy"] == row["policy"]] for row in rows}
    assert starts["scripted"] == starts[policy]
    assert len({row["steps"] for row in rows}) == 1  # every episode runs to the horizon, success or not

    films = sorted((out / "videos").iterdir())
    assert len(films) == 2
    frames, _ = imageio_ffmpeg.count_frames_and_secs(films[0])
    assert frames == rows[0]["steps"]
    (metrics,) = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert metrics["scripted/pick_can/success_once"] == 1


def test_greedy_evaluation_has_its_own_name(tmp_path: Path) -> None:
    policy = untrained(tmp_path / "policy")
    (name,) = evaluate.open_policies(settings(f"policy={policy}", "greedy=true"))
    assert name == f"{policy} (greedy)"


def test_the_temperature_is_the_policys_own_unless_given(tmp_path: Path) -> None:
    policy = untrained(tmp_path / "policy")
    assert opening.open_model(policy, settings()).config.temperature == 1
    assert opening.open_model(policy, settings("temperature=0.5")).config.temperature == 0.5


def test_what_a_run_taught_is_new_and_everything_else_prior(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with Run.create(run, config.compose("rl", ["env=open_top_drawer", "logger=none"]), "rl"):
        (checkpoint := run / "checkpoints" / "step_3").mkdir(parents=True)
    for given in (["env=all", f"policy={run}"], ["env=drawer", f"policy={checkpoint}"]):
        assert evaluate.new_tasks(config.compose("eval", given)) == ["open_top_drawer"]
    assert evaluate.new_tasks(config.compose("eval", ["env=pick_can", "policy=tiny", f"against={run}"])) == [
        "open_top_drawer"
    ]


def test_without_a_run_the_prior_tasks_are_those_that_trainings_have(tmp_path: Path) -> None:
    untrained(tmp_path / "policy")
    for policy in ("tiny", "scripted", str(tmp_path / "policy")):
        assert evaluate.new_tasks(config.compose("eval", ["env=all", f"policy={policy}"])) == ["pick_can"]
        assert evaluate.new_tasks(config.compose("eval", ["env=open_top_drawer", f"policy={policy}"])) == []


def test_a_policy_against_itself_is_refused() -> None:
    with pytest.raises(UserError, match="different policies"):
        evaluate.open_policies(settings("policy=scripted", "against=scripted"))


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    def success(count: int) -> Success:
        return {"success_at_end": wilson(count, 20), "success_once": wilson(count + 1, 20)}

    entry = policy_summary({"pick_can": success(5)}, {"open_top_drawer": success(10), "close_top_drawer": success(18)})
    pair = {
        "episodes": 20,
        "success_once": {"difference": 0.2, "low": -0.1, "high": 0.4},
        "success_at_end": {"difference": 0.1, "low": -0.05, "high": 0.3},
    }
    comparison = {"tasks": dict.fromkeys(("pick_can", "open_top_drawer"), pair), "prior_mean": {"episodes": 0}}
    comparison["tasks"]["close_top_drawer"] = pair
    report(Console(width=100), Path("run"), {"a": entry, "b": entry}, comparison)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.count("│") > 3]
    once, at_end, *_, prior, prior_end = lines
    assert "pick_can" in once and once.count("6 of 20  30% [15, 52]") == 2 and "+20% [-10, +40]" in once
    assert "at the end" in at_end and at_end.count("5 of 20  25% [11, 47]") == 2 and "+10% [-5, +30]" in at_end
    assert "all prior tasks" in prior and "30 of 40  75%" in prior and "every pair was lost" in prior
    assert "at the end" in prior_end and "28 of 40  70%" in prior_end
