"""The demo: what it reads from its stages, on made-up ones, and a whole one in the simulator, killed on the way."""

import io
import json
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from tests.verbs.support import CommandLine, small_policy, until
from vla_razor import config
from vla_razor.errors import UserError
from vla_razor.policies.load import TINY, stored_weights
from vla_razor.rollouts.demonstrations import read_store
from vla_razor.statistics import Success, paired_difference, policy_summary, wilson
from vla_razor.verbs.measure.evaluate import film_path
from vla_razor.verbs.study import comparison, results, robot, sweep
from vla_razor.verbs.study.axes import Training, step_of
from vla_razor.verbs.study.comparison import Outcome
from vla_razor.videos import read_film, write_film

PRIOR = ("open_top_drawer", "close_top_drawer")
MEASURES = ("forward_kl_per_token", "forward_kl_per_action", "sharpening", "displacement", "reverse_kl_per_token")
MEASURES += ("total_variation", "l2_distance")


def make_training(out: Path, setting: str, seed: int, steps: tuple[int, ...] = (2, 4)) -> Training:
    """A finished run with checkpoints at `steps`; its divergences are step / 10 + seed / 50."""
    method = setting.partition("_")[0]
    folder = out / f"{setting}_seed{seed}"
    for step in steps:
        (folder / "checkpoints" / f"step_{step}").mkdir(parents=True)
    rows = [{"step": n, "wall_seconds": float(n), "loss": 1.0, "success": 0.5} for n in range(1, steps[-1] + 1)]
    for row in rows:
        row |= dict.fromkeys(MEASURES, row["step"] / 10 + seed / 50)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    drift = {"policies": {"tuned": {"forward_kl": {"states": 16}}}}
    (folder / "summary.json").write_text(json.dumps(drift))
    (folder / "config.yaml").write_text(config.to_yaml(config.compose(method)))
    return Training(folder, setting, method, seed, 1e-4, {})


def make_evaluation(folder: Path, tasks: tuple[str, ...], hits: dict[str, list[int]]) -> None:
    """An evaluation in which a policy's `hits`, 1 or 0 a start, are the same in every task; at the end only the first
    of them is still one.
    """
    folder.mkdir(parents=True)
    summaries = {}
    for policy, wins in hits.items():
        success: Success = {"success_once": wilson(sum(wins), len(wins)), "success_at_end": wilson(wins[0], len(wins))}
        by_task = dict.fromkeys(tasks, success)
        new = {task: s for task, s in by_task.items() if task == "pick_can"}
        summaries[policy] = policy_summary(new, {task: s for task, s in by_task.items() if task not in new})
    (folder / "summary.json").write_text(json.dumps({"policies": summaries}))
    rows = [
        {"policy": policy, "task": task, "success_once": win == 1, "success_at_end": win == 1 and i == 0, "lost": False}
        for policy, wins in hits.items()
        for task in tasks
        for i, win in enumerate(wins)
    ]
    (folder / "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def stages(tmp_path: Path) -> tuple[list[Training], list[Outcome]]:
    """Two seeds of SFT and REINFORCE, two checkpoints each; SFT forgets one prior episode of four at each. The base was
    evaluated with both seeds, as earlier versions did.
    """
    trainings = []
    for seed in (0, 1):
        own = [make_training(tmp_path, setting, seed) for setting in ("sft", "rl")]
        paths = {training.setting: [str(path) for path in training.checkpoints(2)] for training in own}
        new = {"tiny": [1, 0, 0, 0]} | {path: [1, 1, 1, 0] for both in paths.values() for path in both}
        prior = {path: [1, 1, 1, 0] for path in ("tiny", *paths["rl"])}
        prior |= {paths["sft"][0]: [1, 1, 0, 0], paths["sft"][1]: [1, 0, 0, 0]}
        make_evaluation(tmp_path / f"new_seed{seed}", ("pick_can",), new)
        make_evaluation(tmp_path / f"prior_seed{seed}", PRIOR, prior)
        trainings += own
    new, prior = ([tmp_path / f"{kind}_seed{seed}" for seed in (0, 1)] for kind in ("new", "prior"))
    return trainings, robot.read("tiny", new, prior, trainings, 2)


def test_the_evaluated_checkpoints_are_spread_and_end_with_the_last(tmp_path: Path) -> None:
    training = make_training(tmp_path, "rl", 0, tuple(range(10, 100, 10)))
    for count, expected in ((1, [90]), (3, [30, 60, 90]), (4, [20, 40, 70, 90]), (20, list(range(10, 100, 10)))):
        assert [step_of(path) for path in training.checkpoints(count)] == expected


def test_outcomes_are_read_from_the_stages(stages: tuple[list[Training], list[Outcome]]) -> None:
    _, outcomes = stages
    first = [(o.method, o.seed, o.step, o.last) for o in outcomes[:5]]
    assert first == [("base", 0, 0, True), *((m, 0, s, s == 4) for m in ("sft", "rl") for s in (2, 4))]
    assert comparison.columns_of(outcomes)[0].drift("forward_kl_per_token") == 0
    assert outcomes[1].drift["forward_kl_per_token"] == 0.2
    assert (outcomes[0].new_rate["rate"], outcomes[0].prior_rate["episodes"]) == (0.25, 8)


def test_outcomes_are_read_where_everything_has_been_moved_to(tmp_path: Path) -> None:
    """The base is a run's policy itself, with the name of the run that started from it."""
    base = str(tmp_path / "before" / "sft_seed0" / "checkpoints" / "step_4")
    training = make_training(tmp_path / "there", "sft", 0)
    first, last = map(str, training.checkpoints(2))
    hits = {base: [0, 0, 0, 0], first: [1, 1, 0, 0], last: [1, 1, 1, 0]}
    make_evaluation(tmp_path / "there" / "new", ("pick_can",), hits)
    make_evaluation(tmp_path / "there" / "prior", PRIOR, hits)
    here = (tmp_path / "there").rename(tmp_path / "here")
    moved = replace(training, folder=here / "sft_seed0")
    outcomes = robot.read(base, [here / "new"], [here / "prior"], [moved], 2)
    assert [outcome.new_rate["rate"] for outcome in outcomes] == [0, 0.5, 0.75]
    assert outcomes[2].policy == str(here / "sft_seed0" / "checkpoints" / "step_4")


def test_a_base_episode_counts_once_and_seeds_are_clustered_by_start(
    stages: tuple[list[Training], list[Outcome]],
) -> None:
    base, sft, rl = comparison.columns_of(stages[1])
    assert [column.name for column in (base, sft, rl)] == ["base", "sft", "rl"]
    before = base.entry({"states": 16})
    assert before["primary"] == "success_once"
    assert before["new_task"]["pick_can"] == {"success_once": wilson(1, 4), "success_at_end": wilson(1, 4)}
    assert before["prior_mean"]["success_once"] == wilson(6, 8), "two tasks of four starts, whatever the seeds"
    change = sft.changes("prior")["success_once"]
    assert change == paired_difference([[1, 0, 0, 0] * 2] * 2, [1, 1, 1, 0] * 2)
    once = paired_difference([1, 0, 0, 0] * 2, [1, 1, 1, 0] * 2)
    assert change == pytest.approx(once), "both seeds do the same from every start: one would have told as much"
    assert change.difference == -0.5 and sft.changes("prior")["success_at_end"].difference == 0
    assert rl.changes("prior")["success_once"].difference == 0
    assert rl.changes("new")["success_once"].difference == 0.5
    entry = sft.entry({"states": 16})
    rate = entry["new_task"]["pick_can"]["success_once"]
    assert (rate["successes"], rate["episodes"], rate["starts"]) == (6, 8, 4)
    assert (rate["low"], rate["high"]) == pytest.approx((wilson(3, 4)["low"], wilson(3, 4)["high"]))
    rate = entry["prior_mean"]["success_once"]
    assert (rate["successes"], rate["episodes"], rate["starts"]) == (4, 16, 8)
    assert (rate["low"], rate["high"]) == pytest.approx((wilson(2, 8)["low"], wilson(2, 8)["high"]))
    names = ("per_token", "per_action", "sharpening", "displacement")
    assert entry["forward_kl"] == pytest.approx({**dict.fromkeys(names, 0.41), "states": 16})


def test_methods_are_compared_where_they_first_reach_what_all_reach(
    stages: tuple[list[Training], list[Outcome]],
) -> None:
    _, outcomes = stages
    for outcome in outcomes:
        if (outcome.method, outcome.step) == ("rl", 2):
            outcome.earned["new"]["success_once"]["pick_can"][2] = 0
    found = comparison.matched(outcomes)
    assert (found.level, found.best) == (0.75, {"sft": 0.75, "rl": 0.75})
    told = found.summary({"states": 16})
    assert told["best"] == found.best
    assert told["steps"] == {"sft": [2, 2], "rl": [4, 4]}
    assert set(told["policies"]) == {"base", "sft", "rl"}
    assert told["changes"]["sft"]["prior"]["success_once"]["difference"] == -0.25
    expected = paired_difference([[1, 1, 1, 0] * 2] * 2, [[1, 1, 0, 0] * 2] * 2)
    assert told["prior_kept_more"]["rl"]["sft"] == expected._asdict()
    assert expected.difference == 0.25
    assert "reaches 75%" in comparison.as_text(comparison.table(found.columns, found.title))


def test_lost_episodes_are_no_pairs(stages: tuple[list[Training], list[Outcome]]) -> None:
    base, sft, _ = comparison.columns_of(stages[1])
    for member in sft.members:
        member.earned["prior"]["success_once"]["open_top_drawer"][1:] = np.nan
    pairs = ([1, 1, 0, 0, 0], [1, 1, 1, 1, 0])
    assert sft.changes("prior")["success_once"].difference == paired_difference(*pairs).difference
    assert base.changes("new")["success_once"].difference == 0
    rate = sft.tasks("prior")["open_top_drawer"]["success_once"]
    assert (rate["successes"], rate["episodes"], rate["starts"]) == (2, 2, 1)


def test_the_base_is_read_from_wherever_it_was_evaluated(tmp_path: Path) -> None:
    """A demo evaluates it with the first seed alone."""
    trainings = [make_training(tmp_path, "rl", seed, (2,)) for seed in (0, 1)]
    for seed, training in enumerate(trainings):
        hits = {"tiny": [1, 0, 0, 0]} if seed == 0 else {}
        hits |= {str(training.checkpoints(1)[0]): [1, 1, seed, 0]}
        make_evaluation(tmp_path / f"new_seed{seed}", ("pick_can",), hits)
        make_evaluation(tmp_path / f"prior_seed{seed}", PRIOR, hits)
    new, prior = ([tmp_path / f"{kind}_seed{seed}" for seed in (0, 1)] for kind in ("new", "prior"))
    base, rl = comparison.columns_of(robot.read("tiny", new, prior, trainings, 1))
    assert base.tasks("new")["pick_can"]["success_once"] == wilson(1, 4)
    assert rl.changes("new")["success_once"].difference == 0.375


def test_an_evaluation_of_before_starts_were_counted_is_read(tmp_path: Path) -> None:
    """summary.json of schema 1: rates without starts."""
    training = make_training(tmp_path, "rl", 0, (2,))
    hits = {"tiny": [1, 0, 0, 0], str(training.checkpoints(1)[0]): [1, 1, 1, 0]}
    for kind, tasks in (("new", ("pick_can",)), ("prior", PRIOR)):
        make_evaluation(tmp_path / kind, tasks, hits)
        summary = json.loads((tmp_path / kind / "summary.json").read_text())
        for entry in summary["policies"].values():
            for success in (*entry["new_task"].values(), *entry["prior_tasks"].values()):
                for rate in success.values():
                    del rate["starts"], rate["effective"]
        (tmp_path / kind / "summary.json").write_text(json.dumps(summary))
    outcomes = robot.read("tiny", [tmp_path / "new"], [tmp_path / "prior"], [training], 1)
    assert [one.new_rate for one in outcomes] == [wilson(1, 4), wilson(3, 4)]
    assert [one.prior_rate for one in outcomes] == [wilson(2, 8), wilson(6, 8)]


def test_the_table_says_what_was_found(stages: tuple[list[Training], list[Outcome]]) -> None:
    text = comparison.as_text(comparison.table(comparison.columns_of(stages[1])))
    lines = [line for line in text.splitlines() if line.count("│") > 3]
    assert max(map(len, text.splitlines())) <= 100
    new, new_end, change, change_end, *prior = [line.split("│")[1].strip() for line in lines]
    assert (new, new_end, change, change_end) == ("pick_can", "at the end", "change", "change at the end")
    assert prior[-8:-4] == ["all prior tasks", "at the end", "change", "change at the end"]
    assert "1 of 4  25% [5, 70]" in lines[0] and "6 of 8  75% [30, 95]" in lines[0]
    assert "1 of 4  25% [5, 70]" in lines[1] and "2 of 8  25% [5, 70]" in lines[1]
    assert "+50%" in lines[2] and "+0%" in lines[3]
    assert lines[4].count("75%") == 2 and "open (prior)" in lines[4]
    assert "-50%" in lines[-6] and "+0%" in lines[-5]
    assert "0.41" in lines[-1] and "displacement" in lines[-2] and "forward KL an action" in lines[-4]


def test_many_settings_have_their_counts_above_their_rates(stages: tuple[list[Training], list[Outcome]]) -> None:
    base, sft, rl = comparison.columns_of(stages[1])
    columns = [base, sft, rl, sft._replace(name="sft_2"), rl._replace(name="rl_2"), rl._replace(name="rl_3")]
    text = comparison.as_text(comparison.table(columns))
    assert "75% [30, 95]" in text and "6 of 8" in text and "6 of 8  75%" not in text
    assert max(map(len, text.splitlines())) <= 140


def test_results_are_rows_in_sorted_order_and_reproducible(
    stages: tuple[list[Training], list[Outcome]], tmp_path: Path
) -> None:
    _, outcomes = stages
    failed = Training(tmp_path / "sft_2_seed0", "sft_2", "sft", 0, 1.0, {})
    for out in (tmp_path / "a", tmp_path / "b"):
        results.write_rows(out, outcomes, {failed: "Step 3: the loss is nan"})
    assert (tmp_path / "a/results.parquet").read_bytes() == (tmp_path / "b/results.parquet").read_bytes()
    rows = pq.read_table(tmp_path / "a/results.parquet").to_pylist()
    runs = ["base", "rl_seed0", "rl_seed1", "sft_2_seed0", "sft_seed0", "sft_seed1"]
    assert list(dict.fromkeys(row["run"] for row in rows)) == runs
    assert sorted(path.stem for path in (tmp_path / "a/results").iterdir()) == runs
    assert len(rows) == 1 + 4 * 2 + 1
    (failure,) = [row for row in rows if row["status"] == "failed"]
    assert (failure["run"], failure["new"], failure["reason"]) == ("sft_2_seed0", None, "Step 3: the loss is nan")
    last = rows[-1]
    assert (last["method"], last["step"], last["new"], last["prior"]) == ("sft", 4, 0.75, 0.25)
    assert last["prior_open_top_drawer"] == 0.25
    assert last["forward_kl_per_token"] == last["reverse_kl_per_token"] == pytest.approx(0.42)
    assert "wall_seconds" not in last
    assert last["weight_l1"] is last["activation_l1"] is None, "not measured in these runs"
    assert next(row for row in rows if row["run"] == "base")["weight_l1"] == 0
    assert pq.read_table(tmp_path / "a/wall_seconds.parquet").num_rows == 9


def test_the_weights_changes_are_measured_once_and_are_columns(
    stages: tuple[list[Training], list[Outcome]], tmp_path: Path
) -> None:
    trainings, _ = stages
    training = trainings[0]
    small_policy(0).save_pretrained(tmp_path / "base")
    for checkpoint in training.checkpoints(2):
        small_policy(step_of(checkpoint)).save_pretrained(checkpoint)
    comparison.measure_weights(str(tmp_path / "base"), training, 2, stored_weights)
    (kept, _) = sorted((training.folder / "weight_changes").iterdir())
    written = kept.stat().st_mtime_ns
    comparison.measure_weights(str(tmp_path / "base"), training, 2, stored_weights)
    assert kept.stat().st_mtime_ns == written
    new, prior = ([tmp_path / f"{kind}_seed0"] for kind in ("new", "prior"))
    outcomes = robot.read("tiny", new, prior, trainings[:1], 2)
    results.write_rows(tmp_path / "out", outcomes, {})
    last = pq.read_table(tmp_path / "out/results.parquet").to_pylist()[-1]
    before, after = small_policy(0).stored_tensors(), small_policy(4).stored_tensors()
    gap = sum(float((after[name].double() - before[name]).abs().sum()) for name in before)
    assert last["weight_l1"] == pytest.approx(gap) and last["weight_sparsity"] < 0.1


def test_what_predicts_forgetting(stages: tuple[list[Training], list[Outcome]], tmp_path: Path) -> None:
    _, outcomes = stages
    results.write_rows(tmp_path / "all", outcomes, {})
    found = results.predictors(tmp_path / "all")
    assert set(found) == {*MEASURES} - {"forward_kl_per_action"}, "which is a multiple"
    law = found["forward_kl_per_token"]
    assert 0 < law["r2"] < 1, "SFT and REINFORCE drifted alike and forgot differently"
    assert 0 < law["kendall_tau"] < 1
    assert law["runs"] == 4 and law["low"] is law["high"] is None, "too few for an interval"
    two = [one for one in outcomes if one.seed == 0]
    results.write_rows(tmp_path / "few", two, {})
    assert results.predictors(tmp_path / "few") == {}, "two runs predict nothing"


def test_what_is_presented(stages: tuple[list[Training], list[Outcome]], tmp_path: Path) -> None:
    trainings, outcomes = stages
    settings = config.compose("demo", ["seed=0,1", "checkpoints=2"])
    frame = np.zeros((64, 64, 3), np.uint8)
    for name in ("tiny", *(str(t.checkpoints(1)[0]) for t in trainings[:2])):
        for number in range(settings.videos - 1):
            write_film(film_path(tmp_path / "new_seed0", name, "pick_can", number), [frame] * 3, 5)
    study = robot.Robot(settings, tmp_path)
    study.console = Console(file=io.StringIO())
    results.write_rows(tmp_path, outcomes, {})
    summary = sweep.present(study, outcomes, trainings, {})
    assert set(summary["policies"]) == {"base", "sft", "rl"}
    assert summary["changes"]["sft"]["prior"]["success_once"]["difference"] == -0.5
    assert list(summary["changes"]["rl"]["new"]) == ["success_once", "success_at_end"]
    assert summary["matched"]["level"] == 0.75
    shown = (tmp_path / "table.txt").read_text()
    assert shown.index("reaches 75% on the new task") < shown.index("At their ends")
    for path in (tmp_path / "plots").iterdir():
        with Image.open(path) as image:
            image.verify()
    assert len(list((tmp_path / "plots").iterdir())) == 4
    frames = read_film(tmp_path / "videos" / "side_by_side.mp4")
    assert len(frames) == 3 * (settings.videos - 1), "a start without a film is left out"
    assert frames[0].shape[1] == 3 * 256


def test_the_plan_numbers_what_there_is_several_of(tmp_path: Path) -> None:
    for given, expected in (("null", ["sft", "rl"]), ("{style: across}", ["sft", "sft_far", "rl"])):
        plan = robot.Robot(config.compose("demo", [f"far={given}"]), tmp_path).plan()
        assert [training.folder.name for training in plan] == expected
    settings = config.compose("demo", ["method=sft,rl", "seed=3,5", "sft.learning_rate=1e-4,1e-3"])
    plan = robot.Robot(settings, tmp_path).plan()
    assert [t.folder.name for t in plan if t.seed == 3] == ["sft_1_seed3", "sft_2_seed3", "rl_seed3"]
    assert [t.learning_rate for t in plan if t.seed == 3] == [1e-4, 1e-3, settings.rl.learning_rate]
    with pytest.raises(UserError, match="far=null: sft_far needs a teacher"):
        robot.Robot(config.compose("demo", ["far=null", "method=sft_far"]), tmp_path).plan()


def test_the_base_is_evaluated_once(tmp_path: Path) -> None:
    """From the same starts it would do the same again, and again be counted."""
    study = robot.Robot(config.compose("demo", ["seed=3,5", "checkpoints=1"]), tmp_path)
    of_seed = {seed: [make_training(tmp_path, method, seed) for method in ("sft", "rl")] for seed in (3, 5)}
    paths = {seed: [str(one.checkpoints(1)[0]) for one in own] for seed, own in of_seed.items()}
    assert study.evaluations(of_seed[3]) == {"{}_seed3": ["tiny", *paths[3]]}
    assert study.evaluations(of_seed[5]) == {"{}_seed5": paths[5]}
    apart = robot.Robot(config.compose("demo", ["seed=3,5", "checkpoints=1", "launcher=local"]), tmp_path)
    assert apart.evaluations(of_seed[3]) == dict(
        zip(("sft_seed3_{}", "rl_seed3_{}"), [[p] for p in paths[3]], strict=True)
    )


@pytest.mark.slow
@pytest.mark.skipif(not TINY.is_dir(), reason="the embedded base policy has not been made")
def test_a_whole_demo_killed_on_the_way(tmp_path: Path, vla_razor: CommandLine) -> None:
    out = tmp_path / "demo"
    sizes = ["collect.grid=2x1", "collect.per_point=1", "sft.epochs=2", "rl.grid=2x2", "rl.per_point=2"]
    sizes += [
        "rl.iterations=2",
        "new_episodes=4",
        "prior_episodes=1",
        "checkpoints=1",
        "videos=1",
        "num_envs=4",
        "far={style: across}",
    ]
    sizes += [
        f"{method}.{key}" for method in ("sft", "rl") for key in ("probe_states=16", "save_every=1", "probe_every=1")
    ]
    process = vla_razor.start("demo", *sizes, "logger=none", "device=cpu", f"out={out}")
    until(lambda: process.poll() is not None or (out / "sft" / "trainer_state").is_dir())
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    before = (out / "rl" / "summary.json").stat().st_mtime_ns
    shown = vla_razor.run("resume", out)
    assert (out / "rl" / "summary.json").stat().st_mtime_ns == before, "a finished stage is left alone"
    assert (out / "table.txt").read_text().strip() in shown.stdout
    summary = json.loads((out / "summary.json").read_text())
    policies = summary["policies"]
    assert set(policies) == {"base", "sft", "sft_far", "rl"}
    assert len(policies["rl"]["prior_tasks"]) == 6
    teachers = {read_store(out / name)[0].demonstrations[0].policy for name in ("demos", "far")}
    assert teachers == {"scripted", "scripted across"}
    assert policies["base"]["forward_kl"]["per_action"] == 0
    assert policies["sft"]["forward_kl"]["per_action"] > 0
    assert summary["schema"] == 2 and policies["rl"]["primary"] == "success_once"
    rate = policies["base"]["prior_mean"]["success_at_end"]
    assert rate["episodes"] == rate["starts"] == 6
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert files >= {"results.parquet", "plots/retention.png", "videos/side_by_side.mp4", "results/rl.parquet"}
