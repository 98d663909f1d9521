"""OpenVLA as a policy: images and instructions in, actions in environment units out."""

from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch.nn import functional as F

from vla_razor.policies import Decisions
from vla_razor.policies.openvla.action_tokenizer import ActionScale
from vla_razor.policies.openvla.model import OpenVLA


class OpenVLAPolicy:
    """Samples at the model's own temperature, or takes the likeliest tokens (`greedy`).

    Args:
        model: what decides.
        unnorm_key: whose action statistics to use; None for the only ones. Raises `UserError` naming those there are.
        greedy: take the likeliest token everywhere. The log-probabilities stay those of the policy's temperature.
    """

    def __init__(self, model: OpenVLA, unnorm_key: str | None = None, greedy: bool = False) -> None:
        self.model = model
        self.unnorm_key = unnorm_key
        self.greedy = greedy
        self.name = model.name_or_path or "openvla"
        self.num_tokens = len(ActionScale.of(model.config.norm_stats, unnorm_key).low)
        self._prompts: dict[str, list[int]] = {}

    def act(
        self,
        images: UInt8[np.ndarray, "B H W 3"],
        instructions: list[str],
        infos: list[dict[str, Any]],
        generator: torch.Generator,
    ) -> Decisions:
        """Decide for every environment in one batch; what is random comes from `generator`."""
        temperature = self.model.config.temperature
        pixels = self.model.processor.pixel_values(images)
        samples = self.model.sample_actions(
            pixels, self.prompt_ids(instructions), 0.0 if self.greedy else temperature, generator, self.num_tokens
        )
        log_probs = samples.log_probs
        if self.greedy:
            chosen = samples.tokens - self.model.config.first_action_id
            log_probs = F.log_softmax(samples.logits / temperature, -1).gather(-1, chosen[..., None])[..., 0]
        actions = self.model.unnormalize(samples.tokens, self.unnorm_key).astype(np.float32)
        return Decisions(actions, samples.tokens, log_probs)

    def prompt_ids(self, instructions: list[str]) -> list[list[int]]:
        """Token ids of the prompts; each instruction is tokenised once."""
        new = sorted(set(instructions) - self._prompts.keys())
        self._prompts.update(zip(new, self.model.processor.prompt_ids(new), strict=True))
        return [self._prompts[instruction] for instruction in instructions]
