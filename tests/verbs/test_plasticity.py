"""`vla-razor plasticity`: what is read from the trainings, and a whole comparison in the simulator."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.verbs.support import CommandLine, metrics
from vla_razor import cli
from vla_razor.config import compose, to_yaml
from vla_razor.policies.load import TINY
from vla_razor.statistics import wilson
from vla_razor.verbs.measure import plasticity
from vla_razor.verbs.measure.plasticity import History, Learned
from vla_razor.verbs.study.comparison import as_text


def finished(folder: Path, rows: list[dict[str, float]], *words: str, verb: str = "rl") -> Path:
    """A run folder with these rows."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(compose(verb, words)))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "summary.json").write_text("{}")
    return folder


def test_a_history_is_the_last_policy_and_what_it_spent(tmp_path: Path) -> None:
    rows = [{"step": 1, "forward_kl_per_action": 1.0}, {"step": 2, "forward_kl_per_action": 2.5}, {"step": 3}]
    one, other = finished(tmp_path / "one", rows), finished(tmp_path / "other", rows[:1], verb="sft")
    assert plasticity.histories([str(one), str(other)], "open_top_drawer") == {
        "base": History("tiny", "base", 0.0),
        "one": History(str(one), "rl", 2.5),
        "other": History(str(other), "sft", 1.0),
    }


def test_a_curve_is_pooled_at_its_ends_and_over_all_without_lost_episodes(tmp_path: Path) -> None:
    rates = [0.25, 0.5, 0.25, 0.5, 0.75, 1.0, 1.0]
    rows = [
        {"step": n, "success": rate, "lost_episodes": 0, "sampled_entropy": 3.0 - n} for n, rate in enumerate(rates, 1)
    ]
    rows[0] |= {"success": 1 / 3, "lost_episodes": 1}
    for row in rows:
        row["effective_episodes"] = 4.0 - row["lost_episodes"]  # as if no two of them began alike
    folder = finished(tmp_path / "run", rows, "grid=2x1", "per_point=2", "env=open_top_drawer", "seed=5")
    learned = plasticity.read(folder, "run", History("somewhere", "sft", 2.0))
    assert (learned.seed, learned.method, learned.spent, learned.entropy) == (5, "sft", 2.0, 2.0)
    assert learned.first == wilson(1 + 2 + 1, 11, starts=6) and learned.last == wilson(3 + 4 + 4, 12, starts=6)
    assert learned.all == wilson(1 + 2 + 1 + 2 + 3 + 4 + 4, 27, starts=14) and learned.at_end is None
    assert learned.steps == [1, 2, 3, 4, 5, 6, 7] and learned.curve == [1 / 3, *rates[1:]]


def test_episodes_from_one_start_are_alike(tmp_path: Path) -> None:
    """Runs of earlier versions did not log how much."""
    rows: list[dict[str, float]] = [
        {"step": n, "success": 0.5, "lost_episodes": 0, "episode_length": 9.0, "entropy": 1.0} for n in range(1, 5)
    ]
    words = ("grid=2x1", "per_point=2", "env=open_top_drawer")
    before = plasticity.read(finished(tmp_path / "before", rows, *words), "run", History("somewhere", "sft", 2.0))
    assert (before.all["episodes"], before.all["starts"], before.all["effective"]) == (16, 8, 8)
    for row in rows:
        row["effective_episodes"] = 3.0
    now = plasticity.read(finished(tmp_path / "now", rows, *words), "run", History("somewhere", "sft", 2.0))
    assert now.all["effective"] == pytest.approx(12) and now.all["high"] < before.all["high"]


def test_checkpoints_share_the_starts_that_they_are_evaluated_from() -> None:
    """A policy without chance that never changes: four evaluations of it tell no more than one."""
    point = {"open_top_drawer": np.array([1.0, 0, 0, 1]), "close_top_drawer": np.array([1.0, 1, 1, 0])}
    often = plasticity._over([point] * 4)
    assert (often["successes"], often["episodes"], often["starts"]) == (20, 32, 8)
    assert (often["low"], often["high"]) == pytest.approx((wilson(5, 8)["low"], wilson(5, 8)["high"]))


def test_the_table_shows_both_readings_where_there_are_both() -> None:
    rate = wilson(12, 96)
    learned = [Learned("base", "rl", 0, 0.0, 2.0, [1], [0.1], rate, rate, rate)]
    config = compose("plasticity", ["method=sft", "env=open_top_drawer"])
    assert "at the end" not in as_text(plasticity.table(config, learned))
    both = as_text(plasticity.table(config, [learned[0]._replace(at_end=(wilson(6, 96),) * 3)]))
    assert both.index("12 of 96") < both.index("at the end") < both.index("6 of 96", both.index("at the end"))
    assert max(map(len, both.splitlines())) <= 110


def test_kl_that_costs_learning_has_a_negative_tau() -> None:
    rates = [wilson(n, 10) for n in (8, 6, 3)]
    learned = [Learned(str(n), "rl", 0, float(n), 1.0, [], [], rate, rate, rate) for n, rate in enumerate(rates)]
    assert plasticity.correlation(learned) == -1
    assert plasticity.correlation(learned[:2]) is None


def test_bad_input_is_one_message(tmp_path: Path) -> None:
    good = finished(tmp_path / "a/run", [{"step": 1, "forward_kl_per_action": 1.0}])
    twin = finished(tmp_path / "b/run", [{"step": 1, "forward_kl_per_action": 1.0}])
    other = finished(tmp_path / "c", [{"step": 1, "forward_kl_per_action": 1.0}], "policy=elsewhere")
    blind = finished(tmp_path / "d", [{"step": 1}])
    for folders, says in (
        ([], "plasticity DIR..."),
        ([good, twin], "two policies would be called run"),
        ([good, other], "different policies, elsewhere and tiny"),
        ([blind], "needs probe_every above 0"),
        ([tmp_path / "nowhere"], "nowhere is no finished run of sft, rl or distill"),
        ([good.parent], "a is no finished run of sft"),
        ([finished(tmp_path / "sweep", [], verb="sweep")], "Give the runs below it"),
        ([good, "env=pick_can"], "has learned pick_can already"),
    ):
        words = ["plasticity", *map(str, folders), f"out={tmp_path / 'run'}"]
        words = words if "env=pick_can" in words else [*words, "env=drawer"]
        result = CliRunner().invoke(cli.app, words)
        assert result.exit_code == 2 and says in result.stderr, result.output
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_whole_comparison(tmp_path: Path, vla_razor: CommandLine) -> None:
    if not TINY.is_dir():
        pytest.skip("the embedded base policy has not been made")
    small = ["iterations=1", "grid=1x1", "per_point=4", "probe_states=16", "probe_every=1", "save_every=1"]
    shared = ["num_envs=4", "num_workers=1", "device=cpu", "logger=none"]
    tuned = tmp_path / "tuned"
    vla_razor.run("rl", *small, *shared, "eval_episodes=0", f"out={tuned}")
    settings = [f"rl.{word}" for word in small]
    done = vla_razor.run("plasticity", tuned, "env=open_top_drawer", *settings, *shared, f"out={tmp_path / 'run'}")
    assert "open_top_drawer learned by REINFORCE" in done.stdout
    learned = json.loads((tmp_path / "run" / "summary.json").read_text())["learned"]
    spent = metrics(tuned)[-1]["forward_kl_per_action"]
    assert [(one["name"], one["spent"]) for one in learned] == [("base", 0), ("tuned", spent)]
    assert {path.name for path in (tmp_path / "run" / "plots").iterdir()} == {"plasticity.png", "plasticity.svg"}

    taught, words = tmp_path / "taught", ["collect.grid=2x1", "collect.per_point=1", "sft.epochs=1", "sft.save_every=1"]
    words += ["sft.batch_size=16", "sft.probe_states=16", "eval.episodes=4"]
    arguments = ["plasticity", tuned, "env=open_top_drawer", "method=sft", *words, *shared, f"out={taught}"]
    done = vla_razor.run(*arguments)
    assert "open_top_drawer learned by SFT on demonstrations" in done.stdout
    assert "first 1 evaluation" in done.stdout
    base, _ = json.loads((taught / "summary.json").read_text())["learned"]
    updates = len(metrics(taught / "base_seed0"))
    assert base["steps"] == list(range(updates + 1)) and updates > 1
    assert base["first"]["episodes"] == base["last"]["episodes"] == 4
    assert base["all"]["episodes"] == 4 * len(base["curve"]) and base["all"]["starts"] == 4
    assert [rate["episodes"] for rate in base["at_end"]] == [4, 4, 4 * len(base["curve"])]
    assert "at the end" in done.stdout
    assert 0 < base["entropy"] < 5.6, "a distribution over 256 actions"
