"""`dry_run=true`: the numbers against measured ones, by hand, and that nothing is started."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from tests.verbs.support import ACTION, peak_of, small_policy
from vla_razor import cli
from vla_razor.config import compose
from vla_razor.devices import CARDS, Card
from vla_razor.policies.openvla.policy import PrismaticPolicy
from vla_razor.policies.openvla.prismatic import PrismaticVLA
from vla_razor.policies.openvla.tiny import make_tiny
from vla_razor.rollouts import demonstrations
from vla_razor.runs import Run
from vla_razor.training.algorithms import supervised
from vla_razor.training.base import Base, open_policies
from vla_razor.training.penalties import Penalties
from vla_razor.training.penalties.kl import ForwardKL
from vla_razor.training.trainer import Trainer
from vla_razor.verbs.planning import plan
from vla_razor.verbs.planning.footprint import OVERHEAD, card_named
from vla_razor.verbs.planning.plan import PolicyFootprint

SIZES: dict[str, Any] = {
    "tiny": {"hidden": 128, "layers": 3, "heads": 4, "intermediate": 320},
    "mid-size": {"hidden": 512, "layers": 8, "heads": 8, "intermediate": 1376},
}


def trained(model: PrismaticVLA, batch: int) -> None:
    size = model.config.image_sizes[0]
    prompts = model.processor.prompt_ids(["pick coke can"] * batch)
    logits = model.action_logits(torch.zeros(batch, 6, size, size), prompts, torch.zeros(batch, 7, dtype=torch.long))
    torch.log_softmax(logits, -1).sum().backward()


@pytest.mark.parametrize("rank", [0, 8], ids=["all weights", "LoRA"])
@pytest.mark.parametrize(
    ("size", "dtype", "again"),
    [
        ("tiny", "float32", False),
        ("mid-size", "float32", False),
        ("mid-size", "bfloat16", False),
        ("mid-size", "float32", True),
    ],
)
def test_the_memory_of_an_update_is_what_is_measured(
    tmp_path: Path, size: str, dtype: str, again: bool, rank: int
) -> None:
    statistics = {"vla_razor_panda": {"action": ACTION}}
    model = make_tiny(["pick coke can"], torch.Generator().manual_seed(0), norm_stats=statistics, **SIZES[size])
    model.save_pretrained(tmp_path / "policy")
    words = [f"policy={tmp_path / 'policy'}", f"lora_rank={rank}", f"dtype={dtype}", "train_vision=true", "device=cpu"]
    words += [f"gradient_checkpointing={again}"]
    config = compose("rl", words)
    planned = plan.footprint(plan.model_of(config), config)
    with Run.create(tmp_path / "run", config, "rl") as run:
        opened, base = open_policies(config, run)
    assert isinstance(opened, PrismaticPolicy)
    model = opened.model
    with base.policy() as before:
        copied = 0 if rank else sum(p.numel() * p.element_size() for p in before.module.parameters())
    assert planned.base == copied
    learning = [p for group in opened.parameter_groups(config) for p in group["params"]]
    for parameter in learning:
        parameter.grad = torch.zeros_like(parameter)
    assert planned.parameters == sum(p.numel() for p in model.parameters())
    assert planned.trainable == sum(p.numel() for p in learning)
    assert planned.weights == sum(p.numel() * p.element_size() for p in model.parameters())
    trained(model, 1)
    for batch in (2, 8):
        assert planned.activations.at(batch) == pytest.approx(peak_of(lambda n=batch: trained(model, n)), rel=0.1)
    assert planned.gradients == sum(p.grad.numel() * p.grad.element_size() for p in learning if p.grad is not None)
    optimizer = torch.optim.AdamW(learning)
    optimizer.step()
    moments = [v for state in optimizer.state.values() for v in state.values() if v.numel() > 1]
    assert planned.optimizer == pytest.approx(sum(v.numel() * v.element_size() for v in moments), rel=0.01)


@pytest.mark.parametrize("given", ["kl_coefficient=0.1", "spillover_coefficient=0.1"])
def test_the_operations_of_a_penalty_are_what_is_measured(demos: Path, policy: Path, given: str) -> None:
    config = compose("sft", [f"policy={policy}", "train_vision=true", "lora_rank=4", "device=cpu", given])
    acting, data = PrismaticPolicy(small_policy()), demonstrations.load(demos, config.env)
    acting.model.add_lora(4, generator=torch.Generator().manual_seed(0))
    paid, rows = Penalties.of(config, acting, Base(acting, config), ForwardKL, measured=False), torch.arange(16)
    tokens, trainer = acting.model.tokenize(data.actions), Trainer(acting, config, 2)
    with FlopCounterMode(display=False) as counter:
        supervised.learn(acting, trainer, config, data, tokens, rows, paid)
    planned = plan.learning_flop(config, plan.footprint(plan.model_of(config), config))
    assert planned == pytest.approx(counter.get_total_flops() / len(rows), rel=0.1)


@pytest.fixture(scope="module")
def openvla() -> PolicyFootprint:
    config = compose("rl", ["experiment=paper_robotics", "lora_rank=32", "device=a100-80"])
    return plan.footprint(plan.model_of(config), config)


@pytest.mark.slow
def test_openvla_with_lora_in_bfloat16(openvla: PolicyFootprint) -> None:
    """Against facts of the checkpoint: parameters, cache, and the operations of one action (4.21 TFLOP)."""
    assert openvla.parameters - openvla.trainable == 7_541_237_184
    assert openvla.trainable / openvla.parameters == pytest.approx(0.0143, rel=0.02)
    frozen, wide = openvla.parameters - openvla.trainable, 131_334_144  # the embeddings, which no product reads
    assert openvla.weights == pytest.approx(2 * (frozen - wide) + 4 * (wide + openvla.trainable), rel=1e-3)
    assert openvla.gradients == 4 * openvla.trainable and openvla.optimizer == 2 * openvla.gradients
    assert openvla.cache == pytest.approx(150e6, rel=0.02)
    assert openvla.decision_flop == pytest.approx(4.21e12, rel=0.05)
    assert openvla.rollout.each > openvla.cache
    batches = [openvla.largest_micro_batch(gib * 2**30) for gib in (8, 24, 40, 80)]
    assert batches[0] == 0
    assert 0 < batches[1] < batches[2] < batches[3]
    most = openvla.update_peak(batches[3])
    assert most + OVERHEAD <= 80 * 2**30 < most + OVERHEAD + openvla.activations.each


@pytest.mark.slow
def test_a_rollout_of_openvla_that_a_card_is_too_small_for(openvla: PolicyFootprint) -> None:
    memory = CARDS["rtx4090"].memory
    most = openvla.most_environments(memory)
    assert openvla.largest_micro_batch(memory) > 0
    assert 0 < most < 48
    assert openvla.held() + openvla.rollout.at(most) + OVERHEAD <= memory
    assert openvla.held() + openvla.rollout.at(most + 1) + OVERHEAD > memory


def test_a_card_says_how_many_environments_of_a_rollout_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "CARDS", {"small": Card("small", OVERHEAD + 60e6, 1e12), "large": CARDS["h200"]})
    shown = CliRunner().invoke(cli.app, ["rl", "dry_run=true", "num_envs=500"], env={"COLUMNS": "120"}).output
    config = compose("rl", ["num_envs=500"])
    most = plan.footprint(plan.model_of(config), config).most_environments(OVERHEAD + 60e6)
    assert 1 < most < 500
    assert "What fits where: an update, and a rollout without its simulator" in shown
    assert re.search(rf"small .* does not fit, {most} do", shown)
    assert re.search(r"H200 .* fits", shown)
    learns = CliRunner().invoke(cli.app, ["sft", "dry_run=true"], env={"COLUMNS": "120"}).output
    assert "What fits where: an update\n" in re.sub(" +\n", "\n", learns)


def test_time_of_the_simulator_is_of_the_processes_that_run_it() -> None:
    def seconds(*given: str) -> float | None:
        config = compose("rl", ["num_workers=2", *given])
        return plan.simulator_seconds(config, plan.Work(1320, 0, None), card_named(config.device))

    assert seconds("robot=google_robot", "device=cpu") == pytest.approx(100), "13.2 a second of two"
    assert seconds("robot=google_robot", "device=h100") == pytest.approx(100), "in processes beside a policy there"
    on_the_gpu = ("robot=google_robot", "device=h100", "sim_backend=gpu")
    assert seconds(*on_the_gpu) is None, "how fast is not known"
    assert seconds("robot=simpler_env", "device=h100") == pytest.approx(1320 / 5.8), "in processes on any machine"
    words = ["rl", "dry_run=true", "device=h100", "sim_backend=gpu"]
    shown = CliRunner().invoke(cli.app, words, env={"COLUMNS": "200"}).output
    assert "and a simulator on the GPU too, whose rate is not known" in shown
    assert "without evaluations and the simulator" in shown


@pytest.mark.parametrize("verb", ["rl", "sft", "demo", "mnist"])
def test_every_training_verb_prints_its_plan_and_starts_nothing(tmp_path: Path, verb: str) -> None:
    out = tmp_path / "run"
    result = CliRunner().invoke(cli.app, [verb, "dry_run=true", f"out={out}"])
    assert result.exit_code == 0, result.output
    assert "Nothing was started." in result.output
    assert not out.exists()
    if verb in ("rl", "demo"):
        steps = {"rl": "2,500", "demo": "1,920"}[verb]  # 25 points and 5 episodes of 20 steps; 16 and 6
        assert f"at most {steps} simulator steps, {steps} states" in result.output


def test_a_plan_refuses_what_the_run_would(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.app, ["rl", "dry_run=true", f"policy={tmp_path}"])
    assert result.exit_code == 2
    assert "no config.json here" in result.stderr
    refused = CliRunner().invoke(cli.app, ["rl", "device=h100", f"out={tmp_path / 'run'}"])
    assert refused.exit_code == 2
    assert "device=h100 is for dry_run=true" in refused.stderr


def test_demonstrations_need_not_be_there_yet(tmp_path: Path, demos: Path) -> None:
    def shown(*words: str) -> str:
        result = CliRunner().invoke(cli.app, [*words, "dry_run=true"], env={"COLUMNS": "300"})
        assert result.exit_code == 0, result.output
        return result.output

    missing = shown("sft", f"demos={tmp_path / 'later'}")
    assert f"{tmp_path / 'later'} holds no demonstrations: 1,000 of 10 states are assumed" in missing
    assert "run: 313 steps" in missing, "10,000 states in batches of 32"
    assert "no demonstrations are given: 1,000 of 10 states are assumed" in shown("sft")
    assert "run: 2,000 steps" in shown("sft", "robot=google_robot", "batch_size=19", "epochs=2")
    there = shown("sft", f"demos={demos}")
    assert "assumed" not in there
    states = len(demonstrations.load(demos, compose("sft").env).actions)
    assert f"run: {-(-states // 32)} step" in there
    assert "no demonstrations are given: 300 of 10 states are assumed" in shown("demo"), "5x5 points, 12 at each"
