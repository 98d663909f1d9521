"""How far a run is, and how much longer it will take."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TimeRemainingColumn(),
)


@contextmanager
def progress(title: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
    """A bar with the time remaining; the callable it gives advances it by one and shows numbers beside it."""
    first = os.environ.get("RANK", "0") == "0"  # of a distributed run's processes, one draws
    with Progress(*COLUMNS, TextColumn("{task.fields[numbers]}"), disable=not first) as bar:
        task = bar.add_task(title, total=total, completed=done, numbers="")

        def advance(**numbers: float) -> None:
            bar.update(task, advance=1, numbers="  ".join(f"{name} {value:.3g}" for name, value in numbers.items()))

        yield advance
