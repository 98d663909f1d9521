"""`vla-razor kl`: how far a policy has moved from its base on the new task (RL's Razor, Section 4: what predicts
forgetting).

Forward KL, KL(base || policy), is summed exactly over the action ids at the states the base visits on the task's grid
and along the base's own tokens (`rollouts/probe_set.py`); it is split into sharpening (what a change of the base's
temperature alone accounts for) and displacement (the rest). Beside it stand the alternatives of the paper's Section 6
and a cross-check by sampling. The probe set is made once for a base and kept in the cache, so that measuring another
policy takes one forward pass and no simulator.

`seed` decides which states these are. A training measures itself at those of seed 0, whatever its own seed is, and so
does `kl` unless it is given another, which shows how much the states matter. `dtype=bfloat16` is the policy that is
deployed, all of its weights rounded; a training with `dtype=bfloat16` rounds no more than its products, and has a probe
set of its own.
"""

from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from vla_razor.config import scenes
from vla_razor.errors import UserError
from vla_razor.policies.opening import open_trainable
from vla_razor.policies.trainable import Trainable
from vla_razor.progress import progress
from vla_razor.rollouts import probe_set
from vla_razor.rollouts.probe_set import ProbeSet
from vla_razor.runs import Run, origin_of
from vla_razor.statistics import policy_summary
from vla_razor.study import measures

TOKENS = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")


def run(config: DictConfig, run: Run) -> None:
    """Measure `config.policy` against `config.base` on the probe set of `config.env`."""
    if len(scenes(config.env)) != 1:
        raise UserError(f"env={config.env.name}: kl takes one scene, such as env=pick_can or env=drawer.")
    run.restore()
    policy = open_trainable(config.policy, config)
    probe = _probe(config, policy)
    measured = probe_set.measure(policy, probe)
    run.log(0, **{name: n for name, n in measures.renamed(measured).items() if isinstance(n, int | float)})
    entry = policy_summary({}, {}, measured)
    run.finish({"policies": {str(config.policy): entry}, "probe_set": {"key": probe.origin.key, **vars(probe.origin)}})
    report(Console(), config, measured)


def report(console: Console, config: DictConfig, measured: dict[str, Any]) -> None:
    """The total and its parts, the alternatives, and where in the action and in the episode the divergence lies."""
    title = f"{config.policy} against its base on {config.env.name}, {measured['states']} states, in nats"
    table = Table("", "an action", "a token", title=title)
    length = len(measured["by_position"])
    parts = {"forward KL": "per_action", "  sharpening": "sharpening", "  displacement": "displacement"}
    for name, value in parts.items():
        table.add_row(name, f"{measured[value]:.4g}", f"{measured[value] / length:.4g}")
    table.add_row("reverse KL", f"{measured['reverse_kl'] * length:.4g}", f"{measured['reverse_kl']:.4g}")
    for name in ("k1", "k3"):
        estimate = measured[name]
        table.add_row(
            f"forward KL sampled, {name}", f"{estimate['per_action']:.4g} ± {estimate['standard_error']:.2g}", ""
        )
    table.add_row("total variation", "", f"{measured['total_variation']:.4g}")
    table.add_row("L2 distance", "", f"{measured['l2_distance']:.4g}")
    console.print(table)
    names = TOKENS if length == len(TOKENS) else tuple(map(str, range(length)))
    by_token = zip(names, measured["by_position"], strict=True)
    by_step = ((str(row["time"]), row["per_token"]) for row in measured["by_time"])
    for heading, values in (("by token", by_token), ("by control step", by_step)):
        text = "  ".join(f"{name} {value:.3g}" for name, value in values)
        console.print(f"{heading}: {text}", highlight=False)
    if "spillover" in measured:
        value = f"{measured['spillover']:+.3g} nats a token (reverse KL there minus here)"
        console.print(f"spillover to other tasks' instructions: {value}", highlight=False)
    console.print(f"closest tempered base: t = {measured['temperature']:.3f} (below 1 is sharper)", highlight=False)


def _probe(config: DictConfig, policy: Trainable) -> ProbeSet:
    """From the cache, or collected now. The base of an adapter is the same policy with the adapter disabled."""
    settings = {key: config[key] for key in ("seed", "other_instructions", "num_envs", "num_workers")}
    settings |= {"states": config.probe_states, "progress": progress}
    if config.base is None and policy.has_adapter:
        with policy.adapter_disabled():
            return probe_set.obtain(policy, config.env, **settings)
    base = open_trainable(config.base or origin_of(config.policy, "policy"), config)
    return probe_set.obtain(base, config.env, **settings)
