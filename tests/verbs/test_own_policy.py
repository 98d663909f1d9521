"""A policy from outside the package: a module of the user's, or an entry point of another package."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.torch import load_file

from tests.verbs.support import CommandLine, done, metrics, recipe, told
from vla_razor import config
from vla_razor.errors import UserError
from vla_razor.policies import Observations, opening
from vla_razor.policies.scripted import ScriptedExpert
from vla_razor.rollouts import demonstrations, probe_set

OTHERS = """

class Bare(Random):
    def act(self, *seen):
        return super().act(*seen).actions

class Nameless:
    def act(self, *seen): ...

class Knowing(Random):
    def __init__(self, robot, device):
        self.name = f"{robot} {device}"

class Old(Random):
    def act(self, images, instructions, infos, generators, memories=None): ...

def wanting(robot, weights): ...
def failing(): raise RuntimeError("no weights")
def giving(): return 3
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a module in it."""
    (tmp_path / "mypolicies.py").write_text(recipe("mypolicies.py") + OTHERS)
    (tmp_path / "broken.py").write_text("import nothing_of_the_kind")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    yield tmp_path
    for name in ("mypolicies", "mine", "two"):
        sys.modules.pop(name, None)


def opened(spec: str) -> object:
    return opening.open_policy(spec, config.compose("eval", [f"policy={spec}", "device=cpu"]))


def test_a_module_of_the_users_own(here: Path) -> None:
    policy = opened("mypolicies:Random")
    assert policy.name == "random"  # pyright: ignore
    generators = [np.random.default_rng(row) for row in range(3)]
    assert policy.act(Observations({}, ["x"] * 3), generators).actions.shape == (3, 1, 7)  # pyright: ignore
    assert opened("mypolicies:Nameless").name == "mypolicies:Nameless"  # pyright: ignore
    assert opened("mypolicies:Knowing").name == "panda cpu"  # pyright: ignore


def test_an_entry_point_of_another_package(here: Path) -> None:
    facts = here / "others-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[vla_razor.policies]\nwild = mypolicies:Nameless\n")
    sys.path.append(str(here))
    assert opened("wild").name == "wild"  # pyright: ignore
    assert isinstance(opened("scripted"), ScriptedExpert)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mypolicies:Rondom", r"mypolicies has no Rondom\. Did you mean Random"),
        ("nowhere:Random", "cannot be imported .*No module named 'nowhere'"),
        ("broken:Random", "cannot be imported .*nothing_of_the_kind"),
        ("mypolicies:wanting", "it wants weights; a policy is given robot, device, checkpoint"),
        ("mypolicies:failing", "it cannot be made .RuntimeError: no weights"),
        ("mypolicies:giving", "it gives int, which has no method act"),
        ("mypolicies:Old", r"its act takes \(images, .*; expected act\(observations, generators, memories=None\)"),
    ],
)
def test_what_is_no_policy_is_one_message(here: Path, spec: str, message: str) -> None:
    with pytest.raises(UserError, match=f"policy={spec}: {message}"):
        opened(spec)


def test_what_only_acts_is_not_trained(here: Path) -> None:
    settings = config.compose("rl", ["policy=mypolicies:Random"])
    with pytest.raises(UserError, match=r"it acts, but has no distribution .* rl takes a checkpoint"):
        opening.open_trainable("mypolicies:Random", settings)


@pytest.mark.slow
def test_it_is_evaluated_from_the_command_line(here: Path, vla_razor: CommandLine) -> None:
    few = ("episodes=1", "num_envs=1", "num_workers=1", "logger=none", "videos=0")
    vla_razor.run("eval", "--env", "pick_can", "--policy", "mypolicies:Random", *few, f"out={here / 'run'}")
    (entry,) = json.loads((here / "run" / "summary.json").read_text())["policies"].values()
    assert entry["new_task"]["pick_can"]["success_once"]["episodes"] == 1
    refused = vla_razor.run("eval", "--policy", "mypolicies:Bare", *few, f"out={here / 'bare'}", status=2)
    assert "the policy random gives ndarray; expected vla_razor.policies.Decisions" in refused.stderr


LINEAR = '''
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from vla_razor.core.categorical import Categorical
from vla_razor.policies import Decisions
from vla_razor.policies.trainable import Trainable

REACH = np.array([0.07] * 3 + [0.25] * 3 + [1.0])  # metres, radians, gripper


class Linear(Trainable):
    """A linear softmax over 21 bins for each of seven numbers, of 8 x 8 patches' colours and of the instruction."""

    def __init__(self, checkpoint=None):
        self.name, self.num_tokens, self.support = "linear", 7, range(21)
        self.module = nn.Linear(8 * 8 * 3 + 16, 7 * 21)
        nn.init.zeros_(self.module.weight), nn.init.zeros_(self.module.bias)
        if checkpoint:
            self.module.load_state_dict(load_file(checkpoint / "linear.safetensors"))

    def act(self, observations, generators, memories=None):
        with torch.no_grad():
            prompts = self.prompt_ids(observations.instructions)
            said = self.distribution(self.views(observations), prompts, None)
        draws = torch.tensor(np.stack([generator.random(7) for generator in generators]))
        tokens = (said.log_probs.exp().cumsum(-1) < draws[..., None]).sum(-1).clamp(max=20)
        actions = REACH * (tokens.numpy() / 10 - 1)
        return Decisions(actions.astype(np.float32)[:, None], tokens, said.log_prob(tokens))

    def views(self, observations):
        pixels = torch.from_numpy(np.ascontiguousarray(observations.image())).permute(0, 3, 1, 2) / 255
        return nn.functional.adaptive_avg_pool2d(pixels, 8).flatten(1)

    def prompt_ids(self, instructions):
        return [list(instruction.encode()) for instruction in instructions]

    def distribution(self, views, prompts, tokens):
        asked = nn.functional.one_hot(torch.tensor([sum(prompt) % 16 for prompt in prompts]), 16)
        logits = self.module(torch.cat([views, asked], 1)).view(-1, 7, 21)
        return Categorical(logits, self.support)

    def sample(self, views, prompts, generator):
        with torch.no_grad():
            said = self.distribution(views, prompts, None)
        flat = said.log_probs.exp().flatten(0, 1)
        return torch.multinomial(flat, 1, generator=generator).view(-1, 7)

    def tokenize(self, actions, episode):
        return torch.from_numpy(np.rint((np.clip(actions / REACH, -1, 1) + 1) * 10).astype(int))

    def save(self, folder):
        save_file(self.module.state_dict(), folder / "linear.safetensors")
'''


TWO = '''
import torch
from mine import Linear, load_file, nn
from vla_razor.policies import Observations

class Two(Linear):
    """As that, of two cameras and of what the arm feels."""

    cameras, proprioception = ("workspace_camera", "wrist_camera"), 8

    def __init__(self, checkpoint=None):
        super().__init__()
        self.name, self.module = "two", nn.Linear(2 * 8 * 8 * 3 + 8 + 16, 7 * 21)
        nn.init.zeros_(self.module.weight), nn.init.zeros_(self.module.bias)
        if checkpoint:
            self.module.load_state_dict(load_file(checkpoint / "linear.safetensors"))

    def views(self, observations):
        seen = [super(Two, self).views(Observations({name: observations.image(name)})) for name in self.cameras]
        return torch.cat([*seen, torch.from_numpy(observations.proprioception)], 1)
'''


def test_a_study_reads_the_weights_of_whatever_can_be_trained(here: Path) -> None:
    (here / "mine.py").write_text(LINEAR)
    settings = config.compose("demo", ["policy=mine:Linear", "device=cpu"])
    assert set(opening.weights_of("mine:Linear", settings)) == {"weight", "bias"}
    assert "projector.fc1.weight" in opening.weights_of("tiny", settings)
    with pytest.raises(UserError, match="policy=mypolicies:Random: it acts, but has no distribution"):
        opening.weights_of("mypolicies:Random", settings)


@pytest.mark.slow
def test_it_is_trained_and_measured_as_ours_are(here: Path, demos: Path, vla_razor: CommandLine) -> None:
    """A family of the user's own, in a module of its own, through every verb that needs a distribution."""
    (here / "mine.py").write_text(LINEAR)
    quick = ("logger=none", "num_envs=4", "num_workers=1", "probe_states=8", "device=cpu")
    learns = (*quick, "learning_rate=1e-2", "warmup_steps=0", "eval_episodes=0", "save_every=1")
    sft, rl = here / "sft", here / "rl"
    vla_razor.run(
        "sft", "policy=mine:Linear", f"demos={demos}", "epochs=4", "kl_coefficient=0.01", *learns, f"out={sft}"
    )
    rows = metrics(sft)
    assert rows[0]["loss"] == pytest.approx(np.log(21), rel=0.02), "it began as the uniform distribution"
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.5 and rows[-1]["forward_kl_of_batch"] > 0
    drift = json.loads((sft / "summary.json").read_text())["policies"]["tuned"]["forward_kl"]
    assert drift["per_action"] > 0.1 and drift["per_action"] == pytest.approx(7 * drift["per_token"])
    few = ("grid=1x2", "per_point=2", "iterations=1", "probe_every=0", "baseline=batch")
    vla_razor.run("rl", f"policy={sft}", *few, *learns, f"out={rl}")
    assert len(metrics(rl)) == 1
    measured = vla_razor.run("kl", f"policy={sft}", *quick, f"out={here / 'kl'}")
    assert "forward KL" in measured.stdout
    (entry,) = json.loads((here / "kl" / "summary.json").read_text())["policies"].values()
    assert entry["forward_kl"]["per_action"] == pytest.approx(drift["per_action"], rel=1e-4)
    vla_razor.run("interpolate", f"policy={sft}", "shares=[0.5]", "logger=none", f"out={here / 'between'}")
    half = f"policy={here / 'between' / 'checkpoints' / 'share_50'}"
    vla_razor.run("eval", half, "episodes=1", "num_envs=1", "num_workers=1", "logger=none", f"out={here / 'eval'}")
    refused = vla_razor.run(
        "sft", f"policy={sft}", f"demos={demos}", "lora_rank=4", *learns, f"out={here / 'no'}", status=2
    )
    assert "takes no adapters: lora_rank=0" in refused.stderr and not (here / "no").exists()


@pytest.mark.slow
def test_one_of_two_cameras_and_proprioception_is_trained_and_measured(
    here: Path, vla_razor: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Demonstrated by the expert, who looks at nothing; by SFT and by REINFORCE, with a probe set of both cameras."""
    monkeypatch.setenv("VLA_RAZOR_CACHE", vla_razor.environment["VLA_RAZOR_CACHE"])
    (here / "mine.py").write_text(LINEAR)
    (here / "two.py").write_text(TWO)
    quick = ("logger=none", "num_envs=4", "num_workers=1", "device=cpu")
    done("collect", "grid=1x1", "per_point=2", "cameras=[wrist_camera]", *quick, f"out={here / 'demos'}")
    data = demonstrations.load(here / "demos", config.compose("sft").env, SimpleNamespace(cameras=2))
    assert list(data.observations.images) == ["workspace_camera", "wrist_camera"]
    learns = (*quick, "learning_rate=1e-2", "warmup_steps=0", "eval_episodes=0", "save_every=1")
    sft, rl = here / "sft", here / "rl"
    done("sft", "policy=two:Two", f"demos={here / 'demos'}", "epochs=4", "probe_every=0", *learns, f"out={sft}")
    rows = metrics(sft)
    assert rows[0]["loss"] == pytest.approx(np.log(21), rel=0.02) and rows[-1]["loss"] < rows[0]["loss"] - 0.5
    trained = load_file(sft / "checkpoints" / f"step_{rows[-1]['step']}" / "linear.safetensors")["weight"]
    assert trained[:, 192:384].abs().max() > 1e-3, "of the further camera"
    assert trained[:, 384:392].abs().max() > 1e-3, "of what is felt"
    few = ("grid=1x2", "per_point=2", "iterations=1", "probe_every=1", "probe_states=8", "baseline=batch")
    done("rl", f"policy={sft}", *few, *learns, f"out={rl}")
    (row,) = metrics(rl)
    assert row["forward_kl_per_action"] >= 0
    kept = [load_file(path) for path in probe_set.cache_folder().glob("*/probe.safetensors")]
    (probe,) = [found for found in kept if "images_wrist_camera" in found]
    assert probe["images_wrist_camera"].shape == (8, 64, 64, 3) and probe["proprioception"].shape == (8, 8)
    refused = told("rl", "policy=two:Two", "robot=google_robot", *few, *learns, f"out={here / 'no'}")
    assert refused.exit_code == 2
    assert "the policy two reads the camera workspace_camera; it could be shown overhead_camera" in refused.stderr
