"""The tables of `docs/parity_mnist.md` and of the README's section, in Markdown, from a run of `vla-razor mnist`.

python scripts/parity_mnist_tables.py RUN
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vla_razor.parity_mnist import analysis, dynamics, protocols


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def percent(value: float) -> str:
    return f"{value:.1%}"


def with_interval(found: dict[str, float | None] | None, key: str = "r2", sign: str = "") -> str:
    """Empty where too few runs gave no value, or no interval of it."""
    if not found or found[key] is None:
        return ""
    value = f"{found[key]:{sign}.2f}"
    return value if found["low"] is None else f"{value} [{found['low']:{sign}.2f}, {found['high']:{sign}.2f}]"


def claims(summary: dict[str, Any]) -> str:
    rows = [[c.text, c.paper, c.ours, "yes" if c.agrees else "**no**"] for c in analysis.claims(summary)]
    return table(["claim", "the paper", "here", "agrees"], rows)


def methods(summary: dict[str, Any]) -> str:
    level = f"{summary['matched_accuracy']:.0%}"
    rows = [
        [
            name,
            str(own["models"]),
            percent(own["best_new"]),
            percent(own["forgotten_at_match"]),
            f"{own['forward_kl_at_match']:.2f}",
            f"{own['updates']['weight_rank']:.0%}",
            f"{own['updates']['weight_sparsity']:.0%}",
        ]
        for name, own in summary["methods"].items()
    ]
    head = ["method", "models", "best accuracy on the digits", f"lost at {level}", "forward KL there, nats", "rank"]
    return table([*head, "weights unchanged"], rows)


def teachers(summary: dict[str, Any]) -> str:
    rows = [
        [f"seed {one['seed']}", name, percent(p["new"]), percent(p["forgotten"]), f"{p['forward_kl']:.2f}"]
        for one in summary["teachers"]
        for name, p in (("teacher (GRPO)", one), ("nearest sft_distilled", one["student"]))
    ]
    return table(["base", "policy", "accuracy on the digits", "clothes lost", "forward KL, nats"], rows)


def predictors(summary: dict[str, Any]) -> str:
    ranges = summary["predictors_by_range"]
    names = {bound: f"up to {bound.removeprefix('forward_kl<=')} nats" for bound in ranges} | {
        "forward_kl<=inf": "all models"
    }
    own = summary["predictors_of_paper_methods"]
    rows = [
        [name, f"{analysis.PAPER[name]:.2f}" if name in analysis.PAPER else "", with_interval(own.get(name))]
        + [with_interval(found.get(name)) for found in ranges.values()]
        for name in analysis.PREDICTORS
    ]
    return table(["predictor", "the paper", "the paper's methods", *names.values()], rows)


def precision(summary: dict[str, Any]) -> str:
    rows = []
    for entry in summary["precision"]:
        for name in analysis.PRECISIONS:
            one = entry[name]
            cells = [percent(one["new"]), percent(one["forgotten"]), f"{one['forward_kl']:.3g}"]
            cells += [f"{one[key]:.0%}" for key in ("unchanged", "unchanged_rounded")]
            cells += [analysis.cell(one[key]) for key in ("jaccard", "chance", "chance_by_size")]
            rows.append([entry["method"], f"{entry['learning_rate']:g}", name, *cells])
    head = ["method", "rate", "trained in", "digits", "clothes lost", "forward KL", "unchanged", "rounded afterwards"]
    return table([*head, "Jaccard", "by chance", "by chance, by size"], rows)


def updates(summary: dict[str, Any]) -> str:
    rows = [
        [method, f"the {task} task", kind.title()]
        + [with_interval(by_shift.get(shift, {}).get(kind), "value", "+") for shift in dynamics.SHIFTS]
        for method, by_task in summary["updates"].items()
        for task, by_shift in by_task.items()
        for kind in dynamics.COEFFICIENTS
    ]
    return table(["method", "gradient of", "", "growth of forward KL", "KL from the policy before"], rows)


def others(summary: dict[str, Any]) -> str:
    rows = []
    for name, r2 in summary["protocols"].items():
        best = protocols.best(r2)
        cells = [f"{r2[measure]:.2f}" if measure in r2 else "" for measure in protocols.SHOWN]
        rows.append([name, *cells, f"{best}, {r2[best]:.2f}"])
    return table(["protocol", *protocols.SHOWN, "best"], rows)


TABLES = {
    "The paper's claims": claims,
    "Beyond the paper's ParityMNIST": lambda summary: table(["", "here"], analysis.beyond(summary)),
    "Methods": methods,
    "A teacher and the student nearest to it": teachers,
    "Predictors": predictors,
    "The same trainings in either precision": precision,
    "Single updates": updates,
    "Other protocols": others,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run's folder")
    summary = json.loads((parser.parse_args().run / "summary.json").read_text())
    print("\n\n".join(f"## {title}\n\n{make(summary)}" for title, make in TABLES.items()))


if __name__ == "__main__":
    main()
