"""Batched rollouts: exact bookkeeping on a counting environment, and the scripted expert on the real tasks."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vla_razor.config import compose
from vla_razor.errors import RunFailed, UserError
from vla_razor.policies import Decisions, Observations
from vla_razor.policies.load import load_model
from vla_razor.policies.openvla.policy import PrismaticPolicy
from vla_razor.policies.scripted import ScriptedExpert
from vla_razor.rollouts.environments import make_vector_env
from vla_razor.rollouts.rollout import Episode, Timing, rollout
from vla_razor.rollouts.starts import Start, grid_starts
from vla_razor_envs.pool import PoolVectorEnv

FRAGILE = Path(__file__).parents[1] / "envs"


@pytest.fixture(scope="module")
def counting() -> Iterator[PoolVectorEnv]:
    """Three slots in groups of two and one, of the environment that counts from its seed; episodes of three steps."""
    with pytest.MonkeyPatch.context() as patch, closing(fragile_pool(patch)) as envs:
        yield envs


def fragile_pool(patch: pytest.MonkeyPatch, **kwargs: Any) -> PoolVectorEnv:
    patch.syspath_prepend(FRAGILE)
    return PoolVectorEnv("fragile:Fragile-v0", 3, num_workers=2, **kwargs)


class Counter:
    """Succeeds where the image shows one of `good`; its tokens are that number, its log-probabilities the negative."""

    name = "counter"

    def __init__(self, *good: int) -> None:
        self.good = good
        self.batches: list[int] = []

    def act(
        self, observations: Observations, generators: Sequence[np.random.Generator], memories: Any = None
    ) -> Decisions:
        numbers = observations.image()[:, 0, 0, 0].astype(int)
        assert [info["instruction"] for info in observations.infos] == observations.instructions
        self.batches.append(len(observations))
        actions = np.zeros((len(observations), 7), np.float32)
        actions[:, 6] = np.isin(numbers, self.good)
        actions[:, 0] = [generator.random() for generator in generators]
        tokens = torch.from_numpy(np.stack([numbers, numbers + 100], axis=1))
        return Decisions(actions[:, None], tokens, -tokens.float(), labels=actions + 1)


class Planner(Counter):
    """Decides two control steps at once; success is what it does in the second."""

    def act(self, *seen: Any, **named: Any) -> Decisions:
        decided = super().act(*seen, **named)
        second = decided.actions.copy()
        decided.actions[..., 6] = 0
        second[..., 0] *= -1
        return decided._replace(actions=np.concatenate([decided.actions, second], 1), labels=None)


def starts_from(*seeds: int) -> list[Start]:
    return [Start("count", seed=seed) for seed in seeds]


def test_an_episode_holds_what_was_seen_decided_and_reached_in_the_order_of_starts(counting: PoolVectorEnv) -> None:
    policy, ended = Counter(21, 41), []
    starts = starts_from(10, 20, 30, 40, 50)
    episodes, timing = rollout(counting, policy, starts, hold=None, seed=0, progress=ended.append)
    assert [episode.start for episode in episodes] == starts
    assert sorted(map(id, ended)) == sorted(map(id, episodes))
    for episode in episodes:
        first = episode.start.seed
        assert episode.instruction == f"count from {first}"
        assert episode.length == 3
        assert episode.images.shape == (3, 4, 6, 3)
        assert episode.images[:, 0, 0, 0].tolist() == [first, first + 1, first + 2]
        assert episode.proprioception.tolist() == [[first, 0], [first + 1, 1], [first + 2, 2]]
        assert episode.tokens is not None
        assert episode.log_probs is not None
        assert episode.labels is not None
        assert episode.tokens.tolist() == [[first + t, first + t + 100] for t in range(3)]
        np.testing.assert_array_equal(episode.log_probs, -episode.tokens)
        np.testing.assert_array_equal(episode.labels, episode.actions + 1)
        assert not episode.lost
    assert episodes[1].success.tolist() == [False, True, False]
    assert episodes[1].success_once
    assert not episodes[1].success_at_end
    assert not episodes[0].success_once
    assert timing.env_steps == 15
    assert policy.batches == [2, 1] * 3 + [2] * 3, "one group after the other"
    assert timing.policy + timing.environment + timing.rest == pytest.approx(timing.seconds)
    assert (timing + timing).env_steps == 30
    assert timing.steps_per_second > 0
    assert Timing().steps_per_second == 0


def test_stopping_at_success_frees_the_slot_for_the_next_start(counting: PoolVectorEnv) -> None:
    policy = Counter(10, 21)
    episodes, timing = rollout(counting, policy, starts_from(10, 20, 30, 40), hold=1, seed=0)
    assert [episode.success.tolist() for episode in episodes] == [[True], [False, True], [False] * 3, [False] * 3]
    assert all(episode.success_at_end == episode.success_once for episode in episodes)
    assert timing.env_steps == 9
    # The first slot starts the fourth episode while its neighbour takes its second step.
    assert policy.batches == [2, 1, 1, 1, 1, 1, 1, 1]


def test_an_episode_goes_on_until_success_has_been_held(counting: PoolVectorEnv) -> None:
    episodes, _ = rollout(counting, Counter(10, 11, 12, 21), starts_from(10, 20), hold=2, seed=0)
    assert [episode.success.tolist() for episode in episodes] == [[True, True], [False, True, False]]
    assert [episode.success_at_end for episode in episodes] == [True, False]


def test_a_chunk_is_carried_out_before_the_policy_is_asked_again(counting: PoolVectorEnv) -> None:
    """Episodes of three steps: the second decision reaches beyond their end. Nothing is drawn between decisions."""
    policy, drawn = Planner(10), []
    receive = counting.receive

    def noted() -> Any:
        tick = receive()
        drawn.append(tick[-1]["drawn"].tolist())
        return tick

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "receive", noted)
        (first, other), timing = rollout(counting, policy, starts_from(10, 20), hold=None, seed=0)
    assert policy.batches == [2, 2] and timing.env_steps == 6
    assert first.decided is not None and first.decided.tolist() == [0, 2]
    assert first.decision_steps.tolist() == [0, 2]
    assert first.images[:, 0, 0, 0].tolist() == first.decided_on.image()[:, 0, 0, 0].tolist() == [10, 12]
    assert first.proprioception.tolist() == [[10, 0], [12, 2]]
    assert first.tokens is not None and first.tokens[:, 0].tolist() == [10, 12]
    assert first.actions.shape == (3, 7) and first.labels is None
    np.testing.assert_array_equal(first.actions[1, :6], -first.actions[0, :6])
    assert (first.success.tolist(), other.success.tolist()) == ([False, True, False], [False] * 3)
    assert [row[:2] for row in drawn] == [[1, 1], [1, 1], [2, 2], [2, 2]], "at reset, and before the second decision"


def test_an_episode_that_is_watched_keeps_every_picture(counting: PoolVectorEnv) -> None:
    watched: dict[str, Any] = {"watched": lambda start: start.seed == 10}
    (film, other), _ = rollout(counting, Planner(), starts_from(10, 20), hold=None, seed=0, **watched)
    assert film.images[:, 0, 0, 0].tolist() == [10, 11, 12]
    assert film.proprioception[:, 0].tolist() == [10, 11, 12]
    assert film.decided_on.image()[:, 0, 0, 0].tolist() == [10, 12]
    assert other.images[:, 0, 0, 0].tolist() == [20, 22]


def test_a_policy_is_refused_whose_proprioception_is_another(counting: PoolVectorEnv) -> None:
    policy: Any = Counter()
    policy.proprioception = 8
    with pytest.raises(UserError, match="counter reads 8 numbers of proprioception; the environment has 2"):
        rollout(counting, policy, starts_from(10), hold=None, seed=0)
    policy.proprioception, policy.cameras = 2, ["workspace_camera"]
    assert len(rollout(counting, policy, starts_from(10), hold=None, seed=0)[0]) == 1
    policy.cameras = ["wrist_camera"]
    with pytest.raises(UserError, match="reads the camera wrist_camera; it could be shown workspace_camera"):
        rollout(counting, policy, starts_from(10), hold=None, seed=0)


def test_success_ends_an_episode_within_a_chunk(counting: PoolVectorEnv) -> None:
    episodes, timing = rollout(counting, Planner(10), starts_from(10, 20), hold=1, seed=0)
    assert [episode.length for episode in episodes] == [2, 3] and timing.env_steps == 5
    assert episodes[0].decided is not None and episodes[0].decided.tolist() == [0]


def test_actions_of_another_length_are_refused_at_the_first_decision(counting: PoolVectorEnv) -> None:
    class Short(Counter):
        def act(self, *seen: Any, **named: Any) -> Decisions:
            decided = super().act(*seen, **named)
            return decided._replace(actions=decided.actions[..., :6])

    message = r"the policy counter decided on actions of shape \(2, 1, 6\); these environments take \(2, steps, 7\)"
    with pytest.raises(UserError, match=message):
        rollout(counting, Short(), starts_from(10, 20), hold=None, seed=0)


def test_one_group_is_decided_about_while_the_other_is_simulated(counting: PoolVectorEnv) -> None:
    flying, during, threads = [], [], torch.get_num_threads()

    class Watchful(Counter):
        def act(self, *seen: Any, **named: Any) -> Decisions:
            flying.append(len(counting._sent))
            during.append(torch.get_num_threads())
            return super().act(*seen, **named)

    policy = Watchful()
    rollout(counting, policy, starts_from(10, 20, 30), hold=None, seed=0)
    assert flying == [1] * 6
    assert set(during) == {max(1, threads // 2)}, "the workers have the other cores"
    assert torch.get_num_threads() == threads


def test_a_start_and_the_seed_give_the_same_episode_whatever_is_played_beside_it(counting: PoolVectorEnv) -> None:
    def actions(starts: list[Start], slots: int = 3, seed: int = 0) -> list[np.ndarray]:
        few: Any = Few(counting, slots)
        return [episode.actions for episode in rollout(few, Counter(), starts, **ends, seed=seed)[0]]

    ends: dict[str, Any] = {"hold": None}
    starts = [*starts_from(1, 2, 3, 4), Start("count", seed=2, repeat=1)]
    expected = actions(starts)
    assert len(np.unique(np.array(expected)[..., 0])) == 15, "every step has a draw of its own"
    for slots in (1, 2):
        np.testing.assert_array_equal(actions(starts, slots), expected)
    np.testing.assert_array_equal(actions(starts[::-2]), expected[::-2])
    assert (np.array(actions(starts, seed=1)) != expected).any(2).all()
    assert rollout(counting, Counter(), [], **ends, seed=0)[0] == []
    with pytest.raises(ValueError, match="number them in `repeat`"):
        actions(starts_from(1, 2, 1))


class Few:
    """A pool of which only some slots are used."""

    def __init__(self, envs: Any, slots: int) -> None:
        self.envs, self.groups = envs, [kept for group in envs.groups if (kept := [s for s in group if s < slots])]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.envs, name)


def test_an_action_that_is_none_is_one_message(counting: PoolVectorEnv) -> None:
    class Broken(Counter):
        def act(self, *seen: Any, **named: Any) -> Decisions:
            decided = super().act(*seen, **named)
            return decided._replace(actions=np.full_like(decided.actions, np.nan))

    with pytest.raises(RunFailed, match=r"what the robot cannot do: action of slot 0 is .*seven finite"):
        rollout(counting, Broken(), starts_from(10), hold=None, seed=0)


@pytest.mark.parametrize("when", ["at_reset", "at_step"])
def test_an_episode_whose_worker_died_is_started_again(counting: PoolVectorEnv, when: str, tmp_path: Path) -> None:
    starts = starts_from(10, 20, 30, 40)
    starts[1] = Start("count", {when: "die", "unless": str(tmp_path / "once")}, seed=20)
    episodes, again = (rollout(counting, Counter(), starts, hold=None, seed=0)[0] for _ in range(2))
    assert [episode.images[:, 0, 0, 0].tolist() for episode in episodes] == [
        [s, s + 1, s + 2] for s in (10, 20, 30, 40)
    ]
    assert not any(episode.lost for episode in episodes)
    np.testing.assert_array_equal(
        [episode.actions for episode in episodes],
        [episode.actions for episode in again],
        err_msg="the second time nothing dies, and the same happens",
    )


def test_a_simulation_that_blows_up_is_played_again(counting: PoolVectorEnv, tmp_path: Path) -> None:
    starts = [Start("count", {"at_step": "blow up", "unless": str(tmp_path / "blown")}, seed=10), *starts_from(20)]
    policy = Counter()
    episodes, _ = rollout(counting, policy, starts, hold=None, seed=0)
    assert (tmp_path / "blown").exists()
    assert [episode.proprioception.tolist() for episode in episodes] == [
        [[s, 0], [s + 1, 1], [s + 2, 2]] for s in (10, 20)
    ]
    always, _ = rollout(counting, policy, [Start("count", {"at_step": "blow up"}, seed=10)], hold=None, seed=0)
    assert always[0].lost


def test_an_episode_lost_three_times_is_reported_as_lost_not_failed(counting: PoolVectorEnv) -> None:
    starts = [*starts_from(10), Start("count", {"at_step": "die"}, seed=20)]
    episodes, _ = rollout(counting, Counter(), starts, hold=None, seed=0)
    assert [episode.lost for episode in episodes] == [False, True]
    assert episodes[1].length == len(episodes[1].images) == len(episodes[1].actions) == 0
    assert not episodes[1].success_once
    assert not episodes[1].success_at_end


@pytest.mark.slow
def test_slots_and_workers_do_not_change_what_happens_on_real_physics() -> None:
    """The expert, which disturbs itself, and a policy that samples, in 48, 7 and 1 slots of 2 and 1 workers."""
    env = compose("rl", ["env=pick_can"]).env
    expert, sampling = ScriptedExpert(noise=0.5), PrismaticPolicy(load_model("tiny"))
    starts = grid_starts(env, "2x2", 2, seed=0)

    def run(envs: Any, count: int = 8) -> list[Episode]:
        return [
            *rollout(envs, sampling, starts[:count], hold=1, seed=0)[0],
            *rollout(envs, expert, starts[:count:2], hold=1, seed=0)[0],
        ]

    with closing(make_vector_env(env, 48, 2, "cpu")) as envs:
        reference = run(envs)
    with closing(make_vector_env(env, 7, 1, "cpu")) as envs:
        in_seven, in_one = run(envs), run(Few(envs, 1), count=2)
    sampled, experts = reference[:8], reference[8:]
    assert sum(episode.success_once for episode in experts) >= 3
    assert len({episode.length for episode in experts}) > 1, "slots are refilled at different times"
    assert {episode.instruction for episode in sampled} == {"pick coke can"}
    firsts = [tuple(episode.tokens[0]) for episode in sampled if episode.tokens is not None]
    assert len(set(firsts)) == 8, "the episodes of a grid point are different ones"
    for again, expected in ((in_seven, reference), (in_one, [*sampled[:2], experts[0]])):
        for one, other in zip(expected, again, strict=True):
            assert one.start == other.start and not other.lost
            for name in ("images", "proprioception", "actions", "labels", "tokens", "success"):
                np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.slow
def test_what_the_environment_refuses_is_a_user_error() -> None:
    config = compose("rl", ["env=pick_can", "env.make.orientation=sideways"]).env
    with pytest.raises(UserError, match="orientation is 'sideways'; expected one of upright"):
        make_vector_env(config, 1, 1, "cpu")
