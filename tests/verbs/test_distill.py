"""Distillation at the policy's own states: who acts and who is imitated, and whole runs in the simulator."""

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.verbs.support import INSTRUCTION, CommandLine, assert_same_end, metrics, small_policy
from vla_razor import config
from vla_razor.policies import Observations
from vla_razor.policies.load import TINY
from vla_razor.policies.openvla.policy import PrismaticPolicy
from vla_razor.policies.scripted import Corrected, ScriptedExpert
from vla_razor.rollouts.rollout import Episode
from vla_razor.rollouts.starts import Start
from vla_razor.training.algorithms import distillation, supervised
from vla_razor.training.trainer import Trainer


def info(x: float) -> dict[str, Any]:
    """The can `x` metres before the gripper."""
    pose = np.array([0.5, 0.0, 0.3, 0.0, 1.0, 0.0, 0.0])
    can = np.array([0.5 + x, 0.0, 0.05, 1.0, 0.0, 0.0, 0.0])
    return {"tcp_pose": pose, "target_pose": can, "is_grasped": False, "gripper_position": 0.04, "success": False}


def states(*infos: dict[str, Any]) -> Observations:
    """Black pictures, with these facts."""
    black = np.zeros((len(infos), 64, 64, 3), np.uint8)
    return Observations({"camera": black}, [INSTRUCTION] * len(infos), infos=list(infos))


def draws(rows: int) -> list[np.random.Generator]:
    """The same random numbers at every call, others in every row."""
    return [np.random.default_rng(row) for row in range(rows)]


def test_the_policy_acts_and_the_expert_is_imitated() -> None:
    policy, expert = PrismaticPolicy(small_policy()), ScriptedExpert()
    asked = states(info(0.1), info(-0.1))
    alone = policy.act(asked, draws(2))
    decided = Corrected(policy, expert).act(asked, draws(2))
    np.testing.assert_array_equal(decided.actions, alone.actions)
    assert decided.tokens is not None and alone.tokens is not None and decided.labels is not None
    assert torch.equal(decided.tokens, alone.tokens)
    shown = expert.act(asked, draws(2))
    np.testing.assert_array_equal(decided.labels, shown.actions[:, 0])
    assert not decided.labels[:, 3:6].any(), "it points straight down already"
    assert decided.labels[0, 0] > 0 > decided.labels[1, 0], "towards the can"


def test_the_expert_takes_a_share_of_the_steps_that_falls_to_none() -> None:
    policy, expert = PrismaticPolicy(small_policy()), ScriptedExpert()
    asked = states(*[info(0.1)] * 64)
    wanted = expert.wanted(asked.instructions, asked.infos)
    for guidance, fewest, most in ((0.0, 0, 0), (0.5, 20, 44), (1.0, 64, 64)):
        decided = Corrected(policy, expert, guidance).act(asked, draws(64))
        assert fewest <= (decided.actions[:, 0] == wanted).all(1).sum() <= most
    chosen = config.compose("distill", ["iterations=3", "guidance=0.4"])
    assert [distillation.guidance_at(chosen, n) for n in range(3)] == pytest.approx([0.4, 0.2, 0])
    assert distillation.guidance_at(config.compose("distill", ["iterations=1"]), 0) == 0


@pytest.mark.parametrize(("tilt", "undone"), [(0.1, 0.0), (0.2, -0.2)])
def test_a_tilt_that_no_image_shows_is_not_to_be_undone(tilt: float, undone: float) -> None:
    tilted = info(0.1)
    tilted["tcp_pose"][3:] = [np.sin(-tilt / 2), np.cos(tilt / 2), 0, 0]  # straight down is half a turn about x
    decided = Corrected(PrismaticPolicy(small_policy()), ScriptedExpert()).act(states(tilted), draws(1))
    assert decided.labels is not None
    np.testing.assert_allclose(decided.labels[0, 3:6], [undone, 0, 0], atol=1e-6)


def episode(seed: int, lost: bool = False) -> Episode:
    """Four random pictures, random actions, and an expert who always wants the same."""
    draw, length = np.random.default_rng(seed), 0 if lost else 4
    return Episode(
        start=Start("pick_can", {}, seed, seed),
        instruction=INSTRUCTION,
        observations=Observations(
            {"camera": draw.integers(0, 256, (length, 64, 64, 3), np.uint8)},
            [INSTRUCTION] * length,
            np.zeros((length, 8), np.float32),
        ),
        actions=draw.uniform(-0.05, 0.05, (length, 7)).astype(np.float32),
        tokens=None,
        log_probs=None,
        labels=None if lost else np.full((length, 7), 0.03, np.float32),
        success=np.zeros(length, bool),
        lost=lost,
    )


def test_what_is_learned_are_the_experts_actions_at_the_visited_states() -> None:
    visited = distillation.states_of([episode(0), episode(1, lost=True), episode(2)])
    np.testing.assert_array_equal(visited.images, np.concatenate([episode(0).images, episode(2).images]))
    assert visited.episode.tolist() == [0] * 4 + [1] * 4
    policy = PrismaticPolicy(small_policy())
    chosen = config.compose("distill", ["learning_rate=3e-3", "device=cpu", "warmup_steps=0"])
    tokens, trainer = policy.tokenize(visited.actions, visited.episode), Trainer(policy.model, chosen, 10)
    assert len(tokens.unique(dim=0)) == 1
    rows = torch.arange(len(tokens))
    losses = [supervised.learn(policy, trainer, chosen, visited, tokens, rows)["loss"] for _ in range(10)]
    assert losses[-1] < losses[0] - 1


def test_every_state_is_learned_once_before_any_comes_again() -> None:
    chosen = config.compose("distill", ["updates=3", "batch_size=4"])
    found = list(distillation.batches(chosen, 0, 10))
    assert [len(rows) for rows in found] == [4, 4, 4]
    assert torch.cat(found)[:10].sort().values.tolist() == list(range(10))
    assert not torch.equal(found[0], next(distillation.batches(chosen, 1, 10)))


@pytest.mark.slow
def test_a_whole_run_killed_and_resumed_ends_the_same(tmp_path: Path, vla_razor: CommandLine) -> None:
    if not TINY.is_dir():
        pytest.skip("the embedded base policy has not been made")
    sizes = ["grid=2x2", "per_point=1", "iterations=3", "updates=2", "num_envs=4", "num_workers=1", "probe_every=3"]
    rest = ["probe_states=16", "eval_episodes=0", "save_every=1", "logger=none", "device=cpu"]
    finished, killed = tmp_path / "finished", tmp_path / "killed"
    vla_razor.run("distill", *sizes, *rest, f"out={finished}")
    rows = metrics(finished)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6] and rows[-1]["forward_kl_per_token"] > 0
    assert ["success" in row for row in rows] == [False, True] * 3 and 0 < rows[0]["token_accuracy"] < 1
    stopped = vla_razor.stop_at(killed, 3, signal.SIGKILL, "distill", *sizes, *rest, f"out={killed}")
    assert stopped.returncode == -signal.SIGKILL
    vla_razor.run("resume", killed)
    assert_same_end(finished, killed)


def test_a_rank_learns_from_the_states_that_it_has_visited() -> None:
    """The gradients of two ranks add up to that of one process, though neither has the other's images."""
    episodes = [episode(0), episode(1, lost=True), episode(2), episode(3)]
    chosen = config.compose("distill", ["device=cpu", "warmup_steps=0", "prefix_jitter=0"])
    gradients, losses = [], []
    for own in ({0, 1, 2, 3}, {0, 3}, {1, 2}):
        told = [one if number in own else one.told() for number, one in enumerate(episodes)]
        visited, here = distillation.states_of(told), [n in own for n, one in enumerate(episodes) for _ in one.success]
        policy = PrismaticPolicy(small_policy())
        trainer, tokens = Trainer(policy.model, chosen, 10), policy.tokenize(visited.actions, visited.episode)
        rows = torch.tensor([11, 0, 5, 9, 4, 2])
        update = supervised.learn(policy, trainer, chosen, visited, tokens, rows, here=torch.tensor(here))
        scale = max(1.0, update["grad_norm"])  # to which it was clipped
        gradients.append(torch.cat([scale * p.grad.flatten() for p in trainer.parameters if p.grad is not None]))
        losses.append(update["loss"])
    assert losses[1] > 0 and losses[2] > 0
    assert losses[0] == pytest.approx(losses[1] + losses[2])
    torch.testing.assert_close(gradients[0], gradients[1] + gradients[2], rtol=1e-4, atol=1e-5)
