"""SFT: its arithmetic, and whole runs that are killed, interrupted or fed nonsense."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from safetensors.torch import load_file
from typer.testing import CliRunner

from tests.verbs.support import (
    CommandLine,
    assert_same_end,
    metrics,
    random_demonstration,
    small_policy,
    write_store,
)
from vla_razor import cli, config
from vla_razor.errors import UserError
from vla_razor.policies.openvla.policy import PrismaticPolicy
from vla_razor.rollouts import demonstrations
from vla_razor.training.algorithms import sft, supervised
from vla_razor.training.base import Base
from vla_razor.training.penalties import Penalties
from vla_razor.training.penalties.kl import ForwardKL
from vla_razor.training.penalties.penalty import States
from vla_razor.training.trainer import Trainer

QUICK = ("batch_size=16", "warmup_steps=2", "probe_every=0", "eval_episodes=0", "logger=none", "device=cpu")


def penalties(policy: PrismaticPolicy, base: Base | None, settings: DictConfig) -> Penalties | None:
    return Penalties.of(settings, policy, base, ForwardKL, measured=False) if base else None


def updates(demos: Path, count: int, *overrides: str) -> tuple[list[dict[str, float]], torch.nn.Module]:
    """A few updates of the small policy on all demonstrations."""
    settings = config.compose("sft", [*QUICK, *overrides])
    policy, data = PrismaticPolicy(small_policy()), demonstrations.load(demos, settings.env)
    tokens, trainer = policy.model.tokenize(data.actions), Trainer(policy.model, settings, count)
    rows = torch.arange(len(tokens))
    return [supervised.learn(policy, trainer, settings, data, tokens, rows) for _ in range(count)], policy.model


def test_the_loss_falls_and_starts_at_that_of_chance(demos: Path) -> None:
    scalars, _ = updates(demos, 12, "learning_rate=3e-3")
    assert scalars[0]["loss"] == pytest.approx(np.log(256), abs=0.3)
    assert scalars[-1]["loss"] < scalars[0]["loss"] - 0.5
    assert scalars[-1]["token_accuracy"] > scalars[0]["token_accuracy"]


@pytest.mark.parametrize("loss", ["cross_entropy", "openvla"])
def test_micro_batches_make_no_difference(demos: Path, loss: str) -> None:
    (whole,), one = updates(demos, 1, f"loss={loss}", "micro_batch_size=1000")
    (parts,), other = updates(demos, 1, f"loss={loss}", "micro_batch_size=7")
    assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    assert parts["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-4)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_images_are_looked_at_once_where_vision_stays_as_it_is(demos: Path, policy: Path) -> None:
    """Updates on the kept features are those on the images; none are kept where images or vision change, or where
    they would fill the memory.
    """
    words = ["kl_coefficient=0.5", "spillover_coefficient=0.5", "other_instructions=[open top drawer]"]
    settings = config.compose("sft", [*QUICK, *words, f"policy={policy}", "temperature=2", "micro_batch_size=7"])
    data, rows = demonstrations.load(demos, settings.env), torch.arange(24)
    found, ends = [], []
    for keep in (False, True):
        acting = PrismaticPolicy(small_policy())
        tokens, base = acting.model.tokenize(data.actions), Base(acting, settings)
        trainer = Trainer(acting.model, settings, 5)
        features = sft.features(acting, settings, data) if keep else None
        assert not keep or (features is not None and len(features) == len(data.images))
        scalars = [
            supervised.learn(acting, trainer, settings, data, tokens, rows, penalties(acting, base, settings), features)
            for _ in range(3)
        ][-1]
        found.append({name: value for name, value in scalars.items() if name != "states_per_second"})
        ends.append(list(acting.model.parameters()))
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert sft.features(acting, config.compose("sft", [*QUICK, "augmentation=2"]), data) is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sft, "MOST_FEATURES", 1000)
        assert sft.features(acting, settings, data) is None
    moving = PrismaticPolicy(small_policy())
    Trainer(moving.model, config.compose("sft", [*QUICK, "train_vision=true"]), 5)
    assert sft.features(moving, settings, data) is None


def test_the_penalty_is_the_forward_kl(demos: Path, policy: Path) -> None:
    """A base that is hotter than the policy: the loss grows by the coefficient times the divergence, which is worked
    out here by independent arithmetic.
    """
    settings = config.compose("sft", [*QUICK, "kl_coefficient=0.5", f"policy={policy}", "temperature=2"])
    acting, data = PrismaticPolicy(small_policy()), demonstrations.load(demos, settings.env)
    tokens, rows = acting.model.tokenize(data.actions), torch.arange(24)
    found = []
    for base in (None, Base(acting, settings)):
        model = PrismaticPolicy(small_policy())
        paid = penalties(model, base, settings)
        found.append(supervised.learn(model, Trainer(model.model, settings, 5), settings, data, tokens, rows, paid))
    plain, penalised = found
    model, pixels = small_policy(), acting.model.processor.pixel_values(data.images[:24])
    with torch.no_grad():
        logits = model.action_logits(pixels, model.processor.prompt_ids(data.instructions[:24]), tokens[:24])
    hot, cold = torch.log_softmax(logits / 2, -1), torch.log_softmax(logits, -1)
    expected = float((hot.exp() * (hot - cold)).sum((1, 2)).mean())
    assert penalised["forward_kl_of_batch"] == pytest.approx(expected, rel=1e-4) and expected > 0
    assert penalised["loss"] == pytest.approx(plain["loss"] + 0.5 * expected, rel=1e-4)
    assert "forward_kl_of_batch" not in plain


def test_a_penalty_holds_the_policy_back(demos: Path, policy: Path) -> None:
    settings = config.compose("sft", [*QUICK, f"policy={policy}", "learning_rate=3e-3", "kl_coefficient=10"])
    data = demonstrations.load(demos, settings.env)
    losses = []
    for penalised in (False, True):
        acting = PrismaticPolicy(small_policy())
        tokens, trainer = acting.model.tokenize(data.actions), Trainer(acting.model, settings, 8)
        base = Base(acting, settings) if penalised else None
        rows, paid = torch.arange(len(tokens)), penalties(acting, base, settings)
        losses.append([supervised.learn(acting, trainer, settings, data, tokens, rows, paid) for _ in range(8)][-1])
    free, held = losses
    assert held["token_accuracy"] <= free["token_accuracy"]
    assert held["forward_kl_of_batch"] < 0.5


def test_a_penalty_on_spillover_is_the_forward_kl_under_another_instruction(demos: Path, policy: Path) -> None:
    """A base that is hotter than the policy, whose one other instruction is known."""
    words = [f"policy={policy}", "temperature=2", "other_instructions=[pick can,open top drawer]"]
    settings = config.compose("sft", [*QUICK, *words, "spillover_coefficient=0.5"])
    data = demonstrations.load(demos, settings.env)
    acting, rows = PrismaticPolicy(small_policy()), torch.arange(24)
    tokens, base = acting.model.tokenize(data.actions), Base(acting, settings)
    plain, penalised = (
        supervised.learn(
            model := PrismaticPolicy(small_policy()),
            Trainer(model.model, settings, 5),
            settings,
            data,
            tokens,
            rows,
            penalties(model, given, settings),
        )
        for given in (None, base)
    )
    assert penalised["loss"] == pytest.approx(plain["loss"] + 0.5 * penalised["forward_kl_elsewhere"], rel=1e-4)
    model, pixels = small_policy(), acting.model.processor.pixel_values(data.images[:24])
    prompts = model.processor.prompt_ids(["open top drawer"] * 24)
    paid = penalties(PrismaticPolicy(model), base, settings)
    assert paid is not None
    with torch.no_grad():
        states = States(pixels, model.processor.prompt_ids(["pick can"] * 24), tokens[:24])
        list(paid.costs(states, torch.Generator().manual_seed(0)))
        draws = torch.Generator().manual_seed(0)
        for _ in range(24):
            torch.randint(1, (), generator=draws)
        with base.policy() as opened:
            before = opened.model  # pyright: ignore
            chosen = before.sample_actions(pixels, prompts, 2.0, draws).tokens
            hot = torch.log_softmax(before.action_logits(pixels, prompts, chosen) / 2, -1)
        cold = torch.log_softmax(model.action_logits(pixels, prompts, chosen), -1)
    expected = torch.nn.functional.kl_div(cold, hot, log_target=True, reduction="none").sum((1, 2)).mean()
    assert paid.means() == {"forward_kl_elsewhere": pytest.approx(expected.item(), rel=1e-4)}
    settings.other_instructions = ["pick can"]
    with pytest.raises(UserError, match="needs other_instructions"):
        supervised.learn(
            acting, Trainer(acting.model, settings, 5), settings, data, tokens, rows, penalties(acting, base, settings)
        )


def test_a_share_of_every_batch_is_replayed_and_an_epoch_is_still_one_of_the_new_task() -> None:
    settings = config.compose("sft", ["batch_size=16", "replay=somewhere"])
    batches = [sft.batch(settings, step, 48, 90) for step in range(8)]
    for new, again in ((rows[:12], rows[12:]) for rows in batches):
        assert len(again) == 4 and new.max() < 48 <= again.min() and again.max() < 90
    for epoch in (batches[:4], batches[4:]):
        assert torch.cat([rows[:12] for rows in epoch]).sort().values.tolist() == list(range(48))
    assert not torch.equal(batches[0], batches[4])
    plain = config.compose("sft", ["batch_size=16"])
    assert sft.batch(plain, 2, 48, 48).tolist() == sft.batch(plain, 2, 48, 90).tolist() and len(batches[2]) == 16


def test_replayed_steps_follow_the_new_ones_with_their_own_instruction(demos: Path, tmp_path: Path) -> None:
    prior = [replace(random_demonstration(9, 5, "open_top_drawer"), instruction="open top drawer")]
    settings = config.compose("sft")
    new = demonstrations.load(demos, settings.env)
    both = new.followed_by(demonstrations.load(write_store(tmp_path, prior), settings.prior))
    assert both.instructions == ["pick can"] * 48 + ["open top drawer"] * 5
    assert both.episode.tolist() == [*new.episode.tolist(), *[6] * 5]
    np.testing.assert_array_equal(both.images[48:], prior[0].images)
    np.testing.assert_array_equal(both.actions[48:], prior[0].labels)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["replay_share=0.01", "replay=DIR"], "replay_share=0.01 of batch_size=16 is none of it"),
        (["replay_share=1"], "above 0 and below 1"),
        (["replay=DIR", "prior=null"], "replay is of prior tasks"),
        (["replay=DIR"], "DIR holds no demonstrations"),
    ],
)
def test_bad_replays(words: list[str], says: str, policy: Path, demos: Path, tmp_path: Path) -> None:
    command = ["sft", *QUICK, f"policy={policy}", f"demos={demos}", *words, f"out={tmp_path / 'run'}"]
    result = CliRunner().invoke(cli.app, command)
    assert result.exit_code == 2 and says in result.stderr
    assert not (tmp_path / "run").exists()


def test_the_tokens_fed_back_are_moved_within_the_action_ids() -> None:
    tokens, draws = torch.tensor([[1000, 1128, 1255]]).repeat(4000, 1), torch.Generator().manual_seed(0)
    assert supervised.jittered(tokens, range(1000, 1256), 0.0, draws) is tokens
    moved = supervised.jittered(tokens, range(1000, 1256), 2.0, draws)
    assert (moved.min(), moved.max()) == (1000, 1255)
    middle = (moved - tokens)[:, 1].double()
    assert middle.mean().abs() < 0.15
    assert middle.std() == pytest.approx((2.0**2 + 1 / 12) ** 0.5, rel=0.05), "rounding adds a twelfth"
    assert (moved[:, 0] == 1000).double().mean() == pytest.approx(0.6, abs=0.03), "half, and those that round to none"


def test_what_is_learned_are_the_demonstrated_tokens_whatever_is_fed(demos: Path) -> None:
    """Without a prefix, the first token's logits know nothing of it: its part of the loss is the same."""
    (exact,), _ = updates(demos, 1, "prefix_jitter=0")
    (moved,), _ = updates(demos, 1, "prefix_jitter=50")
    assert exact["loss"] != moved["loss"]
    assert exact["loss"] == pytest.approx(moved["loss"], rel=0.05), "an untrained policy makes little of its prefix"


def test_images_are_shifted_by_whole_pixels() -> None:
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    moved = supervised.shifted(images, torch.tensor([[1, 0], [0, -2]]))
    assert np.array_equal(moved[0, 1:], images[0, :-1])
    assert np.array_equal(moved[0, 0], images[0, 0]), "the edge is repeated"
    assert np.array_equal(moved[1, :, :2], images[1, :, 2:])
    assert supervised.shifted(images, torch.zeros(2, 2, dtype=torch.long)) is images


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, vla_razor: CommandLine, policy: Path, demos: Path) -> Path:
    """An uninterrupted run of 18 updates."""
    out = tmp_path_factory.mktemp("sft") / "finished"
    vla_razor.run("sft", *arguments(policy, demos), f"out={out}")
    return out


def arguments(policy: Path, demos: Path) -> list[str]:
    return [*QUICK, f"policy={policy}", "--demos", str(demos), "epochs=6", "save_every=4", "augmentation=2"]


@pytest.mark.slow
def test_a_whole_run(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["verb"] == "sft"
    assert set(summary["policies"]) == {"base", "tuned"}
    rows = metrics(finished)
    assert [row["step"] for row in rows] == list(range(1, 19))
    assert rows[0]["learning_rate"] == pytest.approx(rows[-1]["learning_rate"] / 2), "warm-up"
    assert sorted(path.name for path in (finished / "checkpoints").iterdir()) == [
        f"step_{n}" for n in (12, 16, 18, 4, 8)
    ]


@pytest.mark.slow
def test_killed_and_resumed_ends_the_same(
    finished: Path, tmp_path: Path, vla_razor: CommandLine, policy: Path, demos: Path
) -> None:
    out = tmp_path / "killed"
    killed = vla_razor.stop_at(out, 6, signal.SIGKILL, "sft", *arguments(policy, demos), f"out={out}")
    assert killed.returncode == -signal.SIGKILL
    assert not (out / "summary.json").exists()
    vla_razor.run("resume", out)
    assert_same_end(finished, out)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_resumed_ends_the_same(
    finished: Path, tmp_path: Path, vla_razor: CommandLine, policy: Path, demos: Path, number: signal.Signals
) -> None:
    out = tmp_path / "interrupted"
    stopped = vla_razor.stop_at(out, 6, number, "sft", *arguments(policy, demos), f"out={out}")
    assert stopped.returncode == 130
    assert stopped.stderr == f"vla-razor: interrupted; go on with: vla-razor resume {out}\n"
    steps = sorted(int(path.stem.removeprefix("step_")) for path in (out / "trainer_state").iterdir())
    assert steps == [metrics(out)[-1]["step"]], "saved where it stood, not at the last multiple of save_every"
    vla_razor.run("resume", out)
    interrupted_at = out / "checkpoints" / f"step_{steps[0]}"
    if steps[0] % 4:
        for path in interrupted_at.iterdir():
            path.unlink()
    assert_same_end(finished, out)


@pytest.mark.slow
def test_adapters_killed_and_resumed_end_the_same(
    tmp_path: Path, vla_razor: CommandLine, policy: Path, demos: Path
) -> None:
    """On a base in bfloat16: what is saved must be what learns."""
    words = [*arguments(policy, demos), "lora_rank=4", "dtype=bfloat16", "save_every=9"]
    whole, out = tmp_path / "whole", tmp_path / "stopped"
    vla_razor.run("sft", *words, f"out={whole}")
    killed = vla_razor.stop_at(out, 12, signal.SIGKILL, "sft", *words, f"out={out}")
    assert killed.returncode == -signal.SIGKILL
    vla_razor.run("resume", out)
    assert_same_end(whole, out)
    saved = load_file(out / "checkpoints" / "step_18" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert any(tensor.bfloat16().float().ne(tensor).any() for tensor in saved.values())


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_the_run(
    tmp_path: Path, vla_razor: CommandLine, policy: Path, demos: Path
) -> None:
    out = tmp_path / "diverged"
    wild = ("learning_rate=1e30", "gain_learning_rate=1e30", "save_every=1", f"out={out}")
    failed = vla_razor.run("sft", *arguments(policy, demos), *wild, status=1)
    assert failed.stderr.startswith("vla-razor: Step 2: the loss is nan")
    assert f"The last good checkpoint is {out}/checkpoints/step_1." in failed.stderr
    assert failed.stderr.count("\n") == 1
    assert [row["step"] for row in metrics(out)] == [1]
    assert load_file(out / "checkpoints" / "step_1" / "model.safetensors")
