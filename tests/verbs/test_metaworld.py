"""docs/metaworld.md as it stands: Meta-World's tasks and scripted policies, from outside the package."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.verbs.support import CommandLine

PAGE = Path(__file__).parents[2] / "docs" / "metaworld.md"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("metaworld") is None, reason="Meta-World is not installed"),
]


def test_what_the_page_says_runs(tmp_path: Path, vla_razor: CommandLine) -> None:
    """Two tasks of its suite: a drawer is closed within a few steps, and demonstrations of it are kept."""
    blocks = dict(re.findall(r"^`(\S+)`:\n\n```\w+\n(.*?)```", PAGE.read_text(), re.MULTILINE | re.DOTALL))
    for name, text in blocks.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text.replace("horizon: 100", "horizon: 30"))
    assert set(blocks) == {"env/metaworld.yaml", "experts.py"}
    paths: Any = {"PYTHONPATH": str(tmp_path), "MUJOCO_GL": "egl"}
    suite = ("--config-dir", str(tmp_path), "--env", "metaworld", "--policy", "experts:Scripted")
    few = ("num_envs=2", "num_workers=2", "logger=none")
    ours = ("env.tasks=[drawer_close,reach]", "episodes=1", "videos=0", f"out={tmp_path / 'run'}")
    vla_razor.run("eval", *suite, *ours, *few, **paths)
    (entry,) = json.loads((tmp_path / "run" / "summary.json").read_text())["policies"].values()
    found = {**entry["new_task"], **entry["prior_tasks"]}
    assert found["drawer_close"]["success_once"]["successes"] == 1
    kept = ("env.tasks=[drawer_close]", "grid=1x1", "per_point=1", f"out={tmp_path / 'demos'}")
    vla_razor.run("collect", *suite, *kept, *few, **paths)
    assert len(list((tmp_path / "demos" / "demonstrations").glob("*.h5"))) == 1
