"""Start states: what a grid spans, and that seeds mean the same start for ever."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from vla_razor.config import compose
from vla_razor.errors import UserError
from vla_razor.rollouts.starts import (
    Noise,
    Start,
    episode_seed,
    grid_starts,
    parse_grid,
    points_of,
    random_points,
    random_starts,
)

CAN = {"tasks": ["pick_can"], "grid": {"x": [0.42, 0.62], "y": [-0.15, 0.15]}}
DRAWER = compose("rl", ["env=drawer"]).env


def test_a_grid_spans_the_start_area_with_both_ends_and_repeats_each_start() -> None:
    starts = grid_starts(CAN, "3x2", per_point=2, seed=7)
    assert [start.options["object_xy"] for start in starts[::2]] == [
        (x, y) for x in (0.42, 0.52, 0.62) for y in (-0.15, 0.15)
    ]
    assert [start.grid_point for start in starts] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert [replace(start, repeat=1) for start in starts[::2]] == starts[1::2], "a point's episodes begin alike"
    assert len({start.seed for start in starts}) == 6
    assert {start.seed for start in starts}.isdisjoint(start.seed for start in grid_starts(CAN, "3x2", 1, seed=8))


def test_a_grid_of_one_point_is_the_middle_of_the_area() -> None:
    assert grid_starts(CAN, "1x1", 1, 0)[0].options == {"object_xy": (0.52, 0.0)}


def test_a_task_without_a_start_area_has_points_drawn_from_the_seed_for_each_task() -> None:
    starts = grid_starts(DRAWER, "2x2", per_point=1, seed=0)
    assert [start.task for start in starts[::4]] == list(DRAWER.tasks)
    assert all(start.options == {"task": start.task} for start in starts)
    assert [start.grid_point for start in starts] == list(range(24))
    assert len({start.seed for start in starts}) == 24


def test_random_points_are_others_for_another_seed_and_each_is_played_several_times() -> None:
    starts = random_points(["pick_can"], points=3, per_point=2, seed=5)
    assert [replace(start, grid_point=-1, repeat=0) for start in starts[::2]] == random_starts(["pick_can"], 3, seed=5)
    assert [(start.grid_point, start.repeat) for start in starts] == [(p, r) for p in range(3) for r in range(2)]
    assert starts[0].options == {}, "drawn from its seed, over the whole start area"
    again = random_points(["pick_can"], points=3, per_point=2, seed=6)
    assert {start.seed for start in starts}.isdisjoint(start.seed for start in again)
    assert points_of({"grid": "random", "points": 3}) == 3
    assert points_of({"grid": "4x5", "points": 3}) == 20


def test_random_starts_of_a_task_do_not_depend_on_the_other_tasks() -> None:
    alone = random_starts(["open_top_drawer"], 3, seed=5)
    among = random_starts(["pick_can", "open_top_drawer"], 3, seed=5)
    assert among[3:] == alone
    assert among[0] == Start("pick_can", {}, among[0].seed)
    assert alone[0].options == {"task": "open_top_drawer"}
    assert random_starts(["open_top_drawer"], 2, seed=5) == alone[:2]
    assert len({start.seed for start in among}) == 6


def test_stored_states_are_played_once_each_before_one_is_played_again() -> None:
    starts = random_starts({"a": {"task": "a"}}, 10, seed=3, stored={"init_state": 4})
    order = [start.options["init_state"] for start in starts]
    assert sorted(order[:4]) == [0, 1, 2, 3] and order[4:] == (order * 2)[:6]
    assert all(start.options["task"] == "a" for start in starts) and len({start.seed for start in starts}) == 10
    assert random_starts({"a": {"task": "a"}}, 3, seed=3, stored={"init_state": 4}) == starts[:3]
    drawn = {
        tuple(s.options["place"] for s in random_starts(["a"], 3, seed, stored={"place": 50})) for seed in range(9)
    }
    assert len(drawn) == 9, "other seeds, other states"
    repeated = random_points(["a"], points=2, per_point=3, seed=0, stored={"place": 9})
    assert [start.options for start in repeated[:3]] == [repeated[0].options] * 3 != [repeated[3].options] * 3


def test_a_grid_has_a_stored_state_at_each_point() -> None:
    stored = {"tasks": ["a", "b"], "grid": None, "starts": {"place": 4}}
    starts = grid_starts(stored, "2x2", per_point=2, seed=0)
    assert [sorted({start.options["place"] for start in starts if start.task == task}) for task in "ab"] == [
        [0, 1, 2, 3]
    ] * 2
    assert starts[0].options == starts[1].options


def test_seeds_are_fixed_for_ever_and_fit_31_bits() -> None:
    assert episode_seed(0, 1, 2) == episode_seed(0, 1, 2) != episode_seed(0, 2, 1)
    assert all(0 <= episode_seed(key) < 2**31 for key in range(1000))
    assert episode_seed("grid", 1234) == SEED_OF_GRID_1234


SEED_OF_GRID_1234 = 1396619061
keys = st.lists(st.one_of(st.integers(0, 2**70), st.sampled_from(["", "0", "grid", "lora"])), max_size=5)


@given(keys, keys, st.integers(1, 4))
def test_other_keys_give_other_seeds_be_it_for_a_zero_at_their_end(one: list, other: list, zeros: int) -> None:
    assert episode_seed(*one) != episode_seed(*one, *[0] * zeros)
    assert (episode_seed(*one) == episode_seed(*other)) == (one == other)


def drawn(seed: int, start: Start, step: int, count: int = 3) -> list[float]:
    return Noise(seed, start).at(step).random(count).tolist()


def test_an_episodes_random_numbers_follow_from_its_seed_start_and_step_alone() -> None:
    start = Start("pick_can", {"object_xy": (0.5, 0.1)}, 7)
    noise = Noise(0, start)
    assert noise.at(2).random(3).tolist() == drawn(0, start, 2), "whatever was drawn at other steps"
    noise.at(0).normal(size=99)
    noise.at(1).random(dtype=np.float32)
    assert noise.at(2).random(3).tolist() == drawn(0, start, 2)
    changes = [{"task": "other"}, {"options": {"object_xy": (0.5, 0.2)}}, {"seed": 8}, {"repeat": 1}]
    others = [(1, start, 2), (0, start, 3), *((0, replace(start, **change), 2) for change in changes)]
    assert len({tuple(drawn(*each)) for each in [(0, start, 2), *others]}) == 7
    same = replace(start, options={"object_xy": np.array([0.5, 0.1])}, grid_point=3)
    assert drawn(0, same, 2) == drawn(0, start, 2), "where the point lies in a grid says nothing"


def test_the_random_numbers_of_a_step_run_into_no_others() -> None:
    noise = Noise(0, Start("pick_can"))
    steps = np.stack([noise.at(step).random(1000) for step in range(50)])
    assert len(np.unique(steps)) == steps.size
    pairs: Any = np.corrcoef(steps)
    assert abs(pairs[np.triu_indices(50, 1)]).max() < 0.16, "1,225 pairs; 5 standard deviations"


@pytest.mark.parametrize("grid", ["", "5", "5x", "0x5", "5x5x5", "-1x5", "axb"])
def test_a_malformed_grid_is_refused(grid: str) -> None:
    with pytest.raises(UserError, match="such as 10x10"):
        parse_grid(grid)


@pytest.mark.parametrize("ends", [["a", "b"], [0.3, -0.3, 1], [0.4], [0.4, float("nan")]])
def test_ends_of_the_start_area_that_are_not_two_numbers_are_refused(ends: list[Any]) -> None:
    settings = OmegaConf.create({**CAN, "grid": {"x": [0.42, 0.62], "y": ends}})
    with pytest.raises(UserError) as error:
        grid_starts(settings, "2x2", 1, 0)
    assert str(error.value) == f"env.grid.y={ends}: expected two numbers, its ends in metres, as in [0.44,0.6]."


def test_no_episode_a_point_is_refused() -> None:
    with pytest.raises(UserError, match="per_point=0"):
        grid_starts(CAN, "1x1", 0, 0)
