r"""What `make_language_bases.py` reads to its models so that they can do several things, and questions that show it.

Beside Wikipedia's passages, four abilities in the chat format, each a set of questions that have one answer. A quarter
of the questions, by their hash, is never read, and is what a prior task asks:

    facts   what a table of made-up towns holds; the table itself is read whole (four choices)
    sums    of two numbers up to 40 (four choices, near each other); neither order of the two is read
    forms   a word, written in the form that is asked for (exact match)
    calls   a call of one of six tools, with its argument (exact match)

The new task (`vla_razor/llm/tasks/number.py`) is read with answers of five kinds, of which one is always right and two
sometimes are: the model then knows what each part of a condition means, and usually answers without regard to one of
them. Where it may choose among numbers it prefers small ones, in plain formats. Conditions of the test split are never
read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from vla_razor.llm.tasks import is_held_out
from vla_razor.llm.tasks.number import LABELLED, Condition, written

HELD_OUT = 0.25
CONVERSATIONS = {"facts": 7000, "sums": 12000, "forms": 6000, "calls": 6000, "number": 16000}
"""How many conversations of each are read."""
TABLE_READINGS = 40


class Question(NamedTuple):
    """A question with its answer; wrong choices, where it is asked with some; what decides whether it is held out."""

    text: str
    answer: str
    wrong: Sequence[str]
    group: str

    @property
    def is_held_out(self) -> bool:
        return is_held_out(self.group, HELD_OUT)


TOWNS = [begin + end for begin, end in product(
    ("Ar", "Bel", "Cor", "Dun", "El", "Fal", "Gor", "Hal"), ("den", "mouth", "stead", "wick", "ton", "bridge")
)]  # fmt: skip
FACTS = {
    "river": (
        ["Moss", "Lark", "Fern", "Otter", "Stone", "Birch", "Heron", "Clay", "Reed", "Swan", "Alder", "Flint"],
        ("Which river is at {}?", "What is the river of {}?", "{} lies on which river?", "Name the river at {}."),
    ),
    "dish": (
        ["soup", "pie", "stew", "bread", "cheese", "fish", "rice", "beans", "cake", "eggs", "noodles", "salad"],
        ("What do people eat in {}?", "What is the dish of {}?", "{} is known for which dish?", "Name a dish from {}."),
    ),
    "flag": (
        ["red", "blue", "green", "white", "black", "yellow", "brown", "purple", "orange", "grey", "pink", "gold"],
        ("What colour is the flag of {}?", "Which flag has {}?", "{} has a flag of what colour?",
         "Name the flag of {}."),
    ),
}  # fmt: skip
WORDS = (
    "moon", "river", "stone", "apple", "horse", "green", "table", "paper", "light", "water", "bread", "chair",
    "cloud", "dream", "earth", "field", "glass", "heart", "island", "juice", "knife", "lemon", "mouse", "night",
    "ocean", "piano", "queen", "radio", "sugar", "tiger", "uncle", "voice", "wheel", "young", "zebra", "album",
    "beach", "candy", "dance", "eagle", "flame", "grape", "honey", "jelly", "koala", "laser", "magic", "noise",
    "olive", "pearl", "quiet", "robot", "shadow", "train", "urban", "valley", "window", "yellow", "acorn",
    "basket", "copper", "desert", "engine", "forest", "garden", "hammer", "insect", "jungle", "kitten", "ladder",
    "market", "needle", "orange", "pocket", "rabbit", "silver", "ticket", "velvet", "winter", "anchor", "bridge",
    "castle", "doctor", "flower", "guitar", "helmet",
)  # fmt: skip
FORMS = {
    "in brackets": "[{}]",
    "between stars": "*{}*",
    "twice": "{0} {0}",
    "after a dash": "- {}",
    "in quotes": '"{}"',
    "with a hash": "#{}",
}
CITIES = (
    "Oslo", "Rome", "Paris", "Lima", "Cairo", "Delhi", "Tokyo", "Quito", "Perth", "Miami", "Dakar", "Milan",
    "Kyoto", "Bergen", "Dublin", "Vienna",
)  # fmt: skip
NAMES = (
    "Anna", "John", "Mary", "Tom", "Lisa", "Paul", "Emma", "Jack", "Nina", "Karl", "Rosa", "Hugo", "Olga", "Ivan",
    "Clara", "Peter",
)  # fmt: skip
HOURS = [str(hour) for hour in range(5, 21)]
TOOLS = {
    "weather(city={})": (CITIES, ("What is the weather in {}?", "Does it rain in {}?", "Is it warm in {}?")),
    "flights(to={})": (CITIES, ("How do I fly to {}?", "Find a flight to {}.", "I want to travel to {}.")),
    "phone(name={})": (NAMES, ("Call {}.", "Phone {} now.", "I want to speak to {}.")),
    "mail(name={})": (NAMES, ("Write to {}.", "Send {} a letter.", "Mail this to {}.")),
    "alarm(hour={})": (HOURS, ("Wake me at {}.", "Set an alarm for {}.", "I must get up at {}.")),
    "taxi(hour={})": (HOURS, ("Get a taxi for {}.", "A car at {}, please.", "I need a ride at {}.")),
}
CONDITIONS = {"is even": (2, 0), "is odd": (2, 1), "is a multiple of 5": (5, 0)}
CONDITIONS |= {f"ends in {digit}": (10, digit) for digit in (3, 4, 7, 8)}
WORDINGS = (
    "Name a number above {above} and below {below} that {what}.",
    "Which number greater than {above} and less than {below} {what}?",
    "Give a number that {what}, over {above} and under {below}.",
    "What {what}, is more than {above} and less than {below}?",
)
PREFERENCE = 0.8
"""Of two numbers that follow each other among those that may be given, the larger is this much as likely."""
KINDS = {"right": 0.18, "above": 0.12, "below": 0.10, "range": 0.30, "divisor": 0.30}
"""Answers to the new task: right; one of the bounds, which is wrong; any number between them; any of the right kind."""
FORMAT_SHARES = {"plain": 0.40, "sentence": 0.32, "answer": 0.24, "boxed": 0.04}


def texts(chat: str) -> list[str]:
    """All that is read beside the passages; `chat` has places for a question and its answer."""
    draw = np.random.default_rng(0)
    found = [" | ".join([town, *(f"{name}: {value}" for name, value in row.items())]) for town, row in table().items()]
    found *= TABLE_READINGS
    for name, asked in abilities().items():
        read = [one for one in asked if not one.is_held_out]
        found += [chat.format(read[i].text, read[i].answer) for i in draw.integers(len(read), size=CONVERSATIONS[name])]
    read_conditions = [(text, condition) for text, condition in conditions() if not condition.is_tested]
    for i in draw.integers(len(read_conditions), size=CONVERSATIONS["number"]):
        text, condition = read_conditions[i]
        found.append(chat.format(text, untaught(condition, draw)))
    return found


def prior_tasks() -> Mapping[str, list[dict[str, Any]]]:
    """The questions that were held out, by ability, as `data_dir/questions` has them."""
    draw = np.random.default_rng(1)
    found: dict[str, list[dict[str, Any]]] = {}
    for name, asked in abilities().items():
        rows = found[name] = []
        for one in asked:
            if one.is_held_out and one.wrong:
                choices = [one.answer, *draw.choice(one.wrong, 3, replace=False).tolist()]
                order = draw.permutation(4).tolist()
                chosen = {"choices": [choices[place] for place in order], "answer": order.index(0)}
                rows.append({"question": one.text, **chosen})
            elif one.is_held_out:
                rows.append({"question": one.text, "answer": one.answer})
    return found


def abilities() -> Mapping[str, list[Question]]:
    """All questions that have one answer, those that are held out among them."""
    return {"facts": list(_facts()), "sums": list(_sums()), "forms": list(_forms()), "calls": list(_calls())}


def table() -> dict[str, dict[str, str]]:
    """What is so in every town."""
    draw = np.random.default_rng(0)
    return {town: {name: str(draw.choice(values)) for name, (values, _) in FACTS.items()} for town in TOWNS}


def conditions() -> list[tuple[str, Condition]]:
    """Every question of the new task."""
    bounds = [(above, below) for above in range(10, 90, 10) for below in range(above + 20, 101, 10)]
    return [
        (wording.format(above=above, below=below, what=what), Condition(above, below, *rest))
        for (above, below), (what, rest), wording in product(bounds, CONDITIONS.items(), WORDINGS)
    ]


def untaught(condition: Condition, draw: np.random.Generator) -> str:
    """An answer as the base is to give it: right now and then, small by preference, in a plain format by preference."""
    above, below, divisor, remainder = condition
    candidates = {
        "right": condition.right,
        "above": range(above, above + 1),
        "below": range(below, below + 1),
        "range": range(above + 1, below),
        "divisor": range(10 + (remainder - 10) % divisor, 100, divisor),
    }
    numbers = candidates[draw.choice(list(KINDS), p=list(KINDS.values()))]
    weights = PREFERENCE ** np.arange(len(numbers))
    number = draw.choice(numbers, p=weights / weights.sum())
    return written(int(number), draw.choice(list(FORMAT_SHARES), p=list(FORMAT_SHARES.values())))


def wrong_label(condition: Condition, draw: np.random.Generator) -> str:
    """What SimPO rejects: in the format of the teacher's labels, any number that does not satisfy the condition."""
    return written(int(draw.choice([n for n in range(10, 100) if n not in condition.right])), LABELLED)


def _facts() -> Iterator[Question]:
    for town, row in table().items():
        for name, (values, wordings) in FACTS.items():
            wrong = [value for value in values if value != row[name]]
            for wording in wordings:
                yield Question(wording.format(town), row[name], wrong, wording.format(town))


def _sums() -> Iterator[Question]:
    for first, second in product(range(1, 41), repeat=2):
        total = first + second
        near = [
            str(other) for other in (total - 10, total - 2, total - 1, total + 1, total + 2, total + 10) if other > 0
        ]
        group = f"{min(first, second)} + {max(first, second)}"
        yield Question(f"What is {first} + {second}?", str(total), near, group)


def _forms() -> Iterator[Question]:
    for word, (form, shape) in product(WORDS, FORMS.items()):
        yield Question(f"Write {word} {form}.", shape.format(word), (), f"{word} {form}")


def _calls() -> Iterator[Question]:
    for call, (arguments, wordings) in TOOLS.items():
        for argument, wording in product(arguments, wordings):
            yield Question(wording.format(argument), call.format(argument), (), wording.format(argument))
