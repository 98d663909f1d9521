"""How success is printed: rates, differences, and the table of an evaluation."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vla_razor.statistics import READINGS, Difference, Rate


def report(
    console: Console, folder: Path, entries: Mapping[str, Mapping[str, Any]], comparison: Mapping[str, Any] | None
) -> None:
    """Two lines for each task and for all prior tasks, success once in an episode and at the end; with two policies,
    the paired differences.
    """
    table = Table("", title=f"Success once in an episode, and at the end [Wilson 95%] in {folder}")
    for name in entries:
        table.add_column(_short(name), justify="right")
    if comparison:
        table.add_column("difference\n(paired 95%)", justify="right")
    for task in by_task(next(iter(entries.values()))):
        for reading, label in zip(READINGS, (task, "  at the end"), strict=True):
            cells = [shown(by_task(entry)[task][reading]) for entry in entries.values()]
            if comparison:
                pair = comparison["tasks"].get(task, comparison["prior_mean"])
                cells.append(in_words(Difference(**pair[reading])) if pair["episodes"] else "every pair was lost")
            table.add_row(label, *cells)
    console.print(table)


def shown(rate: Rate, gap: str = "  ") -> str:
    """A rate as it is printed, with its counts: 57 of 91  63% [54, 71]."""
    interval = f"[{100 * rate['low']:.0f}, {100 * rate['high']:.0f}]"
    return f"{rate['successes']} of {rate['episodes']}{gap}{rate['rate']:.0%} {interval}"


def in_words(found: Difference) -> str:
    """A difference as it is printed: +10% [-5, +30]."""
    return f"{found.difference:+.0%} [{100 * found.low:+.0f}, {100 * found.high:+.0f}]"


def by_task(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Success by task, and that of all prior tasks where there are several."""
    prior = {"all prior tasks": entry["prior_mean"]} if len(entry["prior_tasks"]) > 1 else {}
    return {**entry["new_task"], **entry["prior_tasks"], **prior}


def _short(name: str, length: int = 20) -> str:
    """The end of a long name says more than its beginning."""
    return name if len(name) <= length else f"…{name[1 - length :]}"
