"""How many of a task's prompts a model answers right: with greedy decoding, as benchmarks do, or as it samples; and in
how many forms it answers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from vla_razor.llm.models import LanguageModel
from vla_razor.llm.sampling import Done, sample
from vla_razor.llm.tasks import Example, ManyAnswers, Task


def right_answers(
    language: LanguageModel,
    task: Task,
    examples: Sequence[Example],
    *,
    max_new_tokens: int,
    batch_size: int,
    temperature: float = 0.0,
    done: Done = lambda: None,
) -> list[bool]:
    """Whether one completion of each prompt earns its reward: the greedy one, or where there is a temperature a sample,
    the same for the same model.
    """
    completions = _completions(
        language,
        examples,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        seed=0,
        batch_size=batch_size,
        done=done,
    )
    rewards = task.rewards(completions, [example.gold for example in examples])
    return [reward == 1.0 for reward in rewards]


def format_entropy(
    language: LanguageModel,
    task: ManyAnswers,
    examples: Sequence[Example],
    *,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
) -> float:
    """Entropy in nats of the formats of one completion of each prompt, sampled at temperature 1: 0 where all are alike.
    Of N samples in K formats it is too low by about (K - 1) / 2N.
    """
    settings = {"temperature": 1.0, "max_new_tokens": max_new_tokens, "seed": seed, "batch_size": batch_size}
    formats = Counter(map(task.format_of, _completions(language, examples, **settings)))
    shares = [count / len(examples) for count in formats.values()]
    return abs(sum(share * math.log(share) for share in shares))  # abs: 0 rather than -0


def _completions(language: LanguageModel, examples: Sequence[Example], **settings: Any) -> list[str]:
    """Texts of a model that may be in training, and is left as it was."""
    was_training = language.model.training
    language.model.eval()
    found = sample(language, examples, **settings)
    language.model.train(was_training)
    return [one.text for one in found]
