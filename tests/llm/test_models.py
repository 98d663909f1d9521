"""What a user may call a model, and what is said of a name that is none."""

import socket
from pathlib import Path

import huggingface_hub
import pytest
from typer.testing import CliRunner

from tests.llm.support import small_model
from vla_razor import cli
from vla_razor.errors import UserError
from vla_razor.llm.models import open_model, source_of

VERBS = ("sft", "simpo", "grpo", "reinforce", "eval", "kl", "probe", "annotate", "demo", "sweep")


@pytest.mark.parametrize(
    "words",
    [
        *([verb, "model=/nonexistent"] for verb in VERBS),
        ["kl", "model=some/adapter", "base=/nonexistent"],
        ["probe", "model=some/adapter", "base=./nonexistent"],
        ["annotate", "teacher=../nonexistent"],
        ["sweep", "model=some/model,/nonexistent"],
        ["sft", "model=~/nonexistent/folder", "dry_run=true"],
    ],
    ids=" ".join,
)
def test_a_path_that_is_not_there_is_named_and_the_hub_is_not_asked(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("something was asked"))
    result = CliRunner().invoke(cli.app, ["llm", *words, f"out={tmp_path / 'run'}"])
    key, _, path = words[-1 if "dry_run" not in words[-1] else -2].partition("=")
    path = path.rpartition(",")[2]
    assert result.exit_code == 2, result.output
    assert f"{key}={path}: there is no such folder" in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_names_of_the_hub_are_no_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gpt2", "Qwen/Qwen2.5-3B-Instruct", "a_b/C.d-1"):
        assert source_of(name) == name
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"runs/none: .* neither a folder here"):
        open_model("runs/none")
    folder = small_model(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    assert source_of("model") == "model" and source_of(folder) == str(folder)
