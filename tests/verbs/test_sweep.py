"""`vla-razor sweep`: which runs it comes to, whole sweeps in the simulator, one on Ray, and bad input."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import OmegaConf
from rich.console import Console
from typer.testing import CliRunner

from tests.verbs.support import CommandLine, metrics, until
from tests.verbs.test_demo import make_evaluation, make_training
from vla_razor import cli
from vla_razor.config import compose
from vla_razor.errors import UserError
from vla_razor.files import write_json
from vla_razor.policies.load import TINY
from vla_razor.rollouts import demonstrations
from vla_razor.runs import Run, read_config
from vla_razor.verbs.study import launchers, results
from vla_razor.verbs.study.axes import Training
from vla_razor.verbs.study.robot import Robot
from vla_razor.verbs.study.stages import stage
from vla_razor.videos import read_film

SMALL = [
    *("prior=open_top_drawer", "num_envs=4", "num_workers=1", "device=cpu", "logger=none"),
    *("new_episodes=4", "prior_episodes=4", "checkpoints=1", "collect.grid=1x1", "collect.per_point=1"),
    "collect.max_attempts=30",
    *(
        "sft.epochs=2",
        "sft.save_every=1",
        "sft.probe_every=50",
        "sft.probe_states=16",
        "rl.probe_states=16",
        "rl.probe_every=1",
    ),
    *("rl.iterations=1", "rl.grid=1x1", "rl.per_point=4", "rl.save_every=1"),
]


def study(*words: str) -> Robot:
    return Robot(compose("sweep", words), Path("out"))


def plan(*words: str) -> list[Training]:
    return study(*words).plan()


def runs(*words: str) -> dict[str, dict[str, Any]]:
    return {training.folder.name: dict(training.changes) for training in plan(*words)}


def test_every_combination_of_what_a_method_knows() -> None:
    found = runs("method=sft,rl", "learning_rate=1e-4,3e-4", "seed=range(0,2)", "rl.grid=2x2,4x4")
    assert len(found) == 2 * 2 + 2 * 2 * 2
    assert found["sft_2_seed1"] == {"learning_rate": 3e-4, "gain_learning_rate": pytest.approx(2.1e-3)}
    assert found["rl_4_seed0"] == {"learning_rate": 3e-4, "grid": "4x4", "gain_learning_rate": pytest.approx(2e-3)}


def test_the_command_line_is_stronger_than_an_experiments_axes() -> None:
    """Also for a single value, and for a key that the experiment gives with its section."""
    words = ["experiment=laptop", "method=sft", "learning_rate=1e-4", "seed=3"]
    (only,) = Robot(compose("demo", words), Path("out")).plan()
    assert (only.seed, only.learning_rate) == (3, 1e-4)
    both = Robot(compose("demo", ["experiment=laptop", "method=sft,rl", "seed=3"]), Path("out")).plan()
    assert len(both) == 3 + 2 and {one.seed for one in both} == {3}


def test_one_method_alone_and_what_it_alone_knows() -> None:
    assert runs("method=rl", "seed=3") == {"rl_seed3": {}}
    assert set(runs("method=sft,rl", "epochs=1,2")) == {"sft_1_seed0", "sft_2_seed0", "rl_seed0"}
    given = runs("method=rl", "learning_rate=1e-4,2e-4", "gain_learning_rate=1e-3,2e-3")
    assert sorted(one["gain_learning_rate"] for one in given.values()) == [1e-3, 1e-3, 2e-3, 2e-3]


def test_the_verbs_settings_are_those_of_all_its_methods() -> None:
    found = runs("method=sft,sft_own,rl", "sft.epochs=1,2")
    assert set(found) == {"sft_1_seed0", "sft_2_seed0", "sft_own_1_seed0", "sft_own_2_seed0", "rl_seed0"}
    assert found["sft_own_2_seed0"] == found["sft_2_seed0"] == {"epochs": 2}


def test_a_penalty_from_outside_makes_a_method_another_one() -> None:
    (paid,) = plan("method=sft", "sft.penalties={mymethods:StayNear: 0.1}")
    assert paid.label == "sft penalties={'mymethods:StayNear': 0.1}"
    assert paid.changes == {"penalties": {"mymethods:StayNear": 0.1}}


def test_what_makes_a_method_another_one_is_in_its_name() -> None:
    words = ["method=sft,rl", "kl_coefficient=0,0.1", "rl.lora_rank=0,8", "learning_rate=1e-4,2e-4"]
    labels = {training.label for training in plan(*words)}
    (fixed,) = plan("method=rl", "rl.staleness=2")
    assert fixed.label == "rl staleness=2", "also where it is the same in the whole sweep"
    assert labels == {
        *("sft", "sft kl_coefficient=0.1"),
        *("rl", "rl kl_coefficient=0.1", "rl lora_rank=8", "rl kl_coefficient=0.1 lora_rank=8"),
    }


def test_what_each_method_learns_from() -> None:
    own = study("method=sft,sft_far,sft_own,sft_replay,rl,distill", "seed=4")
    config, found = own.config, {training.method: own.collections(training) for training in own.plan()}
    assert found == {
        "sft": {"demos": Path("out/demos_seed4")},
        "sft_far": {"demos": Path("out/far_seed4")},
        "sft_own": {"demos": Path("out/own_seed4")},
        "sft_replay": {"demos": Path("out/demos_seed4"), "replay": Path("out/replay_seed4")},
        "rl": {},
        "distill": {},
    }
    assert (own.collected("demos"), config.collect.policy) == ({}, "scripted")
    assert own.collected("far") == {"style": "tucked"}
    with pytest.raises(UserError, match="far=null: sft_far needs a teacher"):
        plan("method=sft_far", "far=null")
    assert own.collected("own") == {"policy": "tiny"}
    replay = {"env": config.prior, "per_point": 2}
    assert own.collected("replay") == replay, "six tasks, so about as many as the new task's twelve a point"


@pytest.mark.parametrize("verb", ["demo", "sweep", "plasticity"])
def test_the_demonstrator_is_a_setting(verb: str, tmp_path: Path) -> None:
    config = compose(verb, ["collect.policy=/nowhere/rt1", "collect.embeddings=/nowhere/table.npz", "device=cpu"])
    assert config.policy == "tiny", "who is fine-tuned is another"
    with pytest.raises(UserError, match="/nowhere/rt1"):
        stage(Console(), config, tmp_path / "demos", "collect")
    assert read_config(tmp_path / "demos" / "config.yaml").embeddings == "/nowhere/table.npz"


def test_policies_between_are_runs_of_their_own() -> None:
    own = study("method=rl", "kl_coefficient=0.1,1", "interpolated=[0.25,0.5]")
    found = [one for training in own.plan() for one in own.between(training)]
    assert [one.folder.name for one in found] == [f"rl_{n}_seed0_share{s}" for n in (1, 2) for s in (25, 50)]
    assert found[1].label == "rl kl_coefficient=0.1 share=0.5" and found[1].setting == "rl_1_share50"


def test_a_run_that_ends_only_when_a_study_is_resumed_is_evaluated_then(tmp_path: Path) -> None:
    """REINFORCE had diverged when the runs of its seed were evaluated in one process."""
    own = Robot(compose("sweep", ["method=sft,rl", "launcher=here", "checkpoints=1"]), tmp_path)
    one, late = own.plan()
    for training in (one, late):
        make_training(tmp_path, training.setting, training.seed)
    paths = [str(training.checkpoints(1)[0]) for training in (one, late)]
    together = "{}" + one.folder.name.removeprefix(one.setting)
    assert own.evaluations([one, late]) == {together: ["tiny", *paths]}
    for kind, tasks in (("new", ("pick_can",)), ("prior", ("open_top_drawer",))):
        folder = tmp_path / together.format(kind)
        make_evaluation(folder, tasks, {"tiny": [1, 0], paths[0]: [1, 1]})
        (folder / "config.yaml").write_text(
            f"verb: eval\npolicy: tiny\nagainst: /moved/{one.folder.name}/checkpoints/step_4\n"
        )
    assert own.is_done(one) and not own.is_done(late)
    assert [outcome.run for outcome in own.outcomes([one, late])] == ["base", one.folder.name], (
        "it is left out until then"
    )
    found = own.evaluations([one, late])
    assert found.pop(together)[0] == "tiny" and found == {f"{late.folder.name}_{{}}": [paths[1]]}
    make_evaluation(tmp_path / f"{late.folder.name}_new", ("pick_can",), {paths[1]: [0, 1]})
    make_evaluation(tmp_path / f"{late.folder.name}_prior", ("open_top_drawer",), {paths[1]: [0, 1]})
    assert own.is_done(late)
    assert [outcome.run for outcome in own.outcomes([one, late])][2:] == [late.folder.name]


def test_what_goes_on_with_a_policy_between_is_its_study(tmp_path: Path) -> None:
    share, page = tmp_path / "rl_seed0_share50", tmp_path / "page"
    facts = {"policy": "p", "base": "tiny", "share": 0.5, "env": compose("eval").env, "logger": "none"}
    with Run.create(share, OmegaConf.create(facts), "interpolate"):
        (share / "checkpoints").mkdir()
    advice = f"vla-razor resume {tmp_path}"
    for command in (["resume", str(share)], ["eval", f"policy={share}", f"out={tmp_path / 'eval'}"]):
        result = CliRunner().invoke(cli.app, command)
        assert result.exit_code == 2 and result.stderr.strip().endswith(advice), result.stderr
    result = CliRunner().invoke(cli.app, ["report", str(share), f"out={page}"])
    assert advice in (page / "report.md").read_text() if page.is_dir() else advice in result.output + result.stderr


def test_one_value_is_an_axis_like_several() -> None:
    words = ["method=sft,rl", "sft.learning_rate=2e-3", "rl.iterations=2", "jobs=2", "collect.noise=0.25"]
    config = compose("sweep", words)
    one, other = Robot(config, Path("out")).plan()
    assert (one.label, one.learning_rate) == ("sft", 2e-3)
    assert one.changes["gain_learning_rate"] == pytest.approx(2 * config.sft.gain_learning_rate), "in its ratio"
    assert dict(other.changes) == {"iterations": 2}
    assert (config.jobs, config.collect.noise) == (2, 0.25), "no training's"
    assert plan("method=sft", "sft.save_every=60", "checkpoints=1"), "the last one is measured"
    (bare,) = plan("method=rl", "learning_rate=1e-4", "rl.baseline=batch")
    assert (bare.label, bare.learning_rate) == ("rl baseline=batch", 1e-4)
    assert bare.changes["gain_learning_rate"] == pytest.approx(2 / 3 * config.rl.gain_learning_rate)


@pytest.mark.parametrize(
    ("words", "visible", "seen"),
    [
        (["jobs=4"], "3,5", {"3": 2, "5": 2}),
        (["jobs=4"], "GPU-aa,GPU-bb,GPU-cc,GPU-dd", {"GPU-aa": 1, "GPU-bb": 1, "GPU-cc": 1, "GPU-dd": 1}),
        (["jobs=1"], "7", {"7": 4}),
        (["jobs=2", "device=cuda:1"], "3,5", {"3,5": 4}),
        (["jobs=2", "device=cpu"], "3,5", {"3,5": 4}),
        (["jobs=2"], "", {"": 4}),
    ],
)
def test_local_jobs_are_spread_over_the_gpus(
    words: list[str], visible: str, seen: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four jobs, each a process that prints what it sees once as many have begun as may run at a time."""
    jobs, interpreter = words[0].removeprefix("jobs="), tmp_path / "python"
    begun = f"touch {tmp_path}/begun.$$; while [ $(ls {tmp_path}/begun.* | wc -l) -lt {jobs} ]; do sleep 0.02; done"
    interpreter.write_text(f'#!/bin/sh\n{begun}\nprintf %s "$CUDA_VISIBLE_DEVICES"\n')
    interpreter.chmod(0o755)
    monkeypatch.setattr(launchers.sys, "executable", str(interpreter))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    names = [(number, f"run{number}") for number in range(4)]
    assert sorted(launchers.launch(compose("sweep", words), tmp_path, names)) == [(n, None) for n in range(4)]
    assert Counter((tmp_path / "logs" / f"{name}.log").read_text() for _, name in names) == seen


def test_a_gpu_that_is_free_again_is_the_next_ones() -> None:
    cards = launchers.Cards(["0", "1"])
    with cards.one() as first:
        with cards.one() as second, cards.one() as third:
            assert [first, second, third] == [{"CUDA_VISIBLE_DEVICES": name} for name in ("0", "1", "0")]
        with cards.one() as fourth:
            assert fourth == {"CUDA_VISIBLE_DEVICES": "1"}


def test_jobs_of_a_machine_without_a_gpu_are_told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with launchers.Cards.of(compose("sweep")).one() as own:
        assert own == {}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    cards = launchers.Cards.of(compose("llm_sweep"))
    with cards.one() as first, cards.one() as second:
        assert [own["CUDA_VISIBLE_DEVICES"] for own in (first, second)] == ["0", "1"]


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere.invalid:6379"])
def test_a_cluster_that_does_not_answer_is_one_message(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=f"RAY_ADDRESS={address}: no cluster answers"):
        list(launchers.launch(compose("sweep", ["launcher=ray"]), Path("out"), [(0, "sft_seed0")]))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["interpolated=[1]"], "a list of numbers in (0, 1)"),
        (["learning_rat=1e-4,3e-4"], "Did you mean learning_rate"),
        (["method=sftt"], "Did you mean sft"),
        (["sft.save_every=60"], "sft: probe_every=120 must divide save_every=60"),
        (["rl.probe_every=0"], "rl: probe_every=0 must divide"),
        (["learning_rat=1e-4"], "unknown key 'learning_rat'"),
        (["learning_rate=1e-4,-1"], "learning_rate=-1"),
        (["seed=0,x"], "seed=x"),
        (["learning_rate=1e-4,1e-4"], "each value only once"),
        (["method=sft", "learning_rate=1e-4", "sft.learning_rate=3e-4"], "with its section and without"),
        (["axes={method: sft}"], "expected a mapping to lists, as in {method: [sft,rl], seed: [0,1]}"),
        (["eval.greedy=true"], "a sweep compares policies as they act: eval.greedy=false"),
        (["prior=null"], "needs prior tasks"),
        (["launcher=cloud"], "here | local | ray | slurm"),
    ],
)
def test_bad_input_is_one_message(words: list[str], says: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.app, ["sweep", *words, f"out={tmp_path / 'run'}"])
    assert result.exit_code == 2 and says in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_slurm_is_asked_for_where_it_is_not(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Is sbatch on this machine"):
        list(launchers.launch(compose("sweep", ["launcher=slurm"]), tmp_path, [(0, "sft_seed0")]))


@pytest.mark.slow
def test_slurm_runs_each_in_a_job_of_an_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By submitit itself, with stand-ins for Slurm's commands that run an array's jobs on this machine."""
    commands = {
        "sbatch": """for task in $(seq $(sed -n 's/^#SBATCH --array=\\([0-9]*\\)-\\([0-9]*\\).*/\\1 \\2/p' "$1")); do
            export SLURM_JOB_ID=7 SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=$task SLURM_JOB_NODELIST=here
            SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0 sh "$1" >/dev/null 2>&1 &
            done; echo Submitted batch job 7""",
        "srun": 'while [ "${1#--}" != "$1" ]; do [ "$1" = --unbuffered ] || shift; shift; done; exec "$@"',
        "sacct": "echo 'JobID|State|NodeList'; echo '7_[0-1]|RUNNING|here'",
    }
    for name, text in commands.items():
        command = tmp_path / "bin" / name
        command.parent.mkdir(exist_ok=True)
        command.write_text(f"#!/bin/sh\n{text}\n")
        command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    out = tmp_path / "run"
    out.mkdir()
    config = compose("sweep", ["launcher=slurm", "slurm={slurm_partition: cpu}"])
    outcomes = dict(launchers.launch(config, out, [(0, "sft_seed0"), (1, "sft_seed1")]))
    assert outcomes.keys() == {0, 1}
    assert all("config.yaml cannot be read" in str(reason) for reason in outcomes.values()), "as nothing was begun here"
    assert {path.name for path in (out / "logs").iterdir()} == {"sft_seed0.log", "sft_seed1.log"}
    submitted = out / "slurm" / "7_submission.sh"
    assert "#SBATCH --partition=cpu" in submitted.read_text()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, vla_razor: CommandLine) -> Path:
    """Two runs of SFT on the base's own successes, one of which diverges, and one of REINFORCE, two at a time."""
    if not TINY.is_dir():
        pytest.skip("the embedded base policy has not been made")
    out = tmp_path_factory.mktemp("sweep") / "run"
    axes = ("sft.learning_rate=1e-4,1e30", "method=sft_own,rl", "interpolated=[0.5]")
    done = vla_razor.run("sweep", *SMALL, *axes, "jobs=2", f"out={out}")
    assert "sft_own_2_seed0 failed: Step 2: the loss is nan" in done.stdout
    return out


def rows(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out / "results.parquet").to_pylist()


@pytest.mark.slow
def test_what_a_sweep_leaves(finished: Path) -> None:
    found = {row["run"]: row for row in rows(finished)}
    assert {name: (row["method"], row["status"]) for name, row in found.items()} == {
        "base": ("base", "done"),
        "sft_own_1_seed0": ("sft_own", "done"),
        "sft_own_2_seed0": ("sft_own", "failed"),
        "rl_seed0": ("rl", "done"),
        "sft_own_1_seed0_share50": ("sft_own share=0.5", "done"),
        "rl_seed0_share50": ("rl share=0.5", "done"),
    }
    assert found["sft_own_2_seed0"]["reason"].startswith("Step 2: the loss is nan")
    assert found["sft_own_1_seed0"]["forward_kl_per_token"] > 0 == found["base"]["forward_kl_per_token"]
    moved = found["sft_own_1_seed0"]
    assert moved["weight_l1"] > 0 < moved["activation_l1"] and moved["weight_sparsity"] < 1
    halfway = found["sft_own_1_seed0_share50"]
    assert halfway["weight_l1"] == pytest.approx(moved["weight_l1"] / 2, rel=1e-3)
    assert 0 < halfway["forward_kl_per_token"] < moved["forward_kl_per_token"]
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["runs"] == 3 and set(summary["failed"]) == {"sft_own_2_seed0"}
    frames = read_film(finished / "videos" / "side_by_side.mp4")
    assert len(frames) > 3 and frames[0].shape[1] == 5 * frames[0].shape[0] - 5 * results.TITLE, (
        "base, methods, between"
    )
    runs = {"sft_own_1_seed0", "sft_own_2_seed0", "rl_seed0"}
    assert {path.stem for path in (finished / "logs").iterdir()} == runs


@pytest.mark.slow
def test_own_successes_are_the_bases(finished: Path) -> None:
    (shard,) = demonstrations.read_store(finished / "own_seed0")
    assert {shown.policy for shown in shard.demonstrations} == {"tiny"}
    assert read_config(finished / "sft_own_1_seed0" / "config.yaml").demos == str(finished / "own_seed0")


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on_with_what_has_not_ended_here_on_ray(
    finished: Path, vla_razor: CommandLine
) -> None:
    before = rows(finished)
    kept = (finished / "sft_own_1_seed0" / "summary.json").stat().st_mtime_ns
    for path in (finished / "summary.json", finished / "rl_seed0_new" / "summary.json"):
        path.unlink()
    settings = finished / "config.yaml"
    settings.write_text(settings.read_text().replace("launcher: local", "launcher: ray"))
    vla_razor.run("resume", finished)
    assert rows(finished) == before, "the same starts, the same seeds: the same table"
    assert (finished / "sft_own_1_seed0" / "summary.json").stat().st_mtime_ns == kept


@pytest.mark.slow
def test_a_sweep_that_a_scheduler_stops_has_its_run_save_first(
    tmp_path: Path, vla_razor: CommandLine, policy: Path, demos: Path
) -> None:
    """SIGTERM reaches the sweep alone. What its run learns from is there already."""
    out = tmp_path / "sweep"
    words = [f"policy={policy}", "method=sft", "device=cpu", "logger=none", "checkpoints=1", "sft.probe_states=4"]
    words += ["sft.epochs=1000", "sft.batch_size=8", "sft.probe_every=500", "sft.save_every=500"]
    with Run.create(out, compose("sweep", [*words, f"out={out}"]), "sweep"):
        pass
    shutil.copytree(demos, out / "demos_seed0")
    for name in ("demos_seed0", "base_new", "base_prior"):
        write_json(out / name / "summary.json", {})
    process, folder = vla_razor.start("resume", out), out / "sft_seed0"
    until(lambda: process.poll() is not None or len(metrics(folder)) > 2)
    assert process.poll() is None, process.communicate()
    process.terminate()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and errors == f"vla-razor: interrupted; go on with: vla-razor resume {out}\n"
    steps = [int(path.stem.removeprefix("step_")) for path in (folder / "trainer_state").iterdir()]
    assert steps == [metrics(folder)[-1]["step"]], "saved where it stood"
    with Run.resume(folder):  # nobody writes to it any more
        pass
