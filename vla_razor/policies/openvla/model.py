"""OpenVLA, native and batched: images and instructions in, seven action tokens out.

After `modeling_prismatic.py` of openvla c8f03f4. A sequence is [BOS][patches][rest of the prompt][actions]. The
reference pads batches left of BOS; here prompts are padded on the *right* in training and sampling alike, and what the
cache holds of the padding is masked out of the decode steps. Positions and what each token attends to are the same, and
no prefill needs a mask.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor
from torch.nn import functional as F

from vla_razor.policies.openvla import decoder, sampling
from vla_razor.policies.openvla.prismatic import PrismaticVLA, Samples, in_its_precision


class OpenVLA(PrismaticVLA):
    """A vision-language-action policy that decides one control step, token after token."""

    @torch.no_grad()
    @in_its_precision
    def sample_actions(
        self,
        pixels: Float[Tensor, "B C H W"],
        input_ids: Sequence[Sequence[int]],
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
        num_tokens: int = 7,
        uniforms: Float[Tensor, "B A"] | None = None,
    ) -> Samples:
        """Sample `num_tokens` action tokens a prompt, from the 256 action ids alone.

        Args:
            pixels: from `processor.pixel_values`.
            input_ids: prompts of any lengths, with or without the trailing empty token.
            temperature: 0 takes the likeliest token.
            generator: of any device (None: torch's global one). One call draws B x A uniforms from it.
            uniforms: numbers in [0, 1) that were drawn before, one a token, instead of a generator.
        """
        uniforms = sampling.prepared(uniforms, temperature, (len(pixels), num_tokens), generator, self.device)
        llama, first = self.language_model.model, self.config.first_action_id
        embeddings, lengths = self._prompt(pixels, input_ids)
        longest = embeddings.shape[1]
        table = decoder.rotary_table(llama, embeddings, longest + num_tokens)
        cache = decoder.Cache(longest + num_tokens - 1)
        visible = decoder.visible(lengths, longest + num_tokens - 1, longest)

        hidden = decoder.prefill(llama, embeddings, table, lengths[:, None] - 1, cache=cache)
        logits = [self.action_head(hidden[:, 0])]
        choices = [sampling.choose(logits[0], temperature, uniforms, 0)]
        for i in range(1, num_tokens):
            embeddings = llama.embed_tokens(choices[-1] + first)[:, None]
            hidden = decoder.step(llama, embeddings, table, lengths + (i - 1), cache, visible)
            logits.append(self.action_head(hidden[:, 0]))
            choices.append(sampling.choose(logits[-1], temperature, uniforms, i))

        chosen, scores = torch.stack(choices, 1), torch.stack(logits, 1)
        return Samples(chosen + first, scores, sampling.log_probs_of(chosen, scores, temperature))

    @in_its_precision
    def action_logits(
        self, pixels: Float[Tensor, "B C H W"], input_ids: Sequence[Sequence[int]], tokens: Int[Tensor, "B A"]
    ) -> Float32[Tensor, "B A 256"]:
        """The logits that the model gives each of `tokens`' positions, over the action ids in id order, untempered.

        Teacher-forced and differentiable; only these positions meet the head. Divide by the policy's temperature
        before a softmax.
        """
        return self.action_head(self.predicting_hidden(pixels, input_ids, tokens))

    @in_its_precision
    def predicting_hidden(
        self, pixels: Float[Tensor, "B C H W"], input_ids: Sequence[Sequence[int]], tokens: Int[Tensor, "B A"]
    ) -> Float[Tensor, "B A H"]:
        """The decoder's outputs, after its final norm, at the positions that predict `tokens`: what the head reads."""
        embeddings, lengths = self._prompt(pixels, input_ids, suffix=tokens[:, :-1])
        llama = self.language_model.model
        table = decoder.rotary_table(llama, embeddings, embeddings.shape[1])
        keep = lengths[:, None] - 1 + torch.arange(tokens.shape[1], device=self.device)
        return decoder.prefill(llama, embeddings, table, keep, checkpointing=self.checkpointing)

    @in_its_precision
    def supervised_loss(
        self, pixels: Float[Tensor, "B C H W"], input_ids: Sequence[Sequence[int]], tokens: Int[Tensor, "B A"]
    ) -> Float32[Tensor, ""]:
        """The reference's training loss: mean cross-entropy over the full vocabulary of the actions and `</s>`."""
        end = torch.full_like(tokens[:, :1], self.config.text["eos_token_id"])
        targets = torch.cat([tokens, end], 1).to(self.device)
        hidden = self.predicting_hidden(pixels, input_ids, targets)
        logits = self.language_model.lm_head(hidden)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def unnormalize(self, tokens: Int[Tensor, "B A"], key: str | None = None) -> Float[np.ndarray, "B A"]:
        """Actions in environment units, by the statistics of `key` (None: the only ones)."""
        normalized = self.action_tokenizer.decode(tokens.cpu().numpy())
        return self.action_scale(key, normalized.shape[-1]).unnormalize(normalized)

    def tokenize(self, actions: Float[np.ndarray, "B A"], key: str | None = None) -> Int[Tensor, "B A"]:
        """The tokens of actions in environment units: the inverse of `unnormalize`, to within half a bin."""
        normalized = self.action_scale(key, np.shape(actions)[-1]).normalize(np.asarray(actions))
        return torch.from_numpy(self.action_tokenizer.encode(normalized))

    # The forward pass

    def _prompt(
        self,
        pixels: Float[Tensor, "B C H W"] | Float[Tensor, "B P D"],
        input_ids: Sequence[Sequence[int]],
        suffix: Int[Tensor, "B S"] | None = None,
    ) -> tuple[Float[Tensor, "B L H"], Int[Tensor, " B"]]:
        """Embedded sequences, padded on the right, and their lengths without the `suffix` that follows each prompt."""
        prompts = self.prompts(input_ids, len(pixels))
        tails = [[]] * len(prompts) if suffix is None else suffix.tolist()
        longest = max(len(prompt) + len(tail) for prompt, tail in zip(prompts, tails, strict=True))
        rows = [[*p, *t, *[0] * (longest - len(p) - len(t))] for p, t in zip(prompts, tails, strict=True)]
        words = self.language_model.model.embed_tokens(torch.tensor(rows, device=self.device))
        patches = self.projected(pixels)
        lengths = torch.tensor([len(prompt) + patches.shape[1] for prompt in prompts], device=self.device)
        return torch.cat([words[:, :1], patches, words[:, 1:]], 1), lengths
