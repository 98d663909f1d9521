"""`vla-razor report RUNS...`: one page about runs, alone and together (RL's Razor, Figures 1 to 4, Table 1).

RUNS are run folders of any verb. Those with a results table (`demo`, `sweep`, their `llm` namesakes and `mnist`) are
taken together. For each domain the page shows:
- the trade-off between the new task and the prior ones with its frontier, per model where a table has several (Figure
  8);
- forgetting against forward KL, with the law, and what predicts forgetting;
- success against forward KL, and the least KL at matched success (Figures 3 and 4, right);
- each method's residuals, and how well the law would have forecast methods, seeds and models that it had not seen;
- every policy.

`law.json` is what `forgetting_budget` reads.

Of a `sequence` it shows success on each task stage by stage, each setting's matrix, and the measures that follow from
it; its table is taken together with the others.

Of any other run (`sft`, `rl`, `eval`, `kl`, ...) the page shows what there is: the curves of its metrics, and a table
of its summary. It says what is left out. Figures are written as PNG and SVG.

Where it departs from the paper: intervals are bootstrapped over runs, because a run's checkpoints are not independent.
"""

import base64
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

import vla_razor
from vla_razor import plots
from vla_razor.errors import UserError
from vla_razor.files import atomic_write
from vla_razor.progress import progress
from vla_razor.runs import Run
from vla_razor.study import figures, forecast, law, table
from vla_razor.study.law import HeldOut
from vla_razor.study.measures import FORWARD_KL, MEASURES
from vla_razor.study.table import Result, Study
from vla_razor.verbs.measure.evaluate import MOST_IN_TABLE
from vla_razor.verbs.study import run_page, sequence_page

LARGEST_FILM = 8 << 20
"""In bytes; a larger film is not put into the page."""
LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""New-task success at which groups are compared."""
PAGE = Path(vla_razor.__file__).parent / "assets" / "report.html"
CAPTIONS = {
    "1_trade_off": "What each policy learned and kept; the line is the exponential through those near the frontier.",
    "2_law": "Prior success lost against what the law is of, all methods together. The line is the law; 90% of unseen "
    "runs lie within the band, each with all of its checkpoints.",
    "3_predictors": "Prior success lost against every measure.",
    "4_prior_tasks": "Each prior task, at the end of each run; a method's mean with its 95% interval over runs.",
    "5_learning_curves": "Success as training went on, from the base on: each method's mean, and a thin line a run.",
    "6_accuracy": "New-task success against forward KL.",
    "7_least_kl": "The least forward KL of each method's policies with at least so much new-task success. They are "
    "chosen by their measured success, in which chance has a part.",
}


def run(config: DictConfig, run: Run) -> None:
    """Read `config.runs`, then write the page, the figures and the laws."""
    run.restore()
    if not config.runs:
        raise UserError("a report is of runs that there are: vla-razor report DIR...")
    folders = [Path(folder) for folder in config.runs]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError(f"{', '.join(map(str, folders))}: one of the folders is given twice.")
    tables = [folder for folder in folders if folder.is_file() or (folder / table.FILE).is_file()]
    study = table.read(tables) if tables else Study([], {}, [])
    names = table.short_names(map(str, folders))
    pages = [
        run_page.read(folder, names[str(folder)], run.path / "plots" / f"run_{number}")
        for number, folder in enumerate(folders, 1)
        if folder not in tables and not sequence_page.is_one(folder)
    ]
    sequences = [
        sequence_page.read(folder, names[str(folder)], run.path / "plots" / f"sequences_{number}")
        for number, folder in enumerate(folders, 1)
        if sequence_page.is_one(folder)
    ]
    domains = list(dict.fromkeys(result.domain for result in study.results))
    if not domains and not sequences and not any(page.cells or page.curves for page in pages):
        raise UserError(f"nothing to report: {'; '.join(line for page in pages for line in page.left_out)}")
    console, parts, left_out = Console(), {}, list(study.left_out)
    with progress("report", len(domains)) as advance:
        for domain in domains:
            for measure, (first, *others) in table.unmeasured(study.of(domain)).items():
                left_out.append(
                    f"{measure}: not measured in {first}" + (f" and {len(others)} others" if others else "")
                )
            parts[domain] = _part(study, domain, config.measure, run.path / "plots" / domain)
            advance()
    laws = {domain: part["law"] for domain, part in parts.items() if part["law"]}
    for domain, fitted in laws.items():
        forecast.save(run.path / (forecast.FILE if len(laws) == 1 else f"law_{domain}.json"), fitted)
    # Embedded, because the page loads nothing from elsewhere. A film that is too large is left out.
    films = [(folder / table.FILM).read_bytes() for folder in folders if (folder / table.FILM).is_file()]
    coded = [base64.b64encode(film).decode() for film in films if len(film) <= LARGEST_FILM]
    page = Environment(autoescape=True).from_string(PAGE.read_text())
    text = page.render(
        captions=CAPTIONS,
        covered=_covered,
        in_words=law.in_words,
        measures=MEASURES,
        parts=parts,
        pages=pages,
        sequences=sequences,
        left_out=left_out,
        films=[f"data:video/mp4;base64,{film}" for film in coded],
        folders=folders,
    )
    atomic_write(run.path / "report.html", text.encode())
    for domain, part in parts.items():
        _show(console, domain, part)
    for page in sequences:
        console.print(str(page), highlight=False)
    for page in pages:
        if 0 < len(page.cells) <= MOST_IN_TABLE:  # larger tables are in the page alone
            found = Table("", *page.cells, title=page.name)
            for label in page.rows:
                found.add_row(label, *(own.get(label, "") for own in page.cells.values()))
            console.print(found)
        console.print(str(page), highlight=False)
        for line in page.left_out:
            console.print(f"{page.name}: {line}", highlight=False)
    for line in left_out:
        console.print(f"in no fit: {line}", highlight=False)
    console.print(f"{run.path / 'report.html'}, figures in {run.path / 'plots'}", highlight=False)
    shown = {page.name: {"verb": page.verb, "curves": page.curves, "left_out": page.left_out} for page in pages}
    shown |= {page.name: {"verb": page.verb, "settings": [heat.name for heat in page.heats]} for page in sequences}
    domains = {domain: _summary(part) for domain, part in parts.items()}
    run.finish({"left_out": study.left_out, "runs": shown, "domains": domains})


def _part(study: Study, domain: str, measure: str, folder: Path) -> dict[str, Any]:
    """Everything about one domain; what would need more runs is None or empty."""
    results = study.of(domain)
    fitted, why = None, ""
    try:
        fitted = forecast.fit(results, measure)
    except UserError as reason:
        why = str(reason)
    predictors = law.predictors(results)
    names = table.short_names(study.bases_of(domain))
    bases = {names[model]: base for model, base in study.bases_of(domain).items()}
    groups: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda result: result.method):
        groups.setdefault(_group(result, names), []).append(result)
    ordered = [result for group in groups.values() for result in group]
    colours, starts = plots.colours_of(ordered), {model: bases[name] for model, name in names.items()}
    figures.trade_off(folder / "1_trade_off", groups, colours, bases)
    figures.forgetting(folder / "2_law", ordered, colours, fitted)
    if predictors:
        figures.predictors(folder / "3_predictors", ordered, list(predictors), colours)
    if ordered[0].priors:
        figures.prior_tasks(folder / "4_prior_tasks", ordered, colours)
    figures.learning_curves(folder / "5_learning_curves", ordered, colours, starts)
    figures.accuracy(folder / "6_accuracy", ordered, colours)
    figures.least_kl(folder / "7_least_kl", groups, colours)
    kinds: dict[str, Callable[[Result], Any]] = {
        "method": lambda result: result.method,
        "seed": lambda result: result.seed,
        "model": lambda result: names[result.model],
    }
    validation = {
        name: {kind: found for kind, held in kinds.items() if (found := law.validation(results, name, held))}
        for name in (predictors if fitted else ())
    }
    return {
        "results": results,
        "bases": bases,
        "names": names,
        "law": fitted,
        "why": why,
        "frontiers": {name: law.frontier(group)[0] for name, group in groups.items()},
        "matched": _matched(groups, law.least_lost) if len(groups) > 1 else {},
        "matched_kl": _matched(groups, law.least_moved) if len(groups) > 1 else {},
        "predictors": predictors,
        "residuals": law.residuals(results, measure, part=lambda result: _group(result, names)) if fitted else {},
        "validation": validation,
        "figures": {
            path.stem: plots.inline_svg(path, f"{domain}-{path.stem}") for path in sorted(folder.glob("*.svg"))
        },
    }


def _group(result: Result, names: Mapping[str, str]) -> str:
    """What is told apart in the figures: methods, and models where there are several."""
    return f"{result.method} {names[result.model]}" if len(names) > 1 else result.method


def _matched(
    groups: Mapping[str, Sequence[Result]], best: Callable[[Sequence[Result], float], Result | None]
) -> dict[float, dict[str, Result]]:
    """For each level of the new task that at least two groups reach, the policy of each group that is `best` there."""
    found = {level: {name: best(own, level) for name, own in groups.items()} for level in LEVELS}
    reached = {level: {name: one for name, one in by_group.items() if one} for level, by_group in found.items()}
    return {level: by_group for level, by_group in reached.items() if len(by_group) > 1}


def _show(console: Console, domain: str, part: dict[str, Any]) -> None:
    if part["why"]:
        console.print(f"{domain}: {part['why']}", highlight=False)
    for title, key, number in (
        ("prior success lost", "matched", lambda result: f"{result.forgotten:+.1%}"),
        (str(MEASURES[FORWARD_KL]), "matched_kl", lambda result: f"{result.measures[FORWARD_KL]:.3g}"),
    ):
        if part[key]:
            shown = Table("new task, at least", *part["frontiers"], title=f"{domain}: {title}, at the least")
            for level, found in part[key].items():
                cells = (number(found[name]) if name in found else "" for name in part["frontiers"])
                shown.add_row(f"{level:.0%}", *cells)
            console.print(shown)
    if part["predictors"]:
        shown = Table("measure", "R2 [95% over runs]", "Kendall's tau", title=f"{domain}: what predicts forgetting")
        for name, found in sorted(part["predictors"].items(), key=lambda item: -item[1]["r2"]):
            shown.add_row(name, law.in_words(found), f"{found['kendall_tau']:.2f}")
        console.print(shown)
    measure = part["law"].measure if part["law"] else ""
    if measure in part["validation"]:
        shown = Table("held out", "runs", "mean absolute error", "bias", "runs within the 90% interval")
        shown.title = f"{domain}: forecasts of runs that the law of {measure} had not seen"
        for kind, by_part in part["validation"][measure].items():
            for name, held in by_part.items():
                error, bias = f"{100 * held.mean_absolute_error:.1f} points", f"{100 * held.bias:+.1f}"
                shown.add_row(f"{kind} {name}", str(held.runs), error, bias, _covered(held))
        console.print(shown)


def _covered(held: HeldOut) -> str:
    return f"no interval of fewer than {law.LEAST_RUNS} runs" if held.covered is None else f"{held.covered:.0%}"


def _summary(part: dict[str, Any]) -> dict[str, Any]:
    validation = {
        measure: {kind: {name: held._asdict() for name, held in by.items()} for kind, by in kinds.items()}
        for measure, kinds in part["validation"].items()
    }
    return {
        "policies": len(part["results"]),
        "bases": {name: {"new": new, "prior": prior} for name, (new, prior) in part["bases"].items()},
        "frontiers": {name: [[r.new, r.prior] for r in found] for name, found in part["frontiers"].items()},
        "matched": {
            f"{level:.0%}": {name: {"run": r.run, "new": r.new, "forgotten": r.forgotten} for name, r in found.items()}
            for level, found in part["matched"].items()
        },
        "matched_kl": {
            f"{level:.0%}": {
                name: {"run": r.run, "new": r.new, FORWARD_KL: r.measures[FORWARD_KL]} for name, r in found.items()
            }
            for level, found in part["matched_kl"].items()
        },
        "predictors": part["predictors"],
        "residuals": {name: found._asdict() for name, found in part["residuals"].items()},
        "law": part["law"]._asdict() if part["law"] else part["why"],
        "validation": validation,
    }
