"""The rigid-body arithmetic against scipy's rotations."""

import numpy as np
import sapien
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.transform import Rotation

from vla_razor_envs import kinematics
from vla_razor_envs.geometry import Frame, displaced, rotate

numbers = st.floats(-1, 1, width=32)
places, vectors = arrays(np.float32, 3, elements=numbers), arrays(np.float32, 3, elements=numbers)
quaternions = arrays(np.float32, 4, elements=numbers).filter(lambda q: np.linalg.norm(q) > 0.1)


def pose_of(place: np.ndarray, rotation: Rotation) -> torch.Tensor:
    return torch.tensor(np.concatenate([place, np.roll(rotation.as_quat(), 1)])[None], dtype=torch.float32)


def rotation_of(pose: torch.Tensor) -> Rotation:
    return Rotation.from_quat(np.roll(pose[0, 3:].double().numpy(), -1))


def angle(a: Rotation, b: Rotation) -> float:
    return (a * b.inv()).magnitude()


@given(places, quaternions, arrays(np.float32, 6, elements=numbers))
def test_a_displacement_adds_metres_and_left_multiplies_the_rotation_vector(
    place: np.ndarray, q: np.ndarray, delta: np.ndarray
) -> None:
    start = Rotation.from_quat(q)
    moved = displaced(pose_of(place, start), torch.tensor(delta[None]))
    assert angle(rotation_of(moved), Rotation.from_rotvec(delta[3:]) * start) < 2e-3
    np.testing.assert_allclose(moved[0, :3], place + delta[:3], atol=1e-6)


@settings(deadline=None)  # what the first call loads takes its time
@given(places, quaternions, places, quaternions, arrays(np.float32, 6, elements=numbers))
def test_one_pose_is_displaced_as_a_batch_is(
    origin: np.ndarray, turn: np.ndarray, place: np.ndarray, q: np.ndarray, delta: np.ndarray
) -> None:
    base, link = pose_of(origin, Rotation.from_quat(turn)), pose_of(place, Rotation.from_quat(q))
    batch = displaced(Frame.at(base).localize(link), torch.tensor(delta[None]))
    before, now = (sapien.Pose(pose[0, :3].tolist(), pose[0, 3:].tolist()) for pose in (base, link))
    one = kinematics.displaced(before, now, delta.tolist())
    assert one.dtype == np.float32
    np.testing.assert_allclose(one, batch, atol=1e-5, rtol=0)


@given(places, quaternions, places, quaternions)
def test_localizing_undoes_the_frame(origin: np.ndarray, turn: np.ndarray, place: np.ndarray, q: np.ndarray) -> None:
    frame, inside = Rotation.from_quat(turn), Rotation.from_quat(q)
    world = pose_of(origin + frame.apply(place), frame * inside)
    local = Frame.at(pose_of(origin, frame)).localize(world)
    np.testing.assert_allclose(local[0, :3], place, atol=1e-5)
    assert angle(rotation_of(local), inside) < 2e-3


@given(quaternions, vectors)
def test_rotate_is_scipys_apply(q: np.ndarray, vector: np.ndarray) -> None:
    rotation = Rotation.from_quat(q)
    turned = rotate(pose_of(np.zeros(3), rotation)[:, 3:], torch.tensor(vector[None]))
    np.testing.assert_allclose(turned[0], rotation.apply(vector), atol=1e-5)
