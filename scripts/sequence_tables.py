"""The tables of a study of sequences, in Markdown, from its summary, which --json keeps beside the document.

python scripts/sequence_tables.py DIR [--json docs/sequence_runs.json]
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vla_razor.files import write_json
from vla_razor.study import law
from vla_razor.study.measures import FORWARD_KL
from vla_razor.verbs.study import transfer
from vla_razor.verbs.study.comparison import SCALES


def measures(settings: Mapping[str, Any], domain: str) -> Iterator[str]:
    """A line for each measure, a column for each setting."""
    yield "| | " + " | ".join(entry["method"] for entry in settings.values()) + " |"
    yield "| --- |" + " --- |" * len(settings)
    for label, cells in transfer.measure_rows(SCALES[domain], settings):
        yield f"| {label} | " + " | ".join(cells) + " |"


def matrices(settings: Mapping[str, Any]) -> Iterator[str]:
    """Every setting's matrix: a line for each stage, after that of the base."""
    for entry in settings.values():
        columns, rows = transfer.matrix_rows(entry)
        yield f"| {entry['method']}, after | " + " | ".join(name.replace("_", " ") for name in columns) + " |"
        yield "| --- |" + " --- |" * len(columns)
        for label, rates in rows:
            yield f"| {label.replace('_', ' ')} | " + " | ".join(map(transfer.brief, rates)) + " |"
        yield ""


def laws(predictors: Mapping[str, Any]) -> Iterator[str]:
    """A line for each way to set forgetting against forward KL, over the stages of all sequences."""
    yield from ("| | stages of | R2 [95% over sequences] | Kendall's tau |", "| --- | --- | --- | --- |")
    for kind, own in predictors.items():
        if found := own.get(FORWARD_KL):
            runs = f"{found['runs']} sequences"
            yield f"| {transfer.KINDS[kind]} | {runs} | {law.in_words(found)} | {found['kendall_tau']:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="folder of a finished sequence, or the file that --json wrote")
    parser.add_argument("--json", type=Path, help="keep the numbers in this file")
    arguments = parser.parse_args()
    path = arguments.study / "summary.json" if arguments.study.is_dir() else arguments.study
    summary = json.loads(path.read_text())
    if arguments.json:
        kept = ("schema", "verb", "settings", "predictors", "failed", "versions", "git_commit", "wall_seconds")
        write_json(arguments.json, {key: summary[key] for key in kept})
    domain = "language" if summary["verb"].startswith("llm_") else "robot"
    for lines in (measures(summary["settings"], domain), matrices(summary["settings"]), laws(summary["predictors"])):
        print("\n".join(lines), end="\n\n")


if __name__ == "__main__":
    main()
