"""Words of actions: every translation has its way back, and what is unknown is refused."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from vla_razor import suites
from vla_razor.conventions import GRIPPERS, ROTATIONS, Convention, Pose, changed, converted, joined, parse, pose_of
from vla_razor.errors import UserError
from vla_razor.policies.openvla.conventions import ENVIRONMENT, convention_of

TURNING = [name for name in ROTATIONS if name != "none"]
conventions = st.builds(
    Convention,
    control=st.sampled_from(["delta", "absolute"]),
    rotation=st.sampled_from(TURNING),
    gripper=st.sampled_from([name for name in GRIPPERS if name != "none"]),
    frame=st.sampled_from(["base", "tool"]),
)


def drawn(seed: int, length: int = 5) -> tuple[np.ndarray, Pose]:
    """Actions of our own convention, and where the tool is."""
    draw = np.random.default_rng(seed)
    actions = np.concatenate([draw.uniform(-1, 1, (length, 6)), draw.choice([-1.0, 1.0], (length, 1))], 1)
    return actions, Pose(draw.uniform(-1, 1, (length, 3)), Rotation.from_rotvec(draw.uniform(-1.5, 1.5, (length, 3))))


OURS = Convention(control="delta", rotation="axis_angle", gripper="close_positive")


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1000), one=conventions, other=conventions)
def test_every_translation_has_its_way_back(seed: int, one: Convention, other: Convention) -> None:
    actions, pose = drawn(seed)
    said = converted(actions, OURS, one, pose)
    there = converted(said, one, other, pose)
    assert there.shape == (len(actions), other.dims)
    np.testing.assert_allclose(converted(there, other, OURS, pose), actions, atol=1e-7)


def test_the_words_mean_what_they_say() -> None:
    quarter = np.array([[0.1, 0.2, 0.3, 0.0, 0.0, np.pi / 2, 1.0]])
    half = np.sqrt(0.5)
    for words, numbers in {
        "euler_xyz": [0, 0, np.pi / 2],
        "quaternion_xyzw": [0, 0, half, half],
        "quaternion_wxyz": [half, 0, 0, half],
        "rotation_6d": [0, 1, 0, -1, 0, 0],
    }.items():
        found = converted(quarter, OURS, changed("here", OURS, {"rotation": words}))
        np.testing.assert_allclose(found[0, 3:-1], numbers, atol=1e-12)
    for gripper, closed in {"open_positive": -1, "close_unit": 1, "open_unit": 0}.items():
        assert converted(quarter, OURS, changed("here", OURS, {"gripper": gripper}))[0, -1] == closed
    turned = Pose(np.array([[1.0, 0, 0]]), Rotation.from_euler("z", [90], degrees=True))
    forward = np.array([[1.0, 0, 0, 0, 0, 0, 1.0]])  # along the tool's x axis, which is the base's y
    tool = changed("here", OURS, {"frame": "tool"})
    np.testing.assert_allclose(converted(forward, tool, OURS, turned)[0, :3], [0, 1, 0], atol=1e-12)
    absolute = changed("here", OURS, {"control": "absolute"})
    np.testing.assert_allclose(converted(forward, tool, absolute, turned)[0, :3], [1, 1, 0], atol=1e-12)


@pytest.mark.parametrize(("rotation", "frame"), list(product(TURNING, ["base", "tool"])))
def test_joined_deltas_do_what_they_do_one_after_the_other(rotation: str, frame: str) -> None:
    actions, pose = drawn(3, length=4)
    words = Convention(control="delta", rotation=rotation, gripper="close_positive", frame=frame)
    absolute = Convention(control="absolute", rotation="axis_angle", gripper="close_positive")
    said = converted(actions, changed("here", OURS, {"frame": frame}), words)
    place = Pose(pose.position[:1], pose.rotation[:1])
    for row in said:
        target = converted(row[None], words, absolute, place)
        place = Pose(target[:, :3], Rotation.from_rotvec(target[:, 3:6]))
    (together,) = converted(joined(said, 4, words), words, absolute, Pose(pose.position[:1], pose.rotation[:1]))
    np.testing.assert_allclose(together[:3], place.position[0], atol=1e-9)
    np.testing.assert_allclose(
        Rotation.from_rotvec(together[3:6]).as_matrix(), place.rotation[0].as_matrix(), atol=1e-9
    )
    assert together[-1] == actions[-1, -1]


def test_joined_absolute_poses_and_plain_numbers() -> None:
    actions = np.arange(10.0).reshape(5, 2)
    plain = Convention(control="delta", rotation="none", gripper="close_unit")
    np.testing.assert_array_equal(joined(actions, 2, plain), [[2, 3], [10, 7], [8, 9]])
    np.testing.assert_array_equal(
        joined(actions, 2, changed("here", plain, {"control": "absolute"})), [[2, 3], [6, 7], [8, 9]]
    )


def test_the_tool_is_where_the_state_says() -> None:
    states = np.array([[1.0, 2, 3, np.sqrt(0.5), 0, 0, np.sqrt(0.5), 9]])
    pose = pose_of(states, changed("here", OURS, {"state": "quaternion_wxyz"}))
    assert pose is not None and pose.position.tolist() == [[1, 2, 3]]
    np.testing.assert_allclose(pose.rotation.as_rotvec(), [[0, 0, np.pi / 2]])
    assert pose_of(states, OURS) is None


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            {"control": "delta", "rotation": "euler", "gripper": "none"},
            "x: rotation 'euler' is not known. Did you",
        ),
        ({"control": "delta", "grip": "none"}, "x: a convention has no grip. Did you mean gripper?"),
        ({"control": "delta"}, "x: the convention does not say its rotation and its gripper."),
        ({"control": "velocity", "rotation": "none", "gripper": "none"}, "control 'velocity' is not known"),
    ],
)
def test_what_is_unknown_is_refused(said: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as error:
        parse("x", said)
    assert message in str(error.value)


def test_what_cannot_be_translated_is_refused() -> None:
    actions, _ = drawn(0)
    for wanted, message in (
        ({"control": "absolute"}, "needs the tool's pose"),
        ({"rotation": "none"}, "rotation axis_angle cannot be said as none"),
    ):
        with pytest.raises(UserError, match=message):
            converted(actions, OURS, changed("here", OURS, wanted))
    with pytest.raises(UserError, match="its actions have 6 numbers, but a position, axis_angle with gripper"):
        converted(actions[:, :6], OURS, OURS)


def test_a_policy_of_a_dataset_acts_in_a_suite_of_another_convention() -> None:
    spoken = {"control": "delta", "rotation": "euler_xyz", "gripper": "open_unit"}
    taken = {"control": "delta", "rotation": "axis_angle", "gripper": "close_positive"}
    said = np.array([[0.1, 0, 0, 0.3, 0.2, 0.1, 1.0]])
    language = convention_of("mine", "suite", spoken, taken)
    acted, memories = language.to_environment(said, [None])
    turned = Rotation.from_euler("xyz", said[0, 3:6]).as_rotvec()
    np.testing.assert_allclose(acted, [[0.1, 0, 0, *turned, -1.0]], atol=1e-12)
    assert memories == [None]
    np.testing.assert_allclose(language.from_environment(acted), said, atol=1e-12)
    assert convention_of("mine", "suite", spoken, None) is ENVIRONMENT
    with pytest.raises(UserError, match="its actions are delta in the frame of the base, the suite's absolute"):
        convention_of("mine", "suite", spoken, taken | {"control": "absolute"})


def test_a_suite_names_its_convention(tmp_path: Path) -> None:
    text = "id: mine/Reach-v0\ntasks: {reach: {instruction: reach}}\n"
    text += "convention: {control: delta, rotation: %s, gripper: none}"
    (tmp_path / "suite.yaml").write_text(text % "quaternion_wxyz")
    made = suites.read(tmp_path / "suite.yaml").make.suite
    assert made.convention == {**parse("x", made.convention).facts(), "rotation": "quaternion_wxyz"}
    (tmp_path / "suite.yaml").write_text(text % "quaternion")
    with pytest.raises(UserError, match="rotation 'quaternion' is not known"):
        suites.read(tmp_path / "suite.yaml")
    (tmp_path / "suite.yaml").write_text(text.rpartition("\n")[0])
    assert "convention" not in suites.read(tmp_path / "suite.yaml").make.suite
