"""REINFORCE on the binary success of batched rollouts (RL's Razor, Sections 3 and 5.1, Appendix B.2).

An iteration runs `per_point` episodes from every point of a grid of start positions (paper: 5 from each of 100), gives
each a reward of 1 or 0, normalises the rewards into advantages, and takes AdamW steps on the log-probabilities of the
action tokens, gradient clipped at 1: one on all of its episodes, or with `batch_size` one on each batch of so many,
drawn without return. There is no KL penalty unless asked for.

The paper is ambiguous here. It trains REINFORCE with "the same training configuration as SFT", whose batches are 16, 32
and 64, and does not say of what, episodes or steps, nor whether an iteration is one step or several.
`experiment=paper_robotics` reads it as `batch_size` episodes a step.

Where it departs from the paper, and why:
- Advantages are normalised within a grid point (GRPO's group), not over the batch; `baseline=batch` is the paper's.
- An episode's log-probabilities are averaged, not summed (`normalizer=length`): failures run longer than successes, and
  summed they outweigh them and raise the entropy.
- The normalisation gains have a learning rate of their own, and the vision stacks stay as they are.

`staleness=K` plays each iteration's episodes with the policy as it was K iterations before (in the first K iterations:
as it began), which is online but off-policy, the paper's open question. The update stays plain REINFORCE on these
episodes, without importance weights: what they would correct is what is asked about.

A step none of whose episodes has an advantage is skipped: AdamW's momentum would move the policy on.
"""

import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from omegaconf import DictConfig
from torch import Tensor

from vla_razor import ranks
from vla_razor.core import advantages, losses
from vla_razor.errors import RunFailed
from vla_razor.files import read_lines
from vla_razor.policies import Observations, Policy
from vla_razor.policies.trainable import Trainable
from vla_razor.rollouts.environments import VectorEnv, cameras_for, hold_of, make_vector_env
from vla_razor.rollouts.rollout import Episode, Timing, rollout
from vla_razor.rollouts.starts import Start, episode_seed, grid_starts, random_points
from vla_razor.runs import Run
from vla_razor.statistics import by_start, effective_episodes
from vla_razor.training.base import Base
from vla_razor.training.penalties import Penalties
from vla_razor.training.penalties.kl import ReverseKL
from vla_razor.training.penalties.penalty import States
from vla_razor.training.trainer import Trainer, Update, generator, own_generator


class Reinforce:
    """A round is an iteration: its episodes, and the updates on them."""

    title, watched = "REINFORCE", ("success", "sampled_entropy")
    envs: VectorEnv | None = None

    def __init__(self, config: DictConfig, policy: Trainable, base: Base) -> None:
        self.config, self.policy = config, policy
        self.rounds, self.updates = config.iterations, updates_of(config, episodes_of(config))
        self.penalties = Penalties.of(config, policy, base, ReverseKL, measured=True)

    def prepare(self, stack: ExitStack) -> None:
        """Make the environments."""
        self.envs = environments(self.config, self.policy, stack)

    def gather(self, number: int) -> tuple[list[Episode], Timing]:
        """An iteration's episodes."""
        assert self.envs is not None
        return gather(self.envs, self.policy, self.config, number)

    def learn(
        self, trainer: Trainer, gathered: tuple[list[Episode], Timing], *, measured: bool
    ) -> Iterator[dict[str, float]]:
        """The updates on them, logged as one."""
        yield learn(self.policy, trainer, self.config, *gathered, self.penalties, measured=measured)

    def closing_words(self, run: Run, trainer: Trainer) -> str | None:
        """Why nothing was learned, where every update was skipped."""
        if trainer.skipped < trainer.step:
            return None
        if any(row["success"] for row in read_lines(run.path / "metrics.jsonl")):
            return "no episode was better or worse than those it is compared with, nothing was learned"
        return "no reward was ever seen, nothing was learned"


def environments(config: DictConfig, policy: Trainable, stack: ExitStack) -> VectorEnv:
    """The environments that a training plays in; they are closed with the stack."""
    shown = config.num_envs, config.num_workers, policy.device, cameras_for(config.env, policy)
    envs = make_vector_env(config.env, *shown)
    return stack.enter_context(closing(envs))


def episodes_of(config: DictConfig) -> int:
    """Episodes per iteration."""
    return len(starts_of(config, 0))


def starts_of(config: DictConfig, iteration: int) -> list[Start]:
    """The starts of an iteration's episodes, several from each point: the points of a grid or, with `grid=random`, new
    ones in every iteration. A policy that always trains from the same few points learns these and no others.
    """
    seed = episode_seed("starts", config.seed, iteration)
    if config.grid == "random":
        return random_points(config.env.tasks, config.points, config.per_point, seed, config.env.get("starts"))
    return grid_starts(config.env, config.grid, config.per_point, seed)


def updates_of(config: DictConfig, episodes: int) -> int:
    """AdamW steps of an iteration with so many episodes."""
    return -(-episodes // config.batch_size) if config.batch_size else 1


def gather(envs: VectorEnv, policy: Policy, config: DictConfig, step: int) -> tuple[list[Episode], Timing]:
    """The episodes of iteration `step` (from 0), `per_point` from every grid point, each until its success has been
    held for `env.hold` control steps. Several ranks share them.

    Raises `RunFailed` where the simulation died in every one of them.
    """
    starts = starts_of(config, step)
    noise = episode_seed("episodes", config.seed, step)
    own, timing = rollout(envs, policy, ranks.share(starts), hold=hold_of(config.env), seed=noise)
    episodes, timing = ranks.gathered(own, Episode.told), Timing.together(ranks.everyones(timing))
    if all(episode.lost for episode in episodes):
        raise RunFailed(f"Iteration {step + 1}: the simulation died in every episode.")
    return episodes, timing


def learn(
    policy: Trainable,
    trainer: Trainer,
    config: DictConfig,
    episodes: Sequence[Episode],
    timing: Timing,
    penalties: Penalties,
    *,
    measured: bool = False,
) -> dict[str, float]:
    """An iteration's updates on the episodes that were not lost. Returns what is logged; for several updates that is
    the mean loss and gradient norm, and the last learning rate.

    Penalties are logged too and, if `measured`, the reverse KL(policy || base) in nats per action, exact at every
    visited state. Each is measured before the update on it. Raises `RunFailed` where the loss is not finite.
    """
    begin = time.perf_counter()
    kept = [episode for episode in episodes if not episode.lost]
    advantage, zero_variance = advantages_of(kept, config.baseline)
    trainer.remember()
    updates: list[Update] = []
    for rows in batches(config, trainer.step, len(kept), len(episodes)):
        batch = Batch.of([kept[row] for row in rows.tolist()], advantage[rows], config.normalizer)
        draws = own_generator(config.seed, "penalties", trainer.step)
        shares = _shares(policy, batch, config, penalties, draws, measured=measured)
        if batch.weights.any() or (batch.steps and penalties.paid_for):
            updates.append(trainer.update(shares))
        else:
            with torch.no_grad():
                deque(shares, maxlen=0)  # only to measure the reverse KL
            updates.append(trainer.skip())
    return {
        **played(episodes, timing),
        "zero_variance_groups": zero_variance,
        "skipped_updates": trainer.skipped,
        **penalties.means(),
        **updates[-1]._asdict(),
        **{name: sum(getattr(update, name) for update in updates) / len(updates) for name in ("loss", "grad_norm")},
        "seconds_update": time.perf_counter() - begin,
    }


def batches(config: DictConfig, step: int, kept: int, episodes: int) -> list[Int[Tensor, " B"]]:
    """Which of the `kept` episodes each update uses, for the iteration that begins at `step`. An iteration always has
    the same number of steps: where episodes were lost, the last steps may have none.
    """
    updates = updates_of(config, episodes)
    if updates == 1:
        return [torch.arange(kept)]
    order = torch.randperm(kept, generator=generator(config.seed, "batches", step))
    parts = list(order.split(config.batch_size)) if kept else []
    return parts + [order[:0]] * (updates - len(parts))


def played(episodes: Sequence[Episode], timing: Timing) -> dict[str, float]:
    """What is logged about an iteration's episodes. `effective_episodes` is how many independent ones they are worth,
    since several share a start. The entropy, in nats per token, is that of the policy that played, estimated from its
    samples.
    """
    kept = [episode for episode in episodes if not episode.lost]
    points = [episode.start.grid_point for episode in kept]
    return {
        "success": sum(episode.success_at_end for episode in kept) / len(kept),
        "effective_episodes": effective_episodes(by_start(points, (episode.success_at_end for episode in kept))),
        "episode_length": sum(episode.length for episode in kept) / len(kept),
        "lost_episodes": len(episodes) - len(kept),
        "sampled_entropy": -float(np.mean(np.concatenate([sampled(episode.log_probs) for episode in kept]))),
        "env_steps_per_second": timing.steps_per_second,
        "seconds_policy": timing.policy,
        "seconds_environment": timing.environment,
        "seconds_rollout_rest": timing.rest,
    }


@dataclass
class Batch:
    """The decisions of an update's episodes.

    `steps` are (episode, decision) pairs. `weights` [S] multiply each decision's summed log-probability: the episode's
    advantage, divided by its number of tokens where an episode counts by its mean. `normalizer` divides the sum over
    all decisions.
    """

    steps: list[tuple[Episode, int]]
    weights: Tensor
    normalizer: float

    @classmethod
    def of(cls, episodes: Sequence[Episode], advantage: Float[Tensor, " E"], normalizer: str) -> "Batch":
        lengths = torch.tensor([len(episode.decision_steps) for episode in episodes], dtype=torch.long)
        tokens = lengths * sum(sampled(episode.tokens).shape[1] for episode in episodes[:1])
        weights = advantage / tokens if normalizer == "length" else advantage
        return cls(
            steps=[
                (episode, index)
                for episode, count in zip(episodes, lengths.tolist(), strict=True)
                for index in range(count)
            ],
            weights=weights.repeat_interleave(lengths),
            normalizer=float(tokens.sum() if normalizer == "tokens" else len(episodes)),
        )


def advantages_of(episodes: Sequence[Episode], baseline: str) -> tuple[Tensor, int]:
    """The advantage of each episode, and the number of grid points whose rewards are all equal. The reward is success
    at the end of the episode, which goes on until success has been held.

    `baseline`: rewards are normalised within a grid_point or the batch; one_zero leaves them as they are.
    """
    rewards = torch.tensor([float(episode.success_at_end) for episode in episodes])
    points = [episode.start.grid_point for episode in episodes]
    groups = [torch.tensor([i for i, p in enumerate(points) if p == point]) for point in Counter(points)]
    zero_variance = sum(bool(advantages.zero_variance(rewards[None, group])) for group in groups)
    if baseline == "one_zero":
        return advantages.one_zero(rewards[None])[0], zero_variance
    if baseline == "batch":
        return advantages.batch_normalized(rewards[None])[0], zero_variance
    advantage = torch.empty_like(rewards)
    for group in groups:
        advantage[group] = advantages.group_normalized(rewards[None, group])[0]
    return advantage, zero_variance


def _shares(
    policy: Trainable,
    batch: Batch,
    config: DictConfig,
    penalties: Penalties,
    draws: torch.Generator,
    *,
    measured: bool,
) -> Iterator[Tensor]:
    """Each micro-batch's part of the loss; the parts add up to the loss of the whole batch.

    This rank computes the parts of the episodes that it has played. Steps of weight 0 are skipped, unless every step is
    penalised or measured. Penalties take the visited states as given: their gradients do not know that earlier actions
    lead to later states.
    """
    everywhere = measured or penalties.paid_for
    rows = torch.arange(len(batch.steps)) if everywhere else batch.weights.nonzero()[:, 0]
    rows = rows[[not batch.steps[row][0].elsewhere for row in rows.tolist()]]
    for start in range(0, len(rows), config.micro_batch_size):
        part = rows[start : start + config.micro_batch_size]
        steps = [batch.steps[row] for row in part.tolist()]
        seen = Observations.joined([episode.decided_on[index : index + 1] for episode, index in steps])
        views, prompts = policy.views(seen), policy.prompt_ids(seen.instructions)
        tokens = torch.from_numpy(np.stack([sampled(episode.tokens)[index] for episode, index in steps]))
        tokens = tokens.to(policy.device)
        said = policy.distribution(views, prompts, tokens)
        log_probs = said.log_prob(tokens)
        everything = torch.ones_like(tokens, dtype=torch.bool)
        weights = batch.weights[part].to(log_probs)
        loss = losses.policy_gradient(log_probs, weights, everything, normalizer=batch.normalizer)
        # Costs join this loss, because they come from the same forward pass of the policy.
        states = States(views, prompts, tokens, said)
        for coefficient, cost in penalties.costs(states, draws, measured=measured):
            loss = loss + coefficient * cost.sum() / len(batch.steps)
        yield loss


def sampled(values: np.ndarray | None) -> np.ndarray:
    """Tokens or log-probabilities, which every episode of such a policy has; labels, where an expert gave them."""
    assert values is not None
    return values
