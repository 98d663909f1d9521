"""From an observation in a message to what a policy is asked."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vla_razor.errors import UserError
from vla_razor.policies import Decisions, Observations, Policy
from vla_razor.policies.messages import BadMessage
from vla_razor.policies.observations import names_of

LARGEST = 4096
"""Pixels along a side."""
LONGEST_PROMPT = 4096
"""Characters."""
LONGEST_STATE = 1024
NOISE = 6
"""Words of 64 bits: the key (2) and the counter (4) of Philox."""


class Observation(NamedTuple):
    """What one client shows: `images` uint8 [H, W, 3] by camera, its own one first; the instruction; what the robot
    feels, float32 [P]; `noise` uint64 [6], from which alone what is random about the decision is drawn, or None where
    the server is to choose it; and whether an episode begins.
    """

    images: dict[str, np.ndarray]
    prompt: str
    state: np.ndarray | None = None
    noise: np.ndarray | None = None
    begins: bool = False

    @property
    def shapes(self) -> tuple[Any, ...]:
        """Observations with the same shapes can be decided about together."""
        return *((name, image.shape) for name, image in self.images.items()), None if self.state is None else len(
            self.state
        )


def of_openpi(message: Any) -> Observation:
    """An observation in openpi's words: `observation/image`, further cameras as `observation/NAME`,
    `observation/state` and `prompt`. `reset` (an episode begins) and `noise` are ours, and may be left out.

    Raises `BadMessage`, which says what is wrong with which key.
    """
    message = _mapping(message, "the observation")
    seen = {
        key.removeprefix("observation/"): value
        for key, value in message.items()
        if isinstance(key, str) and key.startswith("observation/") and key != "observation/state"
    }
    if "image" not in seen:
        found = ", ".join(sorted(map(str, message)))
        raise BadMessage(f"no observation/image among {found:.200}; expected observation/image, /state and prompt")
    images = {"image": seen.pop("image"), **seen}
    return Observation(
        {name: _image(f"observation/{name}", image) for name, image in images.items()},
        _prompt("prompt", message.get("prompt")),
        _state("observation/state", message.get("observation/state")),
        _noise(message.get("noise")),
        message.get("reset") is True,
    )


def of_vla_eval(payload: Any, *, begins: bool) -> Observation:
    """An observation in vla-eval's words: `images` by camera, `task_description`, and `states` where they were asked
    for. Raises `BadMessage` as `of_openpi` does.
    """
    payload = _mapping(payload, "the payload")
    images = _mapping(payload.get("images"), "images")
    if not images:
        raise BadMessage("images is empty; expected at least one camera")
    return Observation(
        {str(name): _image(f"images/{name}", image) for name, image in images.items()},
        _prompt("task_description", payload.get("task_description")),
        _state("states", payload.get("states", payload.get("state"))),
        begins=begins,
    )


def decide(policy: Policy, observations: Sequence[Observation], memories: Sequence[Any]) -> Decisions:
    """What a policy decides about observations of the same shapes: the one place that asks it. Raises `UserError` where
    they are of fewer cameras than it reads.
    """
    first = observations[0]
    seen = Observations(
        {
            camera: np.stack([one.images[shown] for one in observations])
            for camera, shown in _read(policy, list(first.images)).items()
        },
        [one.prompt for one in observations],
        None if first.state is None else np.stack([one.state for one in observations if one.state is not None]),
    )
    decisions = policy.act(seen, [_generator(one.noise) for one in observations], memories)
    actions = np.asarray(decisions.actions)
    if actions.ndim != 3 or len(actions) != len(observations) or not actions.shape[1]:
        raise ValueError(f"the policy decided on actions of shape {actions.shape}")
    if not np.isfinite(actions).all():
        raise ValueError("the policy decided on actions that are not finite")
    return decisions._replace(actions=actions.astype(np.float32))


def _read(policy: Policy, shown: list[str]) -> dict[str, str]:
    """The client's cameras that the policy reads, by the names that it knows them by: the same names, or where the
    client has others, in the same order, its own one first.
    """
    names = names_of(policy)
    if set(names) <= set(shown):
        shown = names
    if len(names) > len(shown):
        called = "" if isinstance(getattr(policy, "cameras", 1), int) else f" ({', '.join(names)})"
        raise UserError(f"the policy reads {len(names)} cameras{called}; the client shows {', '.join(shown)}")
    return dict(zip(names, shown, strict=False))


def blank(size: Sequence[int], prompt: str, policy: Policy) -> Observation:
    """An observation of nothing, [height, width] pixels large, of as many cameras as the policy reads and as much
    proprioception.
    """
    images = {camera: np.zeros((*size, 3), np.uint8) for camera in names_of(policy)}
    felt = getattr(policy, "proprioception", 0)
    state = np.zeros(felt, np.float32) if felt else None
    return Observation(images, prompt, state, noise=np.zeros(NOISE, np.uint64), begins=True)


def _generator(noise: np.ndarray | None) -> np.random.Generator:
    assert noise is not None
    return np.random.Generator(np.random.Philox(key=noise[:2], counter=noise[2:]))


def _mapping(value: Any, what: str) -> Mapping[Any, Any]:
    if not isinstance(value, dict):
        raise BadMessage(f"{what} is {_kind(value)}; expected a mapping")
    return value


def _image(name: str, value: Any) -> np.ndarray:
    expected = "expected uint8, or numbers from 0 to 1, [height, width, 3] or [3, height, width]"
    if not isinstance(value, np.ndarray) or value.ndim != 3 or 3 not in (value.shape[0], value.shape[2]):
        raise BadMessage(f"{name} is {_kind(value)}; {expected}")
    if value.shape[2] != 3:
        value = value.transpose(1, 2, 0)
    if not all(1 <= side <= LARGEST for side in value.shape):
        raise BadMessage(f"{name} is {_kind(value)}; expected sides of 1 to {LARGEST} pixels")
    if value.dtype.kind == "f" and ((value >= 0) & (value <= 1)).all():  # which NaN is not
        return (value * 255).astype(np.uint8)
    if value.dtype != np.uint8:
        raise BadMessage(f"{name} is {_kind(value)}; {expected}")
    return value


def _state(name: str, value: Any) -> np.ndarray | None:
    if value is None:
        return None
    try:
        numbers = np.asarray(value, np.float64) if isinstance(value, np.ndarray | list) else None
    except (TypeError, ValueError):
        numbers = None
    if numbers is None or numbers.ndim != 1 or len(numbers) > LONGEST_STATE:
        raise BadMessage(f"{name} is {_kind(value)}; expected a row of numbers")
    with np.errstate(over="ignore"):
        state = numbers.astype(np.float32)
    if not np.isfinite(state).all():
        raise BadMessage(f"{name} holds numbers that are not finite")
    return state


def _prompt(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > LONGEST_PROMPT:
        long = f"; {LONGEST_PROMPT} characters at most" if isinstance(value, str) and value.strip() else ""
        raise BadMessage(f"{name} is {_kind(value)}{long}; expected an instruction")
    return value


def _noise(value: Any) -> np.ndarray | None:
    if value is not None and not (
        isinstance(value, np.ndarray) and value.dtype == np.uint64 and value.shape == (NOISE,)
    ):
        raise BadMessage(f"noise is {_kind(value)}; expected uint64 ({NOISE},)")
    return value


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    return "absent" if value is None else f"{type(value).__name__} {value!r:.40}"
