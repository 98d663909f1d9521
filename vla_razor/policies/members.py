"""Policies by name: entry points of the group `vla_razor.policies`, and whatever `package.module:factory` names.

A factory is a class or a function. It returns an object with a `name` and an `act`, as in `vla_razor.policies.Policy`.
It is called with those of `robot` (whose environments the policy will act in), `device` and `checkpoint` (what a
training has saved of it, or None) that are its parameters.
"""

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from vla_razor.errors import UserError, nearest
from vla_razor.policies import Policy

GROUP = "vla_razor.policies"
_FACTORY = re.compile(r"(?P<module>[A-Za-z_]\w*(\.\w+)*):(?P<name>[A-Za-z_]\w*)")


def factory_of(spec: str) -> Callable[..., Any] | None:
    """The factory that `spec` names; None if it is neither the name of an entry point nor `module:factory`.

    Modules are also looked for in the working directory. Raises `UserError` where there is no such module, or no such
    name in it.
    """
    for entry in entry_points(group=GROUP, name=spec):
        return _callable("policy", spec, _loaded("policy", spec, entry.load))
    return named(spec, "policy")


def named(spec: str, key: str) -> Callable[..., Any] | None:
    """What `package.module:name` names, with modules of the working directory included; None for text of another form.
    Raises `UserError` as `factory_of` does; its message speaks of the configuration's `key`.
    """
    found = _FACTORY.fullmatch(spec)
    if found is None or Path(spec).exists():
        return None
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    module = _loaded(key, spec, lambda: importlib.import_module(found["module"]))
    if not hasattr(module, found["name"]):
        known = [name for name, thing in vars(module).items() if callable(thing) and not name.startswith("_")]
        raise UserError(f"{key}={spec}: {found['module']} has no {found['name']}. {nearest(found['name'], known)}")
    return _callable(key, spec, getattr(module, found["name"]))


def made_by(factory: Callable[..., Any], spec: str, **offered: Any) -> Policy:
    """The policy that a factory returns when called with those of `offered` that it takes. Raises `UserError` where it
    requires anything else, fails, or returns something that does not act.
    """
    parameters = inspect.signature(factory).parameters.values()
    wanted = {p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    if unknown := sorted(wanted - offered.keys()):
        raise UserError(f"policy={spec}: it wants {', '.join(unknown)}; a policy is given {', '.join(offered)}.")
    names = {p.name for p in parameters}
    if offered.get("checkpoint") and "checkpoint" not in names:
        raise UserError(f"policy={spec}: what makes it takes no checkpoint, and so cannot open what was trained.")
    policy = called(factory, offered, f"policy={spec}: it cannot be made")
    if not callable(getattr(policy, "act", None)):
        raise UserError(f"policy={spec}: it gives {type(policy).__name__}, which has no method act.")
    try:
        inspect.signature(policy.act).bind("observations", "generators", "memories")
    except TypeError as error:
        asked = "act(observations, generators, memories=None), as vla_razor.policies.Policy has it"
        raise UserError(f"policy={spec}: its act takes {inspect.signature(policy.act)}; expected {asked}.") from error
    if not hasattr(policy, "name"):
        policy.name = spec
    return policy


def called(factory: Callable[..., Any], offered: Mapping[str, Any], refusal: str) -> Any:
    """What a factory returns when called with those of `offered` that are its parameters. Raises `UserError`, which
    begins with `refusal`, where it fails.
    """
    takes = inspect.signature(factory).parameters
    try:
        return factory(**{name: value for name, value in offered.items() if name in takes})
    except UserError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise UserError(f"{refusal} ({type(error).__name__}: {error}).") from error


def _callable(key: str, spec: str, thing: Any) -> Callable[..., Any]:
    if not callable(thing):
        raise UserError(f"{key}={spec}: it is {type(thing).__name__}; expected a class or a function.")
    return thing


def _loaded(key: str, spec: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except Exception as error:  # a user's module may raise anything when it is imported
        raise UserError(f"{key}={spec}: cannot be imported ({type(error).__name__}: {error}).") from error
