"""The README's tables of the demo, in Markdown, from a finished run of `vla-razor demo`.

python scripts/demo_table.py RUN
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vla_razor.statistics import PRIMARY, READINGS, Difference, Success, clustered, pooled, pooled_rate
from vla_razor.tables import in_words, shown
from vla_razor.verbs.study.comparison import hits_in

IN_WORDS = {"success_once": "", "success_at_end": ", at the end"}


def table(summary: Mapping[str, Any]) -> Iterator[str]:
    """A line each: success by reading, with counts and intervals, changes from the base, and forward KL."""
    policies = summary["policies"]
    yield "| | " + " | ".join(policies) + " |"
    yield "| --- |" + " --- |" * len(policies)
    for task in policies["base"]["new_task"]:
        yield from rates(f"**{task}**", {name: [entry["new_task"][task]] for name, entry in policies.items()})
    yield from changes(summary, "new")
    for family in ("open", "close"):
        own = {
            name: [success for task, success in entry["prior_tasks"].items() if task.startswith(family)]
            for name, entry in policies.items()
        }
        yield from rates(f"{family} drawers", own)
    yield from rates("**all prior tasks**", {name: [entry["prior_mean"]] for name, entry in policies.items()})
    yield from changes(summary, "prior")
    for name, label in (("per_action", "forward KL, nats an action"), ("sharpening", "... of which sharpening")):
        yield line(label, (f"{entry['forward_kl'][name]:.2f}" for entry in policies.values()))


def rates(label: str, successes: Mapping[str, list[Success]]) -> Iterator[str]:
    """A line a reading; the successes of a policy are counted together."""
    for reading in READINGS:
        found = [pooled(own)[reading] for own in successes.values()]
        yield line(label + IN_WORDS[reading], (shown(rate, ": ") for rate in found))


def changes(summary: Mapping[str, Any], kind: str) -> Iterator[str]:
    """A line a reading."""
    for reading in READINGS:
        found = [by_kind[kind][reading] for by_kind in summary["changes"].values()]
        yield line("... change" + IN_WORDS[reading], ("", *(in_words(Difference(**one)) for one in found)))


def kept(matched: Mapping[str, Any]) -> Iterator[str]:
    """How much more of the prior tasks one method has kept than another at equal success on the new task."""
    for one, others in matched["prior_kept_more"].items():
        for other, found in others.items():
            yield f"- {one} against {other}: {in_words(Difference(**found))}"


def by_seed(run: Path) -> Iterator[str]:
    """The primary reading of the new task for each policy, as they were evaluated: one seed at a time."""
    for folder in sorted(run.glob("new*")):
        for policy, hits in hits_in(folder).items():
            rate = pooled_rate(map(clustered, hits[PRIMARY].values()))
            yield f"- {Path(policy).parent.parent.name or policy}: {shown(rate, ': ')}"


def line(label: str, cells: Any) -> str:
    return "| " + " | ".join([label, *cells]) + " |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished demo")
    arguments = parser.parse_args()
    summary = json.loads((arguments.run / "summary.json").read_text())
    if matched := summary.get("matched"):
        print(f"Where each first reaches {matched['level']:.0%} on the new task, which all reach: {matched['steps']}\n")
        print("\n".join(table(matched)))
        print()
        print("\n".join(kept(matched)))
        print("\nAt their ends:\n")
    print("\n".join(table(summary)))
    print()
    print("\n".join(by_seed(arguments.run)))
