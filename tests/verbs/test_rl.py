"""REINFORCE: its arithmetic on made-up episodes, and whole runs in the simulator that are killed or interrupted."""

import json
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from typer.testing import CliRunner

from tests.verbs.support import INSTRUCTION, CommandLine, assert_same_end, metrics, small_policy
from vla_razor import cli, config
from vla_razor.policies import Observations
from vla_razor.policies.load import TINY
from vla_razor.policies.openvla.policy import PrismaticPolicy
from vla_razor.policies.openvla.prismatic import PrismaticVLA
from vla_razor.rollouts.rollout import Episode, Timing
from vla_razor.rollouts.starts import Start
from vla_razor.study import forecast
from vla_razor.study.forecast import FittedLaw
from vla_razor.training.algorithms import reinforce
from vla_razor.training.algorithms.reinforce import Batch
from vla_razor.training.base import Base
from vla_razor.training.penalties import Penalties
from vla_razor.training.penalties.kl import ReverseKL
from vla_razor.training.trainer import Trainer

TOKENS = 7


def settings(*overrides: str) -> DictConfig:
    return config.compose("rl", ["device=cpu", "logger=none", "warmup_steps=0", *overrides])


def episode(point: int, success: Sequence[bool], lost: bool = False, seed: int = 0) -> Episode:
    """An episode of random pictures and tokens with this success after each step."""
    draw, length, first = np.random.default_rng([point, seed]), len(success), small_policy().config.first_action_id
    return Episode(
        start=Start("pick_can", {}, seed, point),
        instruction=INSTRUCTION,
        observations=Observations(
            {"camera": draw.integers(0, 256, (length, 64, 64, 3), np.uint8)},
            [INSTRUCTION] * length,
            np.zeros((length, 8), np.float32),
        ),
        actions=np.zeros((length, 7), np.float32),
        tokens=first + draw.integers(0, 256, (length, TOKENS)),
        log_probs=np.full((length, TOKENS), -2.0, np.float32),
        labels=None,
        success=np.array(success, bool),
        lost=lost,
    )


def mixed() -> list[Episode]:
    """Two points of two episodes: one won after two steps and one lost after three; then two failures."""
    return [
        episode(0, [False, True]),
        episode(0, [False, False, False], seed=1),
        episode(1, [False] * 3),
        episode(1, [False] * 3, seed=1),
    ]


def test_advantages_within_a_grid_point_by_hand() -> None:
    advantage, zero_variance = reinforce.advantages_of(mixed(), "grid_point")
    spread = 0.5 / (0.5**0.5 + 1e-4)  # two rewards, 1 and 0: mean 1/2, sample deviation sqrt(1/2)
    assert advantage.tolist() == pytest.approx([spread, -spread, 0, 0])
    assert zero_variance == 1


def test_advantages_over_the_batch_by_hand() -> None:
    advantage, zero_variance = reinforce.advantages_of(mixed(), "batch")
    deviation = 0.5 + 1e-4  # rewards 1, 0, 0, 0: squares sum to 3/4, over 3
    assert advantage.tolist() == pytest.approx([0.75 / deviation] + [-0.25 / deviation] * 3)
    assert zero_variance == 1


def test_one_zero_leaves_the_rewards() -> None:
    assert reinforce.advantages_of(mixed(), "one_zero")[0].tolist() == [1, 0, 0, 0]


def test_a_point_whose_other_episodes_were_lost_has_no_advantage() -> None:
    kept = [episode for episode in [*mixed()[:1], *mixed()[2:]] if not episode.lost]
    advantage, zero_variance = reinforce.advantages_of(kept, "grid_point")
    assert advantage.tolist() == [0, 0, 0]
    assert zero_variance == 2


@pytest.mark.parametrize(
    ("normalizer", "weights", "divisor"),
    [("length", [1 / 14, 0], 2), ("episodes", [1, 0], 2), ("tokens", [1, 0], (2 + 3) * TOKENS)],
)
def test_how_an_episode_weighs(normalizer: str, weights: list[float], divisor: float) -> None:
    batch = Batch.of(mixed()[:2], torch.tensor([1.0, 0.0]), normalizer)
    assert batch.weights.tolist() == pytest.approx([weights[0]] * 2 + [weights[1]] * 3)
    assert batch.normalizer == divisor


def test_success_is_rewarded_where_it_stands_at_the_end() -> None:
    held, dropped = episode(0, [False, True, True]), episode(0, [False, True, False])
    advantage, _ = reinforce.advantages_of([held, dropped], "grid_point")
    assert advantage[0] > 0 > advantage[1]
    batch = Batch.of([held], torch.ones(1), "length")
    assert [t for _, t in batch.steps] == [0, 1, 2]


def log_probability(model: PrismaticVLA, episodes: list[Episode]) -> torch.Tensor:
    """Of each episode's tokens, summed."""
    sums = []
    for one in episodes:
        tokens = torch.from_numpy(reinforce.sampled(one.tokens))
        prompts = model.processor.prompt_ids([one.instruction] * one.length)
        with torch.no_grad():
            said = PrismaticPolicy(model).distribution(model.processor.pixel_values(list(one.images)), prompts, tokens)
        sums.append(said.log_prob(tokens).sum())
    return torch.stack(sums)


def learn(
    policy: PrismaticPolicy, trainer: Trainer, chosen: DictConfig, episodes: list[Episode], base: Base | None = None
) -> dict[str, float]:
    """An update, with a measure of how far the policy is from a base."""
    measured = base is not None
    penalties = Penalties.of(chosen, policy, base, ReverseKL, measured=True) if base else Penalties([])
    return reinforce.learn(policy, trainer, chosen, episodes, Timing(), penalties, measured=measured)


def learned(
    episodes: list[Episode], *overrides: str, base: Base | None = None
) -> tuple[dict[str, float], PrismaticVLA]:
    chosen = settings("learning_rate=1e-3", *overrides)
    policy = PrismaticPolicy(small_policy())
    return learn(policy, Trainer(policy.model, chosen, 10), chosen, episodes, base), policy.model


def test_an_update_makes_successes_likelier_and_failures_less_likely() -> None:
    episodes = mixed()
    before = log_probability(small_policy(), episodes)
    scalars, model = learned(episodes)
    change = log_probability(model, episodes) - before
    assert change[0] > 0 > change[1]
    assert scalars["success"] == 0.25
    assert scalars["zero_variance_groups"] == 1
    assert scalars["sampled_entropy"] == 2
    assert scalars["episode_length"] == 11 / 4


def test_the_loss_by_independent_arithmetic() -> None:
    episodes = mixed()
    scalars, _ = learned(episodes, "micro_batch_size=2")
    advantage, _ = reinforce.advantages_of(episodes, "grid_point")
    lengths = torch.tensor([len(e.success) * TOKENS for e in episodes])
    expected = -(advantage * log_probability(small_policy(), episodes) / lengths).mean()
    assert scalars["loss"] == pytest.approx(float(expected), rel=1e-4)


def test_lost_episodes_teach_nothing() -> None:
    scalars, model = learned([*mixed(), episode(0, [], lost=True, seed=2)])
    other, same = learned(mixed())
    assert scalars["lost_episodes"] == 1
    assert {**other, "lost_episodes": 1, "seconds_update": 0} == {**scalars, "seconds_update": 0}
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))


def weights_of(model: PrismaticVLA) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_without_signal_nothing_moves_whatever_momentum_there_is(policy: Path) -> None:
    chosen = settings("learning_rate=1e-3", f"policy={policy}", "temperature=2")
    acting = PrismaticPolicy(small_policy())
    trainer, base = Trainer(acting.model, chosen, 10), Base(acting, chosen)
    assert learn(acting, trainer, chosen, mixed())["skipped_updates"] == 0
    before = weights_of(acting.model)
    for skipped, given in ((1, None), (2, base)):
        scalars = learn(acting, trainer, chosen, mixed()[2:], given)
        assert (scalars["loss"], scalars["grad_norm"], scalars["skipped_updates"]) == (0, 0, skipped)
    assert scalars["reverse_kl_per_action"] > 0, "which is measured all the same"
    assert same(weights_of(acting.model), before) and trainer.step == 3
    chosen.kl_coefficient = 0.1
    learn(acting, trainer, chosen, mixed()[2:], base)
    assert not same(weights_of(acting.model), before), "a penalty is a signal"


def test_the_penalty_is_the_reverse_kl(policy: Path) -> None:
    """A base that is hotter than the policy; by independent arithmetic."""
    base = Base(PrismaticPolicy(small_policy()), settings(f"policy={policy}", "temperature=2"))
    plain, _ = learned(mixed(), base=base)
    penalised, _ = learned(mixed(), "kl_coefficient=0.5", base=base)
    model, found = small_policy(), []
    for one in mixed():
        tokens, pixels = torch.from_numpy(reinforce.sampled(one.tokens)), model.processor.pixel_values(list(one.images))
        with torch.no_grad():
            logits = model.action_logits(pixels, model.processor.prompt_ids([INSTRUCTION] * one.length), tokens)
        cold, hot = torch.log_softmax(logits, -1), torch.log_softmax(logits / 2, -1)
        found.append((cold.exp() * (cold - hot)).sum((1, 2)))
    expected = float(torch.cat(found).mean())
    assert plain["reverse_kl_per_action"] == pytest.approx(expected, rel=1e-4)
    assert penalised["loss"] == pytest.approx(plain["loss"] + 0.5 * expected, rel=1e-4)


def test_an_iteration_in_several_updates() -> None:
    """Every episode is in one, with the advantage that it has in the iteration; the loss is each batch's own."""
    chosen = settings("learning_rate=1e-3", "grid=1x2", "per_point=2", "batch_size=3")
    episodes = mixed()
    assert (reinforce.episodes_of(chosen), reinforce.updates_of(chosen, 4)) == (4, 2)
    parts = reinforce.batches(chosen, 0, 4, 4)
    assert [len(part) for part in parts] == [3, 1] and torch.cat(parts).sort().values.tolist() == [0, 1, 2, 3]
    orders = {tuple(torch.cat(reinforce.batches(chosen, step, 4, 4)).tolist()) for step in range(8)}
    assert len(orders) > 1, "drawn anew"
    acting = PrismaticPolicy(small_policy())
    trainer = Trainer(acting.model, chosen, 10)
    scalars = learn(acting, trainer, chosen, episodes)
    other = small_policy()
    by_hand, losses, advantage = Trainer(other, chosen, 10), [], reinforce.advantages_of(episodes, "grid_point")[0]
    for rows in parts:
        batch = Batch.of([episodes[row] for row in rows], advantage[rows], "length")
        if batch.weights.any():
            draws = torch.Generator()
            shares = reinforce._shares(PrismaticPolicy(other), batch, chosen, Penalties([]), draws, measured=False)
            losses.append(by_hand.update(shares).loss)
        else:
            losses.append(by_hand.skip().loss)
    assert trainer.step == 2
    assert scalars["loss"] == pytest.approx(sum(losses) / 2)
    assert same(weights_of(acting.model), weights_of(other))


def test_an_iteration_is_as_many_updates_whatever_was_lost() -> None:
    chosen = settings("batch_size=2")
    assert [len(part) for part in reinforce.batches(chosen, 0, 1, 6)] == [1, 0, 0]
    assert [len(part) for part in reinforce.batches(settings(), 0, 5, 6)] == [5]
    scalars, _ = learned([mixed()[0], *(episode(1, [], lost=True, seed=s) for s in range(2))], "batch_size=1")
    assert scalars["skipped_updates"] == 3


@pytest.mark.slow
def test_a_run_without_any_reward_says_so(tmp_path: Path, vla_razor: CommandLine, policy: Path) -> None:
    """Also where it was stopped by a scheduler in between."""
    out, sizes = tmp_path / "run", ["grid=1x2", "per_point=2", "iterations=3", "batch_size=2", "num_envs=4"]
    rest = ["eval_episodes=0", "probe_every=0", "logger=none", "device=cpu", f"policy={policy}", f"out={out}"]
    stopped = vla_razor.stop_at(out, 2, signal.SIGTERM, "rl", "--env", "pick_can", *sizes, *rest)
    assert stopped.returncode == 130
    done = vla_razor.run("resume", out)
    said = "no reward was ever seen, nothing was learned"
    assert said in done.stdout
    assert json.loads((out / "summary.json").read_text())["nothing_learned"] == said
    assert [(row["step"], row["skipped_updates"]) for row in metrics(out)] == [(2, 2), (4, 4), (6, 6)]


@pytest.fixture(scope="module")
def arguments() -> list[str]:
    """A run of four updates on the embedded base, which succeeds now and then; the policy that plays is one update old,
    so that what a resumed run needs for it is tested too."""
    if not TINY.is_dir():
        pytest.skip("the embedded base policy has not been made")
    sizes = ["grid=2x2", "per_point=3", "iterations=4", "num_envs=6", "probe_every=2", "probe_states=16"]
    return ["--env", "pick_can", *sizes, "eval_episodes=0", "save_every=1", "staleness=1", "logger=none", "device=cpu"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, vla_razor: CommandLine, arguments: list[str]) -> Path:
    out = tmp_path_factory.mktemp("rl") / "finished"
    vla_razor.run("rl", *arguments, f"out={out}")
    return out


@pytest.mark.slow
def test_a_whole_run(finished: Path) -> None:
    rows = metrics(finished)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert sum(row["success"] for row in rows) > 0
    assert [("forward_kl_per_token" in row, "reverse_kl_per_action" in row) for row in rows] == [
        (False,) * 2,
        (True,) * 2,
    ] * 2
    drift = json.loads((finished / "summary.json").read_text())["policies"]["tuned"]["forward_kl"]
    assert drift["per_action"] == rows[-1]["forward_kl_per_action"] > 0
    assert drift["sharpening"] + drift["displacement"] == pytest.approx(drift["per_action"])


@pytest.mark.slow
def test_interrupted_killed_and_resumed_ends_the_same(
    finished: Path, tmp_path: Path, vla_razor: CommandLine, arguments: list[str]
) -> None:
    out = tmp_path / "stopped"
    interrupted = vla_razor.stop_at(out, 1, signal.SIGINT, "rl", *arguments, f"out={out}")
    assert interrupted.returncode == 130
    assert interrupted.stderr == f"vla-razor: interrupted; go on with: vla-razor resume {out}\n"
    killed = vla_razor.stop_at(out, 3, signal.SIGKILL, "resume", out)
    assert killed.returncode == -signal.SIGKILL
    vla_razor.run("resume", out)
    assert_same_end(finished, out)


def law(folder: Path, forgotten: float, measure: str = "forward_kl_per_token", runs: int = 12) -> Path:
    """A law that forecasts the same whatever the divergence."""
    fitted = FittedLaw("robot", measure, (forgotten, 0.0, 0.0), 0.9, (0.0, 100.0), -0.1, 0.1, runs)
    folder.mkdir(exist_ok=True)
    forecast.save(folder / "law.json", fitted)
    return folder


@pytest.mark.slow
def test_a_spent_budget_ends_the_run(tmp_path: Path, vla_razor: CommandLine, arguments: list[str]) -> None:
    guarded = [*arguments, "forgetting_budget=0.05", f"law={law(tmp_path, 0.06)}", "save_every=3"]
    done = vla_razor.run("rl", *guarded, f"out={tmp_path / 'run'}")
    rows = metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2], "measured at every second step"
    assert rows[1]["predicted_forgetting"] == pytest.approx(0.06) and "predicted_forgetting" not in rows[0]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_2"]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["forecast"]["forgotten"] == pytest.approx(0.06)
    assert "forecast: 6.0% of prior success lost [-4.0, 16.0]" in done.stdout
    said = "step 2: 6.0% of prior success lost [-4.0, 16.0], of a budget of 5.0%: the training ends"
    assert said in " ".join(done.stdout.split())


def test_a_budget_needs_a_law_that_can_be_watched(tmp_path: Path) -> None:
    for words, says in (
        (["forgetting_budget=0.05"], "forgetting_budget needs law=FILE"),
        (["forgetting_budget=0.05", f"law={law(tmp_path, 0.1)}", "probe_every=0"], "probe_every=0 never measures it"),
        (["forgetting_budget=0.05", f"law={tmp_path / 'nowhere.json'}"], "cannot be read"),
        (["forgetting_budget=0.05", f"law={law(tmp_path / 'few', 0.1, runs=4)}"], "was fitted on 4 runs"),
        (
            ["forgetting_budget=0.05", f"law={law(tmp_path / 'spillover', 0.1, 'spillover')}", "other_instructions=[]"],
            "of spillover, which other_instructions=[] never measures",
        ),
        (["forgetting_budget=5"], "above 0 and below 1"),
    ):
        result = CliRunner().invoke(cli.app, ["rl", *words, f"out={tmp_path / 'run'}"])
        assert result.exit_code == 2 and says in result.stderr
        assert not (tmp_path / "run").exists()
