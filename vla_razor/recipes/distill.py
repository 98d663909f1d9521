"""`vla-razor distill`: imitate the scripted expert at the states that the policy itself visits (on-policy distillation;
DAgger of Ross, Gordon and Bagnell, 2011, without keeping earlier iterations' states).

An iteration plays REINFORCE's episodes: `per_point` of the policy from every point of a grid, each up to its success.
What is learned of them is SFT's: `updates` on batches of the visited states, cross-entropy on the action that the
expert, who reads the privileged state, would have taken there. So of the two things in which SFT on demonstrations and
REINFORCE differ, where the states come from and what is said about them, it changes the first alone. With the default
settings it makes as many updates as twelve epochs of SFT on a hundred demonstrations of the can.

At first the expert takes a share of the steps itself, `guidance`, which falls to none in the last iteration (DAgger's
mixed policy): left alone, a base that mostly fails shows little but lost positions, and what is learned there undoes
what it can do. `success` is therefore the policy's own in the last iteration only.

The paper has no such run on robots; its Section 5 distils a teacher's answers on ParityMNIST's own inputs.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing

import numpy as np
import torch
from jaxtyping import Int
from omegaconf import DictConfig
from torch import Tensor

from vla_razor.config import robot_of
from vla_razor.interruption import uninterrupted
from vla_razor.policies.openvla.policy import OpenVLAPolicy
from vla_razor.policies.scripted import Corrected, ScriptedExpert
from vla_razor.progress import progress
from vla_razor.recipes import rl, sft, training
from vla_razor.recipes.training import Trainer
from vla_razor.rollouts.demonstrations import Demonstrations
from vla_razor.rollouts.rollout import Episode, make_vector_env
from vla_razor.runs import Run
from vla_razor.study.forecast import Guard


def run(config: DictConfig, run: Run) -> None:
    """Fine-tune `config.policy` on `config.env`; goes on where a resumed run stopped."""
    state = run.restore()
    guard = Guard.of(config, "robot")
    model, base = training.open_models(config, run)
    trainer = Trainer(model, config, config.iterations * config.updates, state)
    policy = OpenVLAPolicy(model, config.unnorm_key, robot=robot_of(config.env))
    expert = ScriptedExpert(robot=robot_of(config.env))
    with (
        closing(make_vector_env(config.env, config.num_envs, config.num_workers, model.device)) as envs,
        training.saving(run, model, trainer) as save,
        progress("distillation", config.iterations, trainer.step // config.updates) as advance,
    ):
        probe = training.open_probe(config, base, envs)
        while not trainer.done:
            iteration = trainer.step // config.updates
            corrected = Corrected(policy, expert, guidance_at(config, iteration))
            episodes, timing = rl.gather(envs, corrected, config, iteration)
            visited = states_of(episodes)
            tokens = policy.tokenize(visited.actions, visited.episode)
            scalars: dict[str, float] = {}
            with uninterrupted():  # a run is saved between iterations
                for rows in batches(config, iteration, len(tokens)):
                    if scalars:
                        run.log(trainer.step, **scalars)
                    scalars = sft.learn(policy, trainer, config, visited, tokens, rows, base)
                scalars |= rl.played(episodes, timing) | {"guidance": corrected.guidance}
                if probe and training.is_due(iteration + 1, config.probe_every, config.iterations):
                    scalars |= training.measure(model, probe, trainer, guard)
                run.log(trainer.step, **scalars)
                if trainer.spent or training.is_due(iteration + 1, config.save_every, config.iterations):
                    save()
            advance(success=scalars["success"], loss=scalars["loss"], **(guard.shown if guard else {}))
    training.finish(config, run, model, base, probe, guard)


def guidance_at(config: DictConfig, iteration: int) -> float:
    """The share of an iteration's steps (from 0) that are the expert's; the last one's are all the policy's."""
    return config.guidance * (1 - iteration / (config.iterations - 1)) if config.iterations > 1 else 0.0


def states_of(episodes: Sequence[Episode]) -> Demonstrations:
    """Every state that was visited in episodes which were not lost, with the expert's action there."""
    kept = [episode for episode in episodes if not episode.lost]
    return Demonstrations(
        images=np.concatenate([episode.images for episode in kept]),
        proprioception=np.concatenate([episode.proprioception for episode in kept]),
        actions=np.concatenate([rl.sampled(episode.labels) for episode in kept]),
        instructions=[episode.instruction for episode in kept for _ in episode.success],
        episode=np.repeat(np.arange(len(kept)), [episode.length for episode in kept]),
    )


def batches(config: DictConfig, iteration: int, count: int) -> Iterator[Int[Tensor, " B"]]:
    """`config.updates` batches of `count` states, each state once before any comes again."""
    draws = training.generator(config.seed, "visited states", iteration)
    passes = -(-config.updates * config.batch_size // count)
    order = torch.cat([torch.randperm(count, generator=draws) for _ in range(passes)])
    yield from order[: config.updates * config.batch_size].split(config.batch_size)
