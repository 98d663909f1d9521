"""The model card of a tuned policy: what it comes from, what it learned, and what it forgot."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from omegaconf import DictConfig
from torch import Tensor

from vla_razor.statistics import Difference
from vla_razor.study import measures
from vla_razor.study.measures import MEASURES
from vla_razor.tables import by_task, in_words, shown

FILE = "README.md"
SHOWN = (
    "demos", "replay", "epochs", "iterations", "grid", "per_point", "batch_size", "baseline", "learning_rate",
    "gain_learning_rate", "lora_rank", "lora_alpha", "train_vision", "loss", "prefix_jitter", "kl_coefficient",
    "spillover_coefficient", "replay_coefficient", "penalties", "temperature", "dtype", "seed",
)  # fmt: skip
"""The settings that a reader asks for first; all of them are in the run's config.yaml."""
FEW = 4
"""Names of action statistics that a card lists: OpenVLA has those of 26 datasets."""
METHODS = {"sft": "SFT", "rl": "REINFORCE", "distill": "distillation from a scripted expert"}


def licence_of(folder: Path | None) -> str | None:
    """What the card in a folder says, if there is one."""
    path = folder and folder / FILE
    return ModelCard.load(path).data.to_dict().get("license") if path and path.is_file() else None


def digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of weights as they are stored, in the order of their names; one is in memory at a time."""
    found = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().contiguous().cpu()
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def written(
    name: str,
    trained: DictConfig | None,
    summary: Mapping[str, Any],
    *,
    base: str,
    base_digest: str | None,
    licence: str | None,
    keys: list[str],
    adapter: bool,
    merging_moved: float | None = None,
) -> str:
    """The card's text. `trained` are the settings of the run that made the policy and `summary` what it found out, if
    there is such a run; `keys` are the names of the action statistics that are beside the weights, `merging_moved` is
    what merging an adapter has changed, in nats a token.
    """
    entries, comparison = summary.get("policies", {}), summary.get("comparison")
    tuned = entries.get("tuned")
    data = ModelCardData(
        license=licence or "other",
        base_model=base if "/" in base else None,
        library_name="peft" if adapter else "vla-razor",
        pipeline_tag="robotics",
        tags=["vla-razor", *([trained.verb] if trained else [])],
        model_name=name,
        eval_results=_results(tuned) if tuned else None,
    )
    lines = [f"# {name}", "", _origin(trained, base), ""]
    if tuned:
        lines += [*_success(entries, comparison), *_forgotten(tuned, comparison)]
    else:
        lines += ["What it can do, and what it has forgotten, was not measured by the run that it is from.", ""]
    if trained:
        settings = {key: trained[key] for key in SHOWN if trained.get(key) not in (None, {}, [])}
        settings |= {key: Path(settings[key]).name for key in ("demos", "replay") if key in settings}
        lines += ["## Settings", "", "| key | value |", "| --- | --- |"]
        lines += [*(f"| {key} | {value} |" for key, value in settings.items()), ""]
    lines += ["## Where it comes from", ""]
    lines += [f"- Base: `{base}`" + (f", SHA-256 of its weights {base_digest}" if base_digest else "")]
    if adapter:
        lines += ["- This is an adapter, which needs its base."]
    if merging_moved is not None:
        lines += [f"- Its adapter was added to the base's weights; that moved it by {merging_moved:.2g} nats a token."]
    if key := trained and trained.get("unnorm_key"):
        lines += [f"- Action statistics (`unnorm_key`): `{key}`"]
    elif 0 < len(keys) <= FEW:
        lines += [f"- Action statistics (`unnorm_key`): {', '.join(f'`{key}`' for key in keys)}"]
    if trained and trained.get("env"):
        lines += [f"- It has acted in `{trained.env.id}`, robot and controller of `{trained.robot}`."]
    if versions := summary.get("versions"):
        lines += ["- Made with " + ", ".join(f"{package} {version}" for package, version in versions.items()) + "."]
    if commit := summary.get("git_commit"):
        lines += [f"- vla-razor's commit: {commit}"]
    if licence is None:
        lines += ["- The base states no licence here: look there before you use it."]
    lines += [
        "",
        "`vla-razor eval --policy FOLDER` measures it, `vla-razor serve --policy FOLDER` serves it to a robot.",
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n"


def _origin(trained: DictConfig | None, base: str) -> str:
    if trained is None:
        return f"A policy from `{base}`."
    method = METHODS.get(trained.verb, trained.verb.replace("_", " "))
    new = trained.env.name if trained.get("env") else trained.get("task", "a task")
    return f"`{base}`, fine-tuned by {method} on `{new}`."


def _success(entries: Mapping[str, Any], comparison: Mapping[str, Any] | None) -> list[str]:
    """The table of success, before and after."""
    if not by_task(entries["tuned"]):
        return []
    base, tuned = by_task(entries["base"]), by_task(entries["tuned"])
    lines = ["## Success", "", "Episodes that end in success, from random starts, with 95% intervals.", ""]
    lines += ["| task | base | this policy | difference |", "| --- | --- | --- | --- |"]
    for task, success in tuned.items():
        pair = comparison and comparison["tasks"].get(task, comparison["prior_mean"])
        change = in_words(Difference(**pair["success_at_end"])) if pair and pair["episodes"] else ""
        new = " (new)" if task in entries["tuned"]["new_task"] else ""
        before = shown(base[task]["success_at_end"], ", ")
        lines += [f"| {task}{new} | {before} | {shown(success['success_at_end'], ', ')} | {change} |"]
    return [*lines, ""]


def _forgotten(tuned: Mapping[str, Any], comparison: Mapping[str, Any] | None) -> list[str]:
    lines = ["## What it forgot", ""]
    pair = comparison and comparison["prior_mean"]
    if pair and pair["episodes"]:
        change = in_words(Difference(**pair["success_at_end"]))
        lines += [f"- success over all prior tasks, against the base's from the same starts: {change}"]
    else:
        lines += ["- No prior task was measured."]
    moved = {name: value for name, value in measures.logged(tuned["forward_kl"] or {}).items() if value is not None}
    lines += [f"- {MEASURES[name]}: {value:.4g}" for name, value in moved.items()]
    return [*lines, ""]


def _results(tuned: Mapping[str, Any]) -> list[EvalResult]:
    """What the Hub shows beside the card."""
    return [
        EvalResult(
            task_type="robotics",
            dataset_type=task,
            dataset_name=task,
            metric_type="success_rate",
            metric_name="success at the end",
            metric_value=round(success["success_at_end"]["rate"], 4),
        )
        for task, success in by_task(tuned).items()
    ]
