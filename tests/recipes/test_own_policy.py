"""A policy from outside the package: a module of the user's, or an entry point of another package."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.recipes.support import CommandLine
from vla_razor import config
from vla_razor.errors import UserError
from vla_razor.policies.scripted import ScriptedExpert
from vla_razor.recipes import evaluate

MODULE = """
import numpy as np
from vla_razor.policies import Decisions

class Random:
    def act(self, images, instructions, infos, generators, memories=None):
        return Decisions(np.stack([g.uniform(-0.05, 0.05, (2, 7)) for g in generators]).astype(np.float32))

class Bare(Random):
    def act(self, *seen):
        return super().act(*seen).actions

class Knowing(Random):
    def __init__(self, robot, device):
        self.name = f"{robot} {device}"

def wanting(robot, checkpoint): ...
def failing(): raise RuntimeError("no weights")
def giving(): return 3
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a module in it."""
    (tmp_path / "mypolicies.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("import nothing_of_the_kind")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    yield tmp_path
    sys.modules.pop("mypolicies", None)


def opened(spec: str) -> object:
    return evaluate.open_policy(spec, config.compose("eval", [f"policy={spec}", "device=cpu"]))


def test_a_module_of_the_users_own(here: Path) -> None:
    policy = opened("mypolicies:Random")
    assert policy.name == "mypolicies:Random"  # pyright: ignore
    generators = [np.random.default_rng(row) for row in range(3)]
    assert policy.act(np.zeros((3, 4, 4, 3)), ["x"] * 3, [{}] * 3, generators).actions.shape == (3, 2, 7)  # pyright: ignore
    assert opened("mypolicies:Knowing").name == "panda cpu"  # pyright: ignore


def test_an_entry_point_of_another_package(here: Path) -> None:
    facts = here / "others-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[vla_razor.policies]\nwild = mypolicies:Random\n")
    sys.path.append(str(here))
    assert opened("wild").name == "wild"  # pyright: ignore
    assert isinstance(opened("scripted"), ScriptedExpert)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mypolicies:Rondom", r"mypolicies has no Rondom\. Did you mean Random"),
        ("nowhere:Random", "cannot be imported .*No module named 'nowhere'"),
        ("broken:Random", "cannot be imported .*nothing_of_the_kind"),
        ("mypolicies:wanting", "it wants checkpoint; a policy is given robot, device"),
        ("mypolicies:failing", "it cannot be made .RuntimeError: no weights"),
        ("mypolicies:giving", "it gives int, which has no method act"),
    ],
)
def test_what_is_no_policy_is_one_message(here: Path, spec: str, message: str) -> None:
    with pytest.raises(UserError, match=f"policy={spec}: {message}"):
        opened(spec)


def test_what_only_acts_is_not_trained(here: Path) -> None:
    settings = config.compose("rl", ["policy=mypolicies:Random"])
    with pytest.raises(UserError, match=r"it acts, but has no distribution .* rl takes a checkpoint"):
        evaluate.open_model("mypolicies:Random", settings)


@pytest.mark.slow
def test_it_is_evaluated_from_the_command_line(here: Path, vla_razor: CommandLine) -> None:
    few = ("episodes=1", "num_envs=1", "num_workers=1", "logger=none", "videos=0")
    vla_razor.run("eval", "--env", "pick_can", "--policy", "mypolicies:Random", *few, f"out={here / 'run'}")
    (entry,) = json.loads((here / "run" / "summary.json").read_text())["policies"].values()
    assert entry["new_task"]["pick_can"]["success_once"]["episodes"] == 1
    refused = vla_razor.run("eval", "--policy", "mypolicies:Bare", *few, f"out={here / 'bare'}", status=2)
    assert "the policy mypolicies:Bare gives ndarray; expected vla_razor.policies.Decisions" in refused.stderr
