"""What a key may hold: a type and its range, which pydantic checks, and the same in words, for messages and help."""

import re
from functools import cache
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Len, Lt, MinLen, Predicate

if TYPE_CHECKING:
    from pydantic import TypeAdapter

_INFINITY = float("inf")
_CARDS = "rtx4090|a100-40|l40s|a100-80|h100|h200"  # for dry_run alone


def _each_once(values: list[Any]) -> bool:
    """Something is run for each of the values, and the same one twice would count twice."""
    return all(value not in values[:place] for place, value in enumerate(values))


def _like(pattern: str) -> Predicate:
    return Predicate(lambda text: re.fullmatch(pattern, text) is not None)


_ONCE = Predicate(_each_once)

Text = Annotated[str, MinLen(1), "a text"]
Switch = Annotated[bool, "true or false"]
Switches = Annotated[list[bool], MinLen(1), "a list of true and false"]
Count = Annotated[int, Ge(1), "a whole number, at least 1"]
Port = Annotated[int, Ge(0), Le(65535), "a whole number from 0 to 65535"]
Whole = Annotated[int, Ge(0), "a whole number, at least 0"]
Positive = Annotated[float, Gt(0), Lt(_INFINITY), "a number above 0"]
Number = Annotated[float, Ge(0), Lt(_INFINITY), "a number, at least 0"]
Share = Annotated[float, Ge(0), Le(1), "a number from 0 to 1"]
Part = Annotated[float, Gt(0), Lt(1), "a number above 0 and below 1"]
Way = Annotated[float, Gt(0), Le(1), "a number above 0, at most 1"]
Keys = Annotated[dict[str, str], Len(1), "keys by name, as in {a: b}"]
Mapping = Annotated[dict[str, Any], "a mapping, as in {a: 1}"]
Axes = Annotated[dict[str, list[Any]], "a mapping to lists, as in {method: [sft,rl], seed: [0,1]}"]
Coefficients = Annotated[dict[str, Number], "a mapping to numbers, at least 0, as in {package.module:Class: 0.1}"]
Grid = Annotated[str, _like(r"[1-9]\d*x[1-9]\d*|random"), "columns x rows, as in 5x5; or random"]
Ranges = Annotated[str, _like(r"(\d+(:\d*)?)(,\d+(:\d*)?)*"), "numbers and ranges, as in 0:50,70"]
LeRobot = Annotated[str, _like("lerobot"), "lerobot"]
Device = Annotated[str, _like(rf"auto|cpu|cuda(:\d+)?|{_CARDS}"), "auto | cpu | cuda | cuda:N"]
Logger = Literal["tensorboard", "wandb", "trackio", "none"]
Launcher = Literal["here", "local", "ray", "slurm"]
Precision = Literal["float32", "bfloat16"]
Schedule = Literal["constant", "cosine"]
Task = Literal["math", "science", "tool", "number"]
Tasks = Annotated[str, _like(r"(math|science|tool|number)(,(math|science|tool|number))*"), "tasks, as in number,tool"]
Size = Annotated[list[Count], Len(2, 2), "[height, width], as in [512,640]"]
Betas = Annotated[list[Annotated[float, Ge(0), Lt(1)]], Len(2, 2), "two numbers in [0, 1), as in [0.9,0.99]"]
Seeds = Annotated[list[Whole], MinLen(1), _ONCE, "a list of whole numbers"]
Lengths = Annotated[list[Count], MinLen(1), _ONCE, "a list of whole numbers, at least 1"]
Widths = Annotated[list[Annotated[int, Ge(2)]], _ONCE, "a list of whole numbers, at least 2"]
Shares = Annotated[list[Share], MinLen(1), _ONCE, "a list of numbers from 0 to 1"]
Parts = Annotated[list[Part], _ONCE, "a list of numbers in (0, 1)"]
Names = Annotated[list[str], MinLen(1), _ONCE, "a list of names, as in [grpo,sft_1]"]
Schedules = Annotated[list[Schedule], MinLen(1), _ONCE, "a list of constant and cosine, as in [cosine]"]
Folders = Annotated[list[str], _ONCE, "a list of folders"]
Sentences = Annotated[list[Text], _ONCE, "a list of instructions, as in [open top drawer]"]
Cameras = Annotated[list[Text], _ONCE, "a list of cameras, as in [wrist_camera]"]
Suite = Annotated[dict[str, Any], "a suite, chosen by env=NAME or env=FILE.yaml"]  # a mapping: what its file says
Section = Annotated[dict[str, Any], "a mapping, as in {a: 1}"]  # the settings of another verb, which this one runs


@cache
def _adapter(kind: Any) -> "TypeAdapter[Any]":
    from pydantic import ConfigDict, TypeAdapter  # a tenth of a second that help can do without

    return TypeAdapter(kind, config=ConfigDict(strict=True))


def holds(kind: Any, value: Any) -> bool:
    """Whether the value is of the kind. A text that reads like a number is none, and neither is a truth value."""
    from pydantic import ValidationError

    try:
        _adapter(kind).validate_python(value)
    except ValidationError:
        return False
    return True


def words(kind: Any) -> str:
    """What is expected of a value.

    >>> words(Count | None)
    'a whole number, at least 1 | null'
    """
    if get_origin(kind) in (Union, UnionType):
        return " | ".join(map(words, get_args(kind)))
    if get_origin(kind) is Literal:
        return " | ".join(get_args(kind))
    if kind is NoneType:
        return "null"
    return kind.__metadata__[-1] + (", each only once" if _ONCE in kind.__metadata__ else "")


def choices(kind: Any) -> list[str]:
    """The values that can be counted; none where they cannot."""
    text = words(kind).replace("true or false", "true | false").removesuffix(" | null")
    return text.split(" | ") if " | " in text else []


def plain_type(kind: Any) -> Any:
    """What the values are before any rule: str, dict, Literal ...; of `kind | null` that of the kind."""
    if get_origin(kind) in (Union, UnionType):
        kind = get_args(kind)[0]
    return get_origin(kind.__origin__) or kind.__origin__


def like(value: Any) -> Any:
    """What a key of which nothing is said may hold: what its default is."""
    if value is None:
        return Annotated[Any, "a value"]
    examples = {list: "a list, as in [1,2]", dict: "a mapping, as in {a: 1}"}
    return Annotated[type(value), examples.get(type(value), f"a value like {value}")]
