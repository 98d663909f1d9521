r"""Math: Open-Reasoner-Zero's questions (arXiv:2503.24290), answered within \boxed{} (RL's Razor, Section 3.1).

The test split is MATH-500; training questions that are in it, up to spaces and capitals, are left out. A local folder
holds Open-Reasoner-Zero's files in `open_reasoner_zero`: `math500.json` and, if it is there, `orz_math_57k*.json`;
without that one, the training questions of `gsm8k` and those of `math` stand in.

An answer counts if math-verify finds it equal to the gold one. It is the content of the last complete \boxed{}, so that
a completion with several answers has given the last one. What a computer algebra system cannot decide in a few
seconds, such as a tower of powers, is wrong.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from vla_razor.llm.bounded import bounded_map
from vla_razor.llm.rows import Row, from_array, from_hub, from_lines
from vla_razor.llm.tasks import LONGEST, Example, Splits, answer_in, same_text

REASONED = "Reason step by step, and put the final answer within \\boxed{}."
DIRECT = "Give the final answer alone, within \\boxed{}."
HUB = "Open-Reasoner-Zero/orz_math_57k_collection"
HUB_TEST = "HuggingFaceH4/MATH-500"
SECONDS = 5.0
"""To decide whether two answers are equal."""
LONGEST_ANSWER = 1000
"""Characters; what is longer is no answer."""

Question = tuple[str, str]


def load(data_dir: Path | None, *, direct: bool) -> Splits:
    """Raises UserError where a local file is missing or malformed, RunFailed where the Hub cannot be reached."""
    if data_dir is None:
        test = [(row.text("problem"), row.text("answer")) for row in from_hub(HUB_TEST, "test")]
        train = map(_open_reasoner, from_hub(HUB, "train"))
    else:
        test = [_open_reasoner(row) for row in from_array(data_dir / "open_reasoner_zero" / "math500.json")]
        train = _train(data_dir)
    known = {same_text(question) for question, _ in test}
    kept: dict[str, Question] = {}
    left_out = {"in MATH-500": 0, "asked before": 0}
    for question, gold in train:
        key = same_text(question)
        if key in known:
            left_out["in MATH-500"] += 1
        elif key in kept:
            left_out["asked before"] += 1
        else:
            kept[key] = question, gold
    return Splits(
        [_example(*question, direct) for question in kept.values()],
        [_example(*question, direct) for question in test],
        left_out,
    )


def rewards(completions: Sequence[str], golds: Sequence[str]) -> list[float]:
    r"""1 where the last \boxed{} holds the gold answer, by math-verify, else 0."""
    answers = [final_answer(answer_in(completion)) for completion in completions]
    # What is the same text needs no algebra, which takes a process and may take seconds.
    verdicts = [
        answer is not None and same_text(answer) == same_text(gold) for answer, gold in zip(answers, golds, strict=True)
    ]
    open_ones = [i for i, answer in enumerate(answers) if answer is not None and not verdicts[i]]
    decided = bounded_map(is_equal, [(golds[i], answers[i]) for i in open_ones], SECONDS)
    for i, verdict in zip(open_ones, decided, strict=True):
        verdicts[i] = bool(verdict)
    return [float(verdict) for verdict in verdicts]


def final_answer(completion: str) -> str | None:
    r"""The content of the last \boxed{} that is closed, or None where there is none, or it is empty or too long.

    >>> final_answer(r"Either \boxed{1} or rather \boxed{\frac{1}{2}}, or \boxed{3")
    '\\frac{1}{2}'
    """
    if len(completion) > LONGEST:
        return None
    opened = list[tuple[int, int]]()  # of each open brace: where its \boxed begins, or -1, and where the brace ends
    last, answer = -1, ""
    for brace in re.finditer(r"(\\boxed)?\{|\}", completion):
        if brace[0] != "}":
            opened.append((brace.start() if brace[1] else -1, brace.end()))
        elif opened:
            box, begin = opened.pop()
            if box > last:
                last, answer = box, completion[begin : brace.start()].strip()
    return answer if 0 < len(answer) <= LONGEST_ANSWER else None


def is_equal(gold: str, answer: str) -> bool:
    """Whether math-verify finds the two equal. May take for ever; run it bounded."""
    from math_verify import LatexExtractionConfig, parse, verify

    config = [LatexExtractionConfig(boxed_match_priority=0)]
    first, second = (
        parse(f"\\boxed{{{text}}}", config, parsing_timeout=None)  # pyright: ignore[reportArgumentType]
        for text in (gold, answer)
    )
    return bool(first and second) and verify(first, second, timeout_seconds=None)


def _example(question: str, gold: str, direct: bool) -> Example:
    prompt = f"{question}\n\n{DIRECT if direct else REASONED}"
    return Example(prompt, gold, f"\\boxed{{{gold}}}", same_text(question))


def _train(data_dir: Path) -> Iterator[Question]:
    if found := sorted((data_dir / "open_reasoner_zero").glob("orz_math_57k*.json")):
        yield from map(_open_reasoner, from_array(found[0]))
        return
    for row in from_lines(data_dir / "gsm8k" / "train.jsonl"):
        yield row.text("question"), re.sub(r"(?<=\d),(?=\d)", "", row.text("answer").rpartition("####")[2].strip())
    for row in from_lines(data_dir / "math" / "math_foundry.jsonl"):
        yield row.text("context"), row.text("answer")


def _open_reasoner(row: Row) -> Question:
    """From the format of its files, or of its data set on the Hub."""
    if row.has("prompt"):
        return row.text("prompt", 0, "value"), row.text("final_answer")
    return row.text("0", "value"), row.text("1", "ground_truth", "value")
