"""Supervised updates: cross-entropy of given actions' tokens, plus penalties. SFT makes them on demonstrations,
distillation at the states that the policy visits.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from omegaconf import DictConfig
from torch import Tensor

from vla_razor import ranks
from vla_razor.core.categorical import Categorical
from vla_razor.policies import Observations
from vla_razor.policies.trainable import Trainable
from vla_razor.rollouts.demonstrations import Demonstrations
from vla_razor.training.penalties import Penalties
from vla_razor.training.penalties.penalty import States
from vla_razor.training.trainer import Trainer, generator, own_generator


@dataclass
class Accuracy:
    """How often the likeliest token is the demonstrated one."""

    hits: int = 0
    tokens: int = 0

    def add(self, said: Categorical, targets: Int[Tensor, "B A"]) -> None:
        """Count a micro-batch."""
        self.hits += int((said.likeliest() == targets).sum())
        self.tokens += targets.numel()

    def means(self) -> dict[str, float]:
        """The accuracy over all ranks; empty where nothing was counted, because the policy's own loss gives no
        distribution.
        """
        hits, tokens = ranks.total(self.hits, self.tokens)
        return {"token_accuracy": hits / tokens} if tokens else {}


def learn(
    policy: Trainable,
    trainer: Trainer,
    config: DictConfig,
    data: Demonstrations,
    tokens: Int[Tensor, "N A"],
    rows: Int[Tensor, " B"],
    penalties: Penalties | None = None,
    features: Float[Tensor, "N ..."] | None = None,
    here: Bool[Tensor, " N"] | None = None,
) -> dict[str, float]:
    """One update on the decisions `rows`. Returns what is logged, the penalties in nats per action included. `features`
    replace the images' views where they are known (`Trainable.features`). Several ranks share the update: each learns
    from the decisions that are `here`, or from its part of the batch if all ranks have all of them.

    Raises `RunFailed` where the loss is not finite.
    """
    begin = time.perf_counter()
    shifts = _shifts(len(rows), config.augmentation, generator(config.seed, "augmentation", trainer.step))
    draws = generator(config.seed, "prefix jitter", trainer.step)
    fed = jittered(tokens[rows], policy.support, config.prefix_jitter, draws)
    draws = own_generator(config.seed, "penalties", trainer.step)
    places = torch.arange(len(rows))
    own = places[ranks.rank() :: ranks.world()] if here is None else places[here[rows]]
    accuracy = Accuracy()

    def shares() -> Iterator[Tensor]:
        """Each micro-batch's part of the loss, and of each penalty; the parts add up to the mean over the batch."""
        for start in range(0, len(own), config.micro_batch_size):
            at = own[start : start + config.micro_batch_size]
            part, moves, inputs = rows[at], shifts[at], fed[at]
            seen = data.observations[part.numpy()]
            views = policy.views(_shifted(seen, moves)) if features is None else features[part]
            prompts = policy.prompt_ids(seen.instructions)
            targets = tokens[part].to(policy.device)
            if config.loss == "openvla":
                loss = policy.supervised_loss(views, prompts, targets)
            else:
                said = policy.distribution(views, prompts, inputs)
                loss = said.cross_entropy(targets)
                accuracy.add(said, targets)
            share = len(part) / len(rows)
            yield share * loss
            if penalties:
                states = States(views, prompts, targets)
                for coefficient, cost in penalties.costs(states, draws):
                    yield share * (coefficient * cost.mean())

    update = trainer.update(shares())
    seconds = time.perf_counter() - begin
    paid = penalties.means() if penalties else {}
    return {**update._asdict(), **accuracy.means(), **paid, "states_per_second": len(rows) / seconds}


def jittered(tokens: Int[Tensor, "B A"], support: range, bins: float, draws: torch.Generator) -> Int[Tensor, "B A"]:
    """Tokens moved within the support by a normal draw of `bins`, rounded.

    They are fed to the decoder in place of the demonstrated tokens. A sampling policy feeds itself neighbours of the
    likely tokens, which cloning on exact prefixes never shows it.
    """
    if not bins:
        return tokens
    moves = (torch.randn(tokens.shape, generator=draws) * bins).round().long()
    return (tokens + moves).clamp(support.start, support.stop - 1)


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


def _shifted(seen: Observations, shifts: Int[Tensor, "B 2"]) -> Observations:
    """With the images of all cameras moved alike."""
    return replace(seen, images={camera: shifted(pictures, shifts) for camera, pictures in seen.images.items()})


def _shifts(count: int, reach: int, draws: torch.Generator) -> Int[Tensor, "B 2"]:
    return torch.randint(-reach, reach + 1, (count, 2), generator=draws)
