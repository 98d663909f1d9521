"""What SFT and REINFORCE share: schedule, parameter groups, the guarded update, the base, interruption."""

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig

from tests.verbs.support import INSTRUCTION, small_policy
from vla_razor import config
from vla_razor.errors import UserError
from vla_razor.policies import Observations
from vla_razor.policies.openvla import OpenVLA
from vla_razor.policies.openvla.policy import PrismaticPolicy
from vla_razor.policies.openvla.prismatic import PrismaticVLA
from vla_razor.policies.trainable import Trainable
from vla_razor.rollouts import probe_set
from vla_razor.rollouts.probe_set import ProbeSet
from vla_razor.runs import Run
from vla_razor.study.forecast import FittedLaw, Guard
from vla_razor.training import measuring
from vla_razor.training.base import Base, open_policies
from vla_razor.training.fit import saving
from vla_razor.training.trainer import NotFinite, Trainer, is_due


def settings(*overrides: str) -> DictConfig:
    return config.compose("rl", ["device=cpu", "logger=none", "warmup_steps=0", *overrides])


def inputs(model: PrismaticVLA, states: int = 4) -> tuple[torch.Tensor, list[list[int]], torch.Tensor]:
    images = np.random.default_rng(0).integers(0, 256, (states, 64, 64, 3), np.uint8)
    prompts = model.processor.prompt_ids([INSTRUCTION] * states)
    tokens = model.config.first_action_id + torch.arange(7).repeat(states, 1)
    return model.processor.pixel_values(images), prompts, tokens


def loss_of(model: PrismaticVLA) -> torch.Tensor:
    return -log_distribution(model)[..., 0].mean()


def log_distribution(model: PrismaticVLA) -> torch.Tensor:
    return PrismaticPolicy(model).distribution(*inputs(model)).log_probs


def test_gains_have_a_learning_rate_of_their_own_and_vision_is_frozen() -> None:
    model = small_policy()
    weights, gains = model.parameter_groups(settings("learning_rate=1e-3", "gain_learning_rate=1e-2"))
    assert (weights["lr"], gains["lr"], gains["weight_decay"]) == (1e-3, 1e-2, 0)
    assert len(gains["params"]) == 3, "two in the layer, one at the end"
    assert all(parameter.ndim == 1 for parameter in gains["params"])
    trained = {id(parameter) for group in (weights, gains) for parameter in group["params"]}
    names = {name.split(".")[0] for name, parameter in model.named_parameters() if id(parameter) in trained}
    assert names == {"projector", "language_model"}


def test_everything_can_be_trained() -> None:
    model = small_policy()
    groups = model.parameter_groups(settings("train_vision=true", "gain_learning_rate=null"))
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert {group["lr"] for group in groups} == {settings().learning_rate}


def test_an_adapter_alone_is_trained(policy: Path, tmp_path: Path) -> None:
    """Also once the base has been used, which is the model with its adapter disabled."""
    model, base, chosen = opened(tmp_path / "run", f"policy={policy}", "lora_rank=4")
    trainer = Trainer(model, chosen, 10)
    with base.policy() as before:
        model_of(before).sample_actions(*inputs(model)[:2])
    trainer.update([loss_of(model)])
    trained = {id(parameter) for parameter in trainer.parameters}
    asking = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert asking == {name for name, parameter in model.named_parameters() if id(parameter) in trained}
    assert asking and all("lora_" in name and "vision_backbone." not in name for name in asking)


def test_the_update_is_clipped_and_counted() -> None:
    model = small_policy()
    trainer = Trainer(model, settings("max_grad_norm=1e-6"), 10)
    first, second = (trainer.update([loss_of(model)]) for _ in range(2))
    assert first.grad_norm > 1e-6
    assert second.clipped_fraction == 1
    assert trainer.step == 2
    loose = Trainer(model, settings("max_grad_norm=1e6"), 10)
    assert loose.update([loss_of(model)]).clipped_fraction == 0


def test_a_skipped_step_moves_nothing_and_is_counted_by_a_restored_trainer_too() -> None:
    model = small_policy()
    trainer = Trainer(model, settings("schedule=cosine"), 4)
    trainer.update([loss_of(model)])
    before = learning(model)
    skipped = trainer.skip()
    assert same(learning(model), before), "whatever momentum there is"
    assert (skipped.loss, skipped.grad_norm) == (0, 0) and 0 < skipped.learning_rate < settings().learning_rate
    restored = Trainer(model, settings(), 4, trainer.state_dict())
    for one in (trainer, restored):
        assert (one.step, one.skipped) == (2, 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_changes_nothing(value: float) -> None:
    model = small_policy()
    trainer = Trainer(model, settings(), 10)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with pytest.raises(NotFinite, match="Step 1: the loss is"):
        trainer.update([loss_of(model) * value])
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    assert trainer.step == 0


def test_a_restored_trainer_goes_on_bit_for_bit(tmp_path: Path) -> None:
    model = small_policy()
    trainer = Trainer(model, settings(), 10)
    for _ in range(2):
        trainer.update([loss_of(model)])
    model.save_pretrained(tmp_path / "checkpoint")
    torch.save(trainer.state_dict(), tmp_path / "state.pt")
    for _ in range(2):
        trainer.update([loss_of(model)])
    again = OpenVLA.from_pretrained(tmp_path / "checkpoint")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    restored = Trainer(again, settings(), 10, state)
    for _ in range(2):
        restored.update([loss_of(again)])
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def learning(model: PrismaticVLA) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters() if parameter.requires_grad]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_stale_policy_is_as_many_updates_old_as_it_is_asked_to_be(tmp_path: Path) -> None:
    model, chosen = small_policy(), settings("staleness=2", "train_vision=true")
    trainer, history = Trainer(model, chosen, 10), [learning(model)]
    for step in range(5):
        if step == 3:  # as a run that is resumed
            torch.save(trainer.state_dict(), tmp_path / "state.pt")
            trainer = Trainer(model, chosen, 10, torch.load(tmp_path / "state.pt", weights_only=True))
        with trainer.stale():
            assert same(learning(model), history[max(0, step - 2)])
        assert same(learning(model), history[step]), "and is put back"
        trainer.remember()
        trainer.update([loss_of(model)])
        history.append(learning(model))
    with pytest.raises(KeyboardInterrupt), trainer.stale():
        raise KeyboardInterrupt
    assert same(learning(model), history[-1]), "an interruption saves the policy that learns"


def model_of(policy: Trainable) -> PrismaticVLA:
    assert isinstance(policy, PrismaticPolicy)
    return policy.model


def opened(folder: Path, *overrides: str) -> tuple[PrismaticVLA, Base, DictConfig]:
    """What a run begins with."""
    chosen = settings(*overrides)
    with Run.create(folder, chosen, "rl") as run:
        policy, base = open_policies(chosen, run)
    return model_of(policy), base, chosen


@pytest.mark.parametrize(("rank", "rate"), [(0, 1e-6), (4, 1e-5)], ids=["all weights", "LoRA"])
def test_bfloat16_learns_as_float32_does(policy: Path, tmp_path: Path, rank: int, rate: float) -> None:
    """At the paper's smallest rate: held in bfloat16, a weight of 0.02 could not change by less than 6e-5."""
    shares, fallen = {}, {}
    for dtype in ("float32", "bfloat16"):
        words = (f"policy={policy}", f"dtype={dtype}", f"lora_rank={rank}", "train_vision=true")
        model, _, chosen = opened(tmp_path / dtype, *words, f"learning_rate={rate}", "gain_learning_rate=null")
        trainer, before = Trainer(model, chosen, 30), learning(model)
        losses = [trainer.update([loss_of(model)]).loss for _ in range(30)]
        moved = sum(float((a != b).sum()) for a, b in zip(before, learning(model), strict=True))
        shares[dtype] = moved / sum(parameter.numel() for parameter in before)
        fallen[dtype] = losses[0] - losses[-1]
    assert shares["float32"] > 0.5
    assert shares["bfloat16"] == pytest.approx(shares["float32"], abs=0.05)
    assert fallen["bfloat16"] == pytest.approx(fallen["float32"], rel=0.1)
    moments = [value for state in trainer.optimizer.state.values() for value in state.values()]
    assert {tensor.dtype for tensor in (*trainer.parameters, *moments)} == {torch.float32}


def test_without_staleness_nothing_is_kept() -> None:
    model = small_policy()
    trainer = Trainer(model, settings(), 10)
    trainer.remember()
    trainer.update([loss_of(model)])
    with trainer.stale():
        assert "past" not in trainer.state_dict() and not trainer.past


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_base_stays_what_it_was(policy: Path, tmp_path: Path, rank: int, dtype: str) -> None:
    words = (f"policy={policy}", f"lora_rank={rank}", "learning_rate=1e-2", f"dtype={dtype}")
    model, base, chosen = opened(tmp_path / "run", *words)
    original = OpenVLA.from_pretrained(policy)
    original.products = torch.bfloat16 if dtype == "bfloat16" else None
    expected = log_distribution(original)
    assert torch.equal(log_distribution(model), expected), "it begins as the base"
    with base.policy() as before:
        fingerprint = before.fingerprint()
    Trainer(model, chosen, 10).update([loss_of(model)])
    with base.policy() as before:
        assert before.fingerprint() == fingerprint
        assert torch.equal(log_distribution(model_of(before)), expected)
    assert not torch.allclose(log_distribution(model), expected)
    seen = Observations({"camera": np.zeros((2, 64, 64, 3), np.uint8)}, [INSTRUCTION] * 2)

    def draws() -> list[np.random.Generator]:
        return [np.random.default_rng(row) for row in range(2)]

    acted = base.act(seen, draws())
    again = PrismaticPolicy(original)
    assert np.array_equal(acted.actions, again.act(seen, draws()).actions)


def test_an_adapter_is_not_adapted_again(policy: Path, tmp_path: Path) -> None:
    model = OpenVLA.from_pretrained(policy).add_lora(4, 8, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(tmp_path / "adapter")
    chosen = settings(f"policy={tmp_path / 'adapter'}", "lora_rank=4")
    with Run.create(tmp_path / "run", chosen, "rl") as run, pytest.raises(UserError, match="is an adapter already"):
        open_policies(chosen, run)


def test_the_temperature_can_be_set(policy: Path, tmp_path: Path) -> None:
    chosen = settings(f"policy={policy}", "temperature=0.5")
    with Run.create(tmp_path / "run", chosen, "rl") as run:
        opened, base = open_policies(chosen, run)
    model = model_of(opened)
    logits = model.action_logits(*inputs(model))
    torch.testing.assert_close(log_distribution(model), torch.log_softmax(logits / 0.5, -1))
    with base.policy() as before:
        assert before.temperature == 0.5


def test_an_interruption_is_saved_once(policy: Path, tmp_path: Path) -> None:
    chosen = settings(f"policy={policy}")
    with Run.create(tmp_path / "run", chosen, "rl") as run:
        tuned, _ = open_policies(chosen, run)
        model, trainer = model_of(tuned), Trainer(tuned, chosen, 10)

        def interrupted() -> None:
            with saving(run, tuned, trainer) as save:
                trainer.update([loss_of(model)])
                save()
                save()
                trainer.update([loss_of(model)])
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["step_1", "step_2"]


@pytest.mark.parametrize(("step", "every", "last", "due"), [(4, 2, 9, 1), (5, 2, 9, 0), (9, 2, 9, 1), (4, 0, 4, 0)])
def test_what_is_due(step: int, every: int, last: int, due: int) -> None:
    assert is_due(step, every, last) == bool(due)


def probed(model: PrismaticVLA, states: int = 4) -> ProbeSet:
    """A probe set of random pictures."""
    images = np.random.default_rng(0).integers(0, 256, (states, 64, 64, 3), np.uint8)
    seen = Observations({"camera": images})
    _, prompts, tokens = inputs(model, states)
    origin = probe_set.origin_of(PrismaticPolicy(model), settings().env, states=states, seed=0)
    log_probs, _ = probe_set.action_outputs(PrismaticPolicy(model), seen, prompts, tokens)
    return ProbeSet(seen, prompts, tokens, log_probs, torch.arange(states), origin)


def guard(forgotten: float) -> Guard:
    """Against a budget of 5%, by a law that forecasts the same whatever the divergence."""
    return Guard(
        FittedLaw("robot", "forward_kl_per_token", (forgotten, 0.0, 0.0), 0.9, (0.0, 100.0), -0.1, 0.1, 12), 0.05
    )


def test_beyond_the_budget_the_rates_are_halved_at_every_measure_and_stay_so() -> None:
    model = small_policy()
    probe, chosen = probed(model), settings("on_budget=lower")
    trainer = Trainer(model, chosen, 10)
    first = trainer.update([loss_of(model)]).learning_rate
    policy = PrismaticPolicy(model)
    within = measuring.measure(policy, probe, trainer, guard(0.04))
    assert within["predicted_forgetting"] == pytest.approx(0.04)
    assert trainer.update([loss_of(model)]).learning_rate == first, "within the budget"
    for _ in range(2):
        measuring.measure(policy, probe, trainer, guard(0.06))
    restored = Trainer(model, chosen, 10, trainer.state_dict())
    for one in (trainer, restored):
        assert one.update([loss_of(model)]).learning_rate == pytest.approx(first / 4)
        assert not one.done


def test_at_the_budget_the_training_has_ended_and_a_restored_one_too() -> None:
    model = small_policy()
    trainer = Trainer(model, settings(), 10)
    measuring.measure(PrismaticPolicy(model), probed(model), trainer, None)
    assert not trainer.done
    measuring.measure(PrismaticPolicy(model), probed(model), trainer, guard(0.05))
    assert trainer.done and Trainer(model, settings(), 10, trainer.state_dict()).done


def test_a_policy_that_has_diverged_ends_the_run() -> None:
    model = small_policy()
    probe, trainer = probed(model), Trainer(model, settings(), 10)
    next(model.language_model.parameters()).data.fill_(float("nan"))
    with pytest.raises(NotFinite, match="forward KL is nan"):
        measuring.measure(PrismaticPolicy(model), probe, trainer, None)
