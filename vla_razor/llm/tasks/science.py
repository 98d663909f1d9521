"""Science: SciKnowEval's Chemistry L-3 (arXiv:2406.09098), choice of four and equations to balance (RL's Razor,
Section 3.1).

Whether a question is in the test split follows from its text: a fifth is. A local folder holds the subset's files as
`sciknoweval_chemistry_l3/*.jsonl`.

The final answer is what follows the last "Answer:", or the whole completion if it has none. A choice counts if it is
the letter, with or without the option's own text, and nothing else: neither two letters nor a hedge. An equation
counts if it is the gold one up to spaces and the kind of arrow.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from vla_razor.errors import UserError
from vla_razor.llm.rows import Row, from_hub, from_lines
from vla_razor.llm.tasks import LONGEST, Example, Splits, answer_in, is_held_out, same_text

HUB = "hicai-zju/SciKnowEval"
HUB_FILE = "data/Chemistry/sciknoweval_chemistry_test.jsonl"
TEST_SHARE = 0.2
CHOICE = {
    False: 'Reason step by step. End with a line "Answer: X", where X is the letter of the right option.',
    True: 'Answer with the letter of the right option alone, as in "Answer: X".',
}
FILLING = {
    False: 'Reason step by step. End with a line "Answer: " and the balanced equation, in the order given.',
    True: 'Answer with the balanced equation alone, in the order given, after "Answer: ".',
}
MARK = "answer:"
ARROWS = ("<=>", "-->", "->", "→", "⟶")


def load(data_dir: Path | None, *, direct: bool) -> Splits:
    """Raises UserError where a local file is missing or malformed, RunFailed where the Hub cannot be reached."""
    if data_dir is None:
        rows = (row for row in from_hub(HUB, "train", HUB_FILE) if row.get("details", "level") == "L3")
    else:
        folder = data_dir / "sciknoweval_chemistry_l3"
        files = sorted(folder.glob("*.jsonl"))
        if not files:
            raise UserError(f"{folder}: expected SciKnowEval's Chemistry L-3 there, as *.jsonl.")
        rows = (row for file in files for row in from_lines(file))
    sides: tuple[list[Example], list[Example]] = ([], [])
    for example in (_example(row, direct) for row in rows):
        sides[is_held_out(example.group, TEST_SHARE)].append(example)
    return Splits(*sides, {})


def rewards(completions: Sequence[str], golds: Sequence[str]) -> list[float]:
    """1 where the final answer is the gold one, else 0."""
    return [
        float(_is_right(final_answer(answer_in(text)), json.loads(gold)))
        for text, gold in zip(completions, golds, strict=True)
    ]


def final_answer(completion: str) -> str:
    """What follows the last "Answer:", or everything.

    >>> final_answer("Not A, since it is heavy. Answer: B")
    'B'
    """
    if len(completion) > LONGEST:
        return ""
    return re.split(MARK, completion, flags=re.IGNORECASE)[-1].strip()


def _is_right(answer: str, gold: dict[str, str]) -> bool:
    if "equation" in gold:
        return _equation(answer) == _equation(gold["equation"])
    found = re.match(r"[\s*(\"']*([A-Za-z])(?![A-Za-z0-9])[\s*)\"'.:,]*", answer)
    if found is None or found[1].upper() != gold["letter"]:
        return False
    rest = same_text(answer[found.end() :]).rstrip("*)\"'.")
    return rest in ("", same_text(gold["text"]).rstrip("*)\"'."))


def _equation(text: str) -> str:
    text = "".join(text.split()).strip("*`$.\"'")
    for arrow in ARROWS:
        text = text.replace(arrow, "=")
    return text


def _example(row: Row, direct: bool) -> Example:
    question, kind = row.text("question"), row.text("type")
    if kind == "filling":
        equation = row.text("answer")
        prompt = f"{question}\n\n{FILLING[direct]}"
        return Example(prompt, json.dumps({"equation": equation}), f"Answer: {equation}", same_text(question))
    if not kind.startswith("mcq"):
        raise UserError(f"{row.where}: type {kind!r}, expected filling or mcq-4-choices.")
    labels, texts = row.get("choices", "label"), row.get("choices", "text")
    if not isinstance(labels, list) or not isinstance(texts, list) or len(labels) != len(texts) or len(labels) < 2:
        raise UserError(f"{row.where}: expected as many choices.label as choices.text, at least two.")
    letter, options = row.text("answerKey"), dict(zip(map(str, labels), map(str, texts), strict=True))
    if letter not in options:
        raise UserError(f"{row.where}: answerKey {letter!r} is none of {', '.join(options)}.")
    listed = "\n".join(f"{name}. {text}" for name, text in options.items())
    prompt = f"{question}\n\n{listed}\n\n{CHOICE[direct]}"
    gold = json.dumps({"letter": letter, "text": options[letter]})
    return Example(prompt, gold, f"Answer: {letter}", same_text(question))
