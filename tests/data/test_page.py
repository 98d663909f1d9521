"""docs/datasets.md as it stands: from a LeRobot dataset to an adapter, and to how far it moved, in four commands."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.verbs.support import random_demonstration, write_store
from vla_razor import cli

pytest.importorskip("av", reason="no PyAV here: pip install 'vla-razor[lerobot]'")

PAGE = Path(__file__).parents[2] / "docs" / "datasets.md"
QUICK = {
    "import": [],
    "stats": ["logger=none"],
    "sft": ["logger=none", "batch_size=16", "probe_states=8"],
    "kl": ["logger=none", "probe_states=8"],
}


@pytest.mark.slow
def test_the_path_from_a_dataset_to_what_was_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    block = re.search(r"```\n(vla-razor import.*?)```", PAGE.read_text(), re.DOTALL)
    assert block
    commands = [shlex.split(line)[1:] for line in block[1].splitlines()]
    assert [words[0] for words in commands] == list(QUICK)
    episodes = [replace(random_demonstration(seed), instruction="pick coke can") for seed in range(10)]
    write_store(tmp_path / "store", episodes)
    for words in (["export", "lerobot", "store", "out=recorded"], *commands):
        result = CliRunner().invoke(cli.app, [*words, *QUICK.get(words[0], [])])
        assert result.exit_code == 0, result.output
    tuned, moved = (json.loads((tmp_path / out / "summary.json").read_text()) for out in ("tuned", "moved"))
    assert (tuned["held_out"]["states"], tuned["held_out"]["episodes"]) == (8, 1)
    (entry,) = moved["policies"].values()
    assert entry["forward_kl"]["per_action"] == pytest.approx(tuned["policies"]["tuned"]["forward_kl"]["per_action"])
    assert entry["forward_kl"]["per_action"] > 0 and np.isfinite(entry["forward_kl"]["spillover"])
    assert (tmp_path / "tuned/checkpoints").is_dir()
