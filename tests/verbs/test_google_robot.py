"""The verbs on SimplerEnv's Google robot, as processes of their own, on a grid of two points."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from tests.verbs.support import CommandLine
from vla_razor.rollouts.demonstrations import read_store

ASSETS = os.environ.get("VLA_RAZOR_ASSETS", "")
ROBOT = ("robot=google_robot", "image_size=[64,80]", "env.make.orientation=upright", "logger=none", "device=cpu")
SLOTS = ("num_envs=2", "num_workers=1")


@pytest.mark.slow
@pytest.mark.skipif(not Path(ASSETS).is_dir() or not ASSETS, reason="no assets of the Google robot: VLA_RAZOR_ASSETS")
def test_collect_sft_rl_and_eval_with_the_tiny_policy(tmp_path: Path, vla_razor: CommandLine) -> None:
    demos, sft, rl, evaluated = (tmp_path / name for name in ("demos", "sft", "rl", "eval"))
    grid = ("grid=1x2", "env.grid.y=[0.2,0.42]", "env.grid.x=[-0.35,-0.35]")
    vla_razor.run("collect", *ROBOT, *SLOTS, *grid, "per_point=1", "max_attempts=2", "noise=0.1", f"out={demos}")
    (store,) = read_store(demos)
    assert store.robot == "google_robot"
    assert store.demonstrations, "the expert picks the can at neither point"
    for one in store.demonstrations:
        assert one.images.shape[1:] == (64, 80, 3)
        assert np.abs(one.labels[:, :3]).max() <= 0.1 + 1e-6

    quiet = ("probe_every=0", "eval_episodes=0", "prior=null")
    vla_razor.run("sft", *ROBOT, *quiet, f"demos={demos}", f"out={sft}")
    learn = ("iterations=1", "grid=1x1", "per_point=2", "save_every=1")
    vla_razor.run("rl", *ROBOT, *SLOTS, *quiet, *learn, f"policy={sft}", f"out={rl}")
    vla_razor.run("eval", *ROBOT, *SLOTS, "episodes=2", f"policy={rl}", f"out={evaluated}")
    (entry,) = json.loads((evaluated / "summary.json").read_text())["policies"].values()
    assert entry["new_task"]["pick_can"]["success_at_end"]["episodes"] == 2
