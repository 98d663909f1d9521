"""OpenVLA and OpenVLA-OFT as policies: images of one camera and instructions in, actions in environment units out."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from omegaconf import DictConfig
from torch import Tensor
from torch.nn import functional as F

from vla_razor.core.categorical import Categorical
from vla_razor.policies import Decisions, Observations
from vla_razor.policies.openvla.conventions import convention_of, statistics_key
from vla_razor.policies.openvla.prismatic import PrismaticVLA
from vla_razor.policies.trainable import Trainable


class PrismaticPolicy(Trainable):
    """Samples at the model's own temperature, or takes the likeliest tokens (`greedy`).

    Args:
        model: what decides.
        unnorm_key: whose action statistics to use; None for those of the robot, or the only ones. They also say in
            which convention the policy speaks. Raises `UserError` naming those there are, or those that are known.
        greedy: take the likeliest token everywhere. The log-probabilities stay those of the policy's temperature.
        robot: whose environments it acts in; None where it is only to be compared or saved, and needs no statistics.
        taken: the convention of the environments' actions, where their suite says it.
    """

    def __init__(
        self,
        model: PrismaticVLA,
        unnorm_key: str | None = None,
        greedy: bool = False,
        robot: str | None = "panda",
        taken: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = self.module = model
        self.support, self.chunk, self.num_tokens = model.action_ids, model.chunk, model.num_tokens
        if robot is not None:
            self.unnorm_key = statistics_key(model.config.norm_stats, unnorm_key, robot)
            self.num_tokens = self.chunk * len(model.config.action_scale(self.unnorm_key).low)
            spoken = model.config.norm_stats.get(self.unnorm_key or "", {}).get("convention")
            self.convention = convention_of(self.unnorm_key, robot, spoken, taken)
        self.greedy = greedy
        self.name = model.name_or_path or "openvla"
        self._prompts: dict[str, list[int]] = {}

    def act(
        self,
        observations: Observations,
        generators: Sequence[np.random.Generator],
        memories: Sequence[Any] | None = None,
    ) -> Decisions:
        """Decide for every environment in one batch, each with a number for each token from its own generator."""
        temperature = self.model.config.temperature
        draws = torch.from_numpy(np.stack([generator.random(self.num_tokens) for generator in generators]))
        camera = next(iter(observations.images))
        seen = self.seen(observations.image(camera))
        pixels = self.model.processor.pixel_values(seen)
        samples = self.model.sample_actions(
            pixels,
            self.prompt_ids(observations.instructions),
            0.0 if self.greedy else temperature,
            num_tokens=self.num_tokens,
            uniforms=draws,
        )
        log_probs = samples.log_probs
        if self.greedy:
            chosen = samples.tokens - self.model.config.first_action_id
            log_probs = F.log_softmax(samples.logits / temperature, -1).gather(-1, chosen[..., None])[..., 0]
        said = self.model.unnormalize(samples.tokens, self.unnorm_key).reshape(len(seen), self.chunk, -1)
        memories, actions = memories or [None] * len(said), np.empty(said.shape, np.float32)
        for step in range(self.chunk):
            actions[:, step], memories = self.convention.to_environment(said[:, step], memories)
        return Decisions(actions, samples.tokens, log_probs, images={camera: seen}, memories=list(memories))

    @property
    def temperature(self) -> float:
        """The model's own."""
        return float(self.model.config.temperature)

    @property
    def has_adapter(self) -> bool:
        """Whether the model has one."""
        return self.model.has_adapter

    def seen(self, images: UInt8[np.ndarray, "B H W 3"]) -> UInt8[np.ndarray, "B h w 3"]:
        """Camera images as the policy looks at them: larger ones shrunk to what the model takes."""
        return self.model.processor.shrunk(images)

    def views(self, observations: Observations) -> Float[Tensor, "B C H W"]:
        """Pixels as the vision stacks take them, on the model's device."""
        return self.model.processor.pixel_values(observations.image()).to(self.device)

    @property
    def feature_bytes(self) -> int:
        """Bytes of an image's patch features, where no vision stack learns."""
        backbone = self.model.vision_backbone
        if any(parameter.requires_grad for parameter in backbone.parameters()):
            return 0
        return backbone.num_patches * backbone.embed_dim * self.model.dtype.itemsize

    def features(self, observations: Observations) -> Float[Tensor, "B P D"]:
        """What the vision stacks make of images."""
        return self.model.patch_features(self.model.processor.pixel_values(observations.image()))

    def distribution(
        self,
        views: Float[Tensor, "B C H W"] | Float[Tensor, "B P D"],
        prompts: Sequence[Sequence[int]],
        tokens: Int[Tensor, "B A"],
    ) -> Categorical:
        """Over the 256 action ids, teacher-forced on `tokens`, at the model's temperature."""
        hidden = self.model.predicting_hidden(views, prompts, tokens.to(self.device))
        return Categorical(self.model.action_head(hidden) / self.model.config.temperature, self.support, hidden)

    def sample(
        self,
        views: Float[Tensor, "B C H W"] | Float[Tensor, "B P D"],
        prompts: Sequence[Sequence[int]],
        generator: torch.Generator,
    ) -> Int[Tensor, "B A"]:
        """Tokens drawn at the model's temperature."""
        return self.model.sample_actions(views, prompts, self.temperature, generator, self.num_tokens).tokens

    def supervised_loss(
        self,
        views: Float[Tensor, "B C H W"] | Float[Tensor, "B P D"],
        prompts: Sequence[Sequence[int]],
        tokens: Int[Tensor, "B A"],
    ) -> Float[Tensor, ""]:
        """The reference's: over the whole vocabulary, and with the end token."""
        return self.model.supervised_loss(views, prompts, tokens)

    def parameter_groups(self, config: DictConfig) -> list[dict[str, Any]]:
        """Weights, and normalisation gains at their own rate; see `PrismaticVLA.parameter_groups`."""
        return self.model.parameter_groups(config)

    def fingerprint(self) -> str:
        """The model's."""
        return self.model.fingerprint()

    def save(self, folder: Path) -> None:
        """As `PrismaticVLA.save_pretrained`."""
        self.model.save_pretrained(folder)

    def recompute_activations(self) -> None:
        """In every block of the vision stacks and the decoder."""
        self.model.gradient_checkpointing()

    def add_lora(self, rank: int, alpha: int, generator: torch.Generator) -> None:
        """On every linear layer that is run."""
        self.model.add_lora(rank, alpha, generator=generator)

    def merge_lora(self) -> None:
        """The model is whole afterwards."""
        self.model.merge_lora()

    @contextmanager
    def adapter_disabled(self) -> Iterator[None]:
        """Inside, the model is its base."""
        with self.model.adapter_disabled():
            yield

    def tokenize(self, actions: Float[np.ndarray, "N 7"], episode: Int[np.ndarray, " N"]) -> Int[Tensor, "N A"]:
        """The tokens of a decision at each control step that say what was done in whole episodes; `episode` tells which
        step belongs to which. A decision that reaches beyond an episode's end repeats its last action there, as the
        reference's data loader does.
        """
        if len(actions) == 0:
            return torch.zeros(0, self.num_tokens, dtype=torch.long)
        whole = np.split(actions, np.flatnonzero(np.diff(episode)) + 1)
        said = np.concatenate([self._chunks(self.convention.from_environment(part)) for part in whole])
        return self.model.tokenize(said if self.chunk > 1 else said[:, 0], self.unnorm_key)

    def _chunks(self, actions: Float[np.ndarray, "T D"]) -> Float[np.ndarray, "T C D"]:
        steps = np.arange(len(actions))[:, None] + np.arange(self.chunk)
        return actions[np.minimum(steps, len(actions) - 1)]

    def prompt_ids(self, instructions: list[str]) -> list[list[int]]:
        """Token ids of the prompts; each instruction is tokenised once."""
        new = sorted(set(instructions) - self._prompts.keys())
        prompts = self.model.processor.prompt_ids(new, self.model.config.prompt)
        self._prompts.update(zip(new, prompts, strict=True))
        return [self._prompts[instruction] for instruction in instructions]
