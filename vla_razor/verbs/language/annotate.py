"""`vla-razor llm annotate`: right answers to learn from, sampled from a teacher (RL's Razor, Appendix B.1).

Each training prompt is put to the teacher until a response earns the task's reward, at most 16 times. SFT trains on
that response, with the chain of thought of a reasoning model; with `rejected=true` the first wrong response becomes the
rejected half of a SimPO pair. The teacher is an endpoint with OpenAI's interface, a local model, or with `oracle=true`
a local model restricted to right answers, for tasks that can list them. Every finished prompt is written at once, so
that an interrupted run loses only the prompts that were in flight.

Where it departs from the paper: the paper's teachers were DeepSeek R1 (math, 96% covered) and GPT-4o (science, all
covered); here `teacher` may be any model. The paper says of the wrong responses only that an external model wrote them;
here the teacher did.
"""

import os
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from vla_razor.errors import RunFailed, UserError
from vla_razor.llm import annotations
from vla_razor.llm.annotating import annotate
from vla_razor.llm.models import open_model
from vla_razor.llm.tasks import Example, ManyAnswers, listing, open_task, subset
from vla_razor.llm.teacher import Teacher
from vla_razor.progress import progress
from vla_razor.runs import Run
from vla_razor.statistics import Rate
from vla_razor.verbs.language.steps import splits_of


def run(config: DictConfig, run: Run) -> None:
    """Fills the store in the run's folder; goes on where a resumed run stopped."""
    run.restore()
    task = open_task(config.task)
    distinct: dict[str, Example] = {}  # of the training split, each prompt once
    for example in splits_of(config, task).train:
        distinct.setdefault(example.prompt, example)
    if not distinct:
        raise UserError(f"task={config.task}: there is no training prompt in {config.data_dir or 'its data set'}.")
    examples = subset(list(distinct.values()), config.max_examples)
    path = run.path / annotations.FILE
    kept = annotations.take_up(path, {example.prompt: example.gold for example in examples})
    done = {annotation.prompt for annotation in kept}
    missing = [(index, example) for index, example in enumerate(examples) if example.prompt not in done]
    for step, one in enumerate(kept, 1):
        run.log(step, covered=one.chosen is not None, samples=one.samples)
    made = annotate(missing, _teacher(config, examples), task.rewards, samples=config.samples, rejected=config.rejected)
    covered = sum(annotation.chosen is not None for annotation in kept)
    try:
        with progress("annotate", len(examples), len(kept)) as advance:
            for one in made:
                annotations.append(path, one)
                kept.append(one)
                covered += one.chosen is not None
                run.log(len(kept), covered=one.chosen is not None, samples=one.samples)
                advance(coverage=covered / len(kept))
    except (UserError, RunFailed) as error:
        if isinstance(error, UserError) and not kept:  # a teacher that refuses the very first prompts is bad input
            raise
        held = f"{len(kept)} annotated prompts are kept; go on with: vla-razor resume {run.path}"
        raise RunFailed(f"{error} {held}") from error
    summary = annotations.coverage(kept, len(examples))
    run.finish({"annotations": summary})
    _report(Console(), config, summary)


def _teacher(config: DictConfig, examples: list[Example]) -> Teacher:
    if config.oracle:
        from vla_razor.llm.oracle import Oracle

        answers = check_oracle(config.task)
        if config.rejected or config.endpoint:
            raise UserError("oracle=true is of a local model, and never wrong: it needs rejected=false, endpoint=null.")
        model = open_model(config.teacher or config.model, device=config.device, dtype=config.dtype)
        return Oracle(model, answers, examples, seed=config.seed)
    settings = {"temperature": config.temperature, "max_new_tokens": config.max_new_tokens}
    if config.endpoint is None:
        from vla_razor.llm.local_teacher import LocalTeacher

        model = open_model(config.teacher or config.model, device=config.device, dtype=config.dtype)
        return LocalTeacher(model, responses_at_once=config.concurrency, seed=config.seed, **settings)
    from vla_razor.llm.endpoint import Endpoint

    if config.teacher is None:
        raise UserError(f"endpoint={config.endpoint}: say teacher=, the name that the model has there.")
    return Endpoint(
        config.endpoint,
        config.teacher,
        key=os.environ.get(config.api_key_variable, "").strip() or None,
        concurrency=config.concurrency,
        requests_per_minute=config.requests_per_minute,
        timeout=config.timeout,
        **settings,
    )


def check_oracle(task: str) -> ManyAnswers:
    """The task, if it can list the right answers to a question. Raises UserError if it cannot."""
    answers = listing(open_task(task))
    if answers is None:
        raise UserError(f"the right answers of task={task} cannot be listed, so it has no oracle; task=number has one.")
    return answers


def _report(console: Console, config: DictConfig, summary: dict[str, Any]) -> None:
    table = Table("", "", title=f"{config.teacher or config.model} on the training prompts of {config.task}")
    table.add_row("prompts", str(summary["prompts"]))
    table.add_row("with a right response", _share(summary["covered"]))
    if config.rejected:
        table.add_row("with a right and a wrong one", _share(summary["pairs"]))
    table.add_row("responses drawn", f"{summary['samples']}, {summary['samples'] / summary['prompts']:.3g} a prompt")
    for kind, count in summary["failures"].items():
        table.add_row(f"  {kind.replace('_', ' ')}", str(count))
    console.print(table)


def _share(rate: Rate) -> str:
    return f"{rate['successes']}/{rate['episodes']} = {rate['rate']:.1%} ({rate['low']:.1%} to {rate['high']:.1%})"
