"""Replay as a penalty that every training may pay: demonstrations of prior tasks, beside whatever it learns from."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tests.verbs.support import random_demonstration, small_policy, write_store
from tests.verbs.test_rl import mixed
from vla_razor import cli, config
from vla_razor.policies.openvla.policy import PrismaticPolicy
from vla_razor.rollouts import demonstrations
from vla_razor.rollouts.rollout import Timing
from vla_razor.training.algorithms import distillation, reinforce, sft, supervised
from vla_razor.training.base import Base
from vla_razor.training.penalties import Penalties, replay
from vla_razor.training.penalties.kl import ForwardKL, ReverseKL
from vla_razor.training.penalties.penalty import States
from vla_razor.training.trainer import Trainer
from vla_razor.verbs.study.robot import Robot

QUICK = ("device=cpu", "logger=none", "warmup_steps=0", "learning_rate=3e-3")


@pytest.fixture
def prior(tmp_path: Path) -> Path:
    """One demonstration of a prior task, under an instruction that the small policy knows."""
    return write_store(tmp_path / "prior", [random_demonstration(9, 6, "open_top_drawer")])


def told(policy: PrismaticPolicy, folder: Path) -> float:
    """How unlikely the replayed actions are under a policy, in nats an action."""
    data = demonstrations.load(folder, config.compose("sft").prior, policy)
    tokens, prompts = policy.tokenize(data.actions, data.episode), policy.prompt_ids(data.instructions)
    with torch.no_grad():
        said = policy.distribution(policy.views(data.observations), prompts, tokens)
    return -float(said.log_prob(tokens).sum(1).mean())


@pytest.mark.parametrize("verb", ["sft", "rl"])
def test_what_is_replayed_is_learnt_beside_the_new_task(verb: str, demos: Path, prior: Path) -> None:
    after = {}
    for coefficient in (0, 1):
        words = [f"replay={prior}", f"replay_coefficient={coefficient}"] if coefficient else []
        settings = config.compose(verb, [*QUICK, *words])
        policy = PrismaticPolicy(small_policy())
        before = told(policy, prior)
        kind = {"sft": ForwardKL, "rl": ReverseKL}[verb]
        paid = Penalties.of(settings, policy, Base(policy, settings), kind, measured=False)
        trainer, logged = Trainer(policy, settings, 6), []
        for _ in range(6):
            if verb == "sft":
                data = demonstrations.load(demos, settings.env, policy)
                tokens = policy.tokenize(data.actions, data.episode)
                logged.append(supervised.learn(policy, trainer, settings, data, tokens, torch.arange(24), paid))
            else:
                logged.append(reinforce.learn(policy, trainer, settings, mixed(), Timing(), paid))
        after[coefficient] = told(policy, prior)
        assert ("cross_entropy_of_replay" in logged[0]) == bool(coefficient)
        if coefficient:
            costs = [row["cross_entropy_of_replay"] for row in logged]
            assert costs[0] == pytest.approx(before, rel=0.1) and costs[-1] < costs[0]
    assert after[1] < min(after[0], before) - 0.3


def test_distillation_pays_it_too(prior: Path) -> None:
    settings = config.compose("distill", [*QUICK, f"replay={prior}", "replay_coefficient=0.5"])
    policy = PrismaticPolicy(small_policy())
    (term,) = distillation.Distillation(settings, policy, Base(policy, settings)).penalties.terms
    assert (term[0], term[1].name) == (0.5, "cross_entropy_of_replay")


def test_in_sft_it_takes_no_share_of_the_batches(demos: Path, prior: Path) -> None:
    words = [*QUICK, f"demos={demos}", f"replay={prior}", "batch_size=16"]
    policy = PrismaticPolicy(small_policy())

    def begun(*more: str) -> sft.SFT:
        settings = config.compose("sft", [*words, *more])
        return sft.SFT(settings, policy, Base(policy, settings))

    shared, paid, without = begun(), begun("replay_coefficient=0.1"), begun("replay_coefficient=0")
    assert (len(shared.tokens), shared.rounds, shared.penalties.terms) == (54, 4, [])
    assert (len(without.tokens), without.rounds, without.penalties.terms) == (48, 3, [])
    assert (len(paid.tokens), paid.rounds, len(paid.penalties.terms)) == (48, 3, 1)
    assert max(paid.gather(step).max() for step in range(3)) == 47


def test_a_sweep_over_the_coefficient_has_rows_without_replay(tmp_path: Path) -> None:
    words = ["method=sft,rl,distill", "replay_coefficient=0,0.1", "seed=0"]
    study = Robot(config.compose("sweep", words), tmp_path)
    trainings = study.plan()
    labels = [f"{method} replay_coefficient={value}" for method in ("sft", "rl", "distill") for value in (0, 0.1)]
    assert [training.label for training in trainings] == labels
    replays = [study.collections(training).get("replay") for training in trainings]
    assert replays == [None, tmp_path / "replay_seed0"] * 3, "which the study collects for those that pay"
    for verb in ("sft", "rl", "distill"):
        for value in (0, 0.1):
            replay.check(config.compose(verb, ["replay=DIR", f"replay_coefficient={value}"]))
        replay.check(config.compose(verb, ["replay_coefficient=0"]))
    given = Robot(config.compose("sweep", [*words, "rl.replay=DIR"]), tmp_path)
    assert not any(given.collections(training) for training in given.plan() if training.method == "rl")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["rl", "replay_coefficient=0.1"], "replay_coefficient needs demonstrations of prior tasks: replay=DIR"),
        (["rl", "replay=DIR"], r"replay=DIR: rl pays for it, which needs replay_coefficient"),
        (["distill", "replay=DIR", "replay_coefficient=1", "prior=null"], "replay is of prior tasks"),
        (["rl", "replay=DIR", "replay_coefficient=1"], "DIR holds no demonstrations"),
        (["rl", "replay={demos}", "replay_coefficient=1"], "expected task open_top_drawer"),
    ],
)
def test_what_cannot_be_replayed_is_said_before_anything_is_played(
    words: list[str], says: str, policy: Path, demos: Path, tmp_path: Path
) -> None:
    words = [word.format(demos=demos) for word in words]
    result = CliRunner().invoke(cli.app, [*words, f"policy={policy}", "device=cpu", f"out={tmp_path / 'run'}"])
    assert result.exit_code == 2 and says in " ".join(result.stderr.split())
    assert not (tmp_path / "run").exists()


def test_what_is_drawn_depends_on_the_generator_alone(prior: Path) -> None:
    settings = config.compose("rl", [*QUICK, f"replay={prior}", "replay_coefficient=1"])
    policy = PrismaticPolicy(small_policy())
    (term,) = Penalties.of(settings, policy, Base(policy, settings), ReverseKL, measured=False).terms
    states = States(torch.zeros(3), [[1]] * 3, torch.zeros(3, 7, dtype=torch.long))  # it replays as many as these
    costs = [term[1].cost(states, torch.Generator().manual_seed(seed)).tolist() for seed in (0, 0, 1)]
    assert len(costs[0]) == 3 and costs[0] == costs[1] != costs[2]
