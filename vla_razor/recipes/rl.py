"""`vla-razor rl`: REINFORCE on the binary success of batched rollouts (RL's Razor, Sections 3 and 5.1, Appendix B.2).

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
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from omegaconf import DictConfig
from torch import Tensor

from vla_razor.config import robot_of
from vla_razor.core import advantages, divergence, losses
from vla_razor.errors import RunFailed
from vla_razor.interruption import uninterrupted
from vla_razor.policies import Policy
from vla_razor.policies.openvla.policy import OpenVLAPolicy
from vla_razor.progress import progress
from vla_razor.recipes import training
from vla_razor.recipes.comparison import read_lines
from vla_razor.recipes.training import Base, Trainer, Update
from vla_razor.rollouts.rollout import Episode, Timing, VectorEnv, hold_of, make_vector_env, rollout
from vla_razor.rollouts.starts import Start, episode_seed, grid_starts, random_points
from vla_razor.runs import Run
from vla_razor.statistics import by_start, effective_episodes
from vla_razor.study.forecast import Guard


def run(config: DictConfig, run: Run) -> None:
    """Fine-tune `config.policy` on `config.env`; goes on where a resumed run stopped."""
    state = run.restore()
    guard = Guard.of(config, "robot")
    model, base = training.open_models(config, run)
    per_iteration = updates_of(config, episodes_of(config))
    trainer = Trainer(model, config, config.iterations * per_iteration, state)
    policy = OpenVLAPolicy(model, config.unnorm_key, robot=robot_of(config.env))
    with (
        closing(make_vector_env(config.env, config.num_envs, config.num_workers, model.device)) as envs,
        training.saving(run, model, trainer) as save,
        progress("REINFORCE", config.iterations, trainer.step // per_iteration) as advance,
    ):
        probe = training.open_probe(config, base, envs)
        while not trainer.done:
            iteration = trainer.step // per_iteration
            with trainer.stale():
                gathered = gather(envs, policy, config, iteration)
            with uninterrupted():  # a run is saved between iterations
                probing = training.is_due(iteration + 1, config.probe_every, config.iterations)
                scalars = learn(policy, trainer, config, *gathered, base if probing or config.kl_coefficient else None)
                if probe and probing:
                    scalars |= training.measure(model, probe, trainer, guard)
                run.log(trainer.step, **scalars)
                if trainer.spent or training.is_due(iteration + 1, config.save_every, config.iterations):
                    save()
            advance(success=scalars["success"], entropy=scalars["entropy"], **(guard.shown if guard else {}))
    idle = without_signal(run) if trainer.skipped == trainer.step else None
    training.finish(config, run, model, base, probe, guard, idle)


def episodes_of(config: DictConfig) -> int:
    """How many an iteration runs."""
    return len(starts_of(config, 0))


def starts_of(config: DictConfig, iteration: int) -> list[Start]:
    """The starts of an iteration's episodes, with several at each: the points of a grid or, of `grid=random`, new ones.
    A policy that is trained from the same few points learns these and no others.
    """
    seed = episode_seed("starts", config.seed, iteration)
    if config.grid == "random":
        return random_points(config.env.tasks, config.points, config.per_point, seed)
    return grid_starts(config.env, config.grid, config.per_point, seed)


def updates_of(config: DictConfig, episodes: int) -> int:
    """AdamW steps of an iteration of so many episodes."""
    return -(-episodes // config.batch_size) if config.batch_size else 1


def without_signal(run: Run) -> str:
    """What is said of a run all of whose updates were skipped."""
    if any(row["success"] for row in read_lines(run.path / "metrics.jsonl")):
        return "no episode was better or worse than those it is compared with, nothing was learned"
    return "no reward was ever seen, nothing was learned"


def gather(envs: VectorEnv, policy: Policy, config: DictConfig, step: int) -> tuple[list[Episode], Timing]:
    """The episodes of iteration `step` (from 0), `per_point` from every grid point, each until its success has been
    held for `env.hold` control steps.

    Raises `RunFailed` where the simulation died in every one of them.
    """
    starts = starts_of(config, step)
    noise = episode_seed("episodes", config.seed, step)
    episodes, timing = rollout(envs, policy, starts, hold=hold_of(config.env), seed=noise)
    if all(episode.lost for episode in episodes):
        raise RunFailed(f"Iteration {step + 1}: the simulation died in every episode.")
    return episodes, timing


def learn(
    policy: OpenVLAPolicy,
    trainer: Trainer,
    config: DictConfig,
    episodes: Sequence[Episode],
    timing: Timing,
    base: Base | None = None,
) -> dict[str, float]:
    """An iteration's updates on the episodes that were not lost. Returns what is logged: of several updates the mean
    loss and gradient norm, and the last learning rate.

    With `base`, the reverse KL(policy || base) is among it, in nats an action, exact at every visited state; each is
    measured before the update on it. Raises `RunFailed` where the loss is not finite.
    """
    begin = time.perf_counter()
    kept = [episode for episode in episodes if not episode.lost]
    advantage, zero_variance = advantages_of(kept, config.baseline)
    reverse_kl: list[Tensor] = []
    trainer.remember()
    updates: list[Update] = []
    for rows in batches(config, trainer.step, len(kept), len(episodes)):
        batch = Batch.of([kept[row] for row in rows.tolist()], advantage[rows], config.normalizer)
        shares = _shares(policy, batch, config, base, reverse_kl)
        if batch.weights.any() or (batch.steps and config.kl_coefficient):
            updates.append(trainer.update(shares))
        else:
            with torch.no_grad():
                deque(shares, maxlen=0)  # for the reverse KL alone
            updates.append(trainer.skip())
    return {
        **played(episodes, timing),
        "zero_variance_groups": zero_variance,
        "skipped_updates": trainer.skipped,
        **({"reverse_kl_per_action": float(torch.cat(reverse_kl).mean())} if reverse_kl else {}),
        **updates[-1]._asdict(),
        **{name: sum(getattr(update, name) for update in updates) / len(updates) for name in ("loss", "grad_norm")},
        "seconds_update": time.perf_counter() - begin,
    }


def batches(config: DictConfig, step: int, kept: int, episodes: int) -> list[Int[Tensor, " B"]]:
    """Which of the `kept` episodes each update of the iteration that begins at `step` is on. Where some were lost, the
    last ones may be on none: an iteration is always as many steps.
    """
    updates = updates_of(config, episodes)
    if updates == 1:
        return [torch.arange(kept)]
    order = torch.randperm(kept, generator=training.generator(config.seed, "batches", step))
    parts = list(order.split(config.batch_size)) if kept else []
    return parts + [order[:0]] * (updates - len(parts))


def played(episodes: Sequence[Episode], timing: Timing) -> dict[str, float]:
    """What is logged of an iteration's episodes, and how many independent ones they are worth, of which several share a
    start. The entropy, in nats a token, is that of the policy that played, estimated from its samples.
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

    `steps` are (episode, decision) pairs; `weights` [S] is what each decision's summed log-probability is multiplied
    with, the episode's advantage over its number of tokens (or 1); `normalizer` divides the sum over all decisions.
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
    """The advantage of each episode, and the number of grid points whose rewards are all equal. Success is rewarded
    where it stands at the end of the episode, which goes on until it has been held.

    `baseline`: grid_point or batch, within which rewards are normalised; one_zero leaves them as they are.
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
    policy: OpenVLAPolicy, batch: Batch, config: DictConfig, base: Base | None, reverse_kl: list[Tensor]
) -> Iterator[Tensor]:
    """Each micro-batch's part of the loss; the parts add up to that of the whole batch.

    Steps that weigh nothing are skipped unless `base` is given; then KL(policy || base) of every step's action goes
    into `reverse_kl` and, times its coefficient, into the loss. The penalty is at the visited states as they are: its
    gradient knows that the policy samples an action's tokens one after the other (`losses.on_policy_divergence`), not
    that earlier actions lead to later states.
    """
    model = policy.model
    rows = torch.arange(len(batch.steps)) if base else batch.weights.nonzero()[:, 0]
    for start in range(0, len(rows), config.micro_batch_size):
        part = rows[start : start + config.micro_batch_size]
        steps = [batch.steps[row] for row in part.tolist()]
        pixels = model.processor.pixel_values([episode.looked_at[index] for episode, index in steps]).to(model.device)
        prompts = policy.prompt_ids([episode.instruction for episode, _ in steps])
        tokens = torch.from_numpy(np.stack([sampled(episode.tokens)[index] for episode, index in steps])).to(
            model.device
        )
        log_policy = training.log_distribution(model, pixels, prompts, tokens)
        log_probs = log_policy.gather(-1, (tokens - model.config.first_action_id)[..., None])[..., 0]
        everything = torch.ones_like(tokens, dtype=torch.bool)
        weights = batch.weights[part].to(log_probs)
        loss = losses.policy_gradient(log_probs, weights, everything, normalizer=batch.normalizer)
        if base is not None:
            divergences = _reverse_kl(base, pixels, prompts, tokens, log_policy)
            reverse_kl.append(divergences.detach().sum(-1))
            penalty = losses.on_policy_divergence(divergences, log_probs)
            loss = loss + config.kl_coefficient * penalty.sum() / len(batch.steps)
        yield loss


def _reverse_kl(base: Base, pixels: Tensor, prompts: list[list[int]], tokens: Tensor, log_policy: Tensor) -> Tensor:
    """KL(policy || base) in nats [B, A] of the distribution at each token; differentiable in the policy."""
    with base.model() as model, torch.no_grad():
        log_base = training.log_distribution(model, pixels, prompts, tokens)
    return divergence.reverse_kl(log_base, log_policy)


def sampled(values: np.ndarray | None) -> np.ndarray:
    """Tokens or log-probabilities, which every episode of an OpenVLA policy has; labels, where an expert gave them."""
    assert values is not None
    return values
