"""The runs of a sweep, in the grammar of Hydra's multirun: `method=sft,rl learning_rate=1e-4,3e-4 seed=0,1,2`.

A key that only one method has, or whose values differ between methods, is given with its section:
`rl.iterations=12,24`. The gains' learning rate, where a method has one, keeps its ratio to `learning_rate` unless it is
given too. An axis may have one value or several.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from vla_razor.config import compose
from vla_razor.errors import UserError, nearest
from vla_razor.study import measures


@dataclass(frozen=True, eq=False)
class Training:
    """A training run: its folder; its setting, which all seeds share; method, seed and learning rate; the `changes` of
    the method's settings; `variant`, the part of the changes that makes it another method in the table, as text; and
    the `model` that it fine-tunes, where a study has several.
    """

    folder: Path
    setting: str
    method: str
    seed: int
    learning_rate: float
    changes: Mapping[str, Any]
    variant: str = ""
    model: str = ""

    @property
    def label(self) -> str:
        """The method as the table names it."""
        return f"{self.method} {self.variant}".rstrip()

    @property
    def finished(self) -> bool:
        return (self.folder / "summary.json").is_file()

    def checkpoints(self, count: int) -> list[Path]:
        """`count` of the saved checkpoints, or as many as there are: evenly spaced, the last one always among them."""
        found = sorted((self.folder / "checkpoints").glob("step_*"), key=step_of)
        wanted = {round(index) for index in np.linspace(len(found), 0, count, endpoint=False)}
        return [path for index, path in enumerate(found, 1) if index in wanted]

    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl."""
        return measures.read_rows(self.folder)


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint's name states."""
    return int(checkpoint.name.removeprefix("step_"))


def plan(
    config: DictConfig, out: Path, verbs: Mapping[str, str], shared: Sequence[str] = (), variants: Sequence[str] = ()
) -> list[Training]:
    """The runs: every combination of the axes' values that a method knows, each once. Runs are named by setting and
    seed; those of a demo with a single seed by setting alone.

    `verbs` maps each method to the verb that trains by it, whose settings are the section of `config` with that name.
    `shared` are keys of all methods that stand beside the sections, be they the verb's or the study's own. `variants`
    are keys whose change makes a method another one in the table.

    Raises UserError where no method knows an axis, or a value breaks the rule of its key.
    """
    axes: dict[str, list[str]] = {"method": list(verbs)}
    axes |= {str(key): [str(value) for value in values] for key, values in config.axes.items() if key != "seed"}
    for key, values in axes.items():
        if len(set(values)) < len(values):
            raise UserError(f"{key}={','.join(values)}: each value only once, or runs would be the same.")
    methods, seeds = axes.pop("method"), seeds_of(config)
    alone = config.verb.endswith("demo") and len(seeds) == 1  # the folders of such a demo are called demos, sft, rl
    for method in methods:
        if method not in verbs:
            raise UserError(f"unknown method {method!r}. {nearest(method, verbs)}")
    every = {str(name) for method in methods for name in config[verbs[method]]} | set(shared)
    for key in axes:
        section, _, name = key.rpartition(".")
        if name not in every or section not in ("", *verbs.values()):
            raise UserError(f"unknown key {key!r} for {' and '.join(methods)}. {nearest(name, every)}")
    trainings: dict[str, Training] = {}
    for method in methods:
        verb = verbs[method]
        usual = compose(verb)
        beside = {key: compose(config.verb)[key] for key in shared if key not in usual}  # such as a sequence's `share`
        known = {*map(str, config[verb]), *shared}
        own = {key: values for key, values in axes.items() if _name(key, verb) in known}
        if len({_name(key, verb) for key in own}) < len(own):
            raise UserError(f"{', '.join(own)}: {method} is given one of its keys twice, with its section and without.")
        settings = [dict(zip(own, values, strict=True)) for values in product(*own.values())]
        for setting, texts in enumerate(settings, 1):
            # Composed as for the verb itself, which checks each value by the rule of its key.
            named = {_name(key, verb): text for key, text in texts.items()}
            composed = compose(verb, [f"{key}={text}" for key, text in named.items() if key not in beside])
            study = compose(config.verb, [f"{key}={text}" for key, text in named.items() if key in beside])
            changes: Any = OmegaConf.to_container(
                OmegaConf.create({key: (study if key in beside else composed)[key] for key in named})
            )
            gains = config[verb].get("gain_learning_rate")
            if "learning_rate" in changes and "gain_learning_rate" not in changes and gains is not None:
                changes["gain_learning_rate"] = gains * changes["learning_rate"] / config[verb].learning_rate
            name = f"{method}_{setting}" if len(settings) > 1 else method
            # A setting has one number for all seeds, by which its runs are found and averaged.
            rate = changes.get("learning_rate", config[verb].learning_rate)
            used = {**{key: config[key] for key in beside}, **config[verb], **changes}
            variant = " ".join(f"{k}={used[k]}" for k in variants if k in used and used[k] != {**usual, **beside}[k])
            for seed in seeds:
                folder = out / (name if alone else f"{name}_seed{seed}")
                trainings[folder.name] = Training(folder, name, method, seed, rate, changes, variant)
    return list(trainings.values())


def seeds_of(config: DictConfig) -> list[int]:
    """The seeds of the trainings. Raises UserError for one that is no whole number."""
    seeds = [str(value) for value in config.axes.get("seed", [config.seed])]
    for text in seeds:
        if not text.isdecimal():
            raise UserError(f"bad value seed={text}: expected whole numbers, at least 0.")
    return [int(text) for text in seeds]


def _name(key: str, verb: str) -> str:
    """The key that an axis names in a method's settings; empty where it is another method's."""
    section, _, name = key.rpartition(".")
    return name if section in ("", verb) else ""
