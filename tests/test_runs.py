"""The run folder: what is written, what a kill or a full disk leaves, and what is refused."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from vla_razor import files, runs
from vla_razor.errors import RunFailed, UserError
from vla_razor.runs import Run

CONFIG = OmegaConf.create({"seed": 3, "learning_rate": 1e-4, "rate": "${learning_rate}", "logger": "none"})


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"


def write_model(folder: Path) -> None:
    (folder / "weights").write_text("weights")


def trained(out: Path, steps: int = 2, saved: int = 2) -> None:
    """A run interrupted after `steps` steps, `saved` of which were saved."""
    with Run.create(out, CONFIG, "sft") as run:
        for step in range(1, steps + 1):
            run.log(step, loss=1 / step)
            if step <= saved:
                run.save(step, write_model, {"moment": torch.full((2,), float(step)), "rng": torch.get_rng_state()})


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def files_below(folder: Path) -> set[str]:
    """All but the lock and checksums."""
    own = {".lock", files.SUMS}
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name not in own}


def test_a_run_from_start_to_finish(out: Path) -> None:
    with Run.create(out, CONFIG, "sft") as run:
        assert run.step == 0
        assert run.config.verb == "sft"
        assert run.config.rate == 1e-4
        run.log(1, loss=torch.tensor(0.5), episodes=7, ratio=float("nan"))
        run.save(1, write_model, {"moment": torch.ones(2)})
        assert run.newest_checkpoint() == out / "checkpoints/step_1"
        run.finish({"policies": {"base": {"rate": 1.0, "divergence": float("inf")}}})
    expected = {"config.yaml", "metrics.jsonl", "checkpoints/step_1/weights", "trainer_state/step_1.pt", "summary.json"}
    assert files_below(out) == expected
    assert OmegaConf.load(out / "config.yaml") == {"verb": "sft", **CONFIG, "rate": 1e-4}
    (row,) = rows(out)
    assert row.pop("wall_seconds") >= 0
    assert row == {"step": 1, "loss": 0.5, "episodes": 7, "ratio": None}


def test_the_summary_holds_the_runs_facts(out: Path) -> None:
    with Run.create(out, CONFIG, "sft") as run:
        run.finish({"policies": {"base": {"per_token": float("inf")}}})
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["schema"], summary["verb"], summary["seed"]) == (2, "sft", 3)
    assert summary["wall_seconds"] >= 0
    assert summary["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert summary["git_commit"] is None or len(summary["git_commit"].removesuffix("-dirty")) == 40
    assert summary["policies"] == {"base": {"per_token": None}}


def test_resuming_restores_the_newest_state_and_drops_later_rows(out: Path) -> None:
    trained(out, steps=4, saved=2)
    assert files_below(out / "trainer_state") == {"step_2.pt"}
    with Run.resume(out) as run:
        state = run.restore()
        assert state is not None
        assert torch.equal(state["moment"], torch.full((2,), 2.0))
        assert torch.equal(state["rng"], torch.get_rng_state())
        assert run.step == 2
        assert run.config.learning_rate == 1e-4
        assert [row["step"] for row in rows(out)] == [1, 2]
        run.log(3, loss=0.0)
    assert [row["step"] for row in rows(out)] == [1, 2, 3]
    assert files_below(out / "checkpoints") == {"step_1/weights", "step_2/weights"}


def test_wall_seconds_add_up_over_sittings(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(runs.time, "monotonic", lambda: clock[0])
    with Run.create(out, CONFIG, "sft") as run:
        clock[0] += 10
        run.save(1, write_model, {})
        clock[0] += 5  # lost
    with Run.resume(out) as run:
        run.restore()
        clock[0] += 7
        run.log(2, loss=0.0)
        run.finish({})
    assert rows(out)[-1]["wall_seconds"] == 17
    assert json.loads((out / "summary.json").read_text())["wall_seconds"] == 17


def test_a_run_without_a_state_starts_afresh(out: Path) -> None:
    trained(out, steps=2, saved=0)
    with Run.resume(out) as run:
        assert run.restore() is None
        assert run.step == 0
        assert run.newest_checkpoint() is None
        run.log(1, loss=0.0)
    assert [row["step"] for row in rows(out)] == [1]


class Killed(BaseException):
    """Stands for the process's end: nothing may catch it."""


@contextmanager
def killed_at(owner: Any, name: str) -> Iterator[None]:
    """The process dies when it calls `name`, and tidies nothing up."""

    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, killed)
        patch.setattr(files.shutil, "rmtree", lambda *_, **__: None)
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(Killed):
            yield


def test_a_kill_between_write_and_rename_of_a_checkpoint(out: Path) -> None:
    with Run.create(out, CONFIG, "sft") as run:
        run.log(1, loss=1.0)
        run.save(1, write_model, {"step": 1})
        run.log(2, loss=1.0)
        with killed_at(Path, "rename"):
            run.save(2, write_model, {"step": 2})
    assert any(".aside-" in name for name in files_below(out))
    with Run.resume(out) as run:
        assert run.restore() == {"step": 1}
        assert run.newest_checkpoint() == out / "checkpoints/step_1"
    assert files_below(out) == {"config.yaml", "metrics.jsonl", "checkpoints/step_1/weights", "trainer_state/step_1.pt"}


def test_a_kill_between_checkpoint_and_state(out: Path) -> None:
    """The checkpoint of step 2 has no state: going on from state 1 with the weights of step 2 would be wrong."""
    with Run.create(out, CONFIG, "sft") as run:
        run.save(1, write_model, {"step": 1})
        with killed_at(Path, "replace"):
            run.save(2, write_model, {"step": 2})
    assert "checkpoints/step_2/weights" in files_below(out)
    with Run.resume(out) as run:
        assert run.restore() == {"step": 1}
        assert run.newest_checkpoint() == out / "checkpoints/step_1"


def test_a_kill_in_the_middle_of_a_metrics_row(out: Path) -> None:
    trained(out)
    with (out / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 3, "wall')
    with Run.resume(out) as run:
        run.restore()
        run.log(3, loss=0.0)
    assert [row["step"] for row in rows(out)] == [1, 2, 3]


def test_a_checkpoint_is_replaced_whole(out: Path) -> None:
    with Run.create(out, CONFIG, "sft") as run:
        run.save(1, write_model, {})
        run.save(1, lambda folder: (folder / "other").write_text("other"), {})
    assert files_below(out / "checkpoints") == {"step_1/other"}


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def no_space(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", no_space)
        yield


def test_a_full_disk_leaves_the_earlier_checkpoint(out: Path, request: pytest.FixtureRequest) -> None:
    with Run.create(out, CONFIG, "sft") as run:
        run.save(1, write_model, {"step": 1})
        before = files_below(out)
        request.getfixturevalue("full_disk")
        with pytest.raises(RunFailed, match=r"out of disk.*step_2.*step_1 is intact.*vla-razor resume"):
            run.save(2, write_model, {"step": 2})
        assert files_below(out) == before
        with pytest.raises(RunFailed, match=r"out of disk.*summary"):
            run.finish({})


def test_a_full_disk_is_recognised_however_it_is_worded(out: Path) -> None:
    """PyTorch gives the OSError, safetensors a text; other errors pass unchanged."""

    def safetensors_like(_: Path) -> None:
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    def broken(_: Path) -> None:
        raise RuntimeError("something else")

    def torch_save(_: Path) -> None:
        with Path("/dev/full").open("wb") as file:
            torch.save({"weights": torch.zeros(100_000)}, file)

    with Run.create(out, CONFIG, "sft") as run:
        for saver in (safetensors_like, torch_save):
            with pytest.raises(RunFailed, match="out of disk"):
                run.save(1, saver, {})
        with pytest.raises(RuntimeError, match="something else"):
            run.save(1, broken, {})
    assert files_below(out) == {"config.yaml"}


def test_metrics_on_a_full_disk(out: Path) -> None:
    with Run.create(out, CONFIG, "sft") as run:
        (out / "metrics.jsonl").symlink_to("/dev/full")
        with pytest.raises(RunFailed, match=r"out of disk.*metrics.jsonl.*no checkpoint had been saved"):
            run.log(1, loss=0.0)


SECOND = """
import sys
from omegaconf import OmegaConf
from vla_razor.errors import UserError
from vla_razor.runs import Run
try:
    if sys.argv[2] == "create":
        Run.create(sys.argv[1], OmegaConf.create({}), "sft")
    else:
        Run.resume(sys.argv[1])
except UserError as error:
    sys.exit(f"refused: {error}")
"""


def second_process(out: Path, how: str) -> str:
    return subprocess.run([sys.executable, "-c", SECOND, str(out), how], capture_output=True, text=True).stderr


def test_a_second_process_is_refused(out: Path) -> None:
    with Run.create(out, CONFIG, "sft"):
        for how in ("create", "resume"):
            assert "refused: another process is writing" in second_process(out, how)
    assert second_process(out, "resume") == ""


def test_the_lock_dies_with_its_process(out: Path) -> None:
    holder = SECOND + "import os\nos.kill(os.getpid(), 9)\n"
    killed = subprocess.run([sys.executable, "-c", holder, str(out), "create"], capture_output=True)
    assert killed.returncode == -9
    with Run.resume(out) as run:
        assert run.restore() is None


def test_an_unfinished_run_is_refused_with_the_command_that_resumes_it(out: Path) -> None:
    trained(out)
    before = files_below(out)
    with pytest.raises(UserError, match=rf"go on with: vla-razor resume {out}"):
        Run.create(out, CONFIG, "sft")
    assert files_below(out) == before
    with Run.resume(out):
        pass


def test_a_finished_run_is_refused(out: Path) -> None:
    with Run.create(out, CONFIG, "sft") as run:
        run.finish({})
    with pytest.raises(UserError, match="finished run: choose another out="):
        Run.create(out, CONFIG, "sft")
    with pytest.raises(UserError, match="has finished"):
        Run.resume(out)


def test_a_folder_of_something_else_is_left_alone(out: Path) -> None:
    out.mkdir()
    (out / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="not empty and holds no run"):
        Run.create(out, CONFIG, "sft")
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]
    with pytest.raises(UserError, match="holds no run"):
        Run.resume(out)
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        Run.create(tmp_path / "file", CONFIG, "sft")
    with pytest.raises(UserError, match="cannot write"):
        Run.create(tmp_path / "file" / "below", CONFIG, "sft")
    with pytest.raises(UserError, match="holds no run"):
        Run.resume(tmp_path / "nowhere")


def test_a_run_begun_before_there_was_a_setting_goes_on_as_it_was(out: Path) -> None:
    trained(out)
    with Run.resume(out) as run:
        assert run.config.spillover_coefficient == 0
        assert run.config.learning_rate == CONFIG.learning_rate
        assert "interpolated" not in run.config, "a sweep's"


@pytest.mark.parametrize(("mixed", "now"), [(True, "bfloat16"), (False, "float32")])
def test_the_precision_of_an_earlier_run_is_said_by_its_dtype(out: Path, mixed: bool, now: str) -> None:
    with Run.create(out, OmegaConf.create({"dtype": "float32", "mixed_precision": mixed}), "llm_sft"):
        pass
    with Run.resume(out) as run:
        assert run.config.dtype == now and "mixed_precision" not in run.config


@pytest.mark.parametrize("content", [b"a: [1", b"\xff\xfe\x00", b"just a text", b"- 1", b"seed: 1", b""])
def test_a_corrupted_config(out: Path, content: bytes) -> None:
    trained(out)
    (out / "config.yaml").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.yaml"):
        Run.resume(out)


@pytest.mark.parametrize("line", [b"garbage\n", b"[1]\n", b'{"loss": 1}\n', b"\xff\n"])
def test_a_corrupted_metrics_row(out: Path, line: bytes) -> None:
    trained(out)
    path = out / "metrics.jsonl"
    path.write_bytes(line + path.read_bytes())
    with Run.resume(out) as run, pytest.raises(UserError, match=r"metrics\.jsonl, line 1"):
        run.restore()


def test_a_corrupted_trainer_state(out: Path) -> None:
    trained(out)
    path = out / "trainer_state/step_2.pt"
    whole = path.read_bytes()
    torch.save([1, 2], out / "foreign.pt")
    for content in (whole[: len(whole) // 2], b"", b"garbage", (out / "foreign.pt").read_bytes()):
        path.write_bytes(content)
        with Run.resume(out) as run, pytest.raises(UserError, match=r"step_2\.pt.*afresh"):
            run.restore()


def test_a_flipped_bit_in_what_a_run_goes_on_from_is_told(out: Path) -> None:
    """Neither torch nor safetensors would notice; what the message advises starts the run afresh."""
    trained(out)
    weights, state = out / "checkpoints/step_2/weights", out / "trainer_state/step_2.pt"
    for path in (weights, state):
        whole = path.read_bytes()
        at = whole.index(torch.full((2,), 2.0).numpy().tobytes()) if path == state else 3
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with (
            Run.resume(out) as run,
            pytest.raises(UserError, match=rf"{path.name} is damaged.* Delete {state} to start"),
        ):
            run.restore()
        path.write_bytes(whole)
    state.unlink()
    with Run.resume(out) as run:
        assert run.restore() is None and not run.newest_checkpoint()


def test_a_trainer_state_runs_no_code(out: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "pwned"),)

    trained(out)
    torch.save({"step": 2, "wall_seconds": 0.0, "state": Evil()}, out / "trainer_state/step_2.pt")
    with Run.resume(out) as run, pytest.raises(UserError, match=r"step_2\.pt"):
        run.restore()
    assert not (tmp_path / "pwned").exists()


def test_what_a_kill_before_there_was_a_run_has_left_is_removed(out: Path) -> None:
    out.mkdir()
    (out / ".aside-config.yaml-abcdefgh").write_text("half of")
    with Run.create(out, CONFIG, "sft"):
        assert files_below(out) == {"config.yaml"}


def test_a_missing_checkpoint(out: Path) -> None:
    trained(out)
    shutil.rmtree(out / "checkpoints/step_2")
    with Run.resume(out) as run, pytest.raises(UserError, match="step_2 is missing"):
        run.restore()


def test_tensorboard_is_the_default_tracker(out: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Run.create(out, OmegaConf.create({"logger": "tensorboard"}), "rl") as run:
        run.log(1, success=0.25)
    events = EventAccumulator(str(out / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("success")] == [(1, 0.25)]


def test_atomic_write_keeps_the_old_file_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "deep/file"
    files.atomic_write(path, b"old")

    def fails(file: Any) -> None:
        file.write(b"half")
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        files.atomic_write(path, fails)
    assert path.read_bytes() == b"old"
    assert files_below(tmp_path) == {"deep/file"}


def test_a_run_begun_before_there_was_a_key_is_read_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("{verb: demo, collect: {grid: 2x2}, sft: {prefix_jitter: 1.0}}")
    read = runs.read_config(path)
    assert read.far is None and read.collect == {"policy": "scripted", "style": "direct", "cameras": [], "grid": "2x2"}
    assert read.sft.prefix_jitter == 1.0 and read.sft.other_instructions == []
