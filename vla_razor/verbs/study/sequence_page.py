"""The page of a study of sequences in a report: the plot, each setting's matrix as a heat table, and its measures."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vla_razor import plots
from vla_razor.config.groups import SEQUENCES
from vla_razor.errors import UserError
from vla_razor.runs import read_config
from vla_razor.study import figures, law
from vla_razor.study.measures import FORWARD_KL
from vla_razor.verbs.study import transfer
from vla_razor.verbs.study.comparison import SCALES, Scale


class Heat(NamedTuple):
    """A matrix of success: its columns and, by row, their rates; `own` is the column that a row's stage learned."""

    name: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Mapping[str, Any]], int | None]]


class SequencePage(NamedTuple):
    """What there is to show. `figure` is an SVG element, `measures` the rows of a table with a column for each setting,
    and `laws` says in lines whether forgetting follows forward KL.
    """

    name: str
    verb: str
    figure: str
    heats: Sequence[Heat]
    measures: Sequence[tuple[str, Sequence[str]]]
    laws: Sequence[str]

    def __str__(self) -> str:
        return (
            f"{self.name}, {self.verb.replace('_', ' ')}: the matrices of {', '.join(heat.name for heat in self.heats)}"
        )


def is_one(folder: Path) -> bool:
    """Whether a folder holds sequences that have ended."""
    known = (folder / "config.yaml").is_file() and (folder / "summary.json").is_file()
    return known and read_config(folder / "config.yaml").verb in SEQUENCES


def read(folder: Path, name: str, figure: Path) -> SequencePage:
    """The page of the sequences in `folder`, with their plot drawn to `figure`, a path without a suffix.

    Raises UserError where the summary cannot be read.
    """
    config = read_config(folder / "config.yaml")
    scale: Scale = SCALES["language" if config.verb.startswith("llm_") else "robot"]
    try:
        found = json.loads((folder / "summary.json").read_text())
        entries = found["settings"]
        figures.sequences(figure, entries)
        heats = [_heat(setting, entry) for setting, entry in entries.items()]
        rows = transfer.measure_rows(scale, entries)
        laws = [
            f"{transfer.KINDS[kind]}: R2 {law.in_words(own[FORWARD_KL])}"
            for kind, own in found["predictors"].items()
            if FORWARD_KL in own
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder}: summary.json is not what vla-razor writes ({error!r}).") from error
    svg = plots.inline_svg(figure.with_suffix(".svg"), figure.name)
    return SequencePage(name, config.verb, svg, heats, rows, laws)


def _heat(name: str, entry: Mapping[str, Any]) -> Heat:
    columns, rows = transfer.matrix_rows(entry)
    return Heat(
        name, columns, [(label, rates, stage - 1 if stage else None) for stage, (label, rates) in enumerate(rows)]
    )
