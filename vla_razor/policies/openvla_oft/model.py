"""OpenVLA-OFT, discrete, native and batched: images and instructions in, a chunk of actions out, all tokens at once.

After openvla-oft 213c5ff. A sequence is [BOS][patches][rest of the prompt][C x D placeholders][stop token], without the
last where `stop_token` says so. The placeholders are exact zeros, and *every position sees every other*, whatever comes
first. A token is read one position early: the first at the prompt's last token, each of the others at the placeholder
before its own; what the last placeholder predicts is the stop token.

The reference takes one prompt at a time; here they are padded on the right, behind everything that is theirs, and the
mask hides the padding. Given the observation the tokens are independent, so that a chunk's log-probability, entropy and
divergence are sums over its tokens, exact in one pass.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor
from torch.nn import functional as F

from vla_razor.policies.openvla import decoder, sampling
from vla_razor.policies.openvla.prismatic import PrismaticVLA, Samples, in_its_precision
from vla_razor.policies.openvla_oft.config import OpenVLAOFTConfig


class OpenVLAOFT(PrismaticVLA):
    """A vision-language-action policy that decides a chunk of control steps in one pass.

    Tokens are C x D a decision, those of the first control step before those of the next.
    """

    config_class = OpenVLAOFTConfig
    config: OpenVLAOFTConfig
    autoregressive = False

    @property
    def chunk(self) -> int:
        """Control steps of a decision."""
        return self.config.chunk

    @property
    def num_tokens(self) -> int:
        """Action tokens of a decision, C x D."""
        return self.config.chunk * self.config.dims

    @torch.no_grad()
    def sample_actions(
        self,
        pixels: Float[Tensor, "B C H W"],
        input_ids: Sequence[Sequence[int]],
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
        num_tokens: int | None = None,
        uniforms: Float[Tensor, "B A"] | None = None,
    ) -> Samples:
        """Sample a chunk for each prompt, from the 256 action ids alone: `tokens` [B, C x D].

        Args:
            pixels: from `processor.pixel_values`, or `patch_features` of them.
            input_ids: prompts of any lengths, with or without the trailing empty token.
            temperature: 0 takes the likeliest tokens.
            generator: of any device (None: torch's global one). One call draws B x C x D uniforms from it.
            num_tokens: C x D, or None; `ValueError` for any other number.
            uniforms: numbers in [0, 1) that were drawn before, one a token, instead of a generator.
        """
        if num_tokens not in (None, self.num_tokens):
            decided = f"{self.config.chunk} steps of {self.config.dims} numbers"
            raise ValueError(f"the model decides {decided}, {self.num_tokens} tokens; got num_tokens={num_tokens}")
        uniforms = sampling.prepared(uniforms, temperature, (len(pixels), self.num_tokens), generator, self.device)
        scores = self.action_logits(pixels, input_ids)
        each = None if uniforms is None else uniforms.reshape(-1, 1)
        chosen = sampling.choose(scores.flatten(0, 1), temperature, each, 0).view(scores.shape[:2])
        log_probs = sampling.log_probs_of(chosen, scores, temperature)
        return Samples(chosen + self.config.first_action_id, scores, log_probs)

    @torch.no_grad()
    @in_its_precision
    def likeliest_tokens(
        self, pixels: Float[Tensor, "B C H W"], input_ids: Sequence[Sequence[int]]
    ) -> Int[Tensor, "B A"]:
        """The likeliest token of the whole vocabulary everywhere, as the reference's `predict_action` takes it, which
        may be none of the action ids; `sample_actions` at temperature 0 takes the likeliest of these.
        """
        return self.language_model.lm_head(self.predicting_hidden(pixels, input_ids)).argmax(-1)

    @in_its_precision
    def action_logits(
        self,
        pixels: Float[Tensor, "B C H W"],
        input_ids: Sequence[Sequence[int]],
        tokens: Int[Tensor, "B A"] | None = None,
    ) -> Float32[Tensor, "B A 256"]:
        """The logits of every action token, over the action ids in id order, untempered; differentiable. They depend on
        no other token: `tokens`, which OpenVLA is told, are ignored.
        """
        return self.action_head(self.predicting_hidden(pixels, input_ids))

    @in_its_precision
    def predicting_hidden(
        self,
        pixels: Float[Tensor, "B C H W"],
        input_ids: Sequence[Sequence[int]],
        tokens: Int[Tensor, "B A"] | None = None,
    ) -> Float[Tensor, "B A H"]:
        """The decoder's outputs, after its final norm, at the positions that predict the action tokens: what the head
        reads. `tokens` are ignored.
        """
        return self._hidden(pixels, input_ids)[:, :-1]

    def _hidden(self, pixels: Float[Tensor, "B C H W"], input_ids: Sequence[Sequence[int]]) -> Float[Tensor, "B A+1 H"]:
        """As `predicting_hidden`, and behind them the position that predicts what follows the actions."""
        embeddings, first, inside = self._sequence(pixels, input_ids)
        llama = self.language_model.model
        table = decoder.rotary_table(llama, embeddings, embeddings.shape[1])
        keep = first[:, None] + torch.arange(self.num_tokens + 1, device=self.device)
        return decoder.prefill(
            llama, embeddings, table, keep, mask=inside[:, None, None], checkpointing=self.checkpointing
        )

    @in_its_precision
    def supervised_loss(
        self, pixels: Float[Tensor, "B C H W"], input_ids: Sequence[Sequence[int]], tokens: Int[Tensor, "B A"]
    ) -> Float32[Tensor, ""]:
        """The reference's training loss: mean cross-entropy over the full vocabulary of the action tokens and, where
        the sequence has one, the stop token.
        """
        targets = tokens.to(self.device)
        if self.config.stop_token:
            targets = torch.cat([targets, torch.full_like(targets[:, :1], self.config.text["eos_token_id"])], 1)
        hidden = self._hidden(pixels, input_ids)[:, : targets.shape[1]]
        logits = self.language_model.lm_head(hidden)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def unnormalize(self, tokens: Int[Tensor, "B A"], key: str | None = None) -> Float[np.ndarray, "B C D"]:
        """Actions in environment units, by the statistics of `key` (None: the only ones)."""
        normalized = self.action_tokenizer.decode(tokens.cpu().numpy()).reshape(len(tokens), -1, self.config.dims)
        return self.action_scale(key, self.config.dims).unnormalize(normalized)

    def tokenize(self, actions: Float[np.ndarray, "B C D"], key: str | None = None) -> Int[Tensor, "B A"]:
        """The tokens of actions in environment units: the inverse of `unnormalize`, to within half a bin."""
        normalized = self.action_scale(key, np.shape(actions)[-1]).normalize(np.asarray(actions))
        return torch.from_numpy(self.action_tokenizer.encode(normalized)).flatten(1)

    def _sequence(
        self, pixels: Float[Tensor, "B C H W"] | Float[Tensor, "B P D"], input_ids: Sequence[Sequence[int]]
    ) -> tuple[Float[Tensor, "B L H"], Int[Tensor, " B"], Bool[Tensor, "B L"]]:
        """Embedded sequences, padded on the right; the position at which each first action token is read; and which
        positions are not padding.
        """
        prompts = self.prompts(input_ids, len(pixels))
        stop = [self.config.text["eos_token_id"]] if self.config.stop_token else []
        tail = [0] * self.num_tokens + stop
        longest = max(map(len, prompts)) + len(tail)
        rows = [[*prompt, *tail, *[0] * (longest - len(prompt) - len(tail))] for prompt in prompts]
        words = self.language_model.model.embed_tokens(torch.tensor(rows, device=self.device))
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        behind = torch.arange(longest, device=self.device) - lengths[:, None]  # the prompt's last token is at -1
        placeholders = (behind >= 0) & (behind < self.num_tokens)
        words = words.masked_fill(placeholders[..., None], 0.0)
        patches = self.projected(pixels)
        inside = F.pad(behind < len(tail), (patches.shape[1], 0), value=True)
        return torch.cat([words[:, :1], patches, words[:, 1:]], 1), lengths + patches.shape[1] - 1, inside
