"""OpenVLA's words for the Google robot and back: against independent libraries, by hand, and round."""

import math
from collections.abc import Callable
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from transforms3d.euler import euler2mat

from vla_razor.errors import UserError
from vla_razor.policies.openvla import OpenVLA
from vla_razor.policies.openvla.conventions import (
    ENVIRONMENT,
    FRACTAL,
    HOLD,
    LIBERO,
    Latch,
    convention_of,
    openness,
    roll_pitch_yaw,
    rotation_vector,
    statistics_key,
    sticky_change,
)
from vla_razor.policies.openvla.policy import PrismaticPolicy

angles = st.floats(-math.pi, math.pi, allow_nan=False)
pitches = st.floats(-1.5, 1.5)
stretches = st.tuples(st.integers(0, 8), st.sampled_from([1, 1, 2, 3, 16, 20]))  # openness in eighths, for how long
runs = st.lists(stretches, min_size=1, max_size=12).map(lambda parts: np.repeat(*np.array(parts).T) / 8)
CLOSED_END = 1.31


def finger_targets(changes: list[float]) -> list[float]:
    """Where the environment's drive target goes, radians: scaled deltas, accumulated and clipped."""
    target, path = 0.0, []
    for change in changes:
        target = float(np.clip(target + CLOSED_END * change, -0.01, CLOSED_END))
        path.append(target)
    return path


def between_the_stops(changes: list[float]) -> list[float]:
    """What changes do to fingers, open at first, that are moved no further than closed and open: closedness."""
    return list(accumulate(changes, lambda at, change: min(max(at + change, 0.0), 1.0), initial=0.0))


def said(changes_at: list[int], length: int) -> np.ndarray:
    """Openness that begins at 1 and flips at the given steps."""
    flips = np.isin(np.arange(length), changes_at).cumsum() % 2
    return 1.0 - flips


def changes_of(opennesses: np.ndarray) -> list[float]:
    """An episode's environment commands."""
    latch, changes = None, []
    for value in opennesses:
        change, latch = sticky_change(float(value), latch)
        changes.append(change)
    return changes


@given(angles, pitches, angles)
def test_rotations_are_those_of_another_library(roll: float, pitch: float, yaw: float) -> None:
    turned = Rotation.from_rotvec(rotation_vector(np.array([roll, pitch, yaw])))
    np.testing.assert_allclose(turned.as_matrix(), euler2mat(roll, pitch, yaw, "sxyz"), atol=1e-9)


@given(st.lists(st.tuples(angles, pitches, angles), min_size=1, max_size=4))
def test_rotations_come_back(rows: list[tuple[float, float, float]]) -> None:
    angles = np.array(rows)
    again = roll_pitch_yaw(rotation_vector(angles))
    turn = np.angle(np.exp(1j * (again - angles)))  # equal up to whole turns
    np.testing.assert_allclose(turn, 0, atol=1e-5)


def test_a_small_rotation_is_nearly_its_angles_and_a_quarter_turn_of_yaw_is_one_about_z() -> None:
    small = np.array([1e-4, -2e-4, 3e-4])
    np.testing.assert_allclose(rotation_vector(small), small, rtol=1e-3)
    np.testing.assert_allclose(rotation_vector(np.array([0, 0, np.pi / 2])), [0, 0, np.pi / 2], atol=1e-12)


def test_a_decided_change_holds_for_fifteen_steps_whatever_is_said_meanwhile() -> None:
    values = [1.0, 1.0, 0.0, *[1.0, 0.0] * 7, 0.0, 0.25]
    changes = changes_of(np.array(values))
    assert changes[:2] == [0, 0], "the first step asks for nothing, nor does staying open"
    assert changes[2 : 2 + HOLD] == [1.0] * 15
    assert changes[2 + HOLD :] == [0, -0.25], (
        "afterwards a change counts from what was said last; a small one holds once"
    )


def test_the_latch_is_each_episodes_own_and_begins_anew() -> None:
    rows = np.zeros((3, 7))
    rows[:, 6] = [0.0, 0.0, 0.9]
    actions, latches = FRACTAL.to_environment(rows, [None, Latch(1.0), Latch(0.5, -1.0, 1)])
    np.testing.assert_allclose(actions[:, 6], [0.0, 1.0, -1.0])
    assert latches == [Latch(0.0), Latch(0.0, 1.0, HOLD - 1), Latch(0.9, -1.0, 0)]
    actions, _ = FRACTAL.to_environment(rows[:2], latches[:0:-1])
    np.testing.assert_allclose(
        actions[:, 6], [0.9, 1.0], err_msg="where an episode's slot changes, its latch goes along"
    )


@given(st.lists(st.integers(HOLD, 30), max_size=4))
def test_decisions_apart_move_the_fingers_as_they_say(gaps: list[int]) -> None:
    steps = np.cumsum([1, *gaps]).tolist()
    values = said(steps, steps[-1] + 20)
    reached = np.clip(finger_targets(changes_of(values)), 0, None) / CLOSED_END
    np.testing.assert_allclose(reached, 1 - values, atol=0.01)


@given(runs)
def test_whatever_words_did_is_said_again_so_that_it_does_the_same(values: np.ndarray) -> None:
    changes = changes_of(values)
    again = changes_of(openness(np.array(changes)))
    assert between_the_stops(again) == between_the_stops(changes), "to the last bit: eighths have no rounding"


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=60))
def test_what_is_said_of_any_demonstration_is_where_it_sends_the_fingers(changes: list[float]) -> None:
    values = openness(np.array(changes))
    assert values[0] == 1, "the first step moves nothing"
    reached = np.clip(finger_targets(changes_of(values)), 0, CLOSED_END) / CLOSED_END
    np.testing.assert_allclose(1 - values, reached, atol=0.02)


@given(st.lists(st.integers(HOLD, 30), max_size=3), st.integers(0, 10))
def test_a_demonstration_played_back_from_its_words_moves_the_fingers_alike(gaps: list[int], first: int) -> None:
    steps = [first, *(max(first, 1) + np.cumsum(gaps, dtype=int)).tolist()]  # nothing is heard before step 1
    commands = (1 - 2 * said(steps, steps[-1] + 20)).clip(-1, 1)  # sustained: +1 closes, -1 opens
    played = changes_of(openness(commands))
    before, after = finger_targets(commands.tolist()), finger_targets(played)
    np.testing.assert_allclose(np.clip(before, 0, None)[1:], np.clip(after, 0, None)[1:], atol=0.02)


def test_an_episode_that_begins_by_closing_says_open_once_and_closes_from_the_next_step() -> None:
    values = openness(np.ones(40))  # the expert before it pushes a drawer shut
    assert values.tolist() == [1.0] + [0.0] * 39
    assert changes_of(values)[: HOLD + 1] == [0.0] + [1.0] * HOLD, "afterwards they are closed"


def test_who_opens_again_while_closing_holds_is_heard_afterwards() -> None:
    values = openness(np.array([-1.0] * 2 + [1.0] * 5 + [-1.0] * 30))
    assert changes_of(values)[2 : 2 + 2 * HOLD] == [1.0] * HOLD + [-1.0] * HOLD


@given(st.lists(st.tuples(*[st.floats(-0.3, 0.3)] * 6), min_size=1, max_size=6))
def test_whole_actions_come_back(rows: list[tuple[float, ...]]) -> None:
    actions = np.concatenate([np.array(rows), np.zeros((len(rows), 1))], 1)
    spoken = FRACTAL.from_environment(actions)
    latch: list = [None]
    for action, words in zip(actions, spoken, strict=True):
        played, latch = FRACTAL.to_environment(words[None], latch)
        np.testing.assert_allclose(played[0], action, atol=1e-7)


def test_libero_differs_in_the_gripper_alone() -> None:
    """By hand, as OpenVLA's evaluation does: openness [0, 1] to [-1, 1], to its sign, turned round (-1 opens)."""
    moves = np.linspace(-0.9, 0.9, 6)
    said = np.array([[*moves, openness] for openness in (0.0, 0.0039, 0.49, 0.51, 0.996, 1.0)])
    played, memories = LIBERO.to_environment(said, [None] * 6)
    np.testing.assert_array_equal(played[:, 6], [1, 1, 1, -1, -1, -1])
    np.testing.assert_array_equal(played[:, :6], said[:, :6])
    assert memories == [None] * 6
    spoken = LIBERO.from_environment(played)
    np.testing.assert_array_equal(spoken[:, 6], [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(LIBERO.to_environment(spoken, memories)[0], played)


def test_a_data_set_of_liberos_says_so_by_its_name() -> None:
    for key in ("libero_spatial", "libero_spatial_no_noops", "libero_130_no_noops_trajall"):
        assert convention_of(key, "libero_spatial") is LIBERO
    assert convention_of("mine", "libero_spatial") is convention_of(None, "libero_spatial") is ENVIRONMENT
    several = {"libero_goal_no_noops": 0, "libero_spatial_no_noops": 0}
    assert statistics_key(several, None, "libero_spatial") == "libero_spatial_no_noops"
    assert statistics_key(several, None, "libero_10") is None
    assert statistics_key({"libero_10": 0, "mine": 0}, None, "libero_10") == "libero_10"


def test_a_data_set_says_which_convention_and_a_robot_which_data_set() -> None:
    assert convention_of("fractal20220817_data", "google_robot") is FRACTAL
    assert convention_of("vla_razor_google_robot", "google_robot") is ENVIRONMENT
    assert convention_of("vla_razor_panda", "panda") is ENVIRONMENT
    openvla, tiny = {"bridge_orig": 0, "fractal20220817_data": 0}, {"vla_razor_panda": 0, "vla_razor_google_robot": 0}
    assert statistics_key(openvla, None, "google_robot") == "fractal20220817_data"
    assert statistics_key(tiny, None, "google_robot") == "vla_razor_google_robot"
    assert statistics_key(tiny, None, "panda") == "vla_razor_panda"
    assert statistics_key(tiny, "other", "panda") == "other", "what is asked for is not replaced"
    assert statistics_key({"mine": 0}, None, "google_robot") == "mine", "the only ones"
    assert statistics_key({"mine": 0, "yours": 0}, None, "panda") is None, "not for us to choose"


@pytest.mark.parametrize("key", ["fractal", "bridge_orig", "mine"])
@pytest.mark.parametrize(
    ("robot", "known"),
    [
        ("panda", "vla_razor_panda .*own"),
        ("google_robot", "vla_razor_google_robot .*; fractal20220817_data .roll"),
    ],
)
def test_a_data_set_in_unknown_units_moves_no_robot(
    new_tiny: Callable[..., OpenVLA], key: str, robot: str, known: str
) -> None:
    model = new_tiny(0)
    model.config.norm_stats = {key: model.config.norm_stats["vla_razor_panda"]}
    for asked in (None, key):
        with pytest.raises(UserError, match=f"unnorm_key={key}: .* the robot, {robot}. Known: {known}"):
            PrismaticPolicy(model, asked, robot=robot)
    model.config.norm_stats[f"vla_razor_{robot}"] = model.config.norm_stats[key]
    assert PrismaticPolicy(model, robot=robot).convention is ENVIRONMENT, "the embedded policy's own"


@pytest.mark.parametrize("values", [[1.0] * 5, [0.6, 1.0, 0.6]])
def test_changes_of_at_most_a_half_hold_once(values: list[float]) -> None:
    np.testing.assert_allclose(changes_of(np.array(values)), [0, *-np.diff(values)])
