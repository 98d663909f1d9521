"""What SFT and REINFORCE share: which parameters learn and how fast, one guarded update, progress, and interruption.

Everything random is seeded by the run's seed and the step, so that a trainer's state is its weights, its optimizer and
its counters, and a run that was killed and resumed ends as one that was not.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from omegaconf import DictConfig
from rich import get_console
from rich.console import Console
from torch import Tensor, nn

from vla_razor.config import robot_of, scenes
from vla_razor.core import schedule
from vla_razor.errors import RunFailed, UserError
from vla_razor.interruption import uninterrupted
from vla_razor.policies import Decisions, Policy
from vla_razor.policies.openvla.policy import OpenVLAPolicy
from vla_razor.policies.openvla.prismatic import PrismaticVLA
from vla_razor.progress import progress
from vla_razor.recipes.evaluate import open_model, report
from vla_razor.rollouts import probe_set
from vla_razor.rollouts.evaluation import Results, compared, evaluate, summarized
from vla_razor.rollouts.probe_set import ProbeSet
from vla_razor.rollouts.rollout import VectorEnv
from vla_razor.rollouts.starts import episode_seed
from vla_razor.runs import Run
from vla_razor.study import measures
from vla_razor.study.forecast import Guard


class NotFinite(RunFailed):
    """A loss or gradient that is NaN or infinite."""


class Update(NamedTuple):
    """What one optimizer step did; `grad_norm` is taken before clipping."""

    loss: float
    grad_norm: float
    learning_rate: float
    clipped_fraction: float


class Trainer:
    """A model's optimizer and schedule, `total_steps` long; with `state`, taken up where `state_dict` was called.

    `skipped` counts the steps in which nothing was moved. `spent` says that the training has ended early, because its
    forgetting budget is. With `config.staleness` K, `past` holds what learns as it was each of the last K times that it
    was remembered, the oldest first.
    """

    def __init__(
        self, model: nn.Module, config: DictConfig, total_steps: int, state: Mapping[str, Any] | None = None
    ) -> None:
        self.config, self.total_steps = config, total_steps
        self.step = self.clipped = self.skipped = 0
        self.spent = False
        self.optimizer = torch.optim.AdamW(
            parameter_groups(model, config), betas=tuple(config.betas), eps=config.eps, weight_decay=config.weight_decay
        )
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.past: deque[list[Tensor]] = deque(maxlen=config.get("staleness", 0))
        if state:
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.clipped, self.skipped = state["step"], state["clipped"], state.get("skipped", 0)
            self.peaks, self.spent = state.get("peaks", self.peaks), state.get("spent", False)
            self.past.extend(state.get("past", []))

    def update(self, shares: Iterable[Tensor]) -> Update:
        """One step along the gradient of the sum of `shares`, one micro-batch's part of the loss each.

        Raises `NotFinite`, before any weight has changed, where the loss or its gradient is not finite.
        """
        parameters = self.parameters
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        loss = 0.0
        for share in shares:
            share.backward()
            loss += float(share.detach())
        grad_norm = float(nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm))
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise NotFinite(
                f"Step {self.step + 1}: the loss is {loss}, its gradient's norm {grad_norm}. Nothing was updated."
            )
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * self._factor
        self.optimizer.step()
        self.clipped += grad_norm > self.config.max_grad_norm
        return self._taken(loss, grad_norm)

    def skip(self) -> Update:
        """A step for which there is nothing to learn from. Nothing moves: AdamW's momentum would, with no gradient."""
        self.skipped += 1
        return self._taken(0.0, 0.0)

    def remember(self) -> None:
        """Keeps what learns as it is now, where the policy that plays is to be stale."""
        if self.past.maxlen:
            self.past.append([parameter.detach().clone() for parameter in self.parameters])

    @property
    def _factor(self) -> float:
        return schedule.factor(self.step, self.total_steps, self.config.warmup_steps, self.config.schedule)

    def _taken(self, loss: float, grad_norm: float) -> Update:
        rate = self.peaks[0] * self._factor
        self.step += 1
        return Update(loss, grad_norm, rate, self.clipped / max(1, self.step - self.skipped))

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What learns."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @contextmanager
    def stale(self) -> Iterator[None]:
        """Inside, the model is as the oldest that is remembered, if any."""
        if not self.past:
            yield
            return
        now = [parameter.detach().clone() for parameter in self.parameters]
        try:
            assign(self.parameters, self.past[0])
            yield
        finally:
            assign(self.parameters, now)

    @property
    def done(self) -> bool:
        """Whether all steps have been taken, or the forgetting budget was spent before."""
        return self.spent or self.step >= self.total_steps

    def state_dict(self) -> dict[str, Any]:
        """What, beside the weights, the next steps depend on."""
        counters = {name: getattr(self, name) for name in ("step", "clipped", "skipped", "peaks", "spent")}
        past = {"past": list(self.past)} if self.past.maxlen else {}
        return {"optimizer": self.optimizer.state_dict(), **counters, **past}


@torch.no_grad()
def assign(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    """Copies values into parameters, in place, to wherever these are."""
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def parameter_groups(model: nn.Module, config: DictConfig) -> list[dict[str, Any]]:
    """The parameters that learn: weights, and the language model's normalisation gains at their own learning rate.

    The vision stacks are frozen unless `config.train_vision`. Weight decay spares the gains. A parameter that already
    asks for no gradient (below a LoRA adapter) stays as it is.
    """
    gains, weights = [], []
    for name, parameter in model.named_parameters():
        if "vision_backbone." in name and not config.train_vision:
            parameter.requires_grad_(False)
        if parameter.requires_grad:
            (gains if _is_gain(name) else weights).append(parameter)
    gain_rate = config.learning_rate if config.gain_learning_rate is None else config.gain_learning_rate
    groups = [
        {"params": weights, "lr": config.learning_rate},
        {"params": gains, "lr": gain_rate, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class Base:
    """The policy before fine-tuning: the tuned model below its adapter if it has one, else a copy made on demand."""

    def __init__(self, tuned: PrismaticVLA, config: DictConfig) -> None:
        self.tuned, self.config = tuned, config

    @contextmanager
    def model(self) -> Iterator[PrismaticVLA]:
        """The base as a model, for as long as the block lasts."""
        if self.config.lora_rank:
            with self.tuned.adapter_disabled():
                yield self.tuned
        else:
            yield self._copy

    @cached_property
    def _copy(self) -> PrismaticVLA:
        return opened(str(self.config.policy), self.config, learns=False).requires_grad_(False)


class BasePolicy:
    """The base as it acts, also where it is the tuned model below its adapter."""

    name = "base"

    def __init__(self, base: Base, unnorm_key: str | None, robot: str = "panda") -> None:
        self.base = base
        with base.model() as model:
            self.policy = OpenVLAPolicy(model, unnorm_key, robot=robot)

    def act(self, *observations: Any) -> Decisions:
        """As `OpenVLAPolicy.act`."""
        with self.base.model():
            return self.policy.act(*observations)


def open_models(config: DictConfig, run: Run) -> tuple[PrismaticVLA, Base]:
    """The model to train, from the run's newest checkpoint if there is one, and the base it started from."""
    if len(scenes(config.env)) != 1:
        raise UserError(
            f"env={config.env.name}: {run.config.verb} takes one scene, such as env=pick_can or env=drawer."
        )
    checkpoint = run.newest_checkpoint()
    model = opened(str(checkpoint or config.policy), config, learns=not config.lora_rank)
    if checkpoint is None and model.has_adapter:
        if config.lora_rank:
            raise UserError(f"policy={config.policy} is an adapter already; train it whole with lora_rank=0.")
        model.merge_lora()
    if checkpoint is None and config.lora_rank:
        model.add_lora(config.lora_rank, config.lora_alpha, generator=generator(config.seed, "lora"))
    return model, Base(model, config)


def opened(spec: str, config: DictConfig, *, learns: bool) -> PrismaticVLA:
    """A model whose products are in `config.dtype`. What learns is float32, adapters too: in bfloat16 no step below
    1/256 of a weight changes it, and AdamW's moments do not decay. A base's matrices may be stored as products read
    them.
    """
    products = products_of(config)
    model = open_model(spec, config, dtype=torch.float32, matrices=None if learns else products)
    model.products = products
    return model


def products_of(config: DictConfig) -> torch.dtype | None:
    """What a training computes products in: None for float32, in which all else is."""
    return torch.bfloat16 if config.dtype == "bfloat16" else None


def open_probe(config: DictConfig, base: Base, envs: VectorEnv | None = None) -> ProbeSet | None:
    """The base's probe set on the new task, made in `envs` where it is not in the cache; None for `probe_every=0`.

    Its seed is 0 for runs of any seed, which are measured at the same states.
    """
    if not config.probe_every:
        return None
    settings = {key: config[key] for key in ("unnorm_key", "other_instructions", "num_envs", "num_workers")}
    with base.model() as model:
        return probe_set.obtain(model, config.env, states=config.probe_states, envs=envs, **settings)


def finish(
    config: DictConfig,
    run: Run,
    model: PrismaticVLA,
    base: Base,
    probe: ProbeSet | None,
    guard: Guard | None,
    nothing_learned: str | None = None,
) -> None:
    """Writes and prints the entries `base` and `tuned` of summary.json, and why nothing was learned, if so.

    Success is measured from the same starts in every run, `config.eval_episodes` of each task, new and prior (0: not at
    all); forward KL on the probe set.
    """
    speaks = {"unnorm_key": config.unnorm_key, "robot": robot_of(config.env)}
    policies = {"base": BasePolicy(base, **speaks), "tuned": OpenVLAPolicy(model, **speaks)}
    results = _evaluated(config, policies) if config.eval_episodes else {name: {} for name in policies}
    divergences = dict.fromkeys(policies)
    if probe:
        with base.model() as before:
            divergences["base"] = probe_set.measure(before, probe)
        divergences["tuned"] = probe_set.measure(model, probe)
    entries = {name: summarized(results[name], divergences[name], new_tasks=config.env.tasks) for name in policies}
    comparison = compared(results["tuned"], results["base"], config.env.tasks) if config.eval_episodes else None
    forecast = guard.forecast(measures.logged(entries["tuned"]["forward_kl"])) if guard else None
    run.finish(
        {"policies": entries}
        | ({"comparison": comparison} if comparison else {})
        | ({"forecast": forecast._asdict()} if forecast else {})
        | ({"nothing_learned": nothing_learned} if nothing_learned else {})
    )
    console = Console()
    if config.eval_episodes:
        report(console, run.path, entries, comparison)
    if nothing_learned:
        console.print(nothing_learned, highlight=False)
    elif probe:
        drift = entries["tuned"]["forward_kl"]
        parts = f"sharpening {drift['sharpening']:.3g}, displacement {drift['displacement']:.3g}"
        console.print(f"forward KL {drift['per_action']:.3g} nats an action ({parts})", highlight=False)
    if forecast:
        console.print(f"forecast: {forecast}", highlight=False)


def _evaluated(config: DictConfig, policies: dict[str, Policy]) -> dict[str, Results]:
    places = [scene for env in (config.env, config.prior) if env for scene in scenes(env)]
    settings = {key: config[key] for key in ("num_envs", "num_workers", "device")}
    total = len(policies) * config.eval_episodes * sum(len(place.tasks) for place in places)
    with progress("evaluation", total) as advance:
        return evaluate(policies, places, episodes=config.eval_episodes, **settings, progress=lambda _: advance())


def log_distribution(
    model: PrismaticVLA, pixels: Float[Tensor, "B C H W"], prompts: Sequence[Sequence[int]], tokens: Int[Tensor, "B A"]
) -> Float[Tensor, "B A 256"]:
    """Log-probabilities over the action ids, in id order, teacher-forced on `tokens`, at the model's temperature."""
    return torch.log_softmax(model.action_logits(pixels, prompts, tokens) / model.config.temperature, -1)


def measure(model: PrismaticVLA, probe: ProbeSet, trainer: Trainer, guard: Guard | None) -> dict[str, float]:
    """What a measured step logs: how far the model has moved and, with a guard, what it has probably forgotten. At the
    budget the training ends, or goes on at half its rates.

    Raises `NotFinite` where the policy's distributions are not finite.
    """
    scalars = measures.logged(probe_set.measure(model, probe))
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
        get_console().print(said, highlight=False)  # the console of the progress bar
    return scalars | guard.scalars(scalars)


def is_due(step: int, every: int, last: int) -> bool:
    """Whether what is done every so many steps (0: never), and at the last one, is done after `step`."""
    return every > 0 and (step % every == 0 or step == last)


def generator(seed: int, purpose: str, *keys: int) -> torch.Generator:
    """A CPU generator of its own for every (seed, purpose, keys)."""
    return torch.Generator().manual_seed(episode_seed(purpose, seed, *keys))


@contextmanager
def saving(run: Run, model: PrismaticVLA, trainer: Trainer) -> Iterator[Callable[[], None]]:
    """Gives a callable that saves the run as it stands; an interruption is saved too, at the last whole update.

    A failed update is reported with the last good checkpoint.
    """
    saved = run.step

    def save() -> None:
        nonlocal saved
        if trainer.step > saved:
            run.save(trainer.step, model.save_pretrained, trainer.state_dict())
            saved = trainer.step

    try:
        yield save
    except KeyboardInterrupt:
        with uninterrupted():
            save()
        raise
    except NotFinite as failure:
        kept = run.newest_checkpoint()
        where = f"The last good checkpoint is {kept}." if kept else "No checkpoint had been saved yet."
        raise NotFinite(f"{failure} {where} A lower learning_rate may help.") from None


def _is_gain(name: str) -> bool:
    return "language_model." in name and "norm" in name.rsplit(".", 2)[-2]
