"""The figures of the controlled experiment, each in a file of its own."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from vla_razor import plots
from vla_razor.parity_mnist.analysis import PRECISIONS, WIDTH_STUDY, Point, by_method
from vla_razor.parity_mnist.model import WIDTH
from vla_razor.study import figures
from vla_razor.study.measures import renamed

COLOURS = {
    "grpo": "#0072b2",
    "grpo_kl": "#56b4e9",
    "one_zero_reinforce": "#009e73",
    "sft_1": "#d55e00",
    "sft_2": "#e69f00",
    "sft_oracle": "#333333",
    "sft_distilled": "#cc79a7",
    "simpo": "#8c564b",
}
QUADRANTS = ("grpo", "one_zero_reinforce", "sft_1", "simpo")
"""On-policy or offline, with negative examples or without (paper, Figure 4)."""


def draw(folder: Path, points: Sequence[Point], summary: Mapping[str, Any]) -> None:
    """All figures that the rows of a sweep suffice for."""
    points = [point._replace(measures=renamed(point.measures)) for point in points]  # an answer is one token
    usual = [point for point in points if point.width == WIDTH]
    methods = by_method(usual)
    figures.trade_off(folder / "trade_off", methods, COLOURS)
    if quadrants := {name: methods[name] for name in QUADRANTS if name in methods}:
        figures.trade_off(folder / "quadrants", quadrants, COLOURS)
    figures.forgetting(folder / "forgetting_against_kl", usual, COLOURS)
    figures.accuracy(folder / "accuracy_against_kl", usual, COLOURS)
    figures.least_kl(folder / "kl_at_matched_accuracy", methods, COLOURS)
    figures.predictors(folder / "predictors", usual, list(usual[0].measures), COLOURS)
    study = {
        f"width {width}": [p for p in points if (p.method, str(p.width)) == (WIDTH_STUDY, width)]
        for width in summary["widths"]
    }
    if study:
        figures.trade_off(folder / "widths", study, COLOURS)


def draw_dynamics(folder: Path, followed: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Figures of single trainings: columns by name, for each method."""
    with plots.figure(folder / "similarity", 1, 2, (9, 3.8)) as axes:
        for axis, name in zip(axes, ("cka", "cknna"), strict=True):
            for method, columns in followed.items():
                axis.plot(columns["new"], columns[name], ".", color=COLOURS[method], label=method)
            axis.set(title=f"{name.upper()} to the base", xlabel="new-task accuracy", ylim=(None, 1.02))
        axes[0].legend()
    with plots.figure(folder / "updates", 1, 2, (9, 3.8)) as axes:
        for axis, task in zip(axes, ("new", "prior"), strict=True):
            for method, columns in followed.items():
                axis.plot(columns["kl_change"], columns[f"cosine_{task}"], ".", color=COLOURS[method], label=method)
            axis.set(title=f"Updates and the {task} task's gradient", xlabel="change of forward KL (nats)")
        axes[0].set(ylabel="cosine of update and gradient")
        axes[0].legend()


def draw_precision(folder: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """The same trainings in either precision, by learning rate: weights left alone, and what two trainings share."""
    with plots.figure(folder / "precision", 1, 2, (9, 3.8)) as (unchanged, shared):
        for method, (precision, line) in product(
            dict.fromkeys(entry["method"] for entry in entries), zip(PRECISIONS, ("-", "--"), strict=True)
        ):
            own = [entry for entry in entries if entry["method"] == method]
            rates = [entry["learning_rate"] for entry in own]
            style: dict[str, Any] = {"color": COLOURS[method], "linestyle": line, "marker": "."}
            values = {name: [entry[precision][name] for entry in own] for name in ("unchanged", "jaccard", "chance")}
            unchanged.plot(rates, values["unchanged"], label=f"{method}, {precision}", **style)
            shared.plot(rates, values["jaccard"], **style)
            shared.plot(rates, values["chance"], alpha=0.35, **style)
        unchanged.set(title="Weights that a training leaves alone", xlabel="learning rate", xscale="log", ylim=(0, 1))
        shared.set(title="Weights that two trainings share", xlabel="learning rate", xscale="log", ylim=(0, 1))
        shared.set(ylabel="Jaccard index (pale: by chance)")
        unchanged.legend(fontsize=8)
