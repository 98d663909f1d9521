"""Where an episode starts when its reset options leave it open: pure functions of the setup and the seed."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .records import DrawerSetup, PickCanSetup


def draw_can(setup: PickCanSetup, seed: int) -> dict[str, Any]:
    """The reset options `object_xy` (metres, world) and `orientation` that a seed stands for."""
    draw = np.random.default_rng([seed, 0])
    xy = (draw.uniform(*setup.area_x), draw.uniform(*setup.area_y))
    names = list(setup.orientations)
    return {"object_xy": xy, "orientation": names[draw.integers(len(names))]}


def draw_distractors(setup: PickCanSetup, start: Mapping[str, Any]) -> np.ndarray:
    """x and y (metres, world) at which the distractors [K, 2] are dropped: as the original draws them, in a box around
    the can, cut off at the table's edges, less what is near the can. `start` names the can's `object_xy` and the seed.
    """
    draw, can = np.random.default_rng([start["seed"], 2]), np.asarray(start["object_xy"])
    places: list[np.ndarray] = []
    while len(places) < len(setup.distractors):
        place = np.clip(can + draw.uniform(-0.3, 0.3, 2), (-0.50, 0.05), (-0.10, 0.35))
        if np.linalg.norm(place - can) > 0.25:
            places.append(place)
    return np.array(places)


def draw_station(setup: DrawerSetup, seed: int) -> dict[str, Any]:
    """The reset option `station` that a seed stands for."""
    names = list(setup.stations)
    return {"station": names[np.random.default_rng([seed, 0]).integers(len(names))]}


def station_place(setup: DrawerSetup, start: Mapping[str, Any]) -> np.ndarray:
    """x, y (metres, world) and yaw (radians) of the robot's base: the station's or, where a setup allows places between
    its stations and the start names none, a draw inside their bounding box.
    """
    if "station" not in start and setup.between_stations:
        corners = np.array(list(setup.stations.values()))
        return np.random.default_rng([start["seed"], 0]).uniform(corners.min(0), corners.max(0))
    return np.asarray(setup.stations[station_name(setup, start)])


def station_name(setup: DrawerSetup, start: Mapping[str, Any]) -> str:
    """The station that a start names, or else the one that its seed stands for."""
    return start.get("station") or draw_station(setup, start["seed"])["station"]
