"""Completions of a language model, in batches; the same seed gives the same completions."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from vla_razor.errors import UserError
from vla_razor.llm.models import LanguageModel
from vla_razor.llm.tasks import Example

Done = Callable[[], object]


class Completion(NamedTuple):
    """Token ids of a prompt and of what follows it, up to and including the end-of-text token where it was reached; the
    completion's text without special tokens.
    """

    prompt: list[int]
    tokens: list[int]
    text: str


def sample(
    language: LanguageModel,
    examples: Sequence[Example],
    *,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    batch_size: int,
    done: Done = lambda: None,
) -> list[Completion]:
    """One completion of every example: sampled at `temperature` over the whole vocabulary, or greedy at 0.

    `done` is called after every batch. Torch's global generator is seeded for each batch and left as it was.

    Raises UserError where the prompt and its completion are longer than the model's context.
    """
    model, tokenizer, pad = language.model, language.tokenizer, language.pad
    prompts = [prompt_ids(language, example) for example in examples]
    longest, context = max(map(len, prompts), default=0), getattr(model.config, "max_position_embeddings", None)
    if context is not None and longest + max_new_tokens > context:
        raise UserError(
            f"{language.name}: its context holds {context} tokens; the longest prompt has {longest}, and "
            f"max_new_tokens={max_new_tokens}. Take at most max_new_tokens={context - longest}."
        )
    how: dict[str, Any] = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    if not temperature:  # an instruct model's own settings are for sampling, and transformers would warn of them
        how = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
    listed = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = {*(listed if isinstance(listed, list) else [listed]), tokenizer.eos_token_id} - {None}
    completions: list[Completion] = []
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        width = max(map(len, batch))
        # Filled up on the left, so that every completion begins in the same column.
        ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in batch], device=model.device)
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in batch], device=model.device)
        settings = {"max_new_tokens": max_new_tokens, "pad_token_id": pad, "repetition_penalty": 1.0, **how}
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(seed * 1_000_003 + start)  # transformers samples with the global generators alone
            found = model.generate(input_ids=ids, attention_mask=mask, **settings)
        for prompt, row in zip(batch, found[:, width:].tolist(), strict=True):
            stop = next((place for place, token in enumerate(row) if token in ends), len(row) - 1)
            tokens = row[: stop + 1]  # what follows the end is padding
            completions.append(Completion(prompt, tokens, tokenizer.decode(tokens, skip_special_tokens=True)))
        done()
    return completions


def prompt_ids(language: LanguageModel, example: Example) -> list[int]:
    """The conversation in the model's own chat format, up to where its answer begins."""
    ids = language.tokenizer.apply_chat_template(example.messages, add_generation_prompt=True, return_dict=False)
    return list(ids)
