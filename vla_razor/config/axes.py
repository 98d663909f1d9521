"""What the runs of a sweep differ in, in the grammar of Hydra's multirun: `method=sft,rl learning_rate=1e-4,3e-4`."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from vla_razor.config.groups import VERBS


def taken_out(values: dict[str, str], whole: str | None = None) -> dict[str, list[str]]:
    """Takes out of the overrides what is given several values, and the methods. The key `whole` stays as it is."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Transformer
    from hydra.errors import HydraException

    axes: dict[str, list[str]] = {}
    for key, text in list(values.items()):
        try:
            override = OverridesParser.create().parse_override(f"{key}={text}")
        except HydraException:  # a path, or the like
            continue
        if override.is_sweep_override() and key != whole:
            axes[key] = [str(value) for value in override.sweep_iterator(Transformer.str)]
        elif key == "method":
            axes[key] = [text]
        if key in axes:
            del values[key]
    return axes


def is_one(config: DictConfig, key: str) -> bool:
    """Whether a key of a sweep is of its trainings, of one or of all: an axis then, also with a single value."""
    section, _, name = key.rpartition(".")
    trainings = [part for part in config if part in VERBS and "learning_rate" in config[part]]
    chosen = [section] if section else trainings if key not in config else []
    return any(part in trainings and name in config[part] for part in chosen)


def kept(config: DictConfig, given: Mapping[str, list[str]]) -> dict[str, Any]:
    """Of the axes that an experiment has, those fall away that the command line gives too, with a section or without,
    and those of methods that were not chosen on it. A method is called as the verb that trains by it, or begins with
    its name: sft_own.
    """
    chosen = {method.partition("_")[0] for method in given.get("method", config.axes.get("method", []))}
    said = {key.rpartition(".")[2] for key in given}
    sections = {str(key): str(key).rpartition(".")[0].removeprefix("llm_") for key in config.axes}
    own = {key for key, section in sections.items() if not chosen or section in ("", *chosen)}
    return {key: config.axes[key] for key in sections if key in own and str(key).rpartition(".")[2] not in said}
