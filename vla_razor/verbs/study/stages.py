"""The stages of a verb that is made of others. Each is an ordinary run folder: run once, resumed or left alone."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from vla_razor.config import common_keys
from vla_razor.runs import Run
from vla_razor.verbs import module_of


def stage(console: Console, config: DictConfig, folder: Path, verb: str, **changes: Any) -> None:
    """Run `verb` in `folder` with the settings that `config` has for it, under `changes`. A run that was begun is
    resumed; one that has finished is left alone.
    """
    if (folder / "summary.json").is_file():
        return
    console.rule(folder.name)
    if (folder / "config.yaml").is_file():
        opened = Run.resume(folder)
    else:
        shared = {key: config[key] for key in (*common_keys(config.verb), "env") if key in config}
        settings = {**shared, **config.get(verb, {}), **changes, "verb": verb, "out": str(folder)}
        opened = Run.create(folder, OmegaConf.create(settings), verb)
    with opened as own:
        module_of(verb).run(own.config, own)
