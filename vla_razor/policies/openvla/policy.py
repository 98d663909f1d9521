"""OpenVLA and OpenVLA-OFT as policies: images and instructions in, actions in environment units out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from vla_razor.policies import Decisions
from vla_razor.policies.openvla.conventions import convention_of, statistics_key
from vla_razor.policies.openvla.prismatic import PrismaticVLA


class OpenVLAPolicy:
    """Samples at the model's own temperature, or takes the likeliest tokens (`greedy`).

    Args:
        model: what decides.
        unnorm_key: whose action statistics to use; None for those of the robot, or the only ones. They also say in
            which convention the policy speaks. Raises `UserError` naming those there are, or those that are known.
        greedy: take the likeliest token everywhere. The log-probabilities stay those of the policy's temperature.
        robot: whose environments it acts in.
    """

    def __init__(
        self, model: PrismaticVLA, unnorm_key: str | None = None, greedy: bool = False, robot: str = "panda"
    ) -> None:
        self.model = model
        self.unnorm_key = statistics_key(model.config.norm_stats, unnorm_key, robot)
        self.chunk = model.chunk
        self.num_tokens = self.chunk * len(model.config.action_scale(self.unnorm_key).low)
        self.convention = convention_of(self.unnorm_key, robot)
        self.greedy = greedy
        self.name = model.name_or_path or "openvla"
        self._prompts: dict[str, list[int]] = {}

    def act(
        self,
        images: UInt8[np.ndarray, "B H W 3"],
        instructions: list[str],
        infos: list[dict[str, Any]],
        generators: Sequence[np.random.Generator],
        memories: Sequence[Any] | None = None,
    ) -> Decisions:
        """Decide for every environment in one batch, each with a number for each token from its own generator."""
        temperature = self.model.config.temperature
        draws = torch.from_numpy(np.stack([generator.random(self.num_tokens) for generator in generators]))
        seen = self.seen(images)
        pixels = self.model.processor.pixel_values(seen)
        samples = self.model.sample_actions(
            pixels,
            self.prompt_ids(instructions),
            0.0 if self.greedy else temperature,
            num_tokens=self.num_tokens,
            uniforms=draws,
        )
        log_probs = samples.log_probs
        if self.greedy:
            chosen = samples.tokens - self.model.config.first_action_id
            log_probs = F.log_softmax(samples.logits / temperature, -1).gather(-1, chosen[..., None])[..., 0]
        said = self.model.unnormalize(samples.tokens, self.unnorm_key).reshape(len(images), self.chunk, -1)
        memories, actions = memories or [None] * len(said), np.empty(said.shape, np.float32)
        for step in range(self.chunk):
            actions[:, step], memories = self.convention.to_environment(said[:, step], memories)
        return Decisions(actions, samples.tokens, log_probs, images=seen, memories=list(memories))

    def seen(self, images: UInt8[np.ndarray, "B H W 3"]) -> UInt8[np.ndarray, "B h w 3"]:
        """Camera images as the policy looks at them: larger ones shrunk to what the model takes."""
        return self.model.processor.shrunk(images)

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
