"""`vla-razor sft`: fine-tune on demonstrations (RL's Razor, Sections 3 and 5.1, Appendix B.2).

Cross-entropy on the seven action tokens over the 256 action ids, under the policy's own temperature, so that SFT,
REINFORCE and KL speak of one distribution. AdamW without weight decay, gradient clipped at 1, constant learning rate
after 10 steps of warm-up, one epoch: the paper's. `loss=openvla` is the reference's loss instead, over the whole
vocabulary and with the end token.

Where it departs from the paper: the normalisation gains have a learning rate of their own and the vision stacks stay as
they are, so that SFT and REINFORCE train the same parameters in the same way. There is no penalty on KL(base || policy)
at the demonstrated states unless `kl_coefficient` asks for one, none on it at the same images under the instructions of
other tasks (what the policy would do there if it were asked to; none of these tasks is needed) unless
`spillover_coefficient` does, and no replay unless `replay` does: demonstrations of the prior tasks, which take
`replay_share` of every batch. An epoch is then still one of the new task's.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from omegaconf import DictConfig
from torch import Tensor

from vla_razor.config import robot_of
from vla_razor.core import divergence, losses
from vla_razor.errors import UserError
from vla_razor.interruption import uninterrupted
from vla_razor.policies.openvla.policy import OpenVLAPolicy
from vla_razor.progress import progress
from vla_razor.recipes import training
from vla_razor.recipes.training import Base, Trainer
from vla_razor.rollouts import demonstrations
from vla_razor.rollouts.demonstrations import Demonstrations
from vla_razor.runs import Run
from vla_razor.study.forecast import Guard

MOST_FEATURES = 2**30
"""Bytes of patch features that are kept: of the embedded policy's 50,000 states, of OpenVLA-7B's 500."""


def run(config: DictConfig, run: Run) -> None:
    """Fine-tune `config.policy` on the demonstrations in `config.demos`; goes on where a resumed run stopped."""
    if config.demos is None:
        collect = f"vla-razor collect --env {config.env.name} --out DIR"
        raise UserError(f"sft needs demonstrations: demos=DIR. Make them with: {collect}")
    replayed = replayed_per_batch(config)
    state = run.restore()
    guard = Guard.of(config, "robot")
    model, base = training.open_models(config, run)
    policy = OpenVLAPolicy(model, config.unnorm_key, robot=robot_of(config.env))
    data = demonstrations.load(config.demos, config.env, policy.seen)
    count = len(data.actions)
    if config.replay is not None:
        data = data.followed_by(_replayed(config, policy))
    tokens = policy.tokenize(data.actions, data.episode)
    per_epoch = -(-count // (config.batch_size - replayed))
    trainer = Trainer(model, config, config.epochs * per_epoch, state)
    features = None if trainer.done else patch_features(policy, config, data)
    with (
        training.saving(run, model, trainer) as save,
        progress("SFT", trainer.total_steps, trainer.step) as advance,
    ):
        probe = training.open_probe(config, base)
        while not trainer.done:
            rows = batch(config, trainer.step, count, len(tokens))
            with uninterrupted():
                scalars = learn(policy, trainer, config, data, tokens, rows, base, features)
                if probe and training.is_due(trainer.step, config.probe_every, trainer.total_steps):
                    scalars |= training.measure(model, probe, trainer, guard)
                run.log(trainer.step, **scalars)
                if trainer.spent or training.is_due(trainer.step, config.save_every, trainer.total_steps):
                    save()
            advance(loss=scalars["loss"], **(guard.shown if guard else {}))
    training.finish(config, run, model, base, probe, guard)


def patch_features(policy: OpenVLAPolicy, config: DictConfig, data: Demonstrations) -> Float[Tensor, "N P D"] | None:
    """What the vision stacks make of every demonstrated image, which stays the same throughout a training that leaves
    them as they are. None where they learn, images are shifted, or the features would take more than `MOST_FEATURES`.
    """
    backbone, size = policy.model.vision_backbone, config.micro_batch_size
    each = backbone.num_patches * backbone.embed_dim * policy.model.dtype.itemsize
    learns = any(parameter.requires_grad for parameter in backbone.parameters())
    if learns or config.augmentation or len(data.images) * each > MOST_FEATURES:
        return None
    parts, found = range(0, len(data.images), size), []
    with progress("features", len(parts)) as advance:
        for start in parts:
            pixels = policy.model.processor.pixel_values(data.images[start : start + size])
            found.append(policy.model.patch_features(pixels))
            advance()
    return torch.cat(found)


def batch(config: DictConfig, step: int, count: int, total: int) -> Int[Tensor, " B"]:
    """The control steps of update `step` (from 0): the next of a shuffled epoch over the first `count`, and replayed
    ones drawn from those between `count` and `total`.
    """
    replayed = replayed_per_batch(config)
    new = config.batch_size - replayed
    epoch, index = divmod(step, -(-count // new))
    order = torch.randperm(count, generator=training.generator(config.seed, "epoch", epoch))
    draws = training.generator(config.seed, "replay", step)
    again = torch.randint(count, total, (replayed,), generator=draws) if replayed else order[:0]
    return torch.cat([order[index * new : (index + 1) * new], again])


def replayed_per_batch(config: DictConfig) -> int:
    """How many of a batch are replayed. Raises UserError where a batch is too small to hold both."""
    if config.replay is None:
        return 0
    replayed = round(config.replay_share * config.batch_size)
    if not 0 < replayed < config.batch_size:
        raise UserError(f"replay_share={config.replay_share} of batch_size={config.batch_size} is none of it, or all.")
    return replayed


def _replayed(config: DictConfig, policy: OpenVLAPolicy) -> Demonstrations:
    if config.prior is None:
        raise UserError("replay is of prior tasks: prior=null names none.")
    return demonstrations.load(config.replay, config.prior, policy.seen)


def learn(
    policy: OpenVLAPolicy,
    trainer: Trainer,
    config: DictConfig,
    data: Demonstrations,
    tokens: Int[Tensor, "N A"],
    rows: Int[Tensor, " B"],
    base: Base | None = None,
    features: Float[Tensor, "N P D"] | None = None,
) -> dict[str, float]:
    """One update on the control steps `rows`, with the penalties on KL(base || policy) that `config` asks for if `base`
    is given. Returns what is logged, these KLs in nats an action among it. `features`: those of the images, if they are
    known (`patch_features`).

    Raises `RunFailed` where the loss is not finite.
    """
    begin = time.perf_counter()
    shifts = _shifts(len(rows), config.augmentation, training.generator(config.seed, "augmentation", trainer.step))
    first, draws = policy.model.config.first_action_id, training.generator(config.seed, "prefix jitter", trainer.step)
    fed = jittered(tokens[rows], first, config.prefix_jitter, draws)
    accuracy = Accuracy()
    draws = training.generator(config.seed, "penalties", trainer.step)
    penalties = Penalties(policy, base, config, draws) if base else None
    update = trainer.update(_shares(policy, config, data, tokens, rows, shifts, fed, accuracy, penalties, features))
    seconds = time.perf_counter() - begin
    paid = penalties.means() if penalties else {}
    return {**update._asdict(), **accuracy.means(), **paid, "states_per_second": len(rows) / seconds}


@dataclass
class Accuracy:
    """How often the likeliest token is the demonstrated one."""

    hits: int = 0
    tokens: int = 0

    def add(self, logits: Float[Tensor, "B A 256"], targets: Int[Tensor, "B A"]) -> None:
        """Takes in a micro-batch."""
        self.hits += int((logits.argmax(-1) == targets).sum())
        self.tokens += targets.numel()

    def means(self) -> dict[str, float]:
        """Empty where nothing was counted: `loss=openvla` forms no logits over the action ids."""
        return {"token_accuracy": self.hits / self.tokens} if self.tokens else {}


@dataclass
class Penalties:
    """KL(base || policy) in nats an action that is paid for: at the demonstrated states by `config.kl_coefficient`, at
    their images under the instructions of other tasks, with the base's own actions there, by
    `config.spillover_coefficient`.

    So what is paid for is not the forward KL that is logged. That is at the states which the base visits by itself and
    along its own tokens (the probe set); this is at the states of the batch, the demonstrator's (for distillation those
    that the policy visits), and along the demonstrated tokens. SFT has no others at hand: the base's need a simulator.
    """

    policy: OpenVLAPolicy
    base: Base
    config: DictConfig
    generator: torch.Generator
    paid: dict[str, list[Tensor]] = field(default_factory=dict)

    def of(
        self, pixels: Float[Tensor, "B C H W"], prompts: Sequence[list[int]], tokens: Int[Tensor, "B A"]
    ) -> Iterator[Tensor]:
        """What they add to a micro-batch's loss, one after the other: each holds a pass of the policy."""
        if self.config.kl_coefficient:
            yield self.config.kl_coefficient * self._drift("forward_kl_of_batch", pixels, prompts, tokens)
        if self.config.spillover_coefficient:
            others = self._others(prompts)
            with self.base.model() as before:
                chosen = before.sample_actions(pixels, others, before.config.temperature, self.generator).tokens
            yield self.config.spillover_coefficient * self._drift("forward_kl_elsewhere", pixels, others, chosen)

    def means(self) -> dict[str, float]:
        """Over the batch; empty without penalties."""
        return {name: float(torch.cat(parts).mean()) for name, parts in self.paid.items()}

    def _drift(
        self, name: str, pixels: Float[Tensor, "B C H W"], prompts: Sequence[list[int]], tokens: Int[Tensor, "B A"]
    ) -> Float[Tensor, ""]:
        with self.base.model() as before, torch.no_grad():
            log_base = training.log_distribution(before, pixels, prompts, tokens)
        log_policy = training.log_distribution(self.policy.model, pixels, prompts, tokens)
        divergences = divergence.forward_kl(log_base, log_policy).sum(-1)
        self.paid.setdefault(name, []).append(divergences.detach())
        return divergences.mean()

    def _others(self, prompts: Sequence[list[int]]) -> list[list[int]]:
        """For each prompt one of the other instructions', drawn."""
        known = self.policy.prompt_ids(list(self.config.other_instructions))
        choices = [[one for one in known if one != prompt] for prompt in prompts]
        if not all(choices):
            raise UserError("spillover_coefficient needs other_instructions: those of other tasks.")
        return [others[int(torch.randint(len(others), (), generator=self.generator))] for others in choices]


def jittered(tokens: Int[Tensor, "B A"], first: int, bins: float, generator: torch.Generator) -> Int[Tensor, "B A"]:
    """Action tokens moved by a normal draw of `bins`, rounded; `first` is the first of the 256 action ids.

    Fed to the decoder in place of the demonstrated ones, they are what a policy that samples feeds itself: neighbours
    of the demonstrated tokens, which cloning with exact ones never shows it.
    """
    if not bins:
        return tokens
    moves = (torch.randn(tokens.shape, generator=generator) * bins).round().long()
    return (tokens - first + moves).clamp(0, 255) + first


def shifted(images: np.ndarray, shifts: Int[Tensor, "B 2"]) -> np.ndarray:
    """Images uint8 [B, H, W, 3] moved by whole pixels (down, right); the edge is repeated where nothing was seen."""
    reach = int(shifts.abs().max()) if len(shifts) else 0
    if reach == 0:
        return images
    height, width = images.shape[1:3]
    padded = np.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
    corners = (reach - shifts).tolist()
    views = [image[y : y + height, x : x + width] for image, (y, x) in zip(padded, corners, strict=True)]
    return np.stack(views)


def _shares(
    policy: OpenVLAPolicy,
    config: DictConfig,
    data: Demonstrations,
    tokens: Int[Tensor, "N A"],
    rows: Int[Tensor, " B"],
    shifts: Int[Tensor, "B 2"],
    fed: Int[Tensor, "B A"],
    accuracy: Accuracy,
    penalties: Penalties | None,
    features: Float[Tensor, "N P D"] | None,
) -> Iterator[Tensor]:
    """Each micro-batch's part of the loss, and of each penalty; the parts add up to the mean over the batch."""
    model = policy.model
    parts = (each.split(config.micro_batch_size) for each in (rows, shifts, fed))
    for part, moves, inputs in zip(*parts, strict=True):
        if features is None:
            pixels = model.processor.pixel_values(shifted(data.images[part.numpy()], moves)).to(model.device)
        else:
            pixels = features[part]
        prompts = policy.prompt_ids([data.instructions[row] for row in part.tolist()])
        targets = tokens[part].to(model.device)
        if config.loss == "openvla":
            loss = model.supervised_loss(pixels, prompts, targets)
        else:
            logits = model.action_logits(pixels, prompts, inputs.to(model.device)) / model.config.temperature
            chosen = targets - model.config.first_action_id
            loss = losses.cross_entropy(logits, chosen)
            accuracy.add(logits.detach(), chosen)
        share = len(part) / len(rows)
        yield share * loss
        for penalty in penalties.of(pixels, prompts, targets) if penalties else ():
            yield share * penalty


def _shifts(count: int, reach: int, generator: torch.Generator) -> Int[Tensor, "B 2"]:
    return torch.randint(-reach, reach + 1, (count, 2), generator=generator)
