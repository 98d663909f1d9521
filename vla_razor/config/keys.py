"""A verb's keys are the attributes of its class: its own, and those of the classes that it is made of. Where it has
another default than they have, it says the key again, and inherits what the key means.

The classes are no pydantic models: `--help` reads them all, and importing pydantic takes longer than that.
"""

from functools import cache
from typing import Any, NamedTuple

from vla_razor.config.kinds import Device, Logger, Text, Whole


class Key(NamedTuple):
    """One key of one verb; `home` is the class whose default it is, `before` what it was before there was the key."""

    name: str
    kind: Any
    default: Any
    meaning: str
    unit: str
    before: Any
    home: "type[Verb]"


class _Said(NamedTuple):
    default: Any
    meaning: str = ""
    unit: str = ""
    before: Any = ...


def key(default: Any, meaning: str = "", unit: str = "", before: Any = ...) -> Any:
    """A key's default, what it means, and what it is counted or measured in; its type stands before it. `before` is for
    runs that were begun when there was no such key, and are gone on with now.
    """
    return _Said(default, meaning, unit, before)


class Verb:
    """Every verb"""

    out: Text | None = key(None, "run folder; null: runs/VERB-ENV-DATE-TIME")
    logger: Logger = key("tensorboard", "where scalars go beside metrics.jsonl")

    @classmethod
    @cache
    def definitions(cls) -> dict[str, Key]:
        """The keys by name: its own first, then those of what it is made of, from the nearest."""
        found: dict[str, Key] = {}
        for home in (part for part in cls.__mro__ if issubclass(part, Verb)):
            for name, kind in vars(home).get("__annotations__", {}).items():
                said = vars(home)[name]
                said = said if isinstance(said, _Said) else _Said(said)
                first = found.setdefault(name, Key(name, kind, *said, home))
                if not first.meaning:
                    found[name] = first._replace(meaning=said.meaning, unit=said.unit, before=said.before)
        return found


class Computing(Verb):
    """Every verb that computes"""

    seed: Whole = key(0, "of everything that is drawn at random")
    device: Device = key("auto", "auto is a GPU where there is one")
