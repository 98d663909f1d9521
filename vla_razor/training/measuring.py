"""How a training is measured: on the probe set while it learns, and in its tasks at the end."""

import math

from omegaconf import DictConfig
from rich import get_console
from rich.console import Console

from vla_razor import ranks, recordings
from vla_razor.config import scenes
from vla_razor.policies import Policy
from vla_razor.policies.trainable import Trainable
from vla_razor.progress import progress
from vla_razor.rollouts import probe_set, recorded
from vla_razor.rollouts.environments import VectorEnv
from vla_razor.rollouts.evaluation import Results, compared, evaluate, summarized
from vla_razor.rollouts.probe_set import ProbeSet
from vla_razor.runs import Run
from vla_razor.study import measures
from vla_razor.study.forecast import Guard
from vla_razor.tables import report
from vla_razor.training.base import Base
from vla_razor.training.held_out import recorded_ends, show_ends
from vla_razor.training.trainer import NotFinite, Trainer


def open_probe(config: DictConfig, base: Base, envs: VectorEnv | None = None) -> ProbeSet | None:
    """The base's probe set on the new task, made in `envs` where the cache has none; None for `probe_every=0`.

    Its seed is always 0, so that runs of any seed are measured at the same states.
    """
    if not config.probe_every:
        return None
    settings = {key: config[key] for key in ("other_instructions", "num_envs", "num_workers")}
    with base.policy() as policy:
        if recordings.is_recorded(config.env):
            states = recorded.held_out(config, policy)
            return recorded.probe_of(policy, states, config.env.name, config.other_instructions)
        return probe_set.obtain(policy, config.env, states=config.probe_states, envs=envs, **settings)


def measure(policy: Trainable, probe: ProbeSet, trainer: Trainer, guard: Guard | None) -> dict[str, float]:
    """The scalars of a measured step: how far the policy has moved and, with a guard, the forecast of what it has
    forgotten. At the budget the training ends, or goes on with its learning rates halved.

    Raises `NotFinite` where the policy's distributions are not finite.
    """
    scalars = measures.logged(probe_set.measure(policy, probe))
    if not math.isfinite(scalars[measures.FORWARD_KL]):
        raise NotFinite(f"Step {trainer.step}: forward KL is {scalars[measures.FORWARD_KL]}, the policy has diverged.")
    if guard is None:
        return scalars
    if guard.is_spent(scalars):
        if trainer.config.on_budget == "stop":
            trainer.spent, done = True, "the training ends"
        else:
            trainer.peaks, done = [peak / 2 for peak in trainer.peaks], "its learning rates are halved"
        said = f"step {trainer.step}: {guard.forecast(scalars)}, of a budget of {guard.budget:.1%}: {done}"
        get_console().print(said, highlight=False)  # on the console of the progress bar
    return scalars | guard.scalars(scalars)


def finish(
    config: DictConfig,
    run: Run,
    policy: Trainable,
    base: Base,
    probe: ProbeSet | None,
    guard: Guard | None,
    nothing_learned: str | None = None,
) -> None:
    """Write and print the entries `base` and `tuned` of summary.json, and why nothing was learned, if so.

    Success is measured from the same starts in every run, in `config.eval_episodes` episodes of each task, new and
    prior (0: not at all); forward KL is measured on the probe set. In a recorded suite nobody can act: there likelihood
    and action error are measured.
    """
    policies: dict[str, Policy] = {"base": base, "tuned": policy}
    places = _places(config)
    results = _evaluated(config, policies, places) if places else {name: {} for name in policies}
    divergences = dict.fromkeys(policies)
    if probe:
        with base.policy() as before:
            divergences["base"] = probe_set.measure(before, probe)
        divergences["tuned"] = probe_set.measure(policy, probe)
    entries = {name: summarized(results[name], divergences[name], new_tasks=config.env.tasks) for name in policies}
    comparison = compared(results["tuned"], results["base"], config.env.tasks) if places else None
    held_out = recorded_ends(config, policy, base) if recordings.is_recorded(config.env) else None
    forecast = guard.forecast(measures.logged(entries["tuned"]["forward_kl"])) if guard else None
    run.finish(
        {"policies": entries}
        | ({"comparison": comparison} if comparison else {})
        | ({"held_out": held_out} if held_out else {})
        | ({"forecast": forecast._asdict()} if forecast else {})
        | ({"nothing_learned": nothing_learned} if nothing_learned else {})
    )
    console = Console()
    if held_out:
        show_ends(console, held_out)
    if places:
        report(console, run.path, entries, comparison)
    if nothing_learned:
        console.print(nothing_learned, highlight=False)
    elif probe:
        drift = entries["tuned"]["forward_kl"]
        parts = f"sharpening {drift['sharpening']:.3g}, displacement {drift['displacement']:.3g}"
        console.print(f"forward KL {drift['per_action']:.3g} nats an action ({parts})", highlight=False)
    if forecast:
        console.print(f"forecast: {forecast}", highlight=False)


def _places(config: DictConfig) -> list[DictConfig]:
    """The scenes in which policies are evaluated."""
    found = [scene for env in (config.env, config.prior) if env for scene in scenes(env)]
    return [scene for scene in found if config.eval_episodes and not recordings.is_recorded(scene)]


def _evaluated(config: DictConfig, policies: dict[str, Policy], places: list[DictConfig]) -> dict[str, Results]:
    settings = {key: config[key] for key in ("num_envs", "num_workers", "device")}
    total = len(policies) * config.eval_episodes * sum(len(place.tasks) for place in places)
    with progress("evaluation", -(-total // ranks.world())) as advance:
        return evaluate(policies, places, episodes=config.eval_episodes, **settings, progress=lambda *_: advance())
