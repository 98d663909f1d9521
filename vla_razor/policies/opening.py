"""From a configuration's `policy` to what acts, or to what can be trained and measured."""

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
"""How the address of a policy server begins."""


def open_policy(spec: str, config: DictConfig) -> Policy:
    """A server's policy where `spec` is its address; a member of the group `vla_razor.policies` or what
    `module:factory` makes, as a run has trained it where `spec` is its folder; RT-1 where `spec` is a SavedModel's
    folder; or a model at the configured temperature, greedy if asked for.
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
    """A policy that tells its distribution: a model, its parameters in `config.dtype` or as `dtypes` tell `load_model`,
    or a member that does. Raises UserError for a policy that only acts.
    """
    if member := _member(spec):
        return _trainable(member, config)
    taken = taken_in(config.env) if config.get("env") else None
    return PrismaticPolicy(open_model(spec, config, **dtypes), config.unnorm_key, robot=_robot_of(config), taken=taken)


def weights_of(spec: str | Path, config: DictConfig) -> Mapping[str, Tensor]:
    """The weights of what `open_trainable` would open, by name; those of a checkpoint are each read from its file when
    they are asked for. Raises UserError as it does.
    """
    member = _member(str(spec))
    return _trainable(member, config).module.state_dict() if member else stored_weights(spec)


def open_model(spec: str, config: DictConfig, **dtypes: Any) -> PrismaticVLA:
    """The model that `spec` names, at `config.temperature` and with `config.prompt` unless they are null."""
    model = load_model(spec, device=config.device, oft=config.oft, **(dtypes or {"dtype": config.dtype}))
    if config.temperature is not None:
        model.config.temperature = config.temperature
    if config.prompt is not None:
        model.config.prompt = config.prompt
    return model


def taken_in(env: DictConfig) -> Mapping[str, Any] | None:
    """The convention of the actions of a suite from outside, where it says it."""
    suite = suite_in(scenes(env)[0].make)
    return suite.get("convention") if suite else None


class _Member(NamedTuple):
    """What makes a policy from outside, the name it goes by, and the checkpoint of a run that has trained it."""

    factory: Callable[..., Any]
    spec: str
    checkpoint: Path | None

    def opened(self, config: DictConfig) -> Policy:
        offered = {"robot": _robot_of(config), "device": config.device, "checkpoint": self.checkpoint}
        return made_by(self.factory, self.spec, **offered)


def _robot_of(config: DictConfig) -> str | None:
    """None for a verb in which nobody acts."""
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
    folder = run_of(spec)
    trained = read_config(folder / "config.yaml").get("policy") if folder else None
    if trained is None or trained == spec or not (origin := _member(str(trained))):
        return None
    return origin._replace(spec=spec, checkpoint=whole_checkpoint(Path(spec)))
