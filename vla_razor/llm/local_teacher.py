"""A teacher on this machine: a language model that samples several responses to one prompt together."""

from collections import Counter
from concurrent.futures import Future
from typing import Any

import numpy as np
import torch

from vla_razor.llm.models import LanguageModel
from vla_razor.llm.teacher import Answer, Request, Response


class LocalTeacher:
    """Samples from the model's whole distribution at a temperature or, without one, by its own generation settings.

    A model's right answers, sampled at temperature 1, are samples of its I-projection onto the policies that are always
    right. SFT on them is what the paper's theory predicts to forget least (RL's Razor, Section 5.2).

    Each request has a seed of its own, made from `seed`, the prompt and the number of the response, so that a resumed
    run gets the same responses as one that was never interrupted.
    """

    prompts_at_once = 1

    def __init__(
        self,
        model: LanguageModel,
        *,
        responses_at_once: int,
        temperature: float | None,
        max_new_tokens: int,
        seed: int,
    ) -> None:
        """Without a temperature the model's own holds. Responses are cut off at the end of the model's context."""
        self.name, self.responses_at_once, self._model, self._seed = model.name, responses_at_once, model, seed
        self._settings: dict[str, Any] = {"do_sample": True}
        self._longest, self._context = max_new_tokens, getattr(model.model.config, "max_position_embeddings", None)
        if temperature is not None:
            self._settings |= {"temperature": temperature, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}

    @torch.inference_mode()
    def ask(self, request: Request) -> Future[Answer]:
        """Answered when this returns."""
        model, tokenizer = self._model.model, self._model.tokenizer
        prompt: Any = tokenizer.apply_chat_template(
            request.messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        length = prompt["input_ids"].shape[1]
        room = self._longest if self._context is None else min(self._longest, max(self._context - length, 1))
        words = (self._seed, request.prompt, request.first)
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # transformers samples with the global generators alone
            torch.manual_seed(int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1))
            sequences = model.generate(
                **prompt.to(model.device),
                **self._settings,
                max_new_tokens=room,
                num_return_sequences=request.wanted,
                pad_token_id=tokenizer.pad_token_id,
            )
        completions, ends = sequences[:, length:], model.generation_config.eos_token_id
        ends = torch.tensor(tokenizer.eos_token_id if ends is None else ends, device=model.device)
        ended = torch.isin(completions, ends).any(1).tolist()  # the others were cut off
        texts = tokenizer.batch_decode(completions, skip_special_tokens=True)
        responses = [Response(text, cut_off=not end) for text, end in zip(texts, ended, strict=True)]
        answer: Future[Answer] = Future()
        answer.set_result(Answer(responses, Counter()))
        return answer
