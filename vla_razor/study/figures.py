"""The figures of a study, the same for every domain: trade-off, law, predictors of forgetting, prior tasks.

A point is any object with a method, a run, `new`, `prior` and `forgotten` in [0, 1], and `measures` by name.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from vla_razor import plots
from vla_razor.core import forgetting_law, pareto
from vla_razor.statistics import mean_with_interval
from vla_razor.study.forecast import FittedLaw
from vla_razor.study.law import fittable, least_moved_by_success
from vla_razor.study.measures import FORWARD_KL, MEASURES
from vla_razor.study.table import Result

Colours = Mapping[str, str]
MANY = 500
"""A figure with more marks than this is rasterised."""


def trade_off(
    path: Path,
    groups: Mapping[str, Sequence[Any]],
    colours: Colours,
    bases: Mapping[str, tuple[float, float]] | None = None,
) -> None:
    """Prior against new success: all models, those near each group's frontier with the exponential through them (paper,
    Figures 3, 6 and 8), and the bases by name.
    """
    with plots.figure(path, 1, 1, (6, 4.2)) as (axis,):
        for index, (name, own) in enumerate(groups.items()):
            colour = colours.get(name, f"C{index}")
            new, prior = np.array([p.new for p in own]), np.array([p.prior for p in own])
            near = pareto.near_frontier(new, prior)
            axis.scatter(new, prior, color=colour, alpha=0.2, **_marks(6, len(own)))
            axis.scatter(new[near], prior[near], color=colour, label=name, **_marks(12, len(own)))
            if len(np.unique(new[near])) >= 3:
                at = np.linspace(new[near].min(), new[near].max(), 100)
                axis.plot(at, pareto.fit_curve(new[near], prior[near])(at), color=colour)
        for index, (name, base) in enumerate((bases or {}).items()):
            axis.plot(*base, "*", color=plots.COLOURS["base"], markersize=10, label=None if index else "base")
            axis.annotate(name, base, (6, 4), textcoords="offset points", fontsize=7, color=plots.COLOURS["base"])
        axis.set(title="Learned and kept", xlabel="new-task success", ylabel="prior-task success")
        _percent(axis, "xy")
        axis.legend(fontsize=8)


def forgetting(path: Path, points: Sequence[Any], colours: Colours, fitted: FittedLaw | None = None) -> None:
    """Prior success lost against forward KL, with one curve for all methods (paper, Figure 3, middle). With `fitted`,
    against that law's measure, with its forecast and the band that holds 90% of unseen runs, each with all its
    checkpoints.
    """
    measure = fitted.measure if fitted else FORWARD_KL
    with plots.figure(path, 1, 1, (6, 4.2)) as (axis,):
        _scatter(axis, points, measure, "forgotten", colours)
        if fitted:
            low, high = fitted.reach
            at = np.linspace(min(0.0, low), high, 200)
            found = [fitted.forecast(x) for x in at]
            axis.plot(at, [f.forgotten for f in found], color="black", linewidth=1, linestyle="--")
            axis.fill_between(
                at, [f.low for f in found], [f.high for f in found], color="black", alpha=0.08, linewidth=0
            )
        else:
            _fitted(axis, points, measure)
        name = MEASURES[measure]
        axis.set(title=f"Forgetting against {name.label}", xlabel=str(name), ylabel="prior success lost")
        _percent(axis, "y")
        axis.legend(fontsize=8)


def accuracy(path: Path, points: Sequence[Any], colours: Colours) -> None:
    """New-task success against forward KL (paper, Figure 3, right)."""
    with plots.figure(path, 1, 1, (6, 4.2)) as (axis,):
        _scatter(axis, points, FORWARD_KL, "new", colours)
        axis.set(title="What the new task costs in KL", xlabel=str(MEASURES[FORWARD_KL]), ylabel="new-task success")
        axis.set_xscale(_kl_scale(points))
        _percent(axis, "y")
        axis.legend(fontsize=8)


def least_kl(path: Path, groups: Mapping[str, Sequence[Any]], colours: Colours) -> None:
    """The least forward KL among the policies of each group that reach at least a given new-task success: KL at matched
    success (paper, Figure 4, right).
    """
    with plots.figure(path, 1, 1, (6, 4.2)) as (axis,):
        for index, (name, own) in enumerate(groups.items()):
            colour = colours.get(name, f"C{index}")
            steps = least_moved_by_success(own)
            new, kl = [p.new for p in steps], [p.measures[FORWARD_KL] for p in steps]
            axis.step(new, kl, where="pre", color=colour, label=name)
            axis.scatter(new, kl, color=colour, **_marks(12, len(new)))
        axis.set(title="KL at matched success", xlabel="new-task success, at least", ylabel=str(MEASURES[FORWARD_KL]))
        axis.set_yscale(_kl_scale([point for own in groups.values() for point in own]))
        _percent(axis, "x")
        axis.legend(fontsize=8)


def predictors(path: Path, points: Sequence[Any], names: Sequence[str], colours: Colours) -> None:
    """Prior success lost against every measure, with the polynomial whose R2 is reported (paper, Table 1)."""
    rows = -(-len(names) // 3)
    with plots.figure(path, rows, 3, (10, 2.75 * rows)) as axes:
        for axis in axes[len(names) :]:
            axis.set_visible(False)
        for axis, name in zip(axes, names, strict=False):
            _scatter(axis, points, name, "forgotten", colours)
            law = _fitted(axis, points, name)
            axis.set(title=f"{name}: R2 {law.r2:.2f}" if law else name, xlabel=str(MEASURES[name]))
        axes[0].legend(fontsize=7)


def prior_tasks(path: Path, results: Sequence[Result], colours: Colours) -> None:
    """What each run's last policy can still do, task by task."""
    last = {result.run: result for result in sorted(results, key=lambda result: result.step)}.values()
    tasks = list(dict.fromkeys(task for result in results for task in result.priors))
    with plots.figure(path, 1, 1, (1.3 * len(tasks) + 2, 3.6)) as (axis,):
        methods = sorted({result.method for result in last})
        for index, method in enumerate(methods):
            own = [result for result in last if result.method == method]
            offset = (index - (len(methods) - 1) / 2) * 0.8 / len(methods)
            for place, task in enumerate(tasks):
                values = [result.priors[task] for result in own if task in result.priors]
                if not values:
                    continue
                axis.plot([place + offset] * len(values), values, "o", color=colours[method], alpha=0.5, markersize=4)
                mean, low, high = mean_with_interval([values])
                axis.plot([place + offset - 0.1, place + offset + 0.1], [mean] * 2, color=colours[method])
                axis.vlines(place + offset, max(0, low), min(1, high), color=colours[method], linewidth=1)
            axis.plot([], [], "o", color=colours[method], label=method)
        axis.set_xticks(range(len(tasks)), [task.replace("_", " ") for task in tasks], rotation=20, ha="right")
        axis.set(title="Prior tasks, run by run", ylabel="success")
        _percent(axis, "y")
        axis.legend(fontsize=8)


def learning_curves(
    path: Path, results: Sequence[Result], colours: Colours, bases: Mapping[str, tuple[float, float]]
) -> None:
    """New- and prior-task success at each run's checkpoints, beginning with its base, whose [new, prior] is given by
    model. One thin line per run, and the mean of each method.
    """
    runs: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda result: result.step):
        runs.setdefault(result.run, []).append(result)
    share = np.linspace(0, 1, 101)
    with plots.figure(path, 1, 2, (10, 3.8)) as axes:
        for place, (axis, what) in enumerate(zip(axes, ("new", "prior"), strict=True)):
            means: dict[str, list[np.ndarray]] = {}
            for own in runs.values():
                done = [0.0, *(result.step / max(own[-1].step, 1) for result in own)]
                success = [bases[own[0].model][place], *(getattr(result, what) for result in own)]
                colour = colours[own[0].method]
                axis.plot(done, success, color=colour, alpha=0.25, linewidth=0.8, rasterized=len(runs) > MANY)
                means.setdefault(own[0].method, []).append(np.interp(share, done, success))
            for method, curves in means.items():
                axis.plot(share, np.mean(curves, 0), color=colours[method], label=method)
            axis.set(title=f"The {what} task{'s' * place}", xlabel="share of the training", ylabel="success")
            _percent(axis, "xy")
        axes[0].legend(fontsize=7)


def sequences(path: Path, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Success on each task of a sequence, stage after stage, and on the tasks that it never learns; a panel for each
    setting. `entries` are those of summary.json. A line is dashed until its task's own stage, which a square marks.
    """
    columns = min(len(entries), 3)
    rows = -(-len(entries) // columns)
    with plots.figure(path, rows, columns, (4.2 * columns, 3.4 * rows)) as axes:
        for axis in axes[len(entries) :]:
            axis.set_visible(False)
        for axis, (name, entry) in zip(axes, entries.items(), strict=False):
            tasks = entry["tasks"]
            lines = {
                task: [own[place] for own in (entry["base"], *entry["matrix"])] for place, task in enumerate(tasks)
            }
            for place, (task, line) in enumerate(lines.items()):
                colour = plots.PALETTE[place % len(plots.PALETTE)]
                shift = 0.06 * (place - (len(tasks) - 1) / 2)  # so that whiskers stand side by side
                own = place + 1
                _line(axis, line[: own + 1], shift, colour, linestyle="--", marker="")
                _line(axis, line[own:], own + shift, colour, marker="o", markersize=3.5, label=task.replace("_", " "))
                axis.plot(own + shift, line[own]["rate"], "s", color=colour, markersize=7)
            if "zero_shot" in entry:
                kept = [entry["zero_shot"]["base"], *entry["zero_shot"]["stages"]]
                _line(axis, kept, 0, plots.COLOURS["base"], marker="o", markersize=3.5, label="prior tasks")
            names = ["base", *(task.replace("_", " ") for task in tasks)]
            axis.set_xticks(range(len(names)), names, rotation=20, ha="right")
            axis.set(title=name, xlabel="after learning", ylabel="success", ylim=(-0.02, 1.02))
            _percent(axis, "y")
        axes[0].legend(fontsize=7)


def _line(axis: Axes, rates: Sequence[Mapping[str, float]], start: float, colour: str, **style: Any) -> None:
    """Rates at whole steps from a start, with their intervals."""
    places = start + np.arange(len(rates))
    axis.plot(places, [rate["rate"] for rate in rates], color=colour, **style)
    axis.vlines(places, [r["low"] for r in rates], [r["high"] for r in rates], color=colour, linewidth=0.8, alpha=0.6)


def plasticity(path: Path, learned: Sequence[Any], task: str) -> None:
    """How each policy learns another task, by the KL that its fine-tuning had spent. A policy is any object with a
    method, `spent` in nats per action, a `curve` of success at `steps`, and the rate over `all` of them.
    """
    colours, most = plots.colours_of(learned), max(one.spent for one in learned) or 1.0
    with plots.figure(path, 1, 2, (10, 3.8)) as (curves, against):
        for one in sorted(learned, key=lambda one: one.spent):
            shade = colormaps["viridis"](0.9 * one.spent / most)
            curves.plot(one.steps, one.curve, color=shade, label=f"{one.name} ({one.spent:.1f})")
        for method, colour in colours.items():
            own = [one for one in learned if one.method == method]
            rates = [one.all for one in own]
            whiskers = np.array([[r["rate"] - r["low"] for r in rates], [r["high"] - r["rate"] for r in rates]])
            places = [one.spent for one in own]
            against.errorbar(
                places, [r["rate"] for r in rates], whiskers.clip(0), fmt="o", color=colour, capsize=2, label=method
            )
        curves.set(title=f"Learning {task.replace('_', ' ')}", xlabel="update", ylabel="success")
        against.set(
            title="... over the whole curve", xlabel="forward KL spent before (nats an action)", ylabel="success"
        )
        for axis in (curves, against):
            _percent(axis, "y")
            axis.legend(fontsize=7)


def _kl_scale(points: Sequence[Any]) -> str:
    """Logarithmic, unless a policy has not moved at all."""
    return "log" if min(point.measures[FORWARD_KL] for point in points) > 0 else "linear"


def _scatter(axis: Axes, points: Sequence[Any], measure: str, what: str, colours: Colours) -> None:
    for method in dict.fromkeys(point.method for point in points):
        own = [point for point in points if point.method == method]
        places = [p.measures[measure] for p in own]
        values = [getattr(p, what) for p in own]
        axis.scatter(places, values, label=method, color=colours[method], **_marks(7, len(points)))


def _marks(size: float, count: int) -> dict[str, Any]:
    """Style of scatter marks. Thousands of them are rasterised: as paths they would make a report's page too large."""
    return {"s": size, "linewidths": 0, "rasterized": count > MANY}


def _fitted(axis: Axes, points: Sequence[Any], measure: str) -> forgetting_law.Law | None:
    if not fittable(points, measure):
        return None
    x, y = np.array([p.measures[measure] for p in points]), np.array([p.forgotten for p in points])
    law = forgetting_law.fit(x, y, [p.run for p in points], resamples=1, generator=np.random.default_rng(0))
    at = np.linspace(x.min(), x.max(), 200)
    axis.plot(at, np.polynomial.Polynomial(law.coefficients)(at), color="black", linewidth=1, linestyle="--")
    return law


def _percent(axis: Axes, which: str) -> None:
    for name in which:
        getattr(axis, f"{name}axis").set_major_formatter(PercentFormatter(1, decimals=0))
