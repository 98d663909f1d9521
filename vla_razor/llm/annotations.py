"""Annotations: for each training prompt a teacher's right response, and for SimPO a wrong one.

`annotations.jsonl` in the run folder of `vla-razor llm annotate` holds one object per line, in the order in which the
prompts were finished. A line counts once its newline is written.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vla_razor.errors import UserError
from vla_razor.files import full_disk_reported
from vla_razor.llm.rows import Row, from_lines
from vla_razor.statistics import wilson

FILE = "annotations.jsonl"


class Annotation(NamedTuple):
    """What a teacher answered to one training prompt.

    `prompt`, `gold` and `group` are the task's; `chosen` is the first right response and `rejected` the first wrong
    one, None where there was none or none was wanted. `samples` responses were drawn for it. `failures` counts, by
    kind, requests that had to be repeated and responses that were empty or cut off.
    """

    prompt: str
    gold: str
    group: str
    chosen: str | None
    rejected: str | None
    samples: int
    teacher: str
    failures: dict[str, int]


def append(path: Path, annotation: Annotation) -> None:
    """Add a line, on the disk when this returns. Raises RunFailed where the disk is full."""
    with full_disk_reported(path), path.open("ab") as file:
        file.write(json.dumps(annotation._asdict()).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read(folder: Path) -> list[Annotation]:
    """The annotations in a run's folder. Raises UserError where there are none, or a line cannot be understood."""
    path = folder / FILE
    if not path.is_file():
        raise UserError(f"{folder} holds no {FILE}: expected a folder that `vla-razor llm annotate` wrote.")
    if _whole(path) < path.stat().st_size:
        raise UserError(f"{path}: the last line is cut off. Its run goes on with: vla-razor resume {folder}")
    return [annotation for _, annotation in _annotations(path)]


def take_up(path: Path, golds: Mapping[str, str]) -> list[Annotation]:
    """The annotations that an interrupted run has kept, none at first. A last line that a kill cut off is removed from
    the file.

    `golds` maps every prompt of the task to its gold answer. Raises UserError for an annotation of anything else.
    """
    if not path.exists():
        return []
    os.truncate(path, _whole(path))  # a line counts once its newline is written
    found = list(_annotations(path))
    for where, annotation in found:
        if golds.get(annotation.prompt) != annotation.gold:
            remedy = "The data have changed since the run began: give the earlier data_dir=, or start another run."
            raise UserError(f"{where}: no training prompt of the task has this prompt and gold. {remedy}")
    return [annotation for _, annotation in found]


def coverage(annotations: Sequence[Annotation], prompts: int) -> dict[str, Any]:
    """For summary.json: for how many prompts there is a right response, and for how many a wrong one too."""
    covered = sum(annotation.chosen is not None for annotation in annotations)
    pairs = sum(None not in (annotation.chosen, annotation.rejected) for annotation in annotations)
    failures: Counter[str] = Counter()
    for annotation in annotations:
        failures.update(annotation.failures)
    return {
        "prompts": prompts,
        "covered": wilson(covered, prompts),
        "pairs": wilson(pairs, prompts),
        "samples": sum(annotation.samples for annotation in annotations),
        "failures": dict(failures.most_common()),
    }


def _whole(path: Path) -> int:
    """The length in bytes of the lines that end in a newline."""
    try:
        return path.read_bytes().rfind(b"\n") + 1
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None


def _annotations(path: Path) -> Iterator[tuple[str, Annotation]]:
    """Each with its place in the file."""
    places: dict[str, str] = {}
    for row in from_lines(path):
        texts: dict[str, Any] = {name: _text(row, name) for name in ("prompt", "gold", "group", "teacher")}
        texts |= {name: None if row.get(name) is None else _text(row, name) for name in ("chosen", "rejected")}
        kinds = row.get("failures")
        if not isinstance(kinds, Mapping):
            raise UserError(f"{row.where}: field 'failures' is {kinds!r}, expected an object of counts.")
        failures = {kind: _count(row, "failures", kind) for kind in kinds}
        annotation = Annotation(**texts, samples=_count(row, "samples"), failures=failures)
        if earlier := places.get(annotation.prompt):
            raise UserError(f"{row.where}: the same prompt as in {earlier}. Remove one of the two.")
        places[annotation.prompt] = row.where
        yield row.where, annotation


def _text(row: Row, name: str) -> str:
    """The text with the spaces around it: prompts are compared, and must stay as they are."""
    row.text(name)
    return row.get(name)


def _count(row: Row, *path: str) -> int:
    value = row.get(*path)
    if type(value) is not int or value < 0:
        raise UserError(f"{row.where}: field {'.'.join(path)!r} is {value!r}, expected a whole number, at least 0.")
    return value
