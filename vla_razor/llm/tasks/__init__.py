"""The new tasks: prompts, gold answers and a binary reward. A task is a module that has what `Task` says.

Splits are fixed by rules, not by seeds, so that they are the same everywhere; each task's docstring holds its rule.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from math import log  # not `math`: the submodule of that name would take its place
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

from vla_razor.errors import UserError, nearest

NAMES = ("math", "science", "tool", "number")
LONGEST = 100_000
"""Characters of a completion that a reward looks at; what is longer earns nothing."""


class Example(NamedTuple):
    """One question.

    `prompt` is the user's message, `gold` what `rewards` compares an answer with, `answer` a completion that gives the
    gold answer and nothing else. Questions of the same `group` are on one side of the split.
    """

    prompt: str
    gold: str
    answer: str
    group: str

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation so far."""
        return [{"role": "user", "content": self.prompt}]


class Splits(NamedTuple):
    """Disjoint by group. `left_out` counts, by reason, the rows that are in neither."""

    train: list[Example]
    test: list[Example]
    left_out: dict[str, int]


class Task(Protocol):
    """What a task's module has."""

    def load(self, data_dir: Path | None, *, direct: bool) -> Splits:
        """From the Hugging Face Hub, or a folder of local files. `direct` asks for the answer without reasoning."""
        ...

    def rewards(self, completions: Sequence[str], golds: Sequence[str]) -> list[float]:
        """1 for a completion whose final answer is the gold one, else 0, in bounded time, whatever the completion."""
        ...


class ManyAnswers(Task, Protocol):
    """What the module of a task has beside that, if it can list all the right answers to a question."""

    def solutions(self, gold: str) -> list[str]:
        """Every completion that earns a reward, up to spaces around it."""
        ...

    def format_of(self, completion: str) -> str:
        """The name of the form in which a completion answers, right or wrong."""
        ...


def open_task(name: str) -> Task:
    """The task of this name. Raises UserError for an unknown one."""
    if name not in NAMES:
        raise UserError(f"unknown task {name!r}. {nearest(name, NAMES)}")
    module: Any = import_module(f"vla_razor.llm.tasks.{name}")
    return cast(Task, module)


def listing(task: Task) -> ManyAnswers | None:
    """The task, if it can list all the right answers to a question."""
    return cast(ManyAnswers, task) if hasattr(task, "solutions") else None


def format_entropy(task: ManyAnswers, completions: Sequence[str]) -> float:
    """Entropy in nats of the forms in which the completions answer: 0 where all are alike. Of N samples in K forms it
    is too low by about (K - 1) / 2N.
    """
    forms = Counter(map(task.format_of, completions))
    shares = [count / len(completions) for count in forms.values()]
    return abs(sum(share * log(share) for share in shares))  # abs: 0 rather than -0


def is_held_out(group: str, share: float) -> bool:
    """Whether a group belongs to the test split: `share` of all groups do, by their SHA-256, the same ones everywhere.

    >>> [is_held_out(group, 0.5) for group in ("sodium", "lithium")]
    [True, False]
    """
    # Not a seeded shuffle: a group's side must not change when others are added or left out.
    digest = hashlib.sha256(group.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def subset(examples: Sequence[Example], count: int) -> list[Example]:
    """`count` of the examples, all of them where it is 0: the same ones everywhere, from all over the task."""
    ordered = sorted(examples, key=lambda example: hashlib.sha256(example.prompt.encode()).digest())
    return ordered[: count or None]


def answer_in(completion: str) -> str:
    """What follows a chain of reasoning, as DeepSeek R1 marks it; all of it where there is no chain, nothing where the
    chain has no end. The paper compares final answers, ignoring intermediate chains (Appendix B.1).

    >>> answer_in("<think>Is it A?</think>It is B.")
    'It is B.'
    """
    _, end, answer = completion.rpartition("</think>")
    return answer if end or "<think>" not in completion else ""


def same_text(text: str) -> str:
    """Texts that differ in spaces or capitals only have the same."""
    return "".join(text.split()).casefold()
