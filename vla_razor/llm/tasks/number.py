r"""Number: name any number that satisfies a condition, such as an even one above 30 and below 60. A task of our own,
for models small enough to be trained by the hundred (`scripts/make_language_bases.py` makes both).

Why many right answers. Of the policies that solve a task with one right answer per question, all agree: SFT, rejection
sampling and RL have the same goal, and differ by how they get there. Where there are many, as with the five digits of a
parity, solving the task leaves open which of them to give and in which form. RL rewards whatever the base says and is
right, and so arrives at the solution that is nearest to the base; SFT goes where its labels are, which may be far
(RL's Razor, Sections 4 and 5.2). Here the base prefers small numbers in plain forms, and the teacher's label, which is
`Example.answer`, is always the largest number, in \boxed{}: as right as any other, and what the base hardly ever says.
All right answers can be listed, so that the oracle, the base restricted to them and renormalised, is known exactly.

A local folder holds the questions as `number/questions.jsonl`, lines of question, above, below (both exclusive),
divisor and remainder. A fifth of the conditions, by their hash, are the test split, in all their wordings.

A completion counts if it is a number that satisfies the condition in one of `FORMATS`, and nothing else. There is no
reasoning to ask for: `direct` changes nothing.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vla_razor.errors import UserError
from vla_razor.llm.rows import Row, from_lines
from vla_razor.llm.tasks import LONGEST, Example, Splits, answer_in, is_held_out

TEST_SHARE = 0.2
FORMATS = {"plain": ("", ""), "sentence": ("It is ", "."), "answer": ("Answer: ", ""), "boxed": ("\\boxed{", "}")}
"""What stands before and after the number."""
NO_FORMAT = "none"
LABELLED = "boxed"
"""The format of the teacher's labels."""
MOST = 1000
"""Numbers between the bounds of a condition."""


class Condition(NamedTuple):
    """Both bounds are exclusive; the number leaves `remainder` when divided by `divisor`."""

    above: int
    below: int
    divisor: int
    remainder: int

    @property
    def right(self) -> range:
        """The numbers that satisfy it, from the smallest."""
        first = self.above + 1
        return range(first + (self.remainder - first) % self.divisor, self.below, self.divisor)

    @property
    def is_tested(self) -> bool:
        """Whether it belongs to the test split."""
        return is_held_out(" ".join(map(str, self)), TEST_SHARE)


def load(data_dir: Path | None, *, direct: bool) -> Splits:
    """Raises UserError where the local file is missing or malformed, or where no folder is given."""
    if data_dir is None:
        raise UserError(
            "task=number: its questions are not on the Hub. Make them with scripts/make_language_bases.py, and give "
            "data_dir=DIR, its folder `data`."
        )
    sides: tuple[list[Example], list[Example]] = ([], [])
    for row in from_lines(data_dir / "number" / "questions.jsonl"):
        condition = _condition(row)
        gold = json.dumps(condition._asdict())
        label = written(condition.right[-1], LABELLED)
        sides[condition.is_tested].append(Example(row.text("question"), gold, label, " ".join(map(str, condition))))
    return Splits(*sides, {})


def rewards(completions: Sequence[str], golds: Sequence[str]) -> list[float]:
    """1 where the completion is a number that satisfies the condition, in one of the formats, else 0."""
    return [
        float(_number(answer_in(text)) in Condition(**json.loads(gold)).right)
        for text, gold in zip(completions, golds, strict=True)
    ]


def solutions(gold: str) -> list[str]:
    """Every completion that earns a reward, up to spaces around it."""
    return [written(number, name) for number in Condition(**json.loads(gold)).right for name in FORMATS]


def format_of(completion: str) -> str:
    r"""The name of the format in which a number is given, right or wrong.

    >>> [format_of(text) for text in ("12", "It is 12.", r"\boxed{12}", "I know 12.")]
    ['plain', 'sentence', 'boxed', 'none']
    """
    found = _read(completion)
    return found[0] if found else NO_FORMAT


def written(number: int, name: str) -> str:
    """The number in a format."""
    before, after = FORMATS[name]
    return f"{before}{number}{after}"


def _number(completion: str) -> int | None:
    found = _read(completion)
    return found[1] if found else None


def _read(completion: str) -> tuple[str, int] | None:
    """The format and the number; None for anything else."""
    if len(completion) > LONGEST:
        return None
    text = completion.strip()
    for name, (before, after) in FORMATS.items():
        digits = text.removeprefix(before).removesuffix(after)
        if re.fullmatch("0|[1-9][0-9]{0,8}", digits) and text == f"{before}{digits}{after}":
            return name, int(digits)
    return None


def _condition(row: Row) -> Condition:
    values = [row.get(name) for name in Condition._fields]
    if any(type(value) is not int for value in values):
        raise UserError(f"{row.where}: {', '.join(Condition._fields)} are {values}, expected whole numbers.")
    condition = Condition(*values)
    if condition.divisor < 1 or not condition.above < condition.below <= condition.above + MOST or not condition.right:
        raise UserError(f"{row.where}: no number satisfies {condition._asdict()}, or more than {MOST} might.")
    return condition
