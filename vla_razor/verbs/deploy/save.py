"""`vla-razor save RUN --out DIR`: a tuned policy as others take it: weights or adapter, statistics, processor, and a
model card that says what it learned and what it forgot.

The folder is DIR/checkpoints/step_N, named after the checkpoint that it is a copy of. Any verb takes it as its policy,
and OpenVLA's original code loads a whole one. An adapter that is merged is compared before and after: weights in
bfloat16 have no room for an update below 1/256 of a weight, so that merging there may undo a training. What moves the
policy is refused.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from rich.console import Console

from vla_razor.errors import UserError
from vla_razor.files import SUMS, atomic_folder, full_disk_reported
from vla_razor.policies import Observations
from vla_razor.policies.load import folder_of, load_model
from vla_razor.policies.observations import names_of
from vla_razor.policies.opening import weights_of
from vla_razor.policies.openvla import checkpoint, lora
from vla_razor.policies.openvla.policy import PrismaticPolicy
from vla_razor.policies.trainable import Trainable
from vla_razor.runs import Run, checkpoint_folder, origin_of, read_config, run_of, whole_checkpoint
from vla_razor.verbs.deploy import card

STATES, SIDE = 8, 224
"""Of the comparison before and after merging: random pictures, and their side in pixels."""
INSTRUCTION = "pick coke can"
"""What is asked in it, unless the run knows instructions."""


def run(config: DictConfig, run: Run) -> None:
    """Write the folder."""
    run.restore()
    folder, facts = written(config, run)
    run.finish({"checkpoint": str(folder), **facts})
    Console().print(str(folder), highlight=False, soft_wrap=True)


def written(config: DictConfig, run: Run) -> tuple[Path, dict[str, float]]:
    """The folder, and what summary.json says of it.

    Raises UserError where there is no such policy, or where merging has moved it by more than `config.merge_tolerance`.
    """
    if config.policy is None:
        raise UserError(f"{config.verb} needs a policy: vla-razor {config.verb} RUN, a run or a checkpoint in it.")
    source = whole_checkpoint(Path(config.policy))
    if source is None:
        raise UserError(f"policy={config.policy}: there is no such folder; expected a run, or a checkpoint in it.")
    adapter = (source / lora.ADAPTER_CONFIG_FILE).is_file()
    if config.merge and not adapter:
        raise UserError(f"policy={config.policy}: it has no adapter to merge: merge=false.")
    trained = run_of(config.policy)
    base = config.base or (lora.read_config(source).base_model_name_or_path if adapter else None)
    base = base or (origin_of(config.policy, "policy") if trained else config.policy)
    name = config.base_name or (Path(base).name if Path(base).exists() else base)  # no path of this machine
    facts: dict[str, float] = {}
    if config.merge:
        model = load_model(config.policy, dtype=config.dtype, device=config.device, oft=config.oft)
        known = read_config(trained / "config.yaml").get("other_instructions") if trained else None
        asked = next(iter(known or []), INSTRUCTION)
        facts["merging_moved"] = moved = moved_by_merging(PrismaticPolicy(model), asked)
        if not moved <= config.merge_tolerance:
            raise UserError(
                f"policy={config.policy}: merging in {config.dtype} moves it by {moved:.2g} nats a token, and "
                f"merge_tolerance={config.merge_tolerance:g}: merge in float32, or keep the adapter with merge=false."
            )
        fill: Callable[[Path], object] = model.save_pretrained
    else:
        fill = lambda aside: shutil.copytree(source, aside, dirs_exist_ok=True)  # noqa: E731

    def filled(aside: Path) -> None:
        fill(aside)
        (aside / SUMS).unlink(missing_ok=True)  # what follows changes files; new ones are written at the end
        if (path := aside / lora.ADAPTER_CONFIG_FILE).is_file():
            path.write_text(json.dumps(checkpoint.read_json(path) | {"base_model_name_or_path": name}, indent=2) + "\n")
        if config.card:
            text = card.written(
                Path(config.policy).resolve().name if trained is None else trained.resolve().name,
                read_config(trained / "config.yaml") if trained else None,
                _summary(trained, source),
                base=name,
                base_digest=_digest(base, config),
                licence=config.license or card.licence_of(folder_of(base)),
                keys=_statistics(aside),
                adapter=adapter and not config.merge,
                **facts,
            )
            (aside / card.FILE).write_text(text)

    folder = run.path / "checkpoints" / source.name
    with full_disk_reported(folder):
        atomic_folder(folder, filled)
    return folder, facts


@torch.no_grad()
def moved_by_merging(policy: Trainable, instruction: str) -> float:
    """Merges the policy's adapter; the mean forward KL from the policy before to the one after, in nats a token, at
    random pictures.
    """
    draw = np.random.default_rng(0)
    pictures = {
        camera: policy.seen(draw.integers(256, size=(STATES, SIDE, SIDE, 3), dtype=np.uint8))
        for camera in names_of(policy)
    }
    seen = Observations(pictures, proprioception=np.zeros((STATES, policy.proprioception), np.float32))
    views, prompts = policy.views(seen), policy.prompt_ids([instruction] * STATES)
    tokens = policy.sample(views, prompts, torch.Generator(policy.device).manual_seed(0))
    before = policy.distribution(views, prompts, tokens)
    policy.merge_lora()
    return before.kl(policy.distribution(views, prompts, tokens)).mean().item()


def _summary(trained: Path | None, source: Path) -> dict[str, object]:
    """What the run found out; nothing where there is no run, or it measured another checkpoint, its last."""
    if trained is None or not (trained / "summary.json").is_file() or source != checkpoint_folder(trained):
        return {}
    return checkpoint.read_json(trained / "summary.json")


def _digest(base: str, config: DictConfig) -> str | None:
    """That of the base's weights, if they can be had here."""
    try:
        return card.digest(weights_of(base, config))
    except UserError:
        return None


def _statistics(folder: Path) -> list[str]:
    path = folder / checkpoint.STATISTICS_FILE
    return list(checkpoint.read_json(path)) if path.is_file() else []
