"""`vla-razor llm sft|grpo|reinforce|simpo`: fine-tune a language model on math, science or tool use (RL's Razor,
Sections 3.1 and 5.1, Appendix B.1).

TRL trains. Along the way forward KL from the base is measured on the probe set, over the whole vocabulary, at the
base's own completions of test prompts. Where the task can tell the form of an answer, the entropy over these forms is
measured too, beginning with the base's. Base and tuned model answer the same test prompts by greedy decoding.

Where it departs from the paper: SFT without annotations learns the gold answers alone, without reasoning.
"""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

from accelerate import PartialState
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from transformers import PrinterCallback

from vla_razor.devices import device_named
from vla_razor.errors import UserError
from vla_razor.files import check_folder, full_disk_reported, write_json
from vla_razor.llm import annotations, probe_set, tasks, training
from vla_razor.llm.callbacks import RunCallback, trainer_folder
from vla_razor.llm.models import LanguageModel, open_model
from vla_razor.llm.probe_set import ProbeSet
from vla_razor.llm.tasks import Example, Splits, Task
from vla_razor.runs import Run
from vla_razor.statistics import paired_difference, wilson
from vla_razor.study.measures import MEASURES, logged
from vla_razor.verbs.language.steps import answers_of, completions_of, probe_of, splits_of


def run(config: DictConfig, run: Run) -> None:
    """Fine-tune `config.model` on `config.task`; goes on where a resumed run stopped."""
    processes = PartialState(cpu=device_named(config.device).type == "cpu")
    run.restore()
    task = tasks.open_task(config.task)
    splits = splits_of(config, task)
    data = _data(config, splits)
    training.check(config, len(data))
    language = open_model(config.model, device=config.device, dtype=config.dtype, learning=not config.lora_rank)
    asked = tasks.subset(splits.test, config.eval_prompts) if config.eval_prompts else []
    with processes.main_process_first():  # the others then read what it has made
        probe = probe_of(config, language, splits.test) if config.probe_every else None
        kept = run.path / "base_answers.json"  # answered before the first update, and kept for a resumed run
        if not kept.is_file():
            write_json(kept, answers_of(config, language, task, asked, "base answers") if asked else [])
        base: list[bool] = json.loads(kept.read_text())
    # Probe set, answers and first diversity are those of the base: all are measured before the first update.
    probed = tasks.subset(splits.test, config.probe_prompts)
    callback = RunCallback(
        run, config.probe_every, lambda: _moved(config, language, probe) | _diversity(config, language, task, probed)
    )
    if not run.step and (diversity := _diversity(config, language, task, probed)):
        run.log(0, **diversity)
    folder, callbacks = trainer_folder(run), [callback]
    if config.verb == "llm_sft":
        trainer: Any = training.sft(language, config, data, folder, callbacks)
    elif config.verb == "llm_simpo":
        trainer = training.simpo(language, config, data, folder, callbacks)
    else:
        trainer = training.on_policy(language, config, task, data, folder, callbacks)
    trainer.remove_callback(PrinterCallback)  # the run has its own progress bar
    language = language._replace(model=trainer.model)
    resumed = trainer_folder(run, run.step) if run.step else None
    if resumed:
        check_folder(resumed, run.afresh())
        training.count_on(trainer, resumed)
    advice = f"free some space, then go on with: vla-razor resume {run.path}"
    with closing(callback), full_disk_reported(folder, advice):
        trainer.train(resume_from_checkpoint=resumed and str(resumed))
    tuned = answers_of(config, language, task, asked, "tuned answers") if asked else []
    moved = callback.measured or _moved(config, language, probe)
    console = Console(quiet=not processes.is_main_process)
    run.finish(present(console, config, base, tuned, moved, splits))


def present(
    console: Console,
    config: DictConfig,
    base: list[bool],
    tuned: list[bool],
    moved: dict[str, Any],
    splits: Splits,
) -> dict[str, Any]:
    """Prints what the model learned and how far it moved, and returns it for summary.json."""
    table = Table("", "base", "tuned", "change", title=f"{config.verb.removeprefix('llm_')} on {config.task}")
    entry: dict[str, Any] = {"task": config.task, "split": splits.left_out, "forward_kl": moved or None}
    if base:
        rates = wilson(sum(base), len(base)), wilson(sum(tuned), len(tuned))
        change = paired_difference(tuned, base)
        table.add_row(
            f"right answers of {len(base)}",
            *(f"{rate['rate']:.0%} [{rate['low']:.0%}, {rate['high']:.0%}]" for rate in rates),
            f"{change.difference:+.0%} [{change.low:+.0%}, {change.high:+.0%}]",
        )
        entry |= {"base": rates[0], "tuned": rates[1], "change": change._asdict()}
    if moved:
        for name in ("forward_kl_per_token", "forward_kl_per_completion"):
            table.add_row(str(MEASURES[name]), "0", f"{logged(moved)[name]:.4g}")
    if table.row_count:
        console.print(table)
    return entry


def _data(config: DictConfig, splits: Splits) -> Any:
    """What the method trains on: answers, pairs of answers, or prompts."""
    examples = tasks.subset(splits.train, config.max_examples)
    method = config.verb.removeprefix("llm_")
    if method in ("grpo", "reinforce"):
        return examples
    if config.annotations is None:
        if method == "simpo":
            made = f"vla-razor llm annotate --task {config.task} --rejected --out DIR"
            raise UserError(f"simpo needs right and wrong answers: annotations=DIR. Make them with: {made}")
        return [(example, example.answer) for example in examples]
    found = annotations.read(Path(config.annotations))
    by_prompt = {one.prompt: one for one in found}
    known = [(example, by_prompt[example.prompt]) for example in examples if example.prompt in by_prompt]
    if method == "simpo":
        rows = [(example, one.chosen, one.rejected) for example, one in known if one.chosen and one.rejected]
    else:
        rows = [(example, one.chosen) for example, one in known if one.chosen]
    if not rows:
        raise UserError(f"annotations={config.annotations}: none is of a training prompt of task={config.task}.")
    return rows


def _moved(config: DictConfig, language: LanguageModel, probe: ProbeSet | None) -> dict[str, Any]:
    return probe_set.measure(language, probe, config.micro_batch_size) if probe else {}


def _diversity(config: DictConfig, language: LanguageModel, task: Task, probed: list[Example]) -> dict[str, float]:
    """The entropy over the forms of the model's answers; empty where it is not measured, or the task knows no forms."""
    answers = tasks.listing(task)
    if not config.probe_every or answers is None:
        return {}
    texts = completions_of(config, language, probed, temperature=1.0, seed=config.seed)
    return {"format_entropy": tasks.format_entropy(answers, texts)}
