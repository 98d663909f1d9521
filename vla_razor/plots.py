"""Every figure: data in, a PNG out. Rates are drawn with their 95% Wilson intervals."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from vla_razor.files import atomic_write
from vla_razor.statistics import Difference, Rate, pooled_rate, wilson
from vla_razor.study.measures import MEASURES

COLOURS = {"base": "#7f7f7f", "sft": "#e69f00", "sft_far": "#d55e00", "rl": "#0072b2"}
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#333333")
NAMES = {"base": "base", "sft": "SFT", "sft_far": "SFT, far teacher", "rl": "REINFORCE"}
MARKERS = {"base": "*", "sft": "s", "sft_far": "D"}
STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}


class Curve(NamedTuple):
    """A training run: its method, its name in the legend, the rows of its metrics.jsonl, and how many episodes a row's
    success is of, where it is of episodes.
    """

    method: str
    name: str
    rows: Sequence[Mapping[str, Any]]
    episodes: int | None = None


class Point(NamedTuple):
    """A policy: how far it moved and what it can do.

    `displacement` is the part of the forward KL that a change of temperature does not explain, where that was measured,
    and `forgotten` the prior success lost since the base. `run` names the training run, and `last` says whether it
    ended here.
    """

    method: str
    run: str
    forward_kl: float
    displacement: float | None
    new: Rate
    prior: Rate
    forgotten: Difference
    last: bool = True


class Bars(NamedTuple):
    """A policy in the bar chart: its name, method and success by task, the new task first."""

    name: str
    method: str
    rates: Mapping[str, Rate]


def colours_of(points: Iterable[Any]) -> dict[str, str]:
    """A colour for each method: the project's own, else the next of the palette."""
    names = sorted({point.method for point in points})
    many = [to_hex(colour) for colour in colormaps["tab20"](range(4, 20))]
    free = [colour for colour in (*PALETTE, *many) if colour not in COLOURS.values()]
    return {name: COLOURS.get(name, free[index % len(free)]) for index, name in enumerate(names)}


def learning_curves(path: Path, curves: Sequence[Curve], measure: str) -> None:
    """Success on what is learned from, the loss of those that learn from no success, and how far all drifted."""
    with figure(path, 1, 3, (11.5, 3.4)) as axes:
        success, loss, drift = axes
        for curve in curves:
            colour = _shade(curve, curves)
            if count := curve.episodes:
                # Windows of five iterations, each with the interval of its episodes together. Episodes from one start
                # count as `effective_episodes` says, where that was logged.
                steps, rates = _column(curve.rows, "success")
                known = [row.get("effective_episodes", count) for row in curve.rows if row.get("success") is not None]
                each = [wilson(round(r * count), count, effective=e) for r, e in zip(rates, known, strict=True)]
                windows = [slice(start, start + 5) for start in range(0, len(rates), 5)]
                pooled = [pooled_rate(each[window]) for window in windows]
                middles = [steps[window].mean() for window in windows]
                low, high = [rate["low"] for rate in pooled], [rate["high"] for rate in pooled]
                success.plot(steps, rates, color=colour, alpha=0.25, linewidth=0.8)
                success.plot(middles, [rate["rate"] for rate in pooled], color=colour, label=curve.name)
                success.fill_between(middles, low, high, color=colour, alpha=0.15, linewidth=0)
            else:
                steps, values = _column(curve.rows, "loss")
                ends = [(max(0, i - 7), i + 8) for i in range(len(values))]  # a running mean, shorter at the ends
                smooth = [values[low:high].mean() for low, high in ends]
                loss.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
                loss.plot(steps, smooth, color=colour, label=curve.name)
            steps, values = _column(curve.rows, measure)
            done = 100 * np.append(0, steps) / max(1, curve.rows[-1]["step"])
            drift.plot(done, np.append(0, values), color=colour, marker=".", label=curve.name)
        _percent(success, "success on the training grid")
        success.set(title="Success", xlabel="update")
        loss.set(title="Loss", xlabel="update", ylabel="cross-entropy (nats a token)")
        drift.set(title="Drift from the base", xlabel="training done (%)", ylabel=str(MEASURES[measure]))
        drift.set_ylim(bottom=0)
        for axis in [axis for axis in axes if axis.lines]:
            axis.legend(loc="best")


def run_curves(path: Path, rows: Sequence[Mapping[str, Any]], panels: Mapping[str, str]) -> None:
    """What one run logged over its steps: by the title of each panel, the name of what it shows."""
    with figure(path, 1, len(panels), (3.8 * len(panels), 3.2)) as axes:
        for axis, (title, name) in zip(axes, panels.items(), strict=True):
            steps, values = _column(rows, name)
            axis.plot(steps, values, marker="." if len(steps) < 50 else "")
            axis.set(title=title, xlabel="step", ylabel=str(MEASURES.get(name, name.replace("_", " "))))


def success_against_kl(path: Path, points: Sequence[Point], measure: str) -> None:
    """What each policy can do against how far it moved: the new task, and the mean over the prior tasks."""
    colours = colours_of(points)
    with figure(path, 1, 2, (9, 3.8)) as axes:
        labels = {"new": "new-task success", "prior": "prior tasks, mean success"}
        for axis, (field, label) in zip(axes, labels.items(), strict=True):
            for point in points:
                rate = getattr(point, field)
                _point(axis, point.forward_kl, rate["rate"], _whiskers([rate]), point, colours)
            base = [point for point in points if point.method == "base"]
            for run in dict.fromkeys(point.run for point in points if point.method != "base"):
                line = base + [point for point in points if point.run == run]  # from the base through its checkpoints
                up = [getattr(point, field)["rate"] for point in line]
                colour = colours[line[-1].method]
                axis.plot([point.forward_kl for point in line], up, color=colour, alpha=0.35, linewidth=1)
            _percent(axis, label)
            axis.set(xlabel=f"{MEASURES[measure]}, on the new task")
        axes[0].set_title("Learned")
        axes[1].set_title("Kept")
        _legend(axes[0], points, colours)


def retention_bars(path: Path, policies: Sequence[Bars]) -> None:
    """Success task by task, one bar per policy; a method's settings differ in shade."""
    tasks = list(policies[0].rates)
    width = 0.8 / len(policies)
    with figure(path, 1, 1, (1.5 * len(tasks) + 1, 3.8)) as (axis,):
        for index, bars in enumerate(policies):
            places = np.arange(len(tasks)) + (index - (len(policies) - 1) / 2) * width
            rates = [bars.rates[task] for task in tasks]
            heights = [rate["rate"] for rate in rates]
            axis.bar(places, heights, 0.92 * width, color=_shade(bars, policies), label=bars.name)
            axis.errorbar(places, heights, _whiskers(rates), fmt="none", ecolor="#333333", capsize=2, linewidth=1)
        axis.axvline(0.5, color="#999999", linestyle=":", linewidth=1)
        axis.set_xticks(range(len(tasks)), [task.replace("_drawer", "").replace("_", " ") for task in tasks])
        axis.grid(axis="x", visible=False)
        axis.set_title("The new task, and what the base could do before")
        _percent(axis, "success")
        axis.legend(ncols=len(policies), loc="upper center", bbox_to_anchor=(0.5, -0.1))


def forgetting(path: Path, points: Sequence[Point], measure: str) -> None:
    """Prior success lost against forward KL and, where it was measured, against its displacement alone: does either
    order the runs?
    """
    fields = {"forward_kl": measure} | ({"displacement": "displacement"} if points[0].displacement is not None else {})
    colours = colours_of(points)
    with figure(path, 1, len(fields), (4.5 * len(fields), 3.8)) as axes:
        for axis, (field, name) in zip(axes, fields.items(), strict=True):
            for point in points:
                lost, low, high = point.forgotten
                _point(axis, getattr(point, field), lost, np.array([[lost - low], [high - lost]]), point, colours)
            axis.axhline(0, color="#999999", linewidth=1)
            axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            axis.set(title=f"Forgetting against {MEASURES[name].label}", xlabel=f"{MEASURES[name]}, on the new task")
        axes[0].set(ylabel="prior success lost (base - tuned)")
        _legend(axes[0], points, colours)


@contextmanager
def figure(path: Path, rows: int, columns: int, size: tuple[float, float]) -> Iterator[list[Axes]]:
    """Axes to draw on; at the end the figure is written to `path`, or as PNG and SVG where it has no suffix."""
    with plt.rc_context(STYLE):
        figure: Figure
        figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
        try:
            yield list(axes.flat)
            for target in [path] if path.suffix else [path.with_suffix(".png"), path.with_suffix(".svg")]:
                kind = target.suffix[1:]
                atomic_write(target, lambda file, kind=kind: figure.savefig(file, format=kind, dpi=160))
        finally:
            plt.close(figure)


def inline_svg(path: Path, name: str) -> str:
    """The SVG element of a file. Its ids are prefixed with the figure's name, since all figures of a page share one
    space of ids.
    """
    text = path.read_text()
    text = re.sub(r'\bid="', f'id="{name}-', text[text.index("<svg") :])
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the rows that have `name`."""
    pairs = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    steps, values = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(steps, float), np.array(values, float)


def _point(axis: Axes, x: float, y: float, whiskers: np.ndarray, point: Point, colours: Mapping[str, str]) -> None:
    """A marker with its whisker; checkpoints on the way are small and pale."""
    size, alpha = (11 if point.method == "base" else 6.5, 1.0) if point.last else (4, 0.45)
    axis.errorbar(
        [x], [y], whiskers, fmt=MARKERS.get(point.method, "o"), color=colours[point.method], markersize=size,
        alpha=alpha, capsize=2 if point.last else 0, elinewidth=1, zorder=3 if point.last else 2,
    )  # fmt: skip


def _shade(one: Curve | Bars, among: Sequence[Curve | Bars]) -> tuple[float, ...]:
    """The method's colour, paler for each further setting of the same method."""
    names = [other.name for other in among if other.method == one.method]
    paler = 0.65 * names.index(one.name) / len(names)
    return tuple(channel + paler * (1 - channel) for channel in to_rgb(colours_of(among)[one.method]))


def _whiskers(rates: Sequence[Rate]) -> np.ndarray:
    return np.array([[r["rate"] - r["low"] for r in rates], [r["high"] - r["rate"] for r in rates]]).clip(0)


def _percent(axis: Axes, label: str) -> None:
    axis.set_ylim(0, 1)
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.set_ylabel(label)


def _legend(axis: Axes, points: Sequence[Point], colours: Mapping[str, str]) -> None:
    for method in dict.fromkeys(point.method for point in points):
        axis.plot([], [], MARKERS.get(method, "o"), color=colours[method], label=NAMES.get(method, method))
    axis.legend(loc="best")
