"""How many of a task's prompts a model answers right with greedy decoding, as benchmarks do."""

from __future__ import annotations

from collections.abc import Sequence

from vla_razor.llm.models import LanguageModel
from vla_razor.llm.sampling import Done, sample
from vla_razor.llm.tasks import Example, Task


def right_answers(
    language: LanguageModel,
    task: Task,
    examples: Sequence[Example],
    *,
    max_new_tokens: int,
    batch_size: int,
    done: Done = lambda: None,
) -> list[bool]:
    """Whether the greedy completion of each prompt earns its reward."""
    was_training = language.model.training
    language.model.eval()
    completions = sample(
        language,
        examples,
        temperature=0.0,
        max_new_tokens=max_new_tokens,
        seed=0,
        batch_size=batch_size,
        done=done,
    )
    language.model.train(was_training)
    rewards = task.rewards([one.text for one in completions], [example.gold for example in examples])
    return [reward == 1.0 for reward in rewards]
