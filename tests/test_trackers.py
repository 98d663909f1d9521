"""Experiment trackers: what is missing is said before the work, and a run that is resumed continues the one begun."""

import importlib.util
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf
from typer.testing import CliRunner

from vla_razor import cli, config, trackers
from vla_razor.errors import UserError
from vla_razor.runs import Run

VERBS = [verb for verb in config.VERBS if verb != "report"]  # whose runs there must be
KILLED = """
import os, signal, sys, time
from omegaconf import OmegaConf
from vla_razor.runs import Run
out, logger = sys.argv[1:]
with Run.create(out, OmegaConf.create({"logger": logger}), "rl") as run:
    run.log(1, success=0.125)
    run.log(2, success=0.25)
    time.sleep(1.5)  # trackio writes in the background
    os.kill(os.getpid(), signal.SIGKILL)
"""
RESUMED = """
import sys
from vla_razor.runs import Run
with Run.resume(sys.argv[1]) as run:
    run.restore()
    run.log(3, success=0.5)
"""


@pytest.mark.parametrize("logger", ["wandb", "trackio"])
@pytest.mark.parametrize("verb", VERBS)
def test_a_missing_package_is_noticed_before_the_work(
    verb: str, logger: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also by verbs that log once at their end, and by those that let others do it."""
    monkeypatch.setitem(sys.modules, logger, None)
    monkeypatch.setattr(cli, "_execute", lambda run: pytest.fail("the work has begun"))
    words = [*verb.split("_", 1), "model=one/elsewhere"] if verb.startswith("llm_") else [verb]
    result = CliRunner().invoke(cli.app, [*words, f"logger={logger}", f"out={tmp_path / 'run'}"])
    assert result.exit_code == 2, result.output
    assert f"pip install 'vla-razor[{logger}]'" in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_package_that_is_gone_at_the_resume_is_noticed_before_anything_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with Run.create(out, OmegaConf.create({"logger": "none"}), "rl"):
        pass
    (out / "config.yaml").write_text("verb: rl\nlogger: wandb\n")
    monkeypatch.setitem(sys.modules, "wandb", None)
    (out / ".aside-x").touch()
    with pytest.raises(UserError, match="wandb is not installed"):
        Run.resume(out)
    assert (out / ".aside-x").exists()


class Refused(Exception):
    """As Weights & Biases refuses."""


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, asked: list[Any], key: bool = True) -> None:
    """A tracker that notes what it is asked for."""

    def login() -> None:
        if not key:
            raise Refused("No API key configured.")

    module = SimpleNamespace(
        init=lambda **settings: asked.append(settings),
        log=lambda scalars, step: asked.append((step, scalars)),
        finish=lambda: asked.append("finished"),
        login=login,
        errors=SimpleNamespace(Error=Refused),
        __spec__=SimpleNamespace(),
    )
    monkeypatch.setitem(sys.modules, name, module)  # pyright: ignore[reportArgumentType]


def test_a_missing_key_is_noticed_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "wandb", [], key=False)
    with pytest.raises(UserError, match=r"No API key configured. Any of these will do: wandb login, .*WANDB_MODE=off"):
        Run.create(tmp_path / "run", OmegaConf.create({"logger": "wandb"}), "eval")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_resumed_run_asks_for_the_one_it_had_begun(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    stand_in(monkeypatch, name, asked)
    settings = OmegaConf.create({"logger": name, "grid": [1, 2]})
    with Run.create(tmp_path / "one" / "run", settings, "kl") as run:
        run.log(1, success=0.5)
    (tmp_path / "one").rename(tmp_path / "moved")
    with Run.resume(tmp_path / "moved" / "run") as run:
        run.log(2, success=0.75)
    with Run.create(tmp_path / "two" / "run", settings, "kl") as other:
        other.log(1, success=0.25)
    first, second, third = (one for one in asked if isinstance(one, dict))
    key = {"wandb": "id", "trackio": "name"}[name]
    assert first[key] == second[key] != third[key], "another run of the same folder's name is another one"
    assert first["resume"] == second["resume"] == "allow"
    assert first["config"] == {"verb": "kl", "logger": name, "grid": [1, 2]}
    assert [one for one in asked if isinstance(one, tuple)][:2] == [(1, {"success": 0.5}), (2, {"success": 0.75})]
    assert asked.count("finished") == 3


def killed_and_resumed(out: Path, logger: str, **environment: str) -> None:
    """A run in two processes, the first of which is killed."""
    given = os.environ | environment
    done = subprocess.run([sys.executable, "-c", KILLED, str(out), logger], env=given, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    subprocess.run([sys.executable, "-c", RESUMED, str(out)], env=given, check=True, capture_output=True)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_weights_and_biases_itself_continues_the_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    killed_and_resumed(out, "wandb", WANDB_MODE="offline")
    identity = (out / trackers.IDENTITY).read_text()
    kept = sorted((out / "wandb").glob("offline-run-*"))
    assert [path.name.rpartition("-")[2] for path in kept] == [identity, identity]
    assert b"0.5" in next(kept[1].glob("run-*.wandb")).read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="trackio is not installed")
def test_trackio_itself_continues_the_run(tmp_path: Path) -> None:
    out, folder = tmp_path / "run", tmp_path / "kept"
    killed_and_resumed(out, "trackio", TRACKIO_DIR=str(folder))
    name = f"run-{(out / trackers.IDENTITY).read_text()}"
    with sqlite3.connect(folder / "vla-razor.db") as kept:
        assert kept.execute("select run_name, step from metrics order by step").fetchall() == [
            (name, 1),
            (name, 2),
            (name, 3),
        ]
