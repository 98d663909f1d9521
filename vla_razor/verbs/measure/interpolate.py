"""`vla-razor interpolate`: policies on the straight line between the base's weights and the tuned ones, which often
keep most of both (WiSE-FT; Wortsman et al., "Robust fine-tuning of zero-shot models", 2022).

The policy `share` of the way is in checkpoints/share_<percent>, which `vla-razor eval --policy` and `kl --policy` take.
"""

import copy
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from vla_razor.errors import UserError
from vla_razor.files import atomic_folder, full_disk_reported
from vla_razor.policies.trainable import Trainable
from vla_razor.rollouts import probe_set
from vla_razor.runs import Run, origin_of, resumed_as
from vla_razor.study import measures
from vla_razor.training.base import opened


def run(config: DictConfig, run: Run) -> None:
    """Write a policy for each of `config.shares`; those that are there already are left alone."""
    if "share" in config:
        study = f"vla-razor resume {resumed_as(run.path, config)}"
        raise UserError(f"{run.path} is a part of a study, which alone goes on with it: {study}")
    run.restore()
    base, tuned = _ends(config.base or origin_of(config.policy, "policy"), config.policy, config)
    check(base, tuned, config.policy)
    made = {}
    for share in config.shares:
        folder = run.path / "checkpoints" / f"share_{100 * share:g}"
        if not folder.is_dir():
            with full_disk_reported(folder):
                atomic_folder(folder, between(base, tuned, share).save)
        made[str(share)] = str(folder)
    run.finish({"checkpoints": made})
    for folder in made.values():
        Console().print(folder, highlight=False, soft_wrap=True)


def measured(config: DictConfig, tuned: Path, folder: Path, share: float, probed: DictConfig) -> None:
    """Measure the policy `share` of the way from `config.policy` to its tuned checkpoint, on the probe set that the
    training `probed` used. The result is a finished run in `folder`, with the checkpoint's step as its only one. A run
    that has finished is left alone.
    """
    if (folder / "summary.json").is_file():
        return
    facts = {"policy": str(tuned), "base": config.policy, "share": share, "env": config.env, "logger": "none"}
    begun = (folder / "config.yaml").is_file()
    with Run.resume(folder) if begun else Run.create(folder, OmegaConf.create(facts), "interpolate") as run:
        run.restore()
        policy = between(*_ends(config.policy, str(tuned), config), share)
        settings = {key: config[key] for key in ("num_envs", "num_workers")}
        settings |= {"states": probed.probe_states, "other_instructions": probed.other_instructions}
        before = opened(config.policy, config, learns=False)  # as the training's base: one probe set
        probe = probe_set.obtain(before, config.env, **settings)
        step = int(tuned.name.removeprefix("step_"))
        run.log(step, **measures.logged(probe_set.measure(policy, probe)))
        run.save(step, policy.save, {})
        run.finish({})


def _ends(base: str, tuned: str, config: DictConfig) -> tuple[Trainable, Trainable]:
    """Base and tuned policy, adapters merged."""
    before, policy = (opened(spec, config, learns=True) for spec in (base, tuned))
    if policy.has_adapter:
        policy.merge_lora()
    return before, policy


def check(base: Trainable, tuned: Trainable, name: str) -> None:
    """Raises UserError where the two do not have the same weights, between which to interpolate."""
    one, other = ({key: tuple(v.shape) for key, v in p.module.state_dict().items()} for p in (base, tuned))
    if one != other:
        different = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
        raise UserError(
            f"policy={name}: {len(different)} weights are not those of its base, {different[0]} among them."
        )


@torch.no_grad()
def between(base: Trainable, tuned: Trainable, share: float) -> Trainable:
    """The tuned policy with the weights base + share * (tuned - base)."""
    policy = copy.deepcopy(tuned)
    start = base.module.state_dict()
    for name, weight in policy.module.state_dict().items():
        if weight.is_floating_point():
            weight.copy_(torch.lerp(start[name], weight, share))
    return policy
