"""A verb's keys are the attributes of its class: its own, and those of the classes that it is made of. Where it has
another default than they have, it says the key again, and inherits what the key means.
"""

from functools import cache
from typing import Any, NamedTuple

from vla_razor.config.kinds import Device, Logger, Text, Whole


class Key(NamedTuple):
    """One key of one verb; `home` is the class whose default it is."""

    name: str
    kind: Any
    default: Any
    meaning: str
    unit: str
    home: "type[Verb]"


class _Said(NamedTuple):
    default: Any
    meaning: str
    unit: str


def key(default: Any, meaning: str = "", unit: str = "") -> Any:
    """A key's default, what it means, and what it is counted or measured in; its type stands before it."""
    return _Said(default, meaning, unit)


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
                default, meaning, unit = said if isinstance(said, _Said) else (said, "", "")
                first = found.setdefault(name, Key(name, kind, default, meaning, unit, home))
                if not first.meaning:
                    found[name] = first._replace(meaning=meaning, unit=unit)
        return found


class Computing(Verb):
    """Every verb that computes"""

    seed: Whole = key(0, "of everything that is drawn at random")
    device: Device = key("auto", "auto is a GPU where there is one")
