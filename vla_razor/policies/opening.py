"""From a configuration's `policy` to a policy that acts, or to one that can be trained and measured."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig
from torch import Tensor

from vla_razor.config import robot_of, scenes, suite_in
from vla_razor.errors import UserError
from vla_razor.policies import Policy
from vla_razor.policies.load import load_model, stored_weights
from vla_razor.policies.members import factory_of, made_by
from vla_razor.policies.openvla.checkpoint import NoCheckpoint
from vla_razor.policies.openvla.policy import PrismaticPolicy
from vla_razor.policies.openvla.prismatic import PrismaticVLA
from vla_razor.policies.rt1 import RT1Policy, is_saved_model
from vla_razor.policies.trainable import Trainable
from vla_razor.runs import read_config, run_of, whole_checkpoint

SERVED = "openpi://"
"""Prefix of the address of a policy server."""


def open_policy(spec: str, config: DictConfig) -> Policy:
    """The policy that `spec` names: the address of a server; a member of the group `vla_razor.policies` or
    `module:factory`, also as a run has trained it; the folder of RT-1's SavedModel; or a model, at the configured
    temperature, greedy if asked for.
    """
    robot = robot_of(config.env)
    if member := _member(spec):
        return member.opened(config)
    if is_saved_model(spec):
        if robot != "google_robot":
            raise UserError(f"policy={spec}: RT-1 acts on the Google robot alone; add robot=google_robot.")
        return RT1Policy(spec, config.embeddings)
    try:
        model = open_model(spec, config)
    except NoCheckpoint as error:
        if robot != "google_robot":
            raise
        raise UserError(f"{error} RT-1's SavedModel would hold saved_model.pb, which is not here either.") from error
    return PrismaticPolicy(model, config.unnorm_key, config.get("greedy", False), robot, taken_in(config.env))


def open_trainable(spec: str, config: DictConfig, **dtypes: Any) -> Trainable:
    """A policy that tells its distribution: a model, with parameters in `config.dtype` or as `dtypes` tell
    `load_model`, or a member that is `Trainable`. Raises UserError for a policy that only acts.
    """
    if member := _member(spec):
        return _trainable(member, config)
    model = open_model(spec, config, **dtypes)
    taken = taken_in(config.env) if config.get("env") else None
    return PrismaticPolicy(model, config.unnorm_key, robot=_robot_of(config), taken=taken)


def weights_of(spec: str | Path, config: DictConfig) -> Mapping[str, Tensor]:
    """By name, the weights of what `open_trainable` would open. Those of a checkpoint are read from its file one by
    one, when they are asked for. Raises UserError as it does.
    """
    member = _member(str(spec))
    return _trainable(member, config).module.state_dict() if member else stored_weights(spec)


def open_model(spec: str, config: DictConfig, **dtypes: Any) -> PrismaticVLA:
    """The model that `spec` names, with `config.temperature` and `config.prompt` unless they are null."""
    model = load_model(spec, device=config.device, oft=config.oft, **(dtypes or {"dtype": config.dtype}))
    if config.temperature is not None:
        model.config.temperature = config.temperature
    if config.prompt is not None:
        model.config.prompt = config.prompt
    return model


def taken_in(env: DictConfig) -> Mapping[str, Any] | None:
    """The convention of a suite's actions, if the suite is from outside and states it."""
    suite = suite_in(scenes(env)[0].make)
    return suite.get("convention") if suite else None


class _Member(NamedTuple):
    """A factory of policies from outside, the name a policy goes by, and the checkpoint of a run that trained it."""

    factory: Callable[..., Any]
    spec: str
    checkpoint: Path | None

    def opened(self, config: DictConfig) -> Policy:
        offered = {"robot": _robot_of(config), "device": config.device, "checkpoint": self.checkpoint}
        return made_by(self.factory, self.spec, **offered)


def _robot_of(config: DictConfig) -> str | None:
    """The robot of a configuration; None for a verb in which nobody acts."""
    return robot_of(config.env) if config.get("env") else None


def _trainable(member: _Member, config: DictConfig) -> Trainable:
    policy = member.opened(config)
    if not isinstance(policy, Trainable):
        raise UserError(
            f"policy={member.spec}: it acts, but has no distribution that could be trained or compared: {config.verb} "
            "takes a checkpoint, or a vla_razor.policies.trainable.Trainable. eval and collect take it."
        )
    return policy


def _served(spec: str) -> Policy:
    try:
        from vla_razor.policies.remote import RemotePolicy
    except ModuleNotFoundError as error:
        raise UserError(f"policy={spec}: {error.name} is not installed; pip install 'vla-razor[serve]'.") from error
    return RemotePolicy(spec)


def _member(spec: str) -> _Member | None:
    if spec.startswith(SERVED):
        return _Member(partial(_served, spec), spec, None)
    if factory := factory_of(spec):
        return _Member(factory, spec, None)
    if not (folder := run_of(spec)):
        return None
    trained, checkpoint = read_config(folder / "config.yaml").get("policy"), whole_checkpoint(Path(spec))
    origin = _member(str(trained)) if trained not in (None, spec) else None
    return origin and origin._replace(spec=spec, checkpoint=checkpoint)
