"""What is made of evaluated episodes: summaries, paired comparisons and records."""

import numpy as np
import pytest

from vla_razor.policies import Observations
from vla_razor.rollouts.evaluation import compared, records, summarized
from vla_razor.rollouts.rollout import Episode
from vla_razor.rollouts.starts import Start
from vla_razor.statistics import paired_difference, wilson


def episode(success: list[int], task: str = "pick_can", seed: int = 0, lost: bool = False) -> Episode:
    steps = len(success)
    seen = Observations({"camera": np.zeros((0, 4, 4, 3), np.uint8)}, [], np.zeros((steps, 3), np.float32))
    actions = np.zeros((steps, 7))
    start = Start(task, {"object_xy": [0.1, 0.2]}, seed)
    return Episode(start, "pick can", seen, actions, None, None, None, np.array(success, bool), lost)


GOOD, BRIEF, BAD, LOST = [0, 0, 1], [0, 1, 0], [0, 0, 0], episode([], lost=True)


def test_summaries_tell_new_from_prior_tasks() -> None:
    results = {
        "pick_can": [episode(GOOD), episode(BRIEF), LOST],
        "open_top_drawer": [episode(BAD), episode(GOOD)],
        "close_top_drawer": [episode(GOOD), episode(GOOD)],
    }
    entry = summarized(results, {"per_token": 0.5}, new_tasks=["pick_can"])
    assert entry["new_task"] == {"pick_can": {"success_at_end": wilson(1, 2), "success_once": wilson(2, 2)}}
    assert list(entry["prior_tasks"]) == ["open_top_drawer", "close_top_drawer"]
    assert entry["prior_mean"]["success_at_end"] == wilson(3, 4)
    assert entry["forward_kl"] == {"per_token": 0.5} and entry["primary"] == "success_once"
    assert entry["prior_mean"]["success_at_end"]["starts"] == 4, "every episode has a start of its own"
    assert list(summarized(results, new_tasks=["open_top_drawer"])["new_task"]) == ["open_top_drawer"]


def test_comparison_pairs_the_same_starts_and_skips_lost_ones() -> None:
    a = {"pick_can": [episode(GOOD), LOST, episode(BRIEF), episode(GOOD)], "open_top_drawer": [episode(BAD)]}
    b = {"pick_can": [episode(BAD), episode(GOOD), episode(BAD), LOST], "open_top_drawer": [episode(GOOD)]}
    result = compared(a, b, ["pick_can"])
    expected = paired_difference([True, False], [False, False])
    assert result["tasks"]["pick_can"]["episodes"] == 2
    assert list(result["tasks"]["pick_can"]) == ["episodes", "success_once", "success_at_end"], "the primary one first"
    assert result["tasks"]["pick_can"]["success_at_end"] == expected._asdict()
    assert result["tasks"]["pick_can"]["success_once"]["difference"] == pytest.approx(1.0)
    assert result["prior_mean"]["success_at_end"]["difference"] == pytest.approx(-1.0)
    assert compared({"pick_can": [LOST]}, {"pick_can": [episode(GOOD)]}, ["pick_can"])["tasks"] == {
        "pick_can": {"episodes": 0}
    }
    alone = {"pick_can": [episode(GOOD)]}
    assert compared(alone, alone, ["pick_can"])["prior_mean"] is None
    assert compared(alone, alone, [])["prior_mean"]["episodes"] == 1


def test_records() -> None:
    rows = records({"pick_can": [episode(BRIEF, seed=5), LOST]})
    assert rows[0] == {
        "task": "pick_can",
        "start": {"seed": 5, "object_xy": [0.1, 0.2]},
        "success_at_end": False,
        "success_once": True,
        "first_success": 2,
        "steps": 3,
        "lost": False,
    }
    assert (rows[1]["lost"], rows[1]["first_success"], rows[1]["steps"]) == (True, None, 0)
