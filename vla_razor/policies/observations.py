"""What a policy is asked about: a batch of observations, of any number of named cameras."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_razor.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Float32, UInt8


@dataclass(frozen=True)
class Observations:
    """What `B` environments show and ask for.

    `images` are by camera, the suite's first one first. `proprioception` has P = 0 where the suite has none, and is
    None where nobody has told it. `infos` are the environments' privileged facts, for a scripted expert. Instructions
    and infos are left out where images are only looked at, as a probe set's are.
    """

    images: "Mapping[str, UInt8[np.ndarray, 'B H W 3']]"
    instructions: list[str] = field(default_factory=list)
    proprioception: "Float32[np.ndarray, 'B P'] | None" = None
    infos: list[dict[str, Any]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.image())

    def image(self, camera: str | None = None) -> "UInt8[np.ndarray, 'B H W 3']":
        """The pictures of a camera, by default those of the first: of the only one, for a policy that reads one.

        Raises `UserError` where there is no such camera.

        >>> Observations({"front": np.zeros((2, 8, 8, 3), np.uint8)}).image("wrist")
        Traceback (most recent call last):
        vla_razor.errors.UserError: there are no pictures of the camera wrist, but of front.
        """
        camera = next(iter(self.images), None) if camera is None else camera
        if camera is None or camera not in self.images:
            raise UserError(f"there are no pictures of the camera {camera}, but of {', '.join(self.images) or 'none'}.")
        return self.images[camera]

    def __getitem__(self, rows: "slice | Sequence[int] | np.ndarray") -> "Observations":
        """Those of some rows."""
        numbers = np.arange(len(self))[rows].tolist()
        return Observations(
            {camera: pictures[rows] for camera, pictures in self.images.items()},
            [self.instructions[number] for number in numbers] if self.instructions else [],
            None if self.proprioception is None else self.proprioception[rows],
            [self.infos[number] for number in numbers] if self.infos else [],
        )

    def without_images(self) -> "Observations":
        """The same without any of its pictures, which are nearly all of it."""
        return replace(self, images={camera: pictures[:0].copy() for camera, pictures in self.images.items()})

    @staticmethod
    def joined(parts: "Sequence[Observations]") -> "Observations":
        """One after the other; all have the same cameras and sizes."""
        felt = [part.proprioception for part in parts if part.proprioception is not None]
        return Observations(
            {camera: np.concatenate([part.images[camera] for part in parts]) for camera in parts[0].images},
            [instruction for part in parts for instruction in part.instructions],
            np.concatenate(felt) if len(felt) == len(parts) else None,
            [info for part in parts for info in part.infos],
        )


def names_of(policy: Any) -> list[str]:
    """As many names as a policy reads cameras, wherever it acts: those that it says, or made up ones."""
    wanted = getattr(policy, "cameras", 1)
    if isinstance(wanted, int):
        return [f"camera_{number}" for number in range(wanted)]
    return [wanted] if isinstance(wanted, str) else list(wanted)


def check_proprioception(policy: Any, felt: np.ndarray, where: str) -> None:
    """Raises `UserError` where the policy reads another number of proprioception than is felt, [B, P]."""
    wanted = getattr(policy, "proprioception", 0)
    if wanted and felt.shape[1] != wanted:
        found = felt.shape[1]
        raise UserError(f"the policy {policy.name} reads {wanted} numbers of proprioception; {where} has {found}.")


def cameras_of(policy: Any, offered: Sequence[str]) -> list[str]:
    """Those of the cameras that are `offered`, the suite's first one first, which a policy reads: it may say in its
    attribute `cameras` their names, or how many it reads, the first ones. By default that is one.

    Raises `UserError` where they are not offered.
    """
    wanted, shown = names_of(policy), f"it could be shown {', '.join(offered)}"
    if isinstance(getattr(policy, "cameras", 1), int):
        if len(wanted) > len(offered):
            raise UserError(f"the policy {policy.name} reads {len(wanted)} cameras; {shown}.")
        return list(offered[: len(wanted)])
    for camera in wanted:
        if camera not in offered:
            raise UserError(f"the policy {policy.name} reads the camera {camera}; {shown}.")
    return wanted
