"""What an outside dataset must tell to be imported, whatever its format."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from vla_razor.errors import UserError


class Damaged(UserError):
    """A dataset that is not as it says: the file, the row where there is one, what was expected and what was found."""

    def __init__(self, path: Path, found: str, *, row: int | None = None) -> None:
        super().__init__(f"{path}{'' if row is None else f', row {row}'}: {found}")


class NotTaken(Exception):
    """Why a whole episode cannot be a demonstration."""


@dataclass(frozen=True)
class Recording:
    """One episode of `T` control steps, of which images are kept at those that were asked for.

    `images` uint8 [K, H, W, 3] by camera, `actions` float32 [T, D], `states` float32 [T, P], `success` bool [T].
    """

    instruction: str
    images: dict[str, np.ndarray]
    actions: np.ndarray
    states: np.ndarray
    success: np.ndarray


@dataclass(frozen=True)
class Listed:
    """What is known of an episode before it is read; nothing where the format does not say."""

    index: int
    length: int | None = None
    instructions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Keys:
    """Which of a dataset's keys are what; None for the only camera, no state, or a success at each end. Several cameras
    have their keys by their names, the first one first, and one may have a key alone.
    """

    camera: str | Mapping[str, str] | None
    action: str
    state: str | None
    success: str | None


class Source(Protocol):
    """A dataset that is read episode by episode, in any order."""

    fps: int
    pictures: dict[str, str]  # the keys of the cameras' pictures, by the cameras' names
    episodes: Sequence[Listed]

    def read(self, index: int, every: int) -> Recording:
        """Episode `index`, with the image of every so manieth control step, from the first.

        Raises `Damaged` where it is not as the dataset says, and `NotTaken` where it is no demonstration.
        """
        ...


def chosen(kind: str, name: str | None, known: Collection[str], where: Path) -> str:
    """The key that is asked for, or the only one. Raises `UserError` that lists them."""
    if name is None and len(known) == 1:
        return next(iter(known))
    names = ", ".join(sorted(known)) or "none"
    if name is None:
        raise UserError(f"{where} has {len(known)} keys of type {kind}: {names}. Choose one: {kind}=KEY.")
    if name not in known:
        raise UserError(f"{where} has no {kind} {name!r}. It has {names}.")
    return name


def pictures_of(
    camera: str | Mapping[str, str] | None,
    known: Collection[str],
    where: Path,
    named: Callable[[str], str],
    full: Callable[[str], str] = lambda key: key,
) -> dict[str, str]:
    """The keys of the cameras' pictures, by name; a camera that is only a key is called as `named` says. `full` makes
    of what is asked for a key as the dataset has it. Raises `UserError` as `chosen` does.
    """
    if isinstance(camera, Mapping):
        return {name: chosen("camera", full(key), known, where) for name, key in camera.items()}
    key = chosen("camera", camera and full(camera), known, where)
    return {named(key): key}


def finite(path: Path, name: str, values: np.ndarray, first_row: int = 0) -> np.ndarray:
    """Values [T, ...] as float32. Raises `Damaged` at the first row that holds NaN or infinity."""
    bad = ~np.isfinite(values.reshape(len(values), -1)).all(1)
    if bad.any():
        raise Damaged(path, f"{name} holds NaN or infinity.", row=first_row + int(np.argmax(bad)))
    return values.astype(np.float32)


def facts_of(content: Mapping[str, object], path: Path, **kinds: type) -> dict[str, object]:
    """The values of a JSON object under these names. Raises `Damaged` where one is missing or of another type."""
    for name, kind in kinds.items():
        if not isinstance(content.get(name), kind):
            raise Damaged(path, f"expected {name} ({kind.__name__}), found {content.get(name)!r}.")
    return {name: content[name] for name in kinds}
