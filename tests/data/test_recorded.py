"""Demonstrations without any simulator: learned, evaluated where they were held out, and measured on."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.verbs.support import done, metrics, random_demonstration, small_policy, told, write_store
from vla_razor import config, recordings
from vla_razor.errors import UserError
from vla_razor.policies.load import load_model
from vla_razor.policies.openvla.policy import PrismaticPolicy
from vla_razor.rollouts import demonstrations, probe_set
from vla_razor.rollouts.demonstrations import Shard
from vla_razor.rollouts.starts import episode_seed

QUIET = ("logger=none", "device=cpu")
FEW = ("batch_size=16", "epochs=3", "learning_rate=3e-3", "prefix_jitter=0", "probe_states=12", "probe_every=3")
OTHERS = "other_instructions=[open top drawer]"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `import` writes it: six episodes to learn from, and two that are held out."""
    folder = tmp_path_factory.mktemp("dataset") / "mine"
    whole = [replace(random_demonstration(seed), camera="front") for seed in range(8)]
    for place, part in ((folder, whole[:6]), (folder / recordings.HELD_OUT, whole[6:])):
        demonstrations.write(place / demonstrations.FOLDER / "part_0000.h5", Shard("mine", 0, 1, [], part))
        recordings.write(place, name="mine", camera="front", control_hz=5, tasks={"pick_can": "pick can"})
    return folder


@pytest.fixture(scope="module")
def able(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy with the dataset's statistics."""
    folder = tmp_path_factory.mktemp("able")
    small_policy().save_pretrained(folder / "policy")
    done("stats", dataset, f"policy={folder / 'policy'}", f"out={folder / 'able'}", *QUIET)
    return folder / "able"


@pytest.fixture(scope="module")
def trained(dataset: Path, able: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    done("sft", f"demos={dataset}", f"policy={able}", "lora_rank=2", OTHERS, *FEW, *QUIET, f"out={out}")
    return out


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def test_the_dataset_is_the_suite_where_nothing_else_is_said(dataset: Path) -> None:
    settings = config.compose("sft", [f"demos={dataset}"])
    assert (settings.env.name, list(settings.env.tasks), settings.prior) == ("mine", ["pick_can"], None)
    assert config.robot_of(settings.env) == "mine"
    assert config.compose("kl", [f"states={dataset}"]).env == config.compose("kl", [f"env={dataset}"]).env
    assert config.compose("sft", [f"demos={dataset}", "env=pick_can"]).env.name == "pick_can"


def test_a_training_is_evaluated_where_nothing_was_learned(trained: Path) -> None:
    found = summary(trained)
    ends = found["held_out"]
    assert (ends["states"], ends["episodes"]) == (12, 2)
    for name in ("negative_log_likelihood", "token_accuracy", "action_error"):
        base, tuned, apart = (ends[side][name] for side in ("base", "tuned", "difference"))
        assert apart["mean"] == pytest.approx(tuned["mean"] - base["mean"]) and base["low"] <= base["mean"]
    assert len(ends["tuned"]["action_error_by_dimension"]) == 7
    assert found["policies"]["tuned"]["new_task"] == {} and found["policies"]["base"]["forward_kl"]["per_action"] == 0
    assert found["policies"]["tuned"]["forward_kl"]["states"] == 12
    assert {"forward_kl_per_token", "spillover"} <= metrics(trained)[-1].keys()


def test_the_likelihood_is_that_of_the_demonstrated_actions(trained: Path, dataset: Path) -> None:
    policy = PrismaticPolicy(load_model(trained), robot="mine")
    data = demonstrations.load(dataset / recordings.HELD_OUT, config.compose("kl", [f"states={dataset}"]).env)
    rows = np.sort(np.random.default_rng(episode_seed("recorded states", 0)).permutation(16)[:12])
    tokens = policy.tokenize(data.actions, data.episode)[rows]
    prompts = policy.prompt_ids([data.instructions[row] for row in rows])
    with torch.no_grad():
        said = policy.distribution(policy.views(data.observations[rows]), prompts, tokens)
    expected = -said.log_prob(tokens).sum(1).mean()
    told_so = summary(trained)["held_out"]["tuned"]["negative_log_likelihood"]["mean"]
    assert told_so == pytest.approx(float(expected), rel=1e-5)


def test_kl_at_those_states_is_what_the_training_measured(trained: Path, dataset: Path, tmp_path: Path) -> None:
    words = (f"states={dataset / recordings.HELD_OUT}", f"policy={trained}", "probe_states=12", OTHERS, *QUIET)
    printed = done("kl", *words, f"out={tmp_path / 'kl'}").stdout
    (entry,) = summary(tmp_path / "kl")["policies"].values()
    expected = summary(trained)["policies"]["tuned"]["forward_kl"]
    for name in ("per_action", "spillover", "reverse_kl"):
        assert entry["forward_kl"][name] == pytest.approx(expected[name], rel=1e-5)
    assert "spillover to other tasks' instructions" in printed and len(entry["forward_kl"]["by_time"]) > 1


def test_a_law_forecasts_at_recorded_states(trained: Path, dataset: Path, tmp_path: Path) -> None:
    facts = {"schema": 2, "domain": "robot", "measure": "forward_kl_per_token", "coefficients": [0.1, 0.5], "r2": 0.9}
    (tmp_path / "law.json").write_text(json.dumps(facts | {"reach": [0, 9], "below": -0.1, "above": 0.1, "runs": 12}))
    words = (f"states={dataset / recordings.HELD_OUT}", f"policy={trained}", "probe_states=12", OTHERS, *QUIET)
    printed = done("kl", *words, f"law={tmp_path / 'law.json'}", f"out={tmp_path / 'kl'}").stdout
    found = summary(tmp_path / "kl")["forecast"]
    assert found["high"] - found["low"] == pytest.approx(0.2) and "forecast: " in printed


def test_a_policy_that_is_trained_whole_makes_no_simulator_either(
    able: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe_set, "make_vector_env", None)
    words = ("sft", f"demos={dataset}", f"policy={able}", *FEW, *QUIET, "epochs=30", OTHERS)
    done(*words, f"out={tmp_path / 'run'}")
    assert metrics(tmp_path / "run")[-1]["loss"] < metrics(tmp_path / "run")[0]["loss"]


def test_an_adapter_is_trained_on_whole(trained: Path, dataset: Path, tmp_path: Path) -> None:
    words = ("sft", f"demos={dataset}", f"policy={trained}", *FEW, *QUIET, "epochs=1", OTHERS)
    done(*words, f"out={tmp_path / 'run'}")
    assert summary(tmp_path / "run")["policies"]["tuned"]["forward_kl"]["per_action"] > 0


def test_statistics_without_width_where_something_moves_are_refused(able: Path, dataset: Path, tmp_path: Path) -> None:
    model = load_model(able)
    model.config.norm_stats["mine"]["action"]["q99"][2] = model.config.norm_stats["mine"]["action"]["q01"][2]
    model.save_pretrained(tmp_path / "narrow")
    words = ("sft", f"demos={dataset}", f"policy={tmp_path / 'narrow'}", *FEW, *QUIET, f"out={tmp_path / 'run'}")
    result = told(*words)
    assert result.exit_code == 2 and "the statistics mine have no width in dimension 2 (q01 = q99" in result.stderr
    model.config.norm_stats["mine"]["action"]["mask"][2] = False
    model.save_pretrained(tmp_path / "masked")
    done("sft", f"demos={dataset}", f"policy={tmp_path / 'masked'}", *FEW, *QUIET, f"out={tmp_path / 'run'}", OTHERS)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("rl", "env={dataset}", "policy={able}"), "it is recorded, and nobody can act in it."),
        (("kl", "env={dataset}", "policy={able}"), "nobody can act in it; say at which recorded states: states=DIR."),
        (("sft", "demos={dataset}", "policy={foreign}"), "it has no action statistics of mine, but of vla_razor"),
        (("kl", "states={dataset}", "policy={foreign}"), "it has no action statistics of mine, but of vla_razor"),
        (("sft", "demos={dataset}", "policy={able}", "prior=drawer"), "it is of panda, what is learned of mine"),
        (("sft", "demos={short}", "policy={able}", "unnorm_key=mine"), "its actions have 5 numbers, the statistics"),
        (("kl", "states=nowhere", "policy={able}"), "nowhere holds no demonstrations"),
    ],
)
def test_what_cannot_be_is_one_message(
    dataset: Path, able: Path, tmp_path: Path, words: tuple[str, ...], says: str
) -> None:
    small_policy().save_pretrained(tmp_path / "foreign")
    episodes = [random_demonstration(seed) for seed in range(2)]
    cut = [replace(e, camera="front", actions=e.actions[:, :5], labels=e.labels[:, :5]) for e in episodes]
    short = write_store(tmp_path / "short", cut)
    recordings.write(short, name="panda", camera="front", control_hz=5, tasks={"pick_can": "pick can"})
    places = {"dataset": dataset, "able": able, "foreign": tmp_path / "foreign", "short": short}
    if "unnorm_key=mine" in words:
        recordings.write(short, name="mine", camera="front", control_hz=5, tasks={"pick_can": "pick can"})
        path = next(short.glob("demonstrations/*.h5"))
        demonstrations.write(path, replace(demonstrations.read(path), robot="mine"))
    result = told(*(word.format(**places) for word in words), *QUIET, f"out={tmp_path / 'run'}")
    assert result.exit_code == 2 and says in result.stderr, result.stderr
    assert "Traceback" not in result.stderr and not (tmp_path / "run").exists()


def test_prior_tasks_of_another_robot_are_refused(dataset: Path) -> None:
    with pytest.raises(UserError, match=r"prior=drawer: it is of panda, what is learned of .*: prior=null"):
        config.compose("sft", [f"demos={dataset}", "prior=drawer"])
