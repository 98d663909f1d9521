"""Speed never comes from simulating less: what a control step simulates is pinned."""

from typing import Any

import pytest
import torch

from vla_razor_envs.single import SingleEnv

# Physics steps a control step, their rate in Hz, and the solver's iterations for positions.
PINNED = {"google_robot": (171, 513, 60), "panda": (20, 100, 8)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "robot"), [("pick_can", "google_robot"), ("drawer", "google_robot"), ("pick_can", "panda")]
)
def test_a_control_step_simulates_all_its_physics_steps(
    family: str, robot: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if robot == "google_robot":
        request.getfixturevalue("shared")
    env = SingleEnv(family, (robot,), image_size=(32, 32))
    env.reset(seed=0)
    task: Any = env.task
    steps, rate, iterations = PINNED[robot]
    assert task.scene.px.timestep == pytest.approx(1 / rate, rel=1e-5)
    assert task.agent.robot._objs[0].solver_position_iterations == iterations
    count, step = 0, task.scene.step

    def counted() -> None:
        nonlocal count
        count += 1
        step()

    monkeypatch.setattr(task.scene, "step", counted)
    for _ in range(2):
        task.step(torch.zeros(1, 7))
    assert count == 2 * steps
    env.close()
