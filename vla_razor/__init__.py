"""Fine-tune policies, and see how far each moved from its base on the new task.

Importing the package registers its tasks with Gymnasium, which has no plug-in discovery of its own any more. What a
script needs is here, and is loaded when it is first asked for: see `vla_razor.public`.
"""

from typing import TYPE_CHECKING, Any

import vla_razor_envs  # noqa: F401

if TYPE_CHECKING:
    from vla_razor.public import (
        Demonstrations,
        Episode,
        Start,
        evaluate,
        forward_kl,
        grid_starts,
        load_policy,
        make_env,
        make_vec,
        random_starts,
        read_results,
        rollout,
    )

__version__ = "0.1.0"
__all__ = [
    "Demonstrations",
    "Episode",
    "Start",
    "evaluate",
    "forward_kl",
    "grid_starts",
    "load_policy",
    "make_env",
    "make_vec",
    "random_starts",
    "read_results",
    "rollout",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'vla_razor' has no attribute {name!r}")
    from vla_razor import public

    return getattr(public, name)
