"""`vla-razor kl`: how far a policy has moved from its base on the new task (RL's Razor, Section 4: what predicts
forgetting).

Forward KL, KL(base || policy), is summed exactly over the action ids at the states that the base visits on the task's
grid, along the base's own tokens (`rollouts/probe_set.py`). It is split into sharpening, which a change of the base's
temperature alone explains, and displacement, the rest. The alternatives of the paper's Section 6 and a cross-check by
sampling are reported too. The probe set is made once for a base and kept in the cache: measuring another policy takes
one forward pass and no simulator.

`states=DATASET` measures at recorded states instead, those of demonstrations that `import` or `collect` wrote; no
simulator is needed at all. With `law`, the forgetting that goes with such a divergence is forecast. The law was fitted
at the states that a base visits; recorded states may be others.

`seed` decides which states are drawn. A training always measures itself at those of seed 0. So does `kl` unless it is
given another seed, which shows how much the choice of states matters. `dtype=bfloat16` rounds all of the weights, as a
deployed policy's are; a training with `dtype=bfloat16` rounds no more than its products, and has a probe set of its
own.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from vla_razor import recordings
from vla_razor.config import scenes
from vla_razor.errors import UserError
from vla_razor.policies.opening import open_trainable
from vla_razor.policies.trainable import Trainable, base_of
from vla_razor.progress import progress
from vla_razor.rollouts import probe_set, recorded
from vla_razor.rollouts.probe_set import ProbeSet
from vla_razor.runs import Run, origin_of
from vla_razor.statistics import policy_summary
from vla_razor.study import forecast, measures
from vla_razor.study.forecast import FittedLaw, Forecast

TOKENS = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")


def run(config: DictConfig, run: Run) -> None:
    """Measure `config.policy` against `config.base` on the probe set of `config.env`."""
    if len(scenes(config.env)) != 1:
        raise UserError(f"env={config.env.name}: kl takes one scene, such as env=pick_can or env=drawer.")
    if recordings.is_recorded(config.env) and config.states is None:
        raise UserError(f"env={config.env.name}: nobody can act in it; say at which recorded states: states=DIR.")
    run.restore()
    law = forecast.load(Path(config.law), "robot") if config.law else None
    policy = open_trainable(config.policy, config)
    recorded.check(policy, config)
    probe = _probe(config, policy)
    measured = probe_set.measure(policy, probe)
    run.log(0, **{name: n for name, n in measures.renamed(measured).items() if isinstance(n, int | float)})
    entry = policy_summary({}, {}, measured)
    lost = _forecast(law, measured)
    origin = {"key": probe.origin.key, **vars(probe.origin), **({"states_of": config.states} if config.states else {})}
    forecasts = {"forecast": lost._asdict()} if lost else {}
    run.finish({"policies": {str(config.policy): entry}, "probe_set": origin, **forecasts})
    report(Console(), config, measured)
    if lost:
        Console().print(f"forecast: {lost}", highlight=False)


def report(console: Console, config: DictConfig, measured: dict[str, Any]) -> None:
    """The total and its parts, the alternatives, and the divergence by token of the action and by time."""
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


def _forecast(law: FittedLaw | None, measured: Mapping[str, Any]) -> Forecast | None:
    """What the law forecasts from the measures. Raises UserError where the policy lacks the law's measure."""
    if law is None:
        return None
    known = measures.logged(measured)
    if law.measure not in known:
        raise UserError(f"the law is of {law.measure}, which was not measured here: take another law.")
    return law.forecast(known[law.measure])


def _probe(config: DictConfig, policy: Trainable) -> ProbeSet:
    """The probe set: at recorded states, from the cache, or collected now."""
    named = open_trainable(config.base, config) if config.base else None
    with base_of(policy, named, lambda: open_trainable(origin_of(config.policy, "policy"), config)) as base:
        if config.states is not None:
            states = recorded.drawn(config.states, config.env, base, config.probe_states, config.seed)
            return recorded.probe_of(base, states, config.env.name, config.other_instructions, config.seed)
        settings = {key: config[key] for key in ("seed", "other_instructions", "num_envs", "num_workers")}
        return probe_set.obtain(base, config.env, **settings, states=config.probe_states, progress=progress)
