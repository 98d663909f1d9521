"""What a study leaves behind: the results table, figures, a film, and what predicts forgetting."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw, ImageFont

from vla_razor import parquet, plots
from vla_razor.plots import Bars, Curve, Point
from vla_razor.statistics import Difference
from vla_razor.study import law, table
from vla_razor.study.measures import ENTROPIES, MEASURES
from vla_razor.verbs.measure.evaluate import FPS, film_path
from vla_razor.verbs.study.axes import Training
from vla_razor.verbs.study.comparison import Column, Outcome, change
from vla_razor.videos import read_film, write_film

TITLE = 30
"""Height of a title above a film, in pixels."""


def forgotten(outcome: Outcome, base: Outcome) -> Difference:
    """Prior success lost since the base, on the same starts."""
    gained = change([outcome], [base], "prior")
    return Difference(-gained.difference, -gained.high, -gained.low)


def write_rows(out: Path, outcomes: Sequence[Outcome], failures: Mapping[Training, str]) -> None:
    """results.parquet: one row per policy, merged in sorted order from one shard per run in results/. A measure is null
    where a run has not measured it.

    Wall times, the only numbers that cannot be reproduced, have a table of their own: wall_seconds.parquet.
    """
    rows = []
    for one in outcomes:
        earned = one.earned["prior"][one.scale.headlined]
        moved: dict[str, float | None] = {name: one.drift.get(name) for name in MEASURES}
        if one.method == "base":  # the base has not moved, though this is not measured
            moved |= {name: 1.0 if "sparsity" in name else 0.0 for name in MEASURES if name not in ENTROPIES}
        rows.append(
            {
                "domain": one.domain,
                "method": one.method,
                "model": one.model or None,
                "seed": one.seed,
                "run": one.run,
                "step": one.step,
                "learning_rate": one.learning_rate,
                "new": one.new_rate["rate"],
                "prior": one.prior_rate["rate"],
                **{f"prior_{task}": one.scale.rate([hits[None]])["rate"] for task, hits in earned.items()},
                **moved,
                "status": "done",
                "reason": None,
            }
        )
    failed = [
        {
            "domain": outcomes[0].domain,
            "method": training.label,
            "model": training.model or None,
            "seed": training.seed,
            "run": training.folder.name,
            "step": None,
            "learning_rate": training.learning_rate,
            "status": "failed",
            "reason": reason,
        }
        for training, reason in failures.items()
    ]
    write_table(out, rows, failed, [float(one.drift.get("wall_seconds", 0.0)) for one in outcomes])


def write_table(
    out: Path, rows: Sequence[dict[str, Any]], failed: Sequence[dict[str, Any]], wall_seconds: Sequence[float]
) -> None:
    """Write results.parquet, its shards and wall_seconds.parquet. `rows` are those of the policies, all with the
    columns of the first; `failed` are rows of failed runs, which may lack columns; `wall_seconds` is the time of each
    policy.
    """
    texts, counts = ("domain", "method", "model", "run", "status", "reason"), ("seed", "step")
    kinds = dict.fromkeys(texts, pa.string()) | dict.fromkeys(counts, pa.int64())
    schema = pa.schema([(name, kinds.get(name, pa.float64())) for name in rows[0]])
    times = [
        {"run": row["run"], "step": row["step"], "wall_seconds": seconds}
        for row, seconds in zip(rows, wall_seconds, strict=True)
    ]
    ordered = sorted([*rows, *failed], key=lambda row: (row["run"], row["step"] or 0))
    for run in {row["run"] for row in ordered}:
        _write_parquet(out / "results" / f"{run}.parquet", [row for row in ordered if row["run"] == run], schema)
    _write_parquet(out / "results.parquet", ordered, schema)
    _write_parquet(out / "wall_seconds.parquet", times)


def predictors(out: Path) -> dict[str, dict[str, float]]:
    """How well each measure on the probe set predicts the loss of prior success, over all checkpoints of all runs in
    results.parquet; empty for fewer than three runs.
    """
    return law.predictors(table.read([out]).results)


def draw(
    folder: Path,
    outcomes: Sequence[Outcome],
    columns: Sequence[Column],
    trainings: Sequence[Training],
    episodes: Mapping[Training, int],
) -> None:
    """Draw the figures; `episodes` is the number of episodes per iteration, for the runs that play."""
    shown = [training for training in trainings if training.finished and training.seed == trainings[0].seed]
    bases = {column.base.model: column.base for column in columns}
    scale, curves = columns[0].scale, [Curve(t.label, t.setting, t.rows(), episodes.get(t)) for t in shown]
    measure, headlined = scale.moved[0], scale.headlined
    points = [
        Point(
            method=one.method,
            run=one.run,
            forward_kl=one.drift.get(measure, 0.0),
            displacement=one.drift.get("displacement"),
            new=one.new_rate,
            prior=one.prior_rate,
            forgotten=forgotten(one, bases[one.model]),
            last=one.last,
        )
        for one in outcomes
    ]
    bars = []
    for column in columns:
        found = column.tasks("new") | column.tasks("prior")
        bars.append(Bars(column.name, column.members[0].method, {task: own[headlined] for task, own in found.items()}))
    plots.learning_curves(folder / "learning_curves.png", curves, measure)
    plots.success_against_kl(folder / "success_against_kl.png", points, measure)
    plots.retention_bars(folder / "retention.png", bars)
    plots.forgetting(folder / "forgetting.png", [point for point in points if point.method != "base"], measure)


def film(out: Path, columns: Sequence[Column], task: str, count: int) -> None:
    """Write one film of `count` starts of a task: the base and each method's first run side by side, with titles, from
    the films of the evaluations below `out`. Starts that were not filmed are left out.
    """
    firsts: dict[str, Outcome] = {}
    for column in columns:
        firsts.setdefault(column.members[0].method, column.members[0])
    names = [plots.NAMES.get(method, method) for method in firsts]
    folders = [path.parent for path in sorted(out.glob("*/videos"))]
    frames: list[np.ndarray] = []
    for number in range(count):
        filmed = [[film_path(folder, one.policy, task, number) for folder in folders] for one in firsts.values()]
        takes = [next((path for path in paths if path.is_file()), None) for paths in filmed]
        if all(takes):
            pictures = [
                [_titled(frame, name) for frame in read_film(take)]
                for name, take in zip(names, takes, strict=True)
                if take
            ]
            frames += [np.concatenate(row, axis=1) for row in zip(*pictures, strict=True)]
    if frames:
        write_film(out / table.FILM, frames, FPS, side=1)


def _write_parquet(path: Path, rows: list[dict[str, Any]], schema: pa.Schema | None = None) -> None:
    parquet.write(path, pa.Table.from_pylist(rows, schema))


def _titled(frame: np.ndarray, title: str) -> np.ndarray:
    """The frame with a title above it."""
    picture = Image.new("RGB", (frame.shape[1], frame.shape[0] + TITLE), "white")
    picture.paste(Image.fromarray(frame), (0, TITLE))
    ImageDraw.Draw(picture).text((6, 4), title, fill="black", font=ImageFont.load_default(size=TITLE - 12))
    return np.asarray(picture)
