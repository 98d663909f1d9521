"""Action statistics: what they are, what is odd about them, and a policy that learns a suite it knew nothing of."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from tests.verbs.support import CommandLine, metrics, random_demonstration, small_policy, write_store
from tests.verbs.test_suites import PLAIN, POLICY, SUITE
from vla_razor import cli
from vla_razor.conventions import Convention
from vla_razor.data.oddities import of_episodes
from vla_razor.errors import UserError
from vla_razor.policies.load import load_model
from vla_razor.verbs.learn import stats


def told(*words: object) -> Result:
    return CliRunner().invoke(cli.app, ["stats", *map(str, words), "logger=none"])


def test_they_are_those_of_the_actions_to_imitate(tmp_path: Path) -> None:
    episodes = [random_demonstration(seed) for seed in range(9)]
    disturbed = episodes[0].actions + 100  # what an expert who disturbs itself has executed
    episodes[0] = replace(episodes[0], actions=disturbed)
    result = told(write_store(tmp_path / "demos", episodes), f"out={tmp_path / 'run'}")
    assert result.exit_code == 0, result.output
    (name, found), *others = json.loads((tmp_path / "run" / stats.FILE).read_text()).items()
    actions = np.concatenate([episode.labels for episode in episodes]).astype(float)
    assert (name, others) == ("vla_razor_panda", []) and found["num_trajectories"] == 9
    assert found["num_transitions"] == len(actions)
    for column, expected in {
        "q01": np.percentile(actions, 1, axis=0),
        "q99": np.percentile(actions, 99, axis=0),
        "min": actions.min(0),
        "max": actions.max(0),
        "mean": actions.mean(0),
        "std": np.sqrt(((actions - actions.mean(0)) ** 2).mean(0)),
    }.items():
        np.testing.assert_allclose(found["action"][column], expected, rtol=1e-6)
    assert found["action"]["mask"] == [True] * 7 and len(found["proprio"]["q01"]) == 8


def test_what_would_be_lost_is_said() -> None:
    values = np.random.default_rng(0).uniform(-1, 1, (1000, 3))
    values[:, 1] = 0.25
    values[:, 2] *= 1e-3
    values[::200, 2] = 1.0
    fixed, rare = stats.oddities(stats.described(values))
    assert fixed == "dimension 1 is 0.25 everywhere: the policy cannot move it."
    assert rare.startswith("dimension 2 hardly moves: 98% of its values lie in [-0.0009")


def test_a_policy_gets_them_beside_its_own(tmp_path: Path) -> None:
    demos = write_store(tmp_path / "demos", [random_demonstration(seed) for seed in range(3)])
    small_policy().save_pretrained(tmp_path / "policy")
    words = (f"policy={tmp_path / 'policy'}", "unnorm_key=vla_razor_google_robot", "device=cpu")
    refused = told(demos, *words[:1], "unnorm_key=mine", f"out={tmp_path / 'no'}")
    assert refused.exit_code == 2 and "it is not known in which units its actions move the robot" in refused.stderr
    result = told(demos, *words, f"out={tmp_path / 'run'}")
    assert result.exit_code == 0, result.output
    model = load_model(tmp_path / "run")
    assert list(model.config.norm_stats) == ["vla_razor_panda", "vla_razor_google_robot"]
    for one, other in zip(model.parameters(), small_policy().parameters(), strict=True):
        assert one.equal(other)


def test_bad_input_is_one_message(tmp_path: Path) -> None:
    for words, says in (
        ([], "stats needs demonstrations: vla-razor stats DIR"),
        (["nowhere"], "nowhere holds no demonstrations"),
    ):
        result = told(*words, f"out={tmp_path / 'run'}")
        assert result.exit_code == 2 and says in result.stderr and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_suite_of_three_numbers_is_learned_from_its_demonstrations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vla_razor: CommandLine, policy: Path
) -> None:
    """One of its tasks, with the other as the prior one: actions of another length than those that the policy knew."""
    monkeypatch.syspath_prepend(PLAIN)
    (tmp_path / "slide.yaml").write_text(SUITE)
    (tmp_path / "slider.py").write_text(POLICY)
    monkeypatch.chdir(tmp_path)
    code = Path(cli.__file__).parents[1]
    paths = f"{PLAIN}:{code}:{code / 'envs'}"
    few = ("logger=none", "num_envs=2", "num_workers=1", "device=cpu")
    suite = ("env=slide.yaml", "env.tasks=[slide_left]")
    words = ("policy=slider:Leftward", "grid=1x2", "per_point=3", *few, "out=demos")
    vla_razor.run("collect", *suite, *words, PYTHONPATH=paths)
    vla_razor.run("stats", "demos", f"policy={policy}", "logger=none", "device=cpu", "out=able", PYTHONPATH=paths)
    learns = ("epochs=30", "batch_size=16", "learning_rate=3e-3", "prefix_jitter=0", "probe_states=4")
    taught = ("prior=slide.yaml", "policy=able", "demos=demos", "eval_episodes=2", "out=run")
    vla_razor.run("sft", *suite, *taught, *learns, *few, PYTHONPATH=paths)
    assert metrics(tmp_path / "run")[-1]["loss"] < metrics(tmp_path / "run")[0]["loss"] / 2
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())["policies"]["tuned"]
    assert set(summary["new_task"]) == {"slide_left"} and set(summary["prior_tasks"]) == {"slide_right"}


def odd(labels: np.ndarray, said: dict[str, str] | None = None, control_hz: int = 10) -> list[str]:
    episode = replace(random_demonstration(0), labels=labels.astype(np.float32), control_hz=control_hz)
    return of_episodes([episode], Convention(**said) if said else None)


def test_what_recorders_get_wrong_is_said() -> None:
    actions = np.random.default_rng(0).uniform(-0.1, 0.1, (50, 7))
    actions[:, 6] = np.arange(50) > 30  # from open to closed, in 0 to 1
    words = {"control": "delta", "rotation": "axis_angle", "gripper": "close_unit"}
    assert odd(actions, words) == []
    (sign,) = odd(actions, words | {"gripper": "open_unit"})
    assert sign.startswith("dimension 6: most episodes begin with the gripper at 0, which open_unit calls closed")
    wide = np.concatenate([actions[:, :6], 2 * actions[:, 6:] - 1], 1)
    (outside,) = odd(wide, words)
    assert outside == "dimension 6 lies in [-1, 1], but a close_unit gripper in [0, 1]."
    (guess,) = odd(wide)
    assert "If they begin open, it is close_positive" in guess
    turned = actions.copy()
    turned[7, 4] = 90
    assert odd(turned, words) == ["dimension 4 turns by 90 rad, beyond pi: are these degrees, or no rotation?"]
    wrapped = actions.copy()
    wrapped[:, 5] = np.where(np.arange(50) % 2, -3.1, 3.1)
    (jumps,) = odd(wrapped, words | {"control": "absolute", "rotation": "euler_xyz"})
    assert jumps.startswith("dimension 5 jumps by more than pi 49 times")
    (fast,) = odd(actions, words, control_hz=50)
    assert fast.startswith("50 control steps a second are many")
    (length,) = odd(np.pad(actions, ((0, 0), (0, 1))), words | {"rotation": "quaternion_xyzw", "gripper": "none"})[:1]
    assert length.startswith("dimensions 3 to 6 are no unit quaternions")


def test_a_gripper_is_masked_as_openvla_masks_it() -> None:
    actions = np.zeros((4, 7))
    known = Convention(control="delta", rotation="axis_angle", gripper="open_unit")
    assert stats.mask_of(None, actions, None) == [True] * 7
    assert stats.mask_of(None, actions, known) == [True] * 6 + [False]
    assert stats.mask_of([True, False] * 3 + [True], actions, known)[1] is False
    with pytest.raises(UserError, match="1 of the 7 numbers"):
        stats.mask_of([True], actions, known)
