"""The embedded base on real physics: what it can do, and what sampling costs it."""

from contextlib import closing

import pytest

from vla_razor.config import compose, scenes
from vla_razor.policies.load import TINY
from vla_razor.policies.openvla import OpenVLA
from vla_razor.policies.openvla.policy import PrismaticPolicy
from vla_razor.rollouts.environments import make_vector_env
from vla_razor.rollouts.rollout import rollout
from vla_razor.rollouts.starts import random_starts

EPISODES = {"pick_can": 60, "drawer": 12}
"""A task, so that the new task and the prior ones have about as many."""


@pytest.mark.slow
@pytest.mark.skipif(not TINY.is_dir(), reason="the embedded base policy has not been made")
def test_sampling_costs_it_little_but_where_it_has_a_choice() -> None:
    """Cloned with exact tokens it would cost much: at the first sampled neighbour of one the rest of an action goes
    wrong. The can it has learned from two teachers, one of them hasty: greedily it does what most demonstrations did.
    """
    model = OpenVLA.from_pretrained(TINY)
    rates: dict[tuple[str, bool], float] = {}
    for scene in scenes(compose("eval", ["env=all"]).env):
        starts = random_starts(scene.tasks, EPISODES[scene.name], seed=2)
        with closing(make_vector_env(scene, 24, 2, "cpu")) as envs:
            for greedy in (False, True):
                policy = PrismaticPolicy(model, robot="panda", greedy=greedy)
                episodes, _ = rollout(envs, policy, starts, hold=scene.hold, seed=2)
                rates[scene.name, greedy] = sum(episode.success_at_end for episode in episodes) / len(episodes)
    assert rates["drawer", False] > 0.85
    assert 0.2 < rates["pick_can", False] < 0.65, "something to learn, and something to learn from"
    assert rates["pick_can", True] > rates["pick_can", False] + 0.1
    assert abs(rates["drawer", True] - rates["drawer", False]) < 0.15  # 10 points, and the noise of so few episodes
