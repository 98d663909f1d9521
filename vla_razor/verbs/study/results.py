"""What a study leaves for further ones: the results table, figures, a film, and what predicts forgetting."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

from vla_razor import plots
from vla_razor.files import atomic_write
from vla_razor.plots import Bars, Curve, Point
from vla_razor.statistics import Difference, Rate
from vla_razor.study import law, table
from vla_razor.study.measures import ENTROPIES, MEASURES
from vla_razor.verbs.measure.evaluate import FPS, film_path
from vla_razor.verbs.study.axes import Training
from vla_razor.verbs.study.comparison import Column, Outcome, change
from vla_razor.videos import read_film, write_film

TITLE = 30
"""Height in pixels of the line above a film."""


def forgotten(outcome: Outcome, base: Outcome) -> Difference:
    """Prior success lost since the base, on the same starts."""
    gained = change([outcome], [base], "prior")
    return Difference(-gained.difference, -gained.high, -gained.low)


def write_rows(out: Path, outcomes: Sequence[Outcome], failures: Mapping[Training, str]) -> None:
    """results.parquet: a row a policy, merged in sorted order from a shard a run in results/. A measure is null where a
    run has not measured it.

    Wall times, which alone are not reproducible, are in a table of their own: wall_seconds.parquet.
    """
    write_table(
        out,
        [_row(outcome) for outcome in outcomes],
        [_failed_row(outcomes[0].domain, *failure) for failure in failures.items()],
        [float(outcome.drift.get("wall_seconds", 0.0)) for outcome in outcomes],
    )


def write_table(
    out: Path, rows: Sequence[dict[str, Any]], failed: Sequence[dict[str, Any]], wall_seconds: Sequence[float]
) -> None:
    """results.parquet, its shards and wall_seconds.parquet: of the policies' rows, which all have the columns of the
    first, the failed runs' rows, which may lack some, and each policy's time.
    """
    schema = _schema(rows[0])
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
    """The figures; `episodes` are how many an iteration has of those runs that play."""
    shown = [training for training in trainings if training.finished and training.seed == trainings[0].seed]
    bases = {column.base.model: column.base for column in columns}
    points = [_point(outcome, bases[outcome.model]) for outcome in outcomes]
    bars = [Bars(column.name, column.members[0].method, _rates(column)) for column in columns]
    curves = [Curve(t.label, t.setting, t.rows(), episodes.get(t)) for t in shown]
    measure = columns[0].scale.moved[0]
    plots.learning_curves(folder / "learning_curves.png", curves, measure)
    plots.success_against_kl(folder / "success_against_kl.png", points, measure)
    plots.retention_bars(folder / "retention.png", bars)
    plots.forgetting(folder / "forgetting.png", [point for point in points if point.method != "base"], measure)


def film(out: Path, columns: Sequence[Column], task: str, count: int) -> None:
    """One film of `count` starts of a task: the base and each method's first run side by side, under their names, as
    the evaluations below `out` filmed them. Starts that were not filmed are left out.
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


def _row(outcome: Outcome) -> dict[str, Any]:
    headlined = outcome.scale.headlined
    rates = {
        f"prior_{task}": outcome.scale.rate([hits[None]])["rate"]
        for task, hits in outcome.earned["prior"][headlined].items()
    }
    moved: dict[str, float | None] = {name: outcome.drift.get(name) for name in MEASURES}
    if outcome.method == "base":
        moved |= {name: 1.0 if "sparsity" in name else 0.0 for name in MEASURES if name not in ENTROPIES}
    return {
        "domain": outcome.domain,
        "method": outcome.method,
        "model": outcome.model or None,
        "seed": outcome.seed,
        "run": outcome.run,
        "step": outcome.step,
        "learning_rate": outcome.learning_rate,
        "new": outcome.new_rate["rate"],
        "prior": outcome.prior_rate["rate"],
        **rates,
        **moved,
        "status": "done",
        "reason": None,
    }


def _failed_row(domain: str, training: Training, reason: str) -> dict[str, Any]:
    known = {"domain": domain, "method": training.label, "model": training.model or None, "seed": training.seed}
    known |= {"run": training.folder.name, "learning_rate": training.learning_rate}
    return {**known, "status": "failed", "reason": reason, "step": None}


def _schema(row: dict[str, Any]) -> pa.Schema:
    texts, counts = ("domain", "method", "model", "run", "status", "reason"), ("seed", "step")
    kinds = dict.fromkeys(texts, pa.string()) | dict.fromkeys(counts, pa.int64())
    return pa.schema([(name, kinds.get(name, pa.float64())) for name in row])


def _write_parquet(path: Path, rows: list[dict[str, Any]], schema: pa.Schema | None = None) -> None:
    atomic_write(path, lambda file: pq.write_table(pa.Table.from_pylist(rows, schema), file))


def _point(outcome: Outcome, base: Outcome) -> Point:
    return Point(
        method=outcome.method,
        run=outcome.run,
        forward_kl=outcome.drift.get(outcome.scale.moved[0], 0.0),
        displacement=outcome.drift.get("displacement"),
        new=outcome.new_rate,
        prior=outcome.prior_rate,
        forgotten=forgotten(outcome, base),
        last=outcome.last,
    )


def _rates(column: Column) -> dict[str, Rate]:
    headlined = column.scale.headlined
    return {task: found[headlined] for kind in ("new", "prior") for task, found in column.tasks(kind).items()}


def _titled(frame: np.ndarray, title: str) -> np.ndarray:
    """The frame below a line with its title."""
    picture = Image.new("RGB", (frame.shape[1], frame.shape[0] + TITLE), "white")
    picture.paste(Image.fromarray(frame), (0, TITLE))
    ImageDraw.Draw(picture).text((6, 4), title, fill="black", font=ImageFont.load_default(size=TITLE - 12))
    return np.asarray(picture)
