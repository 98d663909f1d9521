"""A way to forget less from outside the package: the class of CONTRIBUTING.md, in a module of the user's."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.verbs.support import CommandLine, metrics, recipe, small_policy
from vla_razor import config
from vla_razor.errors import UserError
from vla_razor.policies.openvla.policy import PrismaticPolicy
from vla_razor.rollouts import demonstrations
from vla_razor.training.algorithms import supervised
from vla_razor.training.base import Base
from vla_razor.training.penalties import Penalties
from vla_razor.training.penalties.kl import ForwardKL
from vla_razor.training.trainer import Trainer

BAD = """
class Mute:
    name = "mute"
NUMBER = 3
def failing(policy): raise RuntimeError("no memory")
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with the guide's module in it."""
    (tmp_path / "mymethods.py").write_text(recipe("mymethods.py") + BAD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    yield tmp_path
    sys.modules.pop("mymethods", None)


def penalties(words: list[str], demos: Path) -> tuple[list[dict[str, float]], float]:
    """What three updates log, and how far they moved the weights, squared."""
    settings = config.compose("sft", ["device=cpu", "logger=none", "warmup_steps=0", "learning_rate=1e-2", *words])
    policy, before = PrismaticPolicy(small_policy()), small_policy()
    data, rows = demonstrations.load(demos, settings.env), torch.arange(24)
    tokens, trainer = policy.tokenize(data.actions, data.episode), Trainer(policy, settings, 3)
    paid = Penalties.of(settings, policy, Base(policy, settings), ForwardKL, measured=False)
    logged = [supervised.learn(policy, trainer, settings, data, tokens, rows, paid) for _ in range(3)]
    pairs = zip(policy.module.parameters(), before.parameters(), strict=True)
    return logged, sum(float(((one - other) ** 2).sum().detach()) for one, other in pairs)


def test_it_is_paid_for_and_logged_under_its_name(here: Path, policy: Path, demos: Path) -> None:
    free, far = penalties([f"policy={policy}"], demos)
    held, near = penalties([f"policy={policy}", "penalties={mymethods:StayNear: 10}"], demos)
    assert near < far / 2
    assert "squared_distance" not in free[0] and held[0]["squared_distance"] == 0 < held[1]["squared_distance"]
    assert held[0]["loss"] == free[0]["loss"], "nothing has moved yet"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{mymethods:StayNea: 1}", r"penalties=mymethods:StayNea: mymethods has no StayNea\. Did you mean StayNear"),
        ("{nowhere:Stay: 1}", "penalties=nowhere:Stay: cannot be imported .*No module named 'nowhere'"),
        ("{mymethods:Mute: 1}", "penalties: mymethods:Mute gives Mute; expected a name and a method cost"),
        ("{mymethods:failing: 1}", "penalties: mymethods:failing cannot be made .RuntimeError: no memory"),
        ("{mymethods:NUMBER: 1}", "penalties=mymethods:NUMBER: it is int; expected a class or a function"),
        ("{StayNear: 1}", "penalties: StayNear is not of the form package.module:Class"),
        ("{mymethods:StayNear: high}", "a mapping to numbers, at least 0"),
        ("3", "a mapping to numbers"),
    ],
)
def test_what_is_no_penalty_is_one_message(here: Path, demos: Path, given: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        penalties([f"penalties={given}"], demos)


@pytest.mark.slow
def test_rl_takes_it_too(here: Path, policy: Path, vla_razor: CommandLine) -> None:
    few = ("grid=1x2", "per_point=2", "iterations=1", "num_envs=4", "num_workers=1", "probe_every=0", "eval_episodes=0")
    out = here / "run"
    words = (*few, f"policy={policy}", "penalties={mymethods:StayNear: 1}", "logger=none", "device=cpu", f"out={out}")
    vla_razor.run("rl", *words)
    assert metrics(out)[0]["squared_distance"] == 0, "measured before the update on it"
