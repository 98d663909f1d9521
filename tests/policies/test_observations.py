"""Observations of several cameras: rows, one after the other, and which cameras a policy reads."""

from types import SimpleNamespace

import numpy as np
import pytest

from vla_razor.errors import UserError
from vla_razor.policies import Observations
from vla_razor.policies.observations import cameras_of


def numbered(first: int, rows: int, told: bool = True) -> Observations:
    """Pictures of two cameras, filled with their row's number and with 100 more."""
    numbers = np.arange(first, first + rows)
    front = np.broadcast_to(numbers.astype(np.uint8)[:, None, None, None], (rows, 4, 6, 3))
    felt = np.stack([numbers, -numbers], 1).astype(np.float32) if told else None
    asked = [f"do {number}" for number in numbers]
    return Observations({"front": front, "wrist": front + 100}, asked, felt, [{"number": number} for number in numbers])


@pytest.mark.parametrize("rows", [slice(1, 3), [2, 0], np.array([True, False, True]), np.array([], int)])
def test_some_rows_are_those_of_everything(rows: slice | list[int] | np.ndarray) -> None:
    some, expected = numbered(5, 3)[rows], np.arange(5, 8)[rows]
    assert len(some) == len(expected)
    assert some.image("front")[:, 0, 0, 0].tolist() == expected.tolist()
    assert some.image("wrist")[:, 0, 0, 0].tolist() == (expected + 100).tolist()
    assert some.instructions == [f"do {number}" for number in expected]
    assert some.proprioception is not None and some.proprioception[:, 0].tolist() == expected.tolist()
    assert [info["number"] for info in some.infos] == expected.tolist()


def test_parts_come_one_after_the_other() -> None:
    joined, whole = Observations.joined([numbered(0, 2), numbered(2, 3)]), numbered(0, 5)
    assert list(joined.images) == ["front", "wrist"] and len(joined) == 5
    for camera, pictures in whole.images.items():
        np.testing.assert_array_equal(joined.image(camera), pictures)
    np.testing.assert_array_equal(joined.proprioception, whole.proprioception)
    assert (joined.instructions, joined.infos) == (whole.instructions, whole.infos)
    assert Observations.joined([numbered(0, 2, told=False)] * 2).proprioception is None


def test_the_first_camera_is_that_of_a_policy_with_one() -> None:
    seen = numbered(0, 2)
    np.testing.assert_array_equal(seen.image(), seen.image("front"))
    with pytest.raises(UserError, match="no pictures of the camera side, but of front, wrist"):
        seen.image("side")
    bare = seen.without_images()
    assert bare.image("wrist").shape == (0, 4, 6, 3) and bare.instructions == seen.instructions


@pytest.mark.parametrize(
    ("wanted", "read"),
    [
        ({}, ["front"]),
        ({"cameras": 2}, ["front", "wrist"]),
        ({"cameras": ("wrist",)}, ["wrist"]),
        ({"cameras": "wrist"}, ["wrist"]),
    ],
)
def test_a_policy_reads_the_first_cameras_or_those_that_it_names(wanted: dict, read: list[str]) -> None:
    assert cameras_of(SimpleNamespace(name="mine", **wanted), ["front", "wrist"]) == read


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (3, "the policy mine reads 3 cameras; it could be shown front, wrist"),
        (["side"], "reads the camera side; it could"),
    ],
)
def test_a_camera_that_there_is_not_is_named(wanted: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        cameras_of(SimpleNamespace(name="mine", cameras=wanted), ["front", "wrist"])
