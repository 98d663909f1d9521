"""`vla-razor llm eval`: what a language model can do (RL's Razor, Section 3.1 and Appendix B.1). The new task's test
prompts are answered by greedy decoding, or sampled at `temperature`; the prior tasks are scored by lm-eval.

Scores of prior tasks are cached by model, data and lm-eval's version, so that a base is evaluated once.
"""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from vla_razor.errors import UserError, nearest
from vla_razor.files import cache_root, write_json
from vla_razor.llm import prior_tasks, tasks
from vla_razor.llm.models import LanguageModel, model_key, open_model
from vla_razor.llm.prior_tasks import Score
from vla_razor.progress import progress
from vla_razor.runs import Run
from vla_razor.verbs.language.steps import answers_of, splits_of


def run(config: DictConfig, run: Run) -> None:
    """Evaluate `config.model`; goes on where a resumed run stopped, task by task."""
    run.restore()
    names, skipped = available(config, config.data_dir)
    data_dir = Path(config.data_dir) if config.data_dir else None
    task = tasks.open_task(config.task)
    asked = tasks.subset(splits_of(config, task).test, config.eval_prompts)
    language = open_model(config.model, device=config.device, dtype=config.dtype)
    answers = answers_of(config, language, task, asked, config.task, config.temperature)
    new = Score([float(answer) for answer in answers])
    prior: dict[str, Score] = {}
    with progress("prior tasks", len(names)) as advance:
        for name in names:
            prior[name] = _cached(config, language, name, data_dir, run.path / "prior_tasks" / name)
            advance()
    write_json(
        run.path / "answers.json", {name: list(score.values) for name, score in {config.task: new, **prior}.items()}
    )
    run.finish(present(Console(), config, new, prior, skipped))


def present(
    console: Console, config: DictConfig, new: Score, prior: Mapping[str, Score], skipped: Mapping[str, str]
) -> dict[str, Any]:
    """Prints the scores with their standard errors, and returns them for summary.json."""
    table = Table("", "right", "standard error", "examples", title=config.model)
    for name, score in {f"{config.task} (new task)": new, **prior}.items():
        table.add_row(name, f"{score.score:.1%}", f"{score.standard_error:.1%}", str(score.examples))
    entry: dict[str, Any] = {
        "new_task": new.entry(),
        "prior_tasks": {name: score.entry() for name, score in prior.items()},
        "skipped": dict(skipped),
    }
    for name in skipped:
        table.add_row(name, "not run", "", "")
    if prior:
        average, error = prior_tasks.mean(list(prior.values()))
        run = f"{len(prior)} of the {len(prior) + len(skipped)}" if skipped else "the"
        table.add_row(f"mean of {run} prior tasks", f"{average:.1%}", f"{error:.1%}", "")
        entry["prior_mean"] = {"score": average, "standard_error": error}
    console.print(table)
    for name, reason in skipped.items():
        console.print(f"{name} was not run: {reason}", highlight=False)
    return entry


def available(config: DictConfig, data_dir: str | None) -> tuple[list[str], dict[str, str]]:
    """The prior tasks that can be run here, and why the others cannot. Raises UserError for an unknown one."""
    folder = Path(data_dir) if data_dir else None
    known = prior_tasks.known(folder)
    for name in config.prior_tasks:
        if name not in known:
            raise UserError(f"prior_tasks: unknown {name!r}. {nearest(name, known)}")
    reasons = {name: prior_tasks.unavailable(name, folder) for name in config.prior_tasks}
    if "humaneval" in reasons and not config.run_code:
        reasons["humaneval"] = "it runs programs that the model writes: say run_code=true to allow it"
    skipped = {name: reason for name, reason in reasons.items() if reason}
    return [name for name in config.prior_tasks if name not in skipped], skipped


def _cached(config: DictConfig, language: LanguageModel, name: str, data_dir: Path | None, folder: Path) -> Score:
    """The score, from the cache where it is there. Where the version of the data is unknown nothing is cached: other
    data of the same name would be taken for it.
    """
    kept = None
    if data := prior_tasks.data_version(name, data_dir):
        model = model_key(language.model, adapter=True)
        facts = (model, name, str(config.examples), data, f"lm_eval{version('lm_eval')}", config.dtype)
        kept = cache_root() / "llm_eval" / f"{'-'.join(facts)}.json"
        if kept.is_file():
            return Score(json.loads(kept.read_text()))
    score = prior_tasks.evaluate(
        language,
        name,
        data_dir,
        examples=config.examples,
        batch_size=config.micro_batch_size,
        folder=folder,
        dtype=config.dtype,
    )
    if kept:
        write_json(kept, list(score.values))
    return score
