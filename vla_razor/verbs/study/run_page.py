"""The page of a single run of any verb in a report: its metrics as curves, its summary as a table."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vla_razor import plots
from vla_razor.errors import UserError
from vla_razor.runs import read_config, resumed_as
from vla_razor.statistics import READINGS
from vla_razor.study import measures
from vla_razor.study.measures import MEASURES
from vla_razor.tables import by_task, shown

PANELS = {
    "success": ("success", "reward"),
    "forward KL": ("forward_kl_per_action", "forward_kl_per_completion", "forward_kl_per_token"),
    "entropy": ("entropy", "sampled_entropy"),
    "loss": ("loss",),
}
"""The panels, and the names in metrics.jsonl that each may show; the first one that is there is drawn."""
Cells = Mapping[str, Mapping[str, str]]
"""Cells of the table, by policy and row."""


class RunPage(NamedTuple):
    """What there is to show of a run. `curves` are the panels of its `figure` (an SVG element), and `left_out` says
    what is missing, one line each.
    """

    name: str
    verb: str
    cells: Cells
    curves: list[str]
    figure: str
    left_out: list[str]

    @property
    def rows(self) -> list[str]:
        """The labels of the table's rows."""
        return list(dict.fromkeys(label for own in self.cells.values() for label in own))

    def __str__(self) -> str:
        parts = [f"curves of {', '.join(self.curves)}"] if self.curves else []
        parts += ["a table of its summary"] if self.cells else []
        return f"{self.name}, a run of {self.verb.replace('_', ' ')}: {' and '.join(parts) or 'nothing to show'}"


def read(folder: Path, name: str, figure: Path) -> RunPage:
    """The page of the run in `folder`, with its curves drawn to `figure`, a path without a suffix.

    Raises UserError where there is no run, or a file of it cannot be read.
    """
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: there is no results table and no run; expected a folder that vla-razor wrote.")
    config = read_config(folder / "config.yaml")
    try:
        rows = measures.read_rows(folder) if (folder / "metrics.jsonl").is_file() else []
        finished = (folder / "summary.json").is_file()
        cells = _cells(json.loads((folder / "summary.json").read_text()), config) if finished else {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder}: metrics.jsonl or summary.json is not what vla-razor writes ({error!r}).") from error
    logged = Counter(key for row in rows for key, value in row.items() if value is not None)
    known = {panel: next((key for key in keys if logged[key] > 1), "") for panel, keys in PANELS.items()}
    curves = {panel: key for panel, key in known.items() if key}
    left_out = []
    if not finished:
        left_out.append(
            f"no summary: the run has not finished; go on with: vla-razor resume {resumed_as(folder, config)}"
        )
    elif not cells:
        left_out.append(f"no table: the summary of {config.verb.replace('_', ' ')} tells no success and no forward KL")
    if absent := [panel for panel in known if panel not in curves]:
        left_out.append(f"no curve of {', '.join(absent)}: not logged at two steps or more")
    svg = ""
    if curves:
        plots.run_curves(figure, rows, curves)
        svg = plots.inline_svg(figure.with_suffix(".svg"), figure.name)
    return RunPage(name, config.verb, cells, list(curves), svg, left_out)


def _cells(summary: Mapping[str, Any], config: Mapping[str, Any]) -> Cells:
    found: dict[str, dict[str, str]] = {}
    for name, entry in summary.get("policies", {}).items():
        rates = {
            label: shown(success[reading])
            for task, success in by_task(entry).items()
            for reading, label in zip(READINGS, (task, f"{task}, at the end"), strict=True)
        }
        found[name] = rates | _moved(entry["forward_kl"] or {})
    if "policies" in summary:
        return {name: own for name, own in found.items() if own}
    # A language model: answers before and after a training, or the scores of an evaluation.
    found = {name: {"right answers": shown(summary[name])} for name in ("base", "tuned") if name in summary}
    if summary.get("forward_kl"):
        found.setdefault("tuned", {}).update(_moved(summary["forward_kl"]))
    if "new_task" in summary:
        scores = {f"{config['task']} (new task)": summary["new_task"], **summary["prior_tasks"]}
        scores |= {"all prior tasks": summary["prior_mean"]} if "prior_mean" in summary else {}
        found["model"] = {task: f"{one['score']:.1%} ± {one['standard_error']:.1%}" for task, one in scores.items()}
    return found


def _moved(found: Mapping[str, Any]) -> dict[str, str]:
    return {str(MEASURES[name]): f"{value:.4g}" for name, value in measures.logged(found).items() if value is not None}
