"""`vla-razor kl` on a probe set that is in the cache already, so that nothing is simulated."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig

from tests.verbs.support import ACTION
from vla_razor import config
from vla_razor.errors import UserError
from vla_razor.policies import Observations
from vla_razor.policies.openvla.policy import PrismaticPolicy
from vla_razor.policies.openvla.prismatic import PrismaticVLA
from vla_razor.policies.openvla.tiny import make_tiny
from vla_razor.rollouts import probe_set
from vla_razor.rollouts.probe_set import ProbeSet, action_outputs
from vla_razor.runs import Run
from vla_razor.verbs.measure import kl

STATES = 6


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PrismaticVLA:
    """The base, saved to `base`, with its probe set in a cache of the test's own."""
    monkeypatch.setattr(probe_set, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(probe_set, "make_vector_env", None)
    model = make_tiny(
        ["pick can"], torch.Generator().manual_seed(0), norm_stats={"vla_razor_panda": {"action": ACTION}}
    )
    model.save_pretrained(tmp_path / "base")
    images = np.random.default_rng(0).integers(0, 256, (STATES, 64, 64, 3), np.uint8)
    prompts = model.processor.prompt_ids(["pick can"] * STATES)
    pixels = model.processor.pixel_values(images)
    tokens = model.sample_actions(pixels, prompts, 1.0, torch.Generator().manual_seed(0)).tokens
    policy = PrismaticPolicy(model)
    origin = probe_set.origin_of(policy, settings().env, states=STATES, seed=0)
    log_probs, _ = action_outputs(policy, Observations({"camera": images}), prompts, tokens)
    probe = ProbeSet(Observations({"camera": images}), prompts, tokens, log_probs, torch.arange(STATES), origin)
    probe_set.save_to(tmp_path / "cache" / origin.key, probe)
    return model


def settings(*overrides: str) -> DictConfig:
    return config.compose("kl", [f"probe_states={STATES}", "logger=none", "device=cpu", *overrides])


def measured(out: Path, *overrides: str) -> dict:
    with Run.create(out, settings(*overrides), "kl") as run:
        kl.run(run.config, run)
    (entry,) = json.loads((out / "summary.json").read_text())["policies"].values()
    return entry["forward_kl"]


def nudged(model: PrismaticVLA) -> PrismaticVLA:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return model


def test_a_checkpoint_against_a_base(base: PrismaticVLA, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nudged(base).save_pretrained(tmp_path / "tuned")
    found = measured(tmp_path / "run", f"policy={tmp_path / 'tuned'}", f"base={tmp_path / 'base'}")
    assert found["states"] == STATES
    assert found["per_action"] == pytest.approx(7 * found["per_token"])
    assert found["per_action"] == pytest.approx(found["sharpening"] + found["displacement"])
    assert found["per_token"] > 1e-3
    printed = capsys.readouterr().out
    assert f"{found['per_action']:.4g}" in printed
    assert "gripper" in printed


def test_the_base_against_itself(base: PrismaticVLA, tmp_path: Path) -> None:
    found = measured(tmp_path / "run", f"policy={tmp_path / 'base'}", f"base={tmp_path / 'base'}")
    assert (found["per_token"], found["sharpening"], found["displacement"]) == (0, 0, 0)


def test_a_run_knows_what_it_started_from(base: PrismaticVLA, tmp_path: Path) -> None:
    trained = tmp_path / "trained"
    with Run.create(trained, config.compose("sft", [f"policy={tmp_path / 'base'}", "logger=none"]), "sft") as run:
        run.save(3, nudged(base).save_pretrained, {})
    of_run = measured(tmp_path / "a", f"policy={trained}")
    of_checkpoint = measured(tmp_path / "b", f"policy={trained / 'checkpoints' / 'step_3'}")
    assert of_run == of_checkpoint
    assert of_run["per_token"] > 1e-3


def test_an_adapter_is_measured_against_the_model_below_it(base: PrismaticVLA, tmp_path: Path) -> None:
    base.name_or_path = str(tmp_path / "base")
    nudged(base.add_lora(4, 8, generator=torch.Generator().manual_seed(0))).save_pretrained(tmp_path / "adapter")
    assert measured(tmp_path / "run", f"policy={tmp_path / 'adapter'}")["per_token"] > 1e-4


def test_a_checkpoint_of_unknown_origin_needs_a_base(base: PrismaticVLA, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give base="):
        measured(tmp_path / "run", f"policy={tmp_path / 'base'}")


def test_one_scene_at_a_time(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one scene"):
        measured(tmp_path / "run", "env=all")


def test_a_probe_set_of_another_base_is_not_used(base: PrismaticVLA, tmp_path: Path) -> None:
    """The cache is asked by the base's fingerprint: a changed base finds nothing, and goes to collect."""
    origin = probe_set.origin_of(PrismaticPolicy(nudged(base)), settings().env, states=STATES, seed=0)
    assert not (tmp_path / "cache" / origin.key).exists()
    assert replace(origin, base="x").key != origin.key
