"""OpenVLA-OFT through the verbs: it learns by SFT and REINFORCE, and forward KL is a sum over independent tokens."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.verbs.support import ACTION, INSTRUCTION, CommandLine, metrics
from vla_razor import config
from vla_razor.errors import UserError
from vla_razor.policies import Observations
from vla_razor.policies.load import load_model
from vla_razor.policies.openvla.policy import PrismaticPolicy
from vla_razor.policies.openvla_oft import OpenVLAOFT
from vla_razor.policies.openvla_oft.tiny import make_tiny_oft
from vla_razor.rollouts import demonstrations, probe_set
from vla_razor.rollouts.probe_set import Origin, ProbeSet
from vla_razor.training.algorithms import supervised
from vla_razor.training.trainer import Trainer
from vla_razor.verbs.planning import plan

QUICK = ("batch_size=16", "warmup_steps=2", "probe_every=0", "eval_episodes=0", "logger=none", "device=cpu")


def twin(seed: int = 0) -> OpenVLAOFT:
    stats = {"vla_razor_panda": {"action": ACTION}}
    shape: Any = {"hidden": 32, "layers": 1, "heads": 2, "intermediate": 64}
    instructions = [INSTRUCTION, "pick coke can"]
    return make_tiny_oft(instructions, torch.Generator().manual_seed(seed), norm_stats=stats, **shape)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("oft") / "base"
    twin().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("rank", [0, 4])
def test_it_learns_from_demonstrations(demos: Path, rank: int) -> None:
    settings = config.compose("sft", [*QUICK, "learning_rate=3e-3"])
    model = twin()
    if rank:
        model.add_lora(rank, 8, generator=torch.Generator().manual_seed(0))
    policy, data = PrismaticPolicy(model), demonstrations.load(demos, settings.env)
    tokens, trainer = policy.tokenize(data.actions, data.episode), Trainer(model, settings, 8)
    assert tokens.shape == (48, 56)
    rows = torch.arange(48)
    losses = [supervised.learn(policy, trainer, settings, data, tokens, rows)["loss"] for _ in range(8)]
    assert losses[0] == pytest.approx(np.log(256), abs=0.3)
    assert losses[-1] < losses[0] - 0.1


def test_forward_kl_is_the_sum_over_a_decisions_tokens() -> None:
    before, after = twin(0), twin(0)
    with torch.no_grad():
        after.language_model.lm_head.weight.mul_(1.5)
    images = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)
    prompts = before.processor.prompt_ids([INSTRUCTION] * 5)
    pixels = before.processor.pixel_values(images)
    with torch.no_grad():
        log_p, log_q = (torch.log_softmax(model.action_logits(pixels, prompts), -1) for model in (before, after))
    tokens = before.sample_actions(pixels, prompts, 1.0, torch.Generator().manual_seed(0)).tokens
    origin = Origin("base", "can", "{}", None, 1.0, 0, 5)
    probe = ProbeSet(Observations({"camera": images}), prompts, tokens, log_p, torch.zeros(5, dtype=torch.long), origin)
    measured = probe_set.measure(PrismaticPolicy(after), probe)
    expected = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum((1, 2)).mean()
    assert measured["per_action"] == pytest.approx(expected.item(), rel=1e-3) and expected > 0
    assert measured["per_token"] == pytest.approx(measured["per_action"] / 56)
    assert len(measured["by_position"]) == 56


def test_a_checkpoint_that_does_not_say_what_it_is_is_opened_as_asked(base: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    twin().save_pretrained(foreign)
    raw = json.loads((foreign / "config.json").read_text())
    for name in ("chunk", "dims", "stop_token", "normalization", "temperature", "prompt"):
        del raw[name]
    (foreign / "config.json").write_text(json.dumps(raw))
    with pytest.raises(UserError, match=r"config\.json is damaged.* changed on purpose, remove SHA256SUMS"):
        load_model(foreign)
    (foreign / "SHA256SUMS").unlink()
    model = load_model(foreign, oft={"chunk": 5, "stop_token": False})
    assert isinstance(model, OpenVLAOFT) and (model.chunk, model.num_tokens) == (5, 35)
    model.add_lora(2, generator=torch.Generator().manual_seed(0)).save_pretrained(tmp_path / "adapter")
    again = load_model(tmp_path / "adapter")
    assert isinstance(again, OpenVLAOFT) and (again.chunk, again.config.stop_token) == (5, False)
    assert isinstance(load_model(base), OpenVLAOFT)
    with pytest.raises(UserError, match=r"unknown chunks\. Did you mean"):
        load_model(foreign, oft={"chunks": 5})
    with pytest.raises(UserError, match="checkpoint of OpenVLA, which decides one token after another"):
        load_model("tiny", oft={"chunk": 8})


def test_what_it_would_take_is_told_without_steps_after_the_prompt(base: Path) -> None:
    settings = config.compose("rl", [f"policy={base}"])
    model = plan.model_of(settings)
    takes = plan.footprint(model, settings)
    assert takes.cache == 0 and takes.decision_flop == takes.forward_flop
    assert takes.parameters == sum(p.numel() for p in twin().parameters())


@pytest.mark.slow
def test_the_verbs_run_on_real_physics(base: Path, demos: Path, tmp_path: Path, vla_razor: CommandLine) -> None:
    """SFT, then REINFORCE on what it made, which is measured as it learns and played to the end of its episodes."""
    common = ("logger=none", "device=cpu", "num_envs=4")
    vla_razor.run("sft", *QUICK, f"policy={base}", f"demos={demos}", f"out={tmp_path / 'sft'}")
    learns = ("iterations=1", "grid=random", "points=2", "per_point=2", "probe_every=1", "probe_states=12")
    ends = ("eval_episodes=1", "prior=null", "baseline=one_zero", "kl_coefficient=0.1")
    vla_razor.run("rl", *common, *learns, *ends, f"policy={tmp_path / 'sft'}", f"out={tmp_path / 'rl'}")
    row = metrics(tmp_path / "rl")[-1]
    assert row["episode_length"] == 20 and row["grad_norm"] >= 0 and np.isfinite(row["forward_kl_per_token"])
    vla_razor.run("kl", *common, f"policy={tmp_path / 'sft'}", "probe_states=12", f"out={tmp_path / 'kl'}")
    (measured,) = json.loads((tmp_path / "kl" / "summary.json").read_text())["policies"].values()
    apart = measured["forward_kl"]
    assert apart["per_action"] == pytest.approx(56 * apart["per_token"], rel=1e-5) and apart["per_action"] > 0
    summary = json.loads((tmp_path / "rl" / "summary.json").read_text())
    assert summary["policies"]["tuned"]["new_task"]["pick_can"]["success_once"]["episodes"] == 1
