"""Tasks and suites from outside the package, by the recipes of CONTRIBUTING.md."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.verbs.support import GUIDE, CommandLine, recipe
from vla_razor import config

REACHING = """
import gymnasium
import numpy as np
from gymnasium import spaces

class Reach(gymnasium.Env):
    '''The first of seven numbers moves a mark to one side; a state of one number, a picture of the place.'''
    observation_space = spaces.Dict(camera=spaces.Box(0, 255, (32, 32, 3), np.uint8), state=spaces.Box(-1, 1, (1,)))
    action_space = spaces.Box(-1, 1, (7,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.side, self.place = options["side"], 0.0
        return self.seen(), {}

    def step(self, action):
        self.place = float(np.clip(self.place + action[0], -1, 1))
        there = self.place == {"left": -1, "right": 1}[self.side]
        return self.seen(), float(there), there, False, {"is_success": there}

    def seen(self):
        picture = np.zeros((32, 32, 3), np.uint8)
        picture[:, round(15.5 + 15 * self.place)] = 255
        return {"camera": picture, "state": np.array([self.place], np.float32)}

gymnasium.register("mine/Reach-v0", Reach)
"""
LEFTWARD = """
import numpy as np
from vla_razor.policies import Decisions

class Leftward:
    def act(self, images, *seen):
        return Decisions(np.full((len(images), 1, 7), -0.5, np.float32))
"""
FEW = ("num_envs=2", "num_workers=1", "logger=none")


def successes(run: Path) -> dict[str, int]:
    """By task, of the only policy of an evaluation."""
    (entry,) = json.loads((run / "summary.json").read_text())["policies"].values()
    found = {**entry["new_task"], **entry["prior_tasks"]}
    return {task: rates["success_once"]["successes"] for task, rates in found.items()}


def test_every_block_of_the_guide_is_carried_out() -> None:
    blocks = re.findall(r"```(?:python|yaml)\n# ([\w.]+)", GUIDE.read_text())
    assert len(blocks) == GUIDE.read_text().count("```python") + GUIDE.read_text().count("```yaml")
    tests = "\n".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert [name for name in blocks if f'"{name}"' not in tests] == []


@pytest.mark.slow
def test_a_task_of_the_panda(tmp_path: Path, vla_razor: CommandLine) -> None:
    """Whoever lifts a can has held it for long enough on the way; the policy of the package does."""
    for name in ("grasp.py", "mytasks.py", "grasp.yaml"):
        (tmp_path / name).write_text(recipe(name))
    paths: Any = {"PYTHONPATH": str(tmp_path)}
    suite = ("--env", tmp_path / "grasp.yaml", "unnorm_key=vla_razor_panda")
    vla_razor.run("eval", *suite, "episodes=4", f"out={tmp_path / 'run'}", *FEW, **paths)
    assert 1 <= successes(tmp_path / "run")["grasp_can"] <= 4
    settings = config.compose("eval", [f"env={tmp_path / 'grasp.yaml'}"])
    assert settings.env.make.suite.tasks.grasp_can.instruction == "grasp coke can"


@pytest.mark.slow
def test_a_suite_about_somebody_elses_environment(tmp_path: Path, vla_razor: CommandLine) -> None:
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "reach.yaml").write_text(recipe("reach.yaml"))
    (tmp_path / "reaching.py").write_text(REACHING)
    (tmp_path / "leftward.py").write_text(LEFTWARD)
    paths: Any = {"PYTHONPATH": str(tmp_path)}
    suite = ("--config-dir", tmp_path, "--env", "reach", "--policy", "leftward:Leftward")
    vla_razor.run("eval", *suite, "episodes=2", f"out={tmp_path / 'run'}", *FEW, **paths)
    assert successes(tmp_path / "run") == {"reach_left": 2}
