"""A stand-in for SimplerEnv. Like the original's, `make` keeps the arguments of earlier calls."""

from mani_skill2_real2sim import build

_ARGUMENTS: dict = {}


def make(task_name, **kwargs):
    _ARGUMENTS.update(kwargs)
    return build(task_name, **_ARGUMENTS)
