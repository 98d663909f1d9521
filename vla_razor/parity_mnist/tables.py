"""The tables of the controlled experiment: the terminal, table.txt and the report show the same ones."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from vla_razor.parity_mnist import analysis, dynamics, protocols
from vla_razor.study import law


class Sheet(NamedTuple):
    """A table as text; `note` is what a reader of the report is told of it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def sheets(summary: Mapping[str, Any]) -> list[Sheet]:
    """The tables for which summary.json has numbers."""
    level = f"{summary['matched_accuracy']:.0%}"
    methods = [
        [
            name,
            str(m["models"]),
            f"{m['best_new']:.1%}",
            f"{m['forgotten_at_match']:.1%}",
            f"{m['forward_kl_at_match']:.2f}",
        ]
        for name, m in summary["methods"].items()
    ]
    head = ["method", "models", "best accuracy\non the new task", f"prior accuracy lost\nat {level} there"]
    found = [Sheet("What each method learns and loses", [*head, "forward KL,\nnats"], methods)]

    # The paper fitted the methods that it ran. Over all methods, and over the models that moved less, R2 may rank the
    # predictors otherwise.
    ranges = {"the paper's\nmethods": summary["predictors_of_paper_methods"]} | summary["predictors_by_range"]
    names = [
        name.replace("forward_kl<=inf", "all models").replace("forward_kl<=", "forward KL up to ") for name in ranges
    ]
    predictors = [
        [name, f"{analysis.PAPER[name]:.2f}" if name in analysis.PAPER else ""]
        + [law.in_words(own[name]) if name in own else "" for own in ranges.values()]
        for name in analysis.PREDICTORS
    ]
    title = "R2 of a second-degree polynomial [95%]"
    found.append(Sheet(title, ["predictor of forgetting", "paper", *names], predictors))

    others = []
    for name, r2 in summary["protocols"].items():
        best = protocols.best(r2)
        cells = [f"{r2[measure]:.2f}" if measure in r2 else "" for measure in protocols.SHOWN]
        others.append([name, *cells, f"{best}, {r2[best]:.2f}"])
    head = ["protocol", *(name.replace("_", " ") for name in (*protocols.SHOWN, "best"))]
    found.append(Sheet("R2 where the sweep or the fit is another", head, others))

    if summary["teachers"]:
        teachers = [
            [f"seed {one['seed']}", name, f"{p['new']:.1%}", f"{p['forgotten']:.1%}", f"{p['forward_kl']:.2f}"]
            for one in summary["teachers"]
            for name, p in (("teacher", one), ("sft_distilled", one["student"]))
        ]
        head = ["base", "policy", "new task", "prior accuracy lost", "forward KL,\nnats"]
        found.append(Sheet("A teacher and the student nearest to it", head, teachers))

    precision = []
    for entry, name in product(summary["precision"], analysis.PRECISIONS):
        one = entry[name]
        cells = [f"{one['new']:.1%}", f"{one['forgotten']:.1%}", f"{one['forward_kl']:.3f}"]
        cells += [f"{one[key]:.1%}" for key in ("unchanged", "unchanged_rounded")]
        cells += [analysis.cell(one[key]) for key in ("jaccard", "chance", "chance_by_size")]
        precision.append([entry["method"], f"{entry['learning_rate']:g}", name, *cells])
    head = ["method", "learning\nrate", "precision", "new task", "lost", "forward KL,\nnats", "weights\nunchanged"]
    head += ["... rounded\nafterwards", "Jaccard", "by chance", "... with as many\nof each size"]
    note = (
        "The same base, images and draws; in bfloat16 weights, gradients and AdamW's averages are kept in it, and "
        "every update is rounded to it. Means over three orders of the images. Jaccard: the weights that two such "
        "trainings both changed, of those that either did; beside it what chance would give for as many changed "
        "weights in each tensor, and for as many of each size."
    )
    found.append(Sheet("Trained in either precision", head, precision, note))

    updates = []
    for method, by_task in summary["updates"].items():
        for (task, by_shift), kind in product(by_task.items(), dynamics.COEFFICIENTS):
            known = [by_shift.get(shift, {}).get(kind) for shift in dynamics.SHIFTS]
            cells = [f"{c['value']:+.2f} [{c['low']:+.2f}, {c['high']:+.2f}]" if c else "" for c in known]
            updates.append([method, f"the {task} task", kind.title(), *cells])
    title = "Correlation of an update's KL and its cosine [95%]"
    note = (
        "The correlation, over the updates of one training, of how far the update moved the policy on the new task and "
        "of its cosine with the gradient of a task's loss; 95% intervals by a bootstrap of blocks."
    )
    head = ["method", "gradient of", "", "growth of\nforward KL", "KL from the policy\nbefore it"]
    return [*found, Sheet(title, head, updates, note)]
