"""How fast the batched loop of policy and environments runs, and where the time of an RL iteration goes.

In one run: the embedded policy in a loop over one environment and in the batched loop (environment steps a second,
best and median of several rounds, and the ratio of the best), whole iterations of `vla-razor rl`, and where the policy
should run: in the main process with all threads, or as a copy in each worker with one. While the policy decides about
one half of the slots the workers simulate the other, so time is counted in CPU seconds: physics and rendering (the
workers'), the policy, the gradient step, and the rest of what the cores could have done: messages, bookkeeping, idling.

    python scripts/bench/rollout.py [--env pick_can] [--policy tiny] [--num-envs 48] [--workers 2] [--json]
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: its idle threads must not take the workers' cores

import argparse
import json
import platform
import time
from contextlib import closing
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from vla_razor.config import compose
from vla_razor.policies import Observations, load
from vla_razor.policies.opening import open_model
from vla_razor.policies.openvla.policy import PrismaticPolicy
from vla_razor.rollouts.environments import make_vector_env
from vla_razor.rollouts.rollout import Timing, rollout
from vla_razor.rollouts.starts import random_starts
from vla_razor.training.algorithms import reinforce
from vla_razor.training.penalties import Penalties
from vla_razor.training.trainer import Trainer

TARGET_STEPS_PER_SECOND = 200
TARGET_REST = 0.2
ROUNDS = 20
ROUNDS_OF_EPISODES = 7


class Metered:
    """A policy that counts its CPU seconds."""

    def __init__(self, policy: PrismaticPolicy) -> None:
        self.policy, self.name, self.seconds = policy, policy.name, 0.0

    def act(self, *arguments: Any) -> Any:
        begin = time.process_time()
        decisions = self.policy.act(*arguments)
        self.seconds += time.process_time() - begin
        return decisions


def measure_loop(
    config: DictConfig, policy: PrismaticPolicy, num_envs: int, episodes: int, rounds: int
) -> list[Timing]:
    """The timings of `rounds` times `episodes` episodes, after a warm-up."""
    with closing(make_vector_env(config.env, num_envs, config.num_workers, "cpu")) as envs:
        starts = random_starts(config.env.tasks, episodes, config.seed)
        settings: dict[str, Any] = {"hold": None, "seed": 0}
        rollout(envs, policy, starts[:num_envs], **settings)
        return [rollout(envs, policy, starts, **settings)[1] for _ in range(rounds)]


def measure_iterations(config: DictConfig, policy: PrismaticPolicy, count: int) -> dict[str, float]:
    """Seconds an iteration of REINFORCE, CPU seconds by phase, and environment steps a second while rolling out,
    averaged over `count` iterations after one to warm up.
    """
    trainer, penalties = Trainer(policy, config, count + 1), Penalties([])
    metered: Any = Metered(policy)
    timing, gradient = Timing(), 0.0
    with closing(make_vector_env(config.env, config.num_envs, config.num_workers, "cpu")) as envs:
        workers: Any = envs
        reinforce.learn(policy, trainer, config, *reinforce.gather(envs, policy, config, trainer.step), penalties)
        begin, before = time.perf_counter(), sum(workers.busy_seconds)
        for _ in range(count):
            episodes, spent = reinforce.gather(envs, metered, config, trainer.step)
            timing, cpu = timing + spent, time.process_time()
            reinforce.learn(policy, trainer, config, episodes, spent, penalties)
            gradient += time.process_time() - cpu
        seconds = time.perf_counter() - begin
        simulation = sum(workers.busy_seconds) - before
    phases = {"physics and rendering": simulation, "policy": metered.seconds, "gradient": gradient}
    phases["rest"] = torch.get_num_threads() * seconds - sum(phases.values())
    return {name: value / count for name, value in phases.items()} | {
        "seconds": seconds / count,
        "steps_per_second": timing.steps_per_second,
    }


def measure_placement(config: DictConfig, policy: PrismaticPolicy) -> dict[str, float]:
    """Milliseconds an action for `num_envs` observations, at best: decided in this process, and by a one-thread copy of
    the policy in each of `num_workers` processes, side by side.
    """
    count, workers = config.num_envs, config.num_workers
    side = policy.model.config.image_sizes[0]
    shares = [len(share) for share in np.array_split(np.arange(count), workers)]
    with get_context("spawn").Pool(workers, _open_copy, (config.policy, side)) as pool:
        ways = {
            "main process": lambda: _act(policy, side, count),
            "workers, a copy each": lambda: pool.map(_act_in_copy, shares, chunksize=1),
        }
        best = dict.fromkeys(ways, float("inf"))
        for _ in range(ROUNDS):  # in turns, so that a busy spell of the machine hits both
            for name, act in ways.items():
                begin = time.perf_counter()
                act()
                best[name] = min(best[name], (time.perf_counter() - begin) / count * 1e3)
    return best


def _open_copy(name: str, side: int) -> None:
    global _copy
    torch.set_num_threads(1)
    _copy = PrismaticPolicy(load.load_model(name)), side


def _act_in_copy(count: int) -> None:
    _act(*_copy, count)


def _act(policy: PrismaticPolicy, side: int, count: int) -> None:
    images = np.full((count, side, side, 3), 127, np.uint8)
    policy.act(Observations({"camera": images}, ["pick coke can"] * count), [np.random.default_rng(0)] * count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="pick_can")
    parser.add_argument("--policy", default="tiny")
    parser.add_argument("--num-envs", type=int, default=48)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    config = compose(
        "rl",
        [
            f"env={arguments.env}",
            f"policy={arguments.policy}",
            f"num_envs={arguments.num_envs}",
            f"num_workers={arguments.workers}",
        ],
    )
    policy = PrismaticPolicy(open_model(config.policy, config), config.unnorm_key, robot=config.robot)
    single = measure_loop(config, policy, 1, 4, ROUNDS_OF_EPISODES)
    batched = measure_loop(config, policy, config.num_envs, 2 * config.num_envs, ROUNDS_OF_EPISODES)
    iteration = measure_iterations(config, policy, arguments.iterations)
    report(arguments, single, batched, iteration, measure_placement(config, policy))


def report(
    arguments: argparse.Namespace,
    single: list[Timing],
    batched: list[Timing],
    iteration: dict[str, float],
    placement: dict[str, float],
) -> None:
    rates = sorted(timing.steps_per_second for timing in batched)
    alone = max(timing.steps_per_second for timing in single)
    phases = {name: iteration[name] for name in ("physics and rendering", "policy", "gradient", "rest")}
    shares = {name: value / sum(phases.values()) for name, value in phases.items()}
    result = {
        "env": arguments.env,
        "num_envs": arguments.num_envs,
        "num_workers": arguments.workers,
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "single_steps_per_second": alone,
        "batched_steps_per_second": rates,
        "ratio": rates[-1] / alone,
        "iteration": iteration,
        "iteration_shares": shares,
        "policy_milliseconds": placement,
        "targets_met": {
            "steps_per_second": rates[-1] >= TARGET_STEPS_PER_SECOND,
            "iteration_rest_share": shares["rest"] <= TARGET_REST,
        },
    }
    table = Table("", "", title=f"Rollouts of {arguments.env}, {arguments.num_envs} environments")
    table.add_row("one environment", f"{alone:.0f} steps/s")
    table.add_row(
        f"batched (target {TARGET_STEPS_PER_SECOND})",
        f"{rates[-1]:.0f} steps/s, median {rates[len(rates) // 2]:.0f} of {len(rates)} rounds",
    )
    table.add_row("ratio", f"{result['ratio']:.1f}")
    table.add_row(
        "an RL iteration",
        f"{iteration['seconds']:.2f} s, {iteration['steps_per_second']:.0f} steps/s while rolling out",
    )
    for name, value in phases.items():
        table.add_row(f"  {name}", f"{value:.2f} CPU s, {shares[name]:.0%}")
    table.add_row("rest, target", f"at most {TARGET_REST:.0%}")
    for name, value in placement.items():
        table.add_row(f"policy in the {name}", f"{value:.2f} ms an action")
    Console().print(table)
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
