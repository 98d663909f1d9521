"""What the language models' verbs share: the task's splits, the probe set and a model's answers, each with a progress
bar.
"""

from pathlib import Path

import torch
from omegaconf import DictConfig

from vla_razor.devices import device_named
from vla_razor.errors import UserError
from vla_razor.llm import probe_set, tasks
from vla_razor.llm.models import LanguageModel, source_of
from vla_razor.llm.probe_set import ProbeSet
from vla_razor.llm.sampling import Done, sample
from vla_razor.llm.tasks import Example, Splits, Task
from vla_razor.progress import progress


def check_models(config: DictConfig) -> None:
    """Raises UserError for a key that names a model by a path to nothing, before the Hub is asked for anything."""
    keys = ("model", "base") if config.get("endpoint") else ("model", "base", "teacher")
    named = [(key, config[key]) for key in keys if config.get(key)]
    for key, spec in [*named, *(("model", spec) for spec in config.get("axes", {}).get("model", []))]:
        try:
            source_of(spec)
        except UserError as error:
            raise UserError(f"{key}={error}") from error


def splits_of(config: DictConfig, task: Task) -> Splits:
    """The task's splits, from `config.data_dir`, or from the Hub where it is null. Raises UserError where there is no
    easier slice.
    """
    if config.easy and config.task != "tool":
        raise UserError(f"easy=true: task={config.task} has no easier slice, tool has one.")
    data_dir = Path(config.data_dir) if config.data_dir else None
    return task.load(data_dir, direct=config.direct, **({"easy": True} if config.easy else {}))


def probe_of(config: DictConfig, language: LanguageModel, test: list[Example]) -> ProbeSet:
    """The base's probe set on `config.probe_prompts` test prompts, from the cache or made now."""
    examples = tasks.subset(test, config.probe_prompts)
    with progress("probe set", _batches(config, examples)) as advance:
        return probe_set.obtain(
            language,
            config.task,
            examples,
            max_new_tokens=config.max_new_tokens,
            seed=config.seed,
            batch_size=config.micro_batch_size,
            done=advance,
        )


def answers_of(
    config: DictConfig, language: LanguageModel, task: Task, asked: list[Example], title: str, temperature: float = 0.0
) -> list[bool]:
    """Which prompts the model answers right, by greedy decoding as benchmarks do; with a temperature, by one sample,
    which is the same for the same model.
    """
    with progress(title, _batches(config, asked)) as advance:
        texts = completions_of(config, language, asked, temperature=temperature, seed=0, done=advance)
        rewards = task.rewards(texts, [example.gold for example in asked])
    return [reward == 1.0 for reward in rewards]


def completions_of(
    config: DictConfig,
    language: LanguageModel,
    asked: list[Example],
    *,
    temperature: float,
    seed: int,
    done: Done = lambda: None,
) -> list[str]:
    """The model's completion of each prompt. A model in training is left as it was."""
    settings = {"temperature": temperature, "max_new_tokens": config.max_new_tokens, "seed": seed}
    # Products are computed in `config.dtype`, whatever the weights are.
    kind, enabled = device_named(config.device).type, config.dtype == "bfloat16"
    was_training = language.model.training
    language.model.eval()
    with torch.autocast(kind, torch.bfloat16, enabled=enabled):
        found = sample(language, asked, **settings, batch_size=config.micro_batch_size, done=done)
    language.model.train(was_training)
    return [one.text for one in found]


def _batches(config: DictConfig, examples: list[Example]) -> int:
    return -(-len(examples) // config.micro_batch_size)
