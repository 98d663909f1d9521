"""What acts: a policy maps observations to actions, for a batch of environments at once."""

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from vla_razor.policies.observations import Observations as Observations

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from jaxtyping import Bool, Float, Float32, Int, UInt8
    from torch import Tensor


class Decisions(NamedTuple):
    """What a policy decided for `B` environments.

    `actions` are those of the next C control steps, in environment units (metres, radians, gripper in [-1, 1]): they
    are executed one after the other, and only then is the policy asked again. A policy that samples tokens also gives
    them, and the log-probability of each under its own temperature, over the 256 action ids, in nats. `labels` are the
    actions to imitate, at the first of these steps, where the policy did something else on purpose: an expert that
    disturbs itself. `images` are what the policy looked at, by camera, where that is not what the camera gave.
    `memories` are what it wants to be handed at the next decision of the same episodes: a recurrent state, a latched
    gripper. `stops` says which episodes it ends with these steps.
    """

    actions: "Float[np.ndarray, 'B C D']"
    tokens: "Int[Tensor, 'B A'] | None" = None
    log_probs: "Float32[Tensor, 'B A'] | None" = None
    labels: "Float[np.ndarray, 'B D'] | None" = None
    images: "Mapping[str, UInt8[np.ndarray, 'B H W 3']] | None" = None
    memories: list[Any] | None = None
    stops: "Bool[np.ndarray, ' B'] | None" = None


class Policy(Protocol):
    """Anything that acts.

    Of the `generators` each row has its own, that of its episode and step, from which alone what is random about it is
    drawn: so an episode does not depend on those that are decided about beside it. A policy keeps nothing between
    calls: what it remembers of an episode, it gives back in `Decisions.memories` and is handed again as `memories`
    (None for an episode's first step). So environments may come in any order and number.

    A policy may say which `cameras` it reads, their names, or how many of the suite's, the first ones, and how many
    numbers of `proprioception`. One that says nothing reads the first camera (`observations.cameras_of`).
    """

    name: str

    def act(
        self,
        observations: Observations,
        generators: "Sequence[np.random.Generator]",
        memories: "Sequence[Any] | None" = None,
    ) -> Decisions: ...
