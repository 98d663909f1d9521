"""The figures of the controlled experiment, each in a file of its own."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vla_razor import plots
from vla_razor.core import forgetting_law, pareto
from vla_razor.parity_mnist.analysis import WIDTH_STUDY, Point, by_method, fittable
from vla_razor.parity_mnist.model import WIDTH

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
    usual = [point for point in points if point.width == WIDTH]
    methods = by_method(usual)
    trade_off(folder / "trade_off", methods)
    if quadrants := {name: methods[name] for name in QUADRANTS if name in methods}:
        trade_off(folder / "quadrants", quadrants)
    forgetting(folder / "forgetting_against_kl", usual)
    accuracy(folder / "accuracy_against_kl", usual)
    predictors(folder / "predictors", usual)
    study = {
        f"width {width}": [p for p in points if (p.method, str(p.width)) == (WIDTH_STUDY, width)]
        for width in summary["widths"]
    }
    if study:
        trade_off(folder / "widths", study)


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


def trade_off(path: Path, groups: Mapping[str, Sequence[Point]]) -> None:
    """Prior against new accuracy; the models near each group's frontier, with the exponential through them (paper,
    Figures 3 and 6).
    """
    with plots.figure(path, 1, 1, (6, 4.2)) as (axis,):
        for index, (name, own) in enumerate(groups.items()):
            colour = COLOURS.get(name, f"C{index}")
            new, prior = np.array([p.new for p in own]), np.array([p.prior for p in own])
            near = pareto.near_frontier(new, prior)
            axis.scatter(new, prior, s=6, color=colour, alpha=0.2, linewidths=0)
            axis.scatter(new[near], prior[near], s=12, color=colour, linewidths=0, label=name)
            if len(np.unique(new[near])) >= 3:
                at = np.linspace(new[near].min(), new[near].max(), 100)
                axis.plot(at, pareto.fit_curve(new[near], prior[near])(at), color=colour)
        axis.set(title="Learned and kept", xlabel="new-task accuracy", ylabel="prior-task accuracy")
        axis.legend(fontsize=8)


def forgetting(path: Path, points: Sequence[Point]) -> None:
    """Prior accuracy lost against forward KL, one curve for all methods (paper, Figure 3, middle)."""
    with plots.figure(path, 1, 1, (6, 4.2)) as (axis,):
        _scatter(axis, points, "forward_kl", "forgotten")
        _fitted(axis, points, "forward_kl")
        axis.set(title="Forgetting against forward KL", xlabel="forward KL (nats)", ylabel="prior accuracy lost")
        axis.legend(fontsize=8)


def accuracy(path: Path, points: Sequence[Point]) -> None:
    """New-task accuracy against forward KL (paper, Figure 3, right)."""
    with plots.figure(path, 1, 1, (6, 4.2)) as (axis,):
        _scatter(axis, points, "forward_kl", "new")
        axis.set(
            title="What the new task costs in KL", xlabel="forward KL (nats)", ylabel="new-task accuracy", xscale="log"
        )
        axis.legend(fontsize=8)


def predictors(path: Path, points: Sequence[Point]) -> None:
    """Prior accuracy lost against every predictor, with the polynomial that R2 speaks of (paper, Table 1)."""
    names = list(points[0].measures)
    with plots.figure(path, 4, 3, (10, 11)) as axes:
        for axis, name in zip(axes, names, strict=True):
            _scatter(axis, points, name, "forgotten")
            law = _fitted(axis, points, name)
            axis.set(title=f"{name}: R2 {law.r2:.2f}" if law else name)
        axes[0].legend(fontsize=7)


def _scatter(axis: Any, points: Sequence[Point], measure: str, what: str) -> None:
    for method in dict.fromkeys(point.method for point in points):
        own = [point for point in points if point.method == method]
        places = [p.measures[measure] for p in own]
        axis.scatter(places, [getattr(p, what) for p in own], s=7, color=COLOURS[method], linewidths=0, label=method)


def _fitted(axis: Any, points: Sequence[Point], measure: str) -> forgetting_law.Law | None:
    if not fittable(points, measure):
        return None
    x, y = np.array([p.measures[measure] for p in points]), np.array([p.forgotten for p in points])
    law = forgetting_law.fit(x, y, [p.run for p in points], resamples=1, generator=np.random.default_rng(0))
    at = np.linspace(x.min(), x.max(), 200)
    axis.plot(at, np.polynomial.Polynomial(law.coefficients)(at), color="black", linewidth=1, linestyle="--")
    return law
