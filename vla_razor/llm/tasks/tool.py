"""Tool use: ToolAlpaca (arXiv:2306.05301), API calls that answer a request (RL's Razor, Section 3.1, Appendix B.1).

The two evaluation files (21 APIs that people wrote the golden calls for) and the training file (APIs with recorded
calls) stand in a local folder's `toolalpaca`, or come from the authors' repository. With the training file its APIs
are the training split, those of the evaluation files left out, and the evaluation files are the test split. Without it
the evaluation files are divided by API: `TEST_APIS` are the test split. Requests whose golden arguments are no JSON,
because they refer to the result of an earlier call, can be matched with nothing and are left out.

A completion counts if the calls found in it by regular expression are the golden ones, in order, by name and
arguments. Arguments are compared as text without capitals, numbers by value; an empty one is an absent one.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vla_razor.errors import UserError
from vla_razor.llm.rows import Row, from_array
from vla_razor.llm.tasks import LONGEST, Example, Splits, answer_in, same_text

TEST_APIS = ("AbuseIPDB", "Apache Superset", "AviationAPI", "Fruityvice", "Free Dictionary", "Lob.com")
EVALUATION = ("eval_simulated.json", "eval_real.json")
TRAINING = "train_data.json"
MOST_CALLS = 20
CALL = re.compile(r"^[ \t]*Action:[ \t]*([^\s:]+)[ \t]*\r?\n[ \t]*Action Input:[ \t]*", re.MULTILINE)
FORMAT = """To call a tool, write two lines:
Action: the name of the tool
Action Input: its arguments, as one JSON object
A request may take several calls, in order."""
EASY_FORMAT = (
    "Call the tool: a line with Action: and its name, and a line with Action Input: and its arguments as JSON."
)
LONGEST_SIGNATURE = 400
"""Characters."""
NOT_EASY = "of several calls, or of a tool with a long description or none"
STYLE = {False: "Think first, then write the calls.", True: "Write the calls and nothing else."}

Call = tuple[str, dict[str, Any]]


def load(data_dir: Path | None, *, direct: bool, easy: bool = False) -> Splits:
    """`easy` keeps the requests of one call, each with the documentation of the tool that it needs alone.

    Raises UserError where a local file is missing or malformed, or where no folder is given.
    """
    if data_dir is None:
        raise UserError(
            "task=tool: ToolAlpaca is not on the Hub. Copy the folder `data` of github.com/tangqiaoyu/ToolAlpaca to "
            "DIR/toolalpaca and give data_dir=DIR."
        )
    folder = data_dir / "toolalpaca"
    evaluation = [row for name in EVALUATION for row in from_array(folder / name)]
    left_out = {"with calls that are no JSON": 0} | ({NOT_EASY: 0} if easy else {})
    if not (folder / TRAINING).is_file():
        sides: tuple[list[Example], list[Example]] = ([], [])
        for row in evaluation:
            sides[row.text("Name") in TEST_APIS].extend(_examples(row, direct, easy, left_out))
        return Splits(*sides, left_out)
    known = {row.text("Name") for row in evaluation}
    rows = [row for row in from_array(folder / TRAINING) if row.text("Name") not in known]
    train = [example for row in rows for example in _examples(row, direct, easy, left_out)]
    test = [example for row in evaluation for example in _examples(row, direct, easy, left_out)]
    return Splits(train, test, left_out)


def rewards(completions: Sequence[str], golds: Sequence[str]) -> list[float]:
    """1 where the completion makes the golden calls, else 0."""
    return [float(_is_right(answer_in(text), json.loads(gold))) for text, gold in zip(completions, golds, strict=True)]


def calls(completion: str) -> list[Call] | None:
    """The calls in a completion, in order; None where one of them has no JSON object for arguments.

    >>> calls('I look.\\nAction: find\\nAction Input: {"page": 1}')
    [('find', {'page': 1})]
    """
    if len(completion) > LONGEST:
        return None
    found: list[Call] = []
    decoder = json.JSONDecoder()
    for match in CALL.finditer(completion):
        try:
            arguments, _ = decoder.raw_decode(completion, match.end())
        except (ValueError, RecursionError):
            return None
        if not isinstance(arguments, dict) or len(found) == MOST_CALLS:
            return None
        found.append((match[1], arguments))
    return found


def as_text(wanted: Sequence[Call]) -> str:
    """Calls as a completion makes them."""
    return "\n".join(f"Action: {name}\nAction Input: {json.dumps(arguments)}" for name, arguments in wanted)


def _is_right(completion: str, gold: list[list[Any]]) -> bool:
    found = calls(completion)
    try:
        return bool(found) and [[name, plain(arguments)] for name, arguments in found or []] == [
            [name, plain(arguments)] for name, arguments in gold
        ]
    except RecursionError:
        return False


def plain(value: Any) -> Any:
    """An argument in the form in which equal ones are equal; None for an empty one.

    >>> plain({"city": " Oslo", "page": "2", "tags": []})
    {'city': 'oslo', 'page': 2.0}
    """
    if isinstance(value, dict):
        items = {str(key): plain(item) for key, item in value.items()}
        return {key: item for key, item in items.items() if item is not None} or None
    if isinstance(value, list):
        return [plain(item) for item in value] or None
    if value is None or isinstance(value, bool):
        return None if value is None else str(value).casefold()
    text = str(value).strip() if isinstance(value, str) else value
    try:
        number = float(text)
        return number if math.isfinite(number) else str(text).casefold()
    except (ValueError, OverflowError):
        return str(text).casefold() or None


def _examples(row: Row, direct: bool, easy: bool, left_out: dict[str, int]) -> Iterator[Example]:
    documentation, api = row.text("NLDocumentation"), row.text("Name")
    for request, wanted in _requests(row):
        if not wanted:
            left_out["with calls that are no JSON"] += 1
        elif not easy:
            prompt = f"You have these tools:\n\n{documentation}\n\n{FORMAT} {STYLE[direct]}\n\nRequest: {request}"
            yield Example(prompt, json.dumps(wanted), as_text(wanted), same_text(api))
        elif len(wanted) > 1 or not 0 < len(short := _signature(documentation, wanted[0][0])) <= LONGEST_SIGNATURE:
            left_out[NOT_EASY] += 1
        else:
            prompt = f"{short}\n\nRequest: {request}\n\n{EASY_FORMAT}"
            yield Example(prompt, json.dumps(wanted), as_text(wanted), same_text(api))


def _signature(documentation: str, name: str) -> str:
    """The lines that say what a tool does and takes, without what it gives back; nothing where there are none."""
    lines = documentation.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith(f"{name}: ")), len(lines))
    return "\n".join(lines[start : start + 2])


def _requests(row: Row) -> Iterator[tuple[str, list[Call]]]:
    """Each request of an API with its calls; none where they cannot be read."""
    if row.has("Golden_Answers"):
        requests, answers = row.get("Instructions"), row.get("Golden_Answers")
        if len(requests) != len(answers):
            raise UserError(f"{row.where}: {len(requests)} Instructions with {len(answers)} Golden_Answers.")
        for request, answer in zip(requests, answers, strict=True):
            yield request, _readable([(step["Action"], step["Action_Input"]) for step in answer])
    else:
        for instance in row.content.get("Instances", []):
            steps = instance.get("intermediate_steps", [])
            yield instance["input"], _readable([(step[0][0], step[0][1]) for step in steps])


def _readable(steps: Sequence[tuple[str, str]]) -> list[Call]:
    try:
        wanted = [(str(name), json.loads(text)) for name, text in steps]
    except ValueError:
        return []
    return wanted if all(isinstance(arguments, dict) for _, arguments in wanted) else []
