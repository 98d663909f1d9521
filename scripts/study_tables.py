"""The tables of docs/study.md, in Markdown, from the summary of a finished `vla-razor report`.

python scripts/study_tables.py REPORT
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vla_razor.statistics import Difference
from vla_razor.study import law, table
from vla_razor.study.measures import FORWARD_KL, MEASURES
from vla_razor.study.table import Result
from vla_razor.tables import in_words


def predictors(domain: Mapping[str, Any]) -> Iterator[str]:
    """A line a measure, the best first."""
    yield from ("| measure | R2 [95% over runs] | Kendall's tau |", "| --- | --- | --- |")
    for name, found in sorted(domain["predictors"].items(), key=lambda item: -item[1]["r2"]):
        shown = f"**{MEASURES[name]}**" if name == FORWARD_KL else str(MEASURES[name])
        yield f"| {shown} | {law.in_words(found)} | {found['kendall_tau']:.2f} |"


def ends(results: Sequence[Result]) -> Iterator[str]:
    """A line a method and learning rate: where its runs ended, the mean over them and the range."""
    lines = (
        "| method | learning rate | runs | the can | prior success lost | forward KL, nats an action |",
        "|" + " --- |" * 6,
    )
    yield from lines
    by_rate: dict[tuple[str, float], dict[str, Result]] = {}
    for result in sorted(results, key=lambda one: one.step):
        by_rate.setdefault((result.method, result.learning_rate or 0.0), {})[result.run] = result
    for (method, rate), runs in sorted(by_rate.items()):
        last = list(runs.values())
        can, lost = ranged([one.new for one in last], ".0%"), ranged([one.forgotten for one in last], "+.0%")
        # The two parts are in nats an action, and add up to forward KL.
        moved = ranged([one.measures["sharpening"] + one.measures["displacement"] for one in last], ".1f")
        yield f"| {method} | {rate:g} | {len(last)} | {can} | {lost} | {moved} |"


def ranged(values: Sequence[float], form: str) -> str:
    """The mean, and the range where there are several."""
    mean = format(sum(values) / len(values), form)
    return f"{mean} ({min(values):{form}} to {max(values):{form}})" if len(values) > 1 else mean


def among(results: Sequence[Result]) -> Iterator[str]:
    """A line a group of methods: how well forward KL predicts forgetting among their policies alone."""
    methods = list(dict.fromkeys(result.method for result in results))
    taught = [method for method in methods if method.startswith("sft")]
    yield from ("| policies of | policies | R2 [95% over runs] | Kendall's tau |", "| --- | --- | --- | --- |")
    for group in [methods, taught, *([method] for method in methods)]:
        own = [result for result in results if result.method in group]
        # Of too few policies there is no law.
        for found in law.predictors(own, [FORWARD_KL]).values():
            yield f"| {', '.join(group)} | {len(own)} | {law.in_words(found)} | {found['kendall_tau']:.2f} |"


def residuals(domain: Mapping[str, Any]) -> Iterator[str]:
    """A line a method: by how much it forgets more than the law of all says."""
    yield from ("| method | forgotten more than the law says [95% over runs] |", "| --- | --- |")
    for name, found in domain["residuals"].items():
        yield f"| {name} | {in_words(Difference(**found))} |"


def matched(domain: Mapping[str, Any]) -> Iterator[str]:
    """A line a level of the new task: what the policy of each method lost there that lost least."""
    names = list(domain["frontiers"])
    yield "| the can, at least | " + " | ".join(names) + " |"
    yield "| --- |" + " --- |" * len(names)
    for level, by_name in domain["matched"].items():
        cells = (f"{by_name[name]['forgotten']:+.1%}" if name in by_name else "" for name in names)
        yield f"| {level} | " + " | ".join(cells) + " |"


def held_out(domain: Mapping[str, Any]) -> Iterator[str]:
    """A line a part that the law had not seen."""
    yield from (
        "| held out | runs | mean absolute error | bias | runs within the 90% interval |",
        "| --- |" + " --- |" * 4,
    )
    for kind, parts in domain["validation"].get(FORWARD_KL, {}).items():
        for name, one in parts.items():
            error, bias = f"{100 * one['mean_absolute_error']:.1f} points", f"{100 * one['bias']:+.1f}"
            covered = "no interval" if one["covered"] is None else f"{one['covered']:.0%}"
            yield f"| {kind} {name} | {one['runs']} | {error} | {bias} | {covered} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    report = parser.parse_args().report
    summary = json.loads((report / "summary.json").read_text())
    runs = OmegaConf.load(report / "config.yaml").runs
    results = table.read([Path(folder) for folder in runs if (Path(folder) / table.FILE).is_file()]).results
    for part in (ends, among):
        print("\n".join(part(results)) + "\n")
    for name, domain in summary["domains"].items():
        print(f"{name}: {domain['policies']} policies\n")
        for part in (predictors, residuals, matched, held_out):
            print("\n".join(part(domain)) + "\n")


if __name__ == "__main__":
    main()
