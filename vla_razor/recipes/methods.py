"""The methods that a demo or a sweep compares: the verb of each, and the demonstrations that it learns from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from vla_razor.config import scenes
from vla_razor.errors import UserError
from vla_razor.recipes.comparison import Training

METHODS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "sft": ("sft", {"demos": "demos"}),
    "sft_far": ("sft", {"demos": "far"}),
    "sft_own": ("sft", {"demos": "own"}),
    "sft_replay": ("sft", {"demos": "demos", "replay": "replay"}),
    "rl": ("rl", {}),
    "distill": ("distill", {}),
}
"""The verb of each, and which collections it learns from: the verb's key and the name of the folder."""


def verb_of(method: str) -> str:
    """The verb that trains by a method."""
    return METHODS[method][0]


def collections_of(method: str) -> Mapping[str, str]:
    """What a method learns from, by the key of its verb."""
    return METHODS[method][1]


def collected(config: DictConfig, name: str) -> dict[str, Any]:
    """What a collection differs in from `config.collect`: a far teacher's as `config.far` says; the base's own is by
    `config.policy`; a replay is of about as many episodes as the new task's, and at least one at every point of the
    grid of each prior task.

    Raises UserError for a far teacher where there is none.
    """
    if name == "far":
        if not config.far:
            raise UserError("far=null: sft_far needs a teacher, as in far={style: tucked} or far={policy: RT1_DIR}.")
        return dict(config.far)
    if name == "replay":
        tasks = sum(len(scene.tasks) for scene in scenes(config.prior))
        return {"env": config.prior, "per_point": max(1, config.collect.per_point // tasks)}
    return {"policy": config.policy} if name == "own" else {}


def folders_of(out: Path, training: Training, suffix: str) -> dict[str, Path]:
    """Where what a run learns from is collected, by the key of its verb."""
    return {key: out / (name + suffix) for key, name in collections_of(training.method).items()}
