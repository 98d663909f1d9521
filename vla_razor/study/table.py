"""The results table of any domain (robot, language, ParityMNIST): results.parquet, one row per policy."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vla_razor import parquet
from vla_razor.errors import UserError
from vla_razor.study.measures import DISTANCES, FORWARD_KL, renamed

FILE = "results.parquet"
FILM = Path("videos") / "side_by_side.mp4"
FACTS = ("domain", "method", "seed", "run", "step", "learning_rate", "new", "prior", "status", "reason")


class Result(NamedTuple):
    """A policy after fine-tuning: success on the new task and the prior ones, in [0, 1]; prior success lost since its
    base; and how far it moved, by measure. `model` is what was fine-tuned, where the table says it; else empty.
    """

    domain: str
    method: str
    model: str
    run: str
    seed: int
    step: int
    learning_rate: float | None
    new: float
    prior: float
    forgotten: float
    priors: Mapping[str, float]
    measures: Mapping[str, float]


class Study(NamedTuple):
    """The content of results folders: the tuned policies, the bases [new, prior] by domain and model, and the lines
    about rows that are in no fit.
    """

    results: list[Result]
    bases: dict[tuple[str, str], tuple[float, float]]
    left_out: list[str]

    def of(self, domain: str) -> list[Result]:
        """The policies of a domain."""
        return [result for result in self.results if result.domain == domain]

    def bases_of(self, domain: str) -> dict[str, tuple[float, float]]:
        """The bases of a domain [new, prior], by model."""
        return {model: base for (own, model), base in self.bases.items() if own == domain}


def read(folders: Sequence[Path]) -> Study:
    """The rows of all folders. With several folders a run's name begins with its folder's (or its whole path, where two
    folders have the same name).

    A run that failed, or has a number that is not finite, is in `left_out` with its reason.

    Raises UserError where a folder is given twice; where it holds no table, or one without a needed column, a base or a
    finished run; and where two tables of a domain have different bases of one model.
    """
    study = Study([], {}, [])
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError(f"{', '.join(map(str, folders))}: one of the folders is given twice.")
    names = short_names(map(str, folders))
    for folder in folders:
        rows = _rows(folder)
        prefix = f"{names[str(folder)]}/" if len(folders) > 1 else ""
        bases = [row for row in rows if row["method"] == "base"]
        if not bases:
            raise UserError(f"{folder / FILE} has no row of a base: forgetting cannot be measured.")
        if not all(_is_finite(base[kind]) for base in bases for kind in ("new", "prior")):
            raise UserError(f"{folder / FILE}: success of the base is not a number: forgetting cannot be measured.")
        _same_base(study, folder, bases)
        for row in rows:
            if row["method"] != "base":
                _add(study, row, _base_of(row, bases, folder), prefix)
    if not study.results:
        raise UserError(f"no run in {', '.join(map(str, folders))} has finished: there is nothing to report.")
    return study


def measures_of(results: Sequence[Result]) -> list[str]:
    """The measures that all of the policies have, in the table's order."""
    return [name for name in results[0].measures if all(name in result.measures for result in results)]


def unmeasured(results: Sequence[Result]) -> dict[str, list[str]]:
    """The measures that only some of the policies have, with the runs of the others."""
    names = dict.fromkeys(name for result in results for name in result.measures)
    lacking = {name: [r.run for r in results if name not in r.measures] for name in names}
    return {name: list(dict.fromkeys(runs)) for name, runs in lacking.items() if runs}


def short_names(models: Iterable[str]) -> dict[str, str]:
    """The name of each model in a figure: the end of its path or Hub id, unless two have the same end."""
    found = list(dict.fromkeys(models))
    ends = [Path(model).name for model in found]
    return dict(zip(found, ends if len(set(ends)) == len(ends) else found, strict=True))


def _rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / FILE if folder.is_dir() else folder
    try:
        rows = [renamed(row) for row in parquet.read(path, "Copy it again from the study that wrote it.").to_pylist()]
    except FileNotFoundError:
        made = "a folder that vla-razor demo, sweep, sequence or mnist wrote"
        raise UserError(f"{path}: there is no results table; expected {made}.") from None
    columns = ("domain", "method", "seed", "run", "step", "new", "prior", FORWARD_KL)
    missing = [name for name in columns if rows and name not in rows[0]]
    if missing or not rows:
        raise UserError(
            f"{path} is no results table: {'no column ' + ', '.join(missing) if missing else 'it is empty'}."
        )
    return rows


def _same_base(study: Study, folder: Path, bases: Sequence[Mapping[str, Any]]) -> None:
    """Check that tables have the same base of a model. ParityMNIST has one base per seed, whose mean counts."""
    for model in dict.fromkeys(map(_model, bases)):
        own = [base for base in bases if _model(base) == model]
        mean = tuple(sum(base[name] for base in own) / len(own) for name in ("new", "prior"))
        known = study.bases.setdefault((own[0]["domain"], model), (mean[0], mean[1]))
        # Success is a share of a few hundred episodes; smaller differences are rounding.
        if any(abs(one - other) > 1e-6 for one, other in zip(known, mean, strict=True)):
            raise UserError(
                f"{folder}: its base has {mean[0]:.1%} of the new task and {mean[1]:.1%} of the prior ones, that of "
                f"the folders before it {known[0]:.1%} and {known[1]:.1%}. Runs of different bases, or evaluated from "
                "other starts, make no common table."
            )


def _model(row: Mapping[str, Any]) -> str:
    return row.get("model") or ""


def _base_of(row: Mapping[str, Any], bases: Sequence[Mapping[str, Any]], folder: Path) -> Mapping[str, Any]:
    """The base of the same model and, where there are several, of the same width and seed."""
    own = [base for base in bases if _model(base) == _model(row)]
    if not own:
        raise UserError(f"{folder / FILE} has no row of the base {_model(row)}: forgetting cannot be measured.")
    like = [b for b in own if b.get("width") == row.get("width")]
    return next((b for b in like if b["seed"] == row["seed"]), like[0] if like else own[0])


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _add(study: Study, row: Mapping[str, Any], base: Mapping[str, Any], prefix: str) -> None:
    name = f"{prefix}{row['run']}"
    measures = {name: row[name] for name in DISTANCES if name in row}
    if row.get("status", "done") != "done":
        study.left_out.append(f"{name}: {row.get('reason') or row['status']}")
        return
    numbers = {"new": row["new"], "prior": row["prior"], FORWARD_KL: measures[FORWARD_KL]}
    broken = [key for key, value in numbers.items() if not _is_finite(value)]
    if broken:
        study.left_out.append(f"{name}, step {row['step']}: {', '.join(broken)} not finite")
        return
    study.results.append(
        Result(
            **{key: row[key] for key in ("domain", "method", "seed", "step", "new", "prior")},
            model=_model(row),
            run=name,
            learning_rate=row.get("learning_rate"),
            forgotten=base["prior"] - row["prior"],
            priors={key.removeprefix("prior_"): row[key] for key in row if key.startswith("prior_")},
            measures={key: value for key, value in measures.items() if _is_finite(value)},
        )
    )
