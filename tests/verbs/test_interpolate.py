"""`vla-razor interpolate`: the ends of the line are the two policies, and the middle lies between."""

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from tests.verbs.support import metrics, small_policy
from vla_razor import cli
from vla_razor.config import compose
from vla_razor.errors import UserError
from vla_razor.policies import Observations
from vla_razor.policies.load import load_model
from vla_razor.policies.openvla.policy import PrismaticPolicy
from vla_razor.policies.openvla.tiny import make_tiny
from vla_razor.rollouts import probe_set
from vla_razor.rollouts.probe_set import ProbeSet
from vla_razor.runs import origin_of
from vla_razor.verbs.measure import interpolate as interpolate_verb


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base and a policy that differs from it in every weight."""
    folder = tmp_path_factory.mktemp("policies")
    for seed, name in enumerate(("base", "tuned")):
        small_policy(seed).save_pretrained(folder / name)
    return folder / "base", folder / "tuned"


def interpolate(out: Path, *words: object) -> Result:
    return CliRunner().invoke(cli.app, ["interpolate", *map(str, words), "device=cpu", "logger=none", f"out={out}"])


def test_the_ends_and_the_middle(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = folders
    out = tmp_path / "run"
    result = interpolate(out, f"policy={tuned}", f"base={base}", "shares=[0,0.5,1]")
    assert result.exit_code == 0, result.output + str(result.exception)
    first, middle, last = (load_model(out / "checkpoints" / f"share_{n}").state_dict() for n in (0, 50, 100))
    before, after = load_model(base).state_dict(), load_model(tuned).state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    for name in before:
        assert torch.equal(first[name], before[name]) and torch.equal(last[name], after[name])
        torch.testing.assert_close(middle[name], (before[name] + after[name]) / 2)


def test_a_policy_between_comes_from_the_base(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = folders
    out = tmp_path / "run"
    assert interpolate(out, f"policy={tuned}", f"base={base}", "shares=[0.5]").exit_code == 0
    assert origin_of(out / "checkpoints" / "share_50", "policy") == str(base)
    with pytest.raises(UserError, match="share_50"):
        load_model(out)


def test_an_adapter_is_merged_first(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, _ = folders
    adapted = load_model(base).add_lora(2, generator=torch.Generator().manual_seed(0))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.1
    adapted.save_pretrained(tmp_path / "adapter")
    result = interpolate(tmp_path / "run", f"policy={tmp_path / 'adapter'}", f"base={base}", "shares=[1]")
    assert result.exit_code == 0, result.output + str(result.exception)
    made, merged = load_model(tmp_path / "run" / "checkpoints" / "share_100"), adapted.merge_lora()
    for name, weight in merged.state_dict().items():
        torch.testing.assert_close(made.state_dict()[name], weight)


def test_a_policy_between_is_a_measured_run_for_a_sweeps_table(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLA_RAZOR_CACHE", str(tmp_path / "cache"))
    base, _ = folders
    config = compose("sweep", [f"policy={base}", "device=cpu", "interpolated=[0.5]", "sft.probe_states=4"])
    model, images = load_model(base), np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
    prompts = model.processor.prompt_ids(["pick can"] * 4)
    tokens = model.config.first_action_id + torch.arange(7).repeat(4, 1)
    policy = PrismaticPolicy(model)
    origin = probe_set.origin_of(policy, config.env, states=4, seed=0)
    log_probs, hidden = probe_set.action_outputs(policy, Observations({"camera": images}), prompts, tokens)
    probe = ProbeSet(Observations({"camera": images}), prompts, tokens, log_probs, torch.arange(4), origin, hidden)
    probe_set.save_to(tmp_path / "cache" / "probe_sets" / origin.key, probe)
    small_policy(1).save_pretrained(tmp_path / "tuned" / "step_7")
    for _ in range(2):  # what has finished is left alone
        interpolate_verb.measured(config, tmp_path / "tuned" / "step_7", tmp_path / "run", 0.5, config.sft)
    assert origin_of(tmp_path / "run", "policy") == str(base)
    (row,) = metrics(tmp_path / "run")
    assert row["step"] == 7 and row["forward_kl_per_token"] > 0 < row["activation_l2"] and "spillover" in row
    made = load_model(tmp_path / "run").state_dict()
    for name, weight in load_model(base).state_dict().items():
        torch.testing.assert_close(made[name], (weight + small_policy(1).state_dict()[name]) / 2)


def test_bad_input_is_one_message(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = folders
    make_tiny(["pick can"], torch.Generator().manual_seed(0)).save_pretrained(tmp_path / "other")
    for words, says in (
        ([f"policy={tuned}"], "give base="),
        ([f"policy={tmp_path / 'other'}", f"base={base}"], "are not those of its base"),
        ([f"policy={tuned}", f"base={base}", "shares=[2]"], "numbers from 0 to 1"),
    ):
        result = interpolate(tmp_path / "run", *words)
        assert result.exit_code == 2 and says in result.stderr, result.output
        assert not (tmp_path / "run").exists()
