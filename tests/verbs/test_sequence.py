"""`vla-razor sequence` and `llm sequence`: what is read from the stages, whole ones, one of them killed, bad input."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from rich.console import Console

from tests.llm.support import small_data, small_model
from tests.verbs.support import CommandLine, done, told, until
from vla_razor.config import compose, scenes
from vla_razor.core import continual
from vla_razor.files import write_json
from vla_razor.policies.openvla.tiny import make_tiny
from vla_razor.runs import read_config
from vla_razor.statistics import paired_difference, wilson
from vla_razor.study import table
from vla_razor.verbs.study import sequence, transfer
from vla_razor.verbs.study.axes import Training
from vla_razor.verbs.study.language_sequence import LanguageSequence
from vla_razor.verbs.study.robot_sequence import RobotSequence, together
from vla_razor.verbs.study.transfer import Member

PLAIN = Path(__file__).parents[1] / "envs"
TASKS = ("pick_can", "open_top_drawer", "close_middle_drawer")
ENV = f"env={','.join(TASKS)}"


def study(*words: str) -> RobotSequence:
    return RobotSequence(compose("sequence", [ENV, *words]), Path("out"))


def test_the_tasks_are_those_of_all_suites_in_their_order() -> None:
    own = study("prior=drawer")
    assert tuple(own.tasks) == TASKS
    assert len(own.prior) == 4 and not set(own.prior) & set(own.tasks), "what a stage learns is no prior task"
    drawers = RobotSequence(compose("sequence", ["env=drawer", "env.tasks=[close_top_drawer,open_top_drawer]"]), Path())
    assert drawers.tasks == ["close_top_drawer", "open_top_drawer"]
    scene = own.scene("open_top_drawer")
    assert (scene.name, list(scene.tasks)) == ("open_top_drawer", ["open_top_drawer"])
    assert own.scene("pick_can").hold == 3, "as its robot has it"


def test_scenes_that_differ_in_their_tasks_alone_are_opened_once() -> None:
    own = study("prior=open_bottom_drawer")
    found = together([*scenes(own.config.env), *scenes(own.config.prior)])
    tasks = [list(scene.tasks) for scene in scenes(found)]
    assert tasks == [["pick_can"], ["open_top_drawer", "close_middle_drawer", "open_bottom_drawer"]]
    assert list(own.config.env.open_top_drawer.tasks) == ["open_top_drawer"], "the settings stay as they were"


def test_every_combination_is_a_sequence() -> None:
    plan = study("method=sft,rl", "kl_coefficient=0,0.1", "share=0.5,1", "seed=0,1").plan()
    assert len(plan) == 2 * 2 * 2 * 2
    assert {one.label for one in plan if one.method == "sft"} == {
        *("sft", "sft kl_coefficient=0.1", "sft share=0.5", "sft kl_coefficient=0.1 share=0.5")
    }
    (half,) = study("method=sft", "share=0.5").plan()
    assert half.label == "sft share=0.5", "also where it is the same in all sequences"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["env=pick_can"], "env=pick_can: a sequence has at least two tasks"),
        (["env=pick_can,pick_cam"], "unknown env 'pick_cam'. Did you mean pick_can?"),
        (["env=pick_can,pick_can"], "expected each suite once"),
        (["env=drawer,open_top_drawer"], "a task comes twice"),
        (["env=drawer", "env.tasks=[open_top_drawer,open_lid]"], "env.tasks=[open_top_drawer,open_lid]: expected"),
        ([ENV, "method=sftt"], "Did you mean sft"),
        ([ENV, "method=sft_far"], "unknown method 'sft_far'"),
        ([ENV, "share=0"], "a number above 0, at most 1"),
        ([ENV, "sft.share=0.5"], "unknown key 'sft.share'"),
        ([ENV, "method=sft,rl", "epoch=1,2"], "Did you mean epochs"),
        ([ENV, "seed=0,x"], "seed=x"),
        ([ENV, "eval.greedy=true"], "compares policies as they act"),
        (
            ["env=pick_can,{other}"],
            "tasks of different robots, whose actions one policy does not share: pick_can of panda",
        ),
        ([ENV, "prior={other}"], "tasks of different robots"),
    ],
)
def test_bad_input_is_one_message(words: list[str], says: str, tmp_path: Path) -> None:
    other = tmp_path / "slide.yaml"
    other.write_text("id: plain_tasks:Plain/Slide-v0\ntasks:\n  slide: {instruction: slide}\n")
    out = tmp_path / "run"
    result = told("sequence", *(word.format(other=other) for word in words), f"out={out}")
    assert result.exit_code == 2 and says in result.stderr and result.stderr.count("\n") == 1, result.stderr
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["task=number"], "task=number: a sequence has at least two tasks"),
        (["task=number,maths"], "expected tasks, as in number,tool"),
        (["task=number,number"], "a task comes twice"),
        (["method=simpo"], "unknown method 'simpo'"),
        (["llm_sft.lora_rank=2"], "trains the weights themselves: lora_rank=0"),
        (["easy=true"], "tool alone has an easier slice"),
    ],
)
def test_bad_input_of_language_tasks_is_one_message(words: list[str], says: str, tmp_path: Path) -> None:
    result = told("llm", "sequence", *words, "data_dir=nowhere", "model=gpt2", f"out={tmp_path / 'run'}")
    assert result.exit_code == 2 and says in result.stderr and result.stderr.count("\n") == 1, result.stderr
    assert not (tmp_path / "run").exists()


HITS = {
    # By task, the starts that succeed for the base and after each stage.
    "pick_can": ["1000", "1111", "1110", "1100"],
    "open_top_drawer": ["0100", "1100", "1111", "0111"],
    "close_middle_drawer": ["0000", "0000", "1000", "1111"],
    "open_bottom_drawer": ["1111", "1111", "1101", "0101"],
}


class Told(RobotSequence):
    """A sequence whose stages are made up: `HITS`, and divergences that grow from stage to stage."""

    def __init__(self, config: DictConfig, out: Path) -> None:
        super().__init__(config, out)
        self.console = Console(quiet=True)

    def prepare(self, trainings: Any) -> None:
        self.evaluate(self.out / "base", self.base)

    def train(self, training: Training, folder: Path, task: str, policy: str) -> str:
        (folder / "checkpoints" / "step_4").mkdir(parents=True)
        (folder / "checkpoints" / "step_8").mkdir()
        return str(folder)

    def evaluate(self, folder: Path, policy: str) -> None:
        stage = 0 if folder.name == "base" else int(folder.name[0])
        self._played(folder, {policy: {task: hits[stage] for task, hits in HITS.items()}})

    def evaluate_on(self, folder: Path, task: str, policies: Any) -> None:
        self._played(folder, {str(path): {task: "1000" if path.name == "step_4" else "1111"} for path in policies})

    def measure(self, folder: Path, task: str, policy: str, base: str) -> None:
        moved = int(folder.name[0]) / (2 if folder.name.endswith("step") else 1)
        write_json(
            folder / "summary.json",
            {"policies": {policy: {"forward_kl": {"per_token": moved, "per_action": 7 * moved}}}},
        )

    def episodes(self, folder: Path, step: int) -> int:
        return 10 * step

    def _played(self, folder: Path, hits: dict[str, dict[str, str]]) -> None:
        rows = [
            {"policy": policy, "task": task, "success_once": hit == "1", "success_at_end": False, "lost": False}
            for policy, own in hits.items()
            for task, text in own.items()
            for hit in text * 6
        ]
        folder.mkdir(parents=True)
        (folder / "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        write_json(folder / "summary.json", {})


def told_study(out: Path, *words: str) -> tuple[Told, list[Member]]:
    tasks = Told(compose("sequence", [ENV, "prior=open_bottom_drawer", "method=sft", *words]), out)
    trainings = tasks.plan()
    tasks.prepare(trainings)
    for training in trainings:
        sequence.learn(tasks, training)
    return tasks, [transfer.read(tasks, training) for training in trainings]


def test_the_matrix_and_what_follows_from_it(tmp_path: Path) -> None:
    tasks, members = told_study(tmp_path, "checkpoints=2")
    entry = transfer.summary(tasks, members)
    shares = np.array([[text.count("1") / 4 for text in HITS[task]] for task in TASKS]).T
    matrix, base = shares[1:], shares[0]
    found = np.array([[rate["rate"] for rate in row] for row in entry["matrix"]])
    assert found == pytest.approx(matrix) and [rate["rate"] for rate in entry["base"]] == pytest.approx(base)
    assert entry["matrix"][0][0] == wilson(24, 24) and entry["average"]["episodes"] == 72
    assert entry["average"]["rate"] == pytest.approx(continual.average(matrix))
    assert entry["nbt"]["difference"] == pytest.approx(continual.negative_backward_transfer(matrix))
    assert entry["bwt"]["difference"] == pytest.approx(continual.backward_transfer(matrix))
    assert entry["forward_transfer"]["difference"] == pytest.approx(continual.forward_transfer(matrix, base))
    # One checkpoint on the way, with one start of four.
    way = np.mean([[base[0], 0.25, 1], [0.5, 0.25, 1], [0.25, 0.25, 1]], axis=1)
    assert entry["libero_fwt"] == pytest.approx(continual.learning(way))
    assert entry["libero_auc"] == pytest.approx(continual.area_under_curve(matrix, way))
    last = np.concatenate([np.tile([1, 1, 0, 0], 6), np.tile([0, 1, 1, 1], 6)])
    assert entry["bwt"] == paired_difference(last, np.ones(48))._asdict(), "start by start"
    for measure in ("nbt", "bwt", "forward_transfer"):
        assert entry[measure]["low"] < entry[measure]["difference"] < entry[measure]["high"]
    assert entry["nbt"]["low"] > 0, "it was lost beyond chance"
    kept = entry["zero_shot"]
    assert [rate["rate"] for rate in (kept["base"], *kept["stages"])] == [1, 1, 0.75, 0.5]
    assert kept["change"]["difference"] == -0.5
    drift = [
        (one["task"], one["base"]["forward_kl_per_token"], one["previous"]["forward_kl_per_token"])
        for one in entry["forward_kl"]
    ]
    assert drift == [("pick_can", 1, 1), ("open_top_drawer", 2, 1), ("close_middle_drawer", 3, 1.5)]
    assert entry["success_at_end"]["average"]["rate"] == 0


def test_what_was_lost_is_learned_again(tmp_path: Path) -> None:
    tasks, members = told_study(tmp_path)
    again = transfer.summary(tasks, members)["recovery"]
    # The second checkpoint is the first at which a task is back.
    back = {"step": 8, "episodes": 80, "reached": True}
    assert again == {"pick_can": [back], "open_top_drawer": [back]}
    tasks, members = told_study(tmp_path / "other", "recover=false")
    assert transfer.summary(tasks, members)["recovery"] is None and not list((tmp_path / "other").glob("*/again*"))


def test_seeds_are_clustered_by_start_and_vary_by_themselves(tmp_path: Path) -> None:
    """Two seeds that do the same from every start tell no more of it than one."""
    tasks, members = told_study(tmp_path / "two", "seed=0,1")
    _, (one,) = told_study(tmp_path / "one")
    both, alone = transfer.summary(tasks, members), transfer.summary(tasks, [one])
    assert (both["average"]["episodes"], both["average"]["starts"]) == (144, 72)
    for measure in ("nbt", "bwt", "forward_transfer"):
        assert both[measure] == pytest.approx(alone[measure], abs=2e-3)  # NBT compares unequal numbers of stages
    values = both["over_seeds"]["nbt"]["values"]
    assert len(values) == 2 and values[0] == values[1] == pytest.approx(both["nbt"]["difference"])
    assert both["over_seeds"]["nbt"]["low"] == both["over_seeds"]["nbt"]["high"], "these two do not vary"


def test_a_sequence_that_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HITS, "pick_can", ["0000", "1100", "1100", "1100"])
    monkeypatch.setitem(HITS, "open_top_drawer", ["0000", "0000", "1110", "1110"])
    tasks, members = told_study(tmp_path)
    entry = transfer.summary(tasks, members)
    for measure in ("nbt", "bwt"):
        assert entry[measure]["difference"] == 0 and entry[measure]["low"] <= 0 <= entry[measure]["high"]
    assert transfer.lost(members[0]) == [] and transfer.recovered(entry["recovery"]) == "nothing was lost"


def test_the_law_along_a_sequence_and_the_table(tmp_path: Path) -> None:
    tasks, members = told_study(tmp_path)
    points = transfer.points(members)
    since_base = [(one.forgotten, one.measures["forward_kl_per_token"]) for one in points["base"]]
    assert since_base == [(0, 1), (0.25, 2), (0.5, 3)], "of the prior tasks"
    step = [(one.forgotten, one.measures["forward_kl_per_token"]) for one in points["previous"]]
    assert step == [(0, 1), (pytest.approx(0.25), 1), (pytest.approx((0.25 + 0.25 + 0.25) / 3), 1.5)], (
        "of all that was known"
    )
    transfer.write(tasks, [one.training for one in members], {})
    found = table.read([tmp_path])
    assert [(r.step, r.prior, round(r.forgotten, 6)) for r in found.results] == [
        (1, 1, 0),
        (2, 0.75, 0.25),
        (3, 0.5, 0.5),
    ]
    assert [r.measures["forward_kl_per_token"] for r in found.results] == [1, 2, 3]
    summary = transfer.present(tasks, [one.training for one in members], {})
    assert summary["matrix"] == summary["settings"]["sft"]["matrix"], "of the only setting"
    assert (tmp_path / "plots" / "sequences.svg").is_file()


SUITE = """
id: plain_tasks:Plain/Slide-v0
tasks:
  left: {instruction: slide to the left, options: {end: left}}
  right: {instruction: slide to the right, options: {end: right}}
  back: {instruction: slide back to the left, options: {end: left}}
image: camera
image_size: [64, 64]
success: is_there
horizon: 8
"""
TEACHER = """
import numpy as np
from vla_razor.policies import Decisions

class Teacher:
    name = "teacher"

    def act(self, observations, generators, memories=None):
        right = np.array([[-1.0, 1.0]["right" in said] for said in observations.instructions], np.float32)
        return Decisions(np.tile(right[:, None, None], (1, 1, 3)))
"""
FEW = ["num_envs=4", "num_workers=1", "device=cpu", "logger=none", "eval.episodes=6", "kl.probe_states=8"]
FEW += ["kl.other_instructions=[]", "collect.grid=2x1", "collect.per_point=1", "collect.policy=teacher:Teacher"]
FEW += ["sft.epochs=2", "sft.batch_size=4", "sft.save_every=1", "sft.probe_every=0"]


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory, vla_razor: CommandLine) -> Path:
    """Two tasks of a suite of one's own, by SFT with replay; killed after the first stage, then gone on with."""
    folder = tmp_path_factory.mktemp("slides")
    (folder / "slide.yaml").write_text(SUITE)
    (folder / "teacher.py").write_text(TEACHER)
    said = [f"slide {where}" for where in ("to the left", "to the right", "back to the left")]
    action = {"q01": [-1.0] * 3, "q99": [1.0] * 3, "mask": [True] * 3}
    shape = {"hidden": 32, "layers": 1, "heads": 2, "intermediate": 64}
    policy = make_tiny(said, torch.Generator().manual_seed(0), norm_stats={"slide": {"action": action}}, **shape)
    policy.save_pretrained(folder / "policy")
    suite = f"env={folder}/slide.yaml", "env.tasks=[left,right]", f"prior={folder}/slide.yaml"
    places = os.pathsep.join([str(folder), str(PLAIN), os.environ.get("PYTHONPATH", "")])
    out = folder / "run"
    words = ["sequence", *suite, f"policy={folder}/policy", "method=sft_replay", "checkpoints=2", *FEW, f"out={out}"]
    process = vla_razor.start(*words, PYTHONPATH=places)
    first, second = out / "sft_replay_seed0" / "1_left_eval", out / "sft_replay_seed0" / "2_right"
    until(lambda: process.poll() is not None or (first / "summary.json").is_file())
    assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (second / "summary.json").exists()
    before = (first / "summary.json").stat().st_mtime_ns
    shown = vla_razor.run("resume", out, PYTHONPATH=places).stdout
    assert (first / "summary.json").stat().st_mtime_ns == before, "what has ended is left alone"
    assert "average success" in shown and "lost later (NBT)" in shown
    return out


@pytest.mark.slow
def test_a_whole_sequence_that_was_killed(slides: Path) -> None:
    summary = json.loads((slides / "summary.json").read_text())
    assert summary["tasks"] == ["left", "right"] and np.shape(summary["matrix"]) == (2, 2)
    assert all(rate["episodes"] == 6 for row in summary["matrix"] for rate in row)
    assert summary["zero_shot"]["tasks"] == ["back"] and len(summary["zero_shot"]["stages"]) == 2
    run = slides / "sft_replay_seed0"
    one, other = (read_config(run / name / "config.yaml") for name in ("1_left", "2_right"))
    assert one.replay is None, "there is nothing to replay yet"
    assert other.policy == str(run / "1_left") and other.replay == str(slides / "demos_left_seed0")
    assert read_config(run / "2_right_kl" / "config.yaml").base == read_config(slides / "config.yaml").policy
    assert read_config(run / "2_right_kl_step" / "config.yaml").base == str(run / "1_left")
    stages = summary["forward_kl"]
    assert stages[0]["base"] == stages[0]["previous"] != stages[1]["previous"] != stages[1]["base"]
    assert stages[1]["base"]["forward_kl_per_action"] > 0
    rows = table.read([slides]).results
    assert [row.step for row in rows] == [1, 2] and rows[0].measures["forward_kl_per_token"] > 0
    assert len(list((run / "1_left_curve").glob("summary.json"))) == 1, "a checkpoint on the way"


@pytest.mark.slow
def test_the_report_shows_it(slides: Path, tmp_path: Path) -> None:
    shown = done("report", slides, f"out={tmp_path / 'page'}").output
    assert "the matrices of sft_replay" in shown
    page = (tmp_path / "page" / "report.html").read_text()
    assert page.count('class="own"') == 2 and "lost later (NBT)" in page and "prior tasks" in page
    assert "nan" not in page.lower().split("<style>")[0] and (tmp_path / "page" / "plots" / "sequences_1.png").is_file()


def test_each_method_of_language_tasks_has_its_verb() -> None:
    words = ["task=number,math", "method=sft,grpo,reinforce", "seed=0,1", "llm_grpo.kl_coefficient=0,0.1"]
    words += ["llm_eval.prior_tasks=[winogrande]"]
    plan = LanguageSequence(compose("llm_sequence", words), Path("out")).plan()
    labels = [training.label for training in plan if training.seed]
    assert labels == ["sft", "grpo", "grpo kl_coefficient=0.1", "reinforce"]


@pytest.mark.slow
def test_language_tasks(tmp_path: Path) -> None:
    """Random models answer nothing right; what they spend is measured all the same."""
    model, data = small_model(tmp_path / "model"), small_data(tmp_path / "data")
    few = ["llm_sft.max_steps=1", "llm_sft.save_every=1", "llm_sft.warmup_steps=0", "llm_sft.learning_rate=1e-3"]
    few += ["llm_sft.batch_size=4", "llm_sft.probe_every=0", "llm_eval.max_new_tokens=4", "llm_eval.examples=4"]
    few += ["llm_kl.max_new_tokens=4", "llm_kl.probe_prompts=2", "llm_eval.prior_tasks=[winogrande]", "direct=true"]
    few += ["dtype=float32", "device=cpu", "logger=none", "method=sft"]
    out = tmp_path / "run"
    done("llm", "sequence", "task=number,math", f"model={model}", f"data_dir={data}", *few, f"out={out}")
    summary = json.loads((out / "summary.json").read_text())
    assert np.shape(summary["matrix"]) == (2, 2) and summary["zero_shot"]["tasks"] == ["winogrande"]
    assert min(stage["base"]["forward_kl_per_completion"] for stage in summary["forward_kl"]) > 0
    second = read_config(out / "sft_seed0" / "2_math" / "config.yaml")
    assert (second.model, second.task) == (str(out / "sft_seed0" / "1_number"), "math")
    assert {row.domain for row in table.read([out]).results} == {"language"}
