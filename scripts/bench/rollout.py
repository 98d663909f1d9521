"""How fast the batched loop of policy and environments runs, and where the time of an RL iteration goes.

In one run: the embedded policy in a loop over one environment and in the batched loop (environment steps a second, and
their ratio), whole iterations of `vla-razor rl`, and where the policy should run: in the main process with all threads,
or as a copy in each worker with one. An iteration's time is what the workers spend in physics and rendering (the busier
worker counts), the policy, the gradient step, and the rest: messages, waiting for the slower worker, bookkeeping.

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
from vla_razor.policies import load
from vla_razor.policies.openvla.policy import OpenVLAPolicy
from vla_razor.recipes import rl, training
from vla_razor.rollouts.rollout import Timing, make_vector_env, rollout
from vla_razor.rollouts.starts import random_starts

TARGET_STEPS_PER_SECOND = 200
TARGET_REST = 0.2
ROUNDS = 20


def measure_loop(config: DictConfig, policy: OpenVLAPolicy, num_envs: int, episodes: int) -> tuple[Timing, float]:
    """The timing of `episodes` episodes after a warm-up, and the seconds the busier worker spent on them."""
    with closing(make_vector_env(config.env, num_envs, config.num_workers, "cpu")) as envs:
        starts = random_starts(config.env.tasks, episodes, config.seed)
        settings: dict[str, Any] = {"stop_at_success": False, "generator": torch.Generator().manual_seed(0)}
        rollout(envs, policy, starts[:num_envs], **settings)
        before = busy_seconds(envs)
        _, timing = rollout(envs, policy, starts, **settings)
        return timing, longest(before, busy_seconds(envs))


def busy_seconds(envs: Any) -> list[float]:
    """The seconds that each worker of a pool has spent in its environments."""
    return envs.busy_seconds


def longest(before: list[float], after: list[float]) -> float:
    """What passed between two readings for the busiest worker."""
    return max(late - early for late, early in zip(after, before, strict=True))


def measure_iterations(config: DictConfig, policy: OpenVLAPolicy, count: int) -> dict[str, float]:
    """Seconds an iteration of REINFORCE by phase, averaged over `count` after one to warm up."""
    trainer = training.Trainer(policy.model, config, count + 1)
    timing, update = Timing(), 0.0
    with closing(make_vector_env(config.env, config.num_envs, config.num_workers, "cpu")) as envs:
        rl.learn(policy, trainer, config, *rl.gather(envs, policy, config, trainer.step))
        begin, before = time.perf_counter(), busy_seconds(envs)
        for _ in range(count):
            episodes, spent = rl.gather(envs, policy, config, trainer.step)
            timing, update = (
                timing + spent,
                update + rl.learn(policy, trainer, config, episodes, spent)["seconds_update"],
            )
        seconds = time.perf_counter() - begin
        busy = longest(before, busy_seconds(envs))
    phases = {"physics and rendering": busy, "policy": timing.policy, "gradient": update}
    phases["rest"] = seconds - sum(phases.values())
    return {name: value / count for name, value in phases.items()} | {"steps_per_second": timing.steps_per_second}


def measure_placement(config: DictConfig, policy: OpenVLAPolicy) -> dict[str, float]:
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
    _copy = OpenVLAPolicy(load.load_model(name)), side


def _act_in_copy(count: int) -> None:
    _act(*_copy, count)


def _act(policy: OpenVLAPolicy, side: int, count: int) -> None:
    images = np.full((count, side, side, 3), 127, np.uint8)
    policy.act(images, ["pick coke can"] * count, [{}] * count, torch.Generator().manual_seed(0))


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
    policy = OpenVLAPolicy(training.open_model(config.policy, config), config.unnorm_key)
    single, _ = measure_loop(config, policy, 1, 4)
    batched, busy = measure_loop(config, policy, config.num_envs, 4 * config.num_envs)
    phases = measure_iterations(config, policy, arguments.iterations)
    report(arguments, single, batched, busy, phases, measure_placement(config, policy))


def report(
    arguments: argparse.Namespace,
    single: Timing,
    batched: Timing,
    busy: float,
    phases: dict[str, float],
    placement: dict[str, float],
) -> None:
    speed = phases.pop("steps_per_second")
    total = sum(phases.values())
    result = {
        "env": arguments.env,
        "num_envs": arguments.num_envs,
        "num_workers": arguments.workers,
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "single_steps_per_second": single.steps_per_second,
        "batched_steps_per_second": batched.steps_per_second,
        "ratio": batched.steps_per_second / single.steps_per_second,
        "batched_shares": {
            "physics and rendering": busy / batched.seconds,
            "policy": batched.policy / batched.seconds,
            "rest": (batched.seconds - busy - batched.policy) / batched.seconds,
        },
        "iteration_steps_per_second": speed,
        "iteration_seconds": phases,
        "iteration_rest_share": phases["rest"] / total,
        "policy_milliseconds": placement,
        "targets_met": {
            "steps_per_second": batched.steps_per_second >= TARGET_STEPS_PER_SECOND,
            "iteration_rest_share": phases["rest"] / total <= TARGET_REST,
        },
    }
    table = Table("", "", title=f"Rollouts of {arguments.env}, {arguments.num_envs} environments")
    table.add_row("one environment", f"{single.steps_per_second:.0f} steps/s")
    table.add_row(f"batched (target {TARGET_STEPS_PER_SECOND})", f"{batched.steps_per_second:.0f} steps/s")
    table.add_row("ratio", f"{result['ratio']:.1f}")
    for name, share in result["batched_shares"].items():
        table.add_row(f"  {name}", f"{share:.0%}")
    table.add_row("an RL iteration", f"{total:.2f} s, {speed:.0f} steps/s while rolling out")
    for name, seconds in phases.items():
        table.add_row(f"  {name}", f"{seconds:.2f} s, {seconds / total:.0%}")
    table.add_row("rest, target", f"at most {TARGET_REST:.0%}")
    for name, milliseconds in placement.items():
        table.add_row(f"policy in the {name}", f"{milliseconds:.2f} ms an action")
    Console().print(table)
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
