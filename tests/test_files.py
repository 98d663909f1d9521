"""Replacing a folder: whatever comes between leaves the old one or the new one, whole."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from vla_razor import files
from vla_razor.errors import UserError
from vla_razor.files import atomic_folder, check_folder, remove_unfinished
from vla_razor.runs import Run

KILLED = """
import os, signal, sys
from pathlib import Path
from vla_razor.files import atomic_folder
renamed = Path.rename
def rename(path, target):
    renamed(path, target)
    if Path(target).name.endswith("-earlier"):
        os.kill(os.getpid(), signal.SIGKILL)
Path.rename = rename
atomic_folder(Path(sys.argv[1]), lambda folder: (folder / "weights").write_text("new"))
"""


def fill(text: str, folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "weights").write_text(text)
    (folder / "deep" / "more").write_text(text)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "step_2-b"
    atomic_folder(path, lambda folder: fill("old", folder))
    return path


def test_a_folder_is_replaced_as_a_whole(old: Path) -> None:
    atomic_folder(old, lambda folder: (folder / "weights").write_text("new"))
    assert sorted(path.name for path in old.iterdir()) == ["SHA256SUMS", "weights"]
    assert (old / "weights").read_text() == "new"
    assert list(old.parent.iterdir()) == [old]


def test_a_file_that_is_not_what_was_written_is_told(old: Path) -> None:
    check_folder(old, "Help.")
    assert subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=old, capture_output=True, check=False).returncode == 0
    (old / "of a user's own").write_text("changes nothing")
    check_folder(old, "Help.")
    (old / "deep" / "more").write_text("ole")
    with pytest.raises(UserError, match=r"deep/more is damaged: its checksum .* Help\."):
        check_folder(old, "Help.")
    (old / "deep" / "more").unlink()
    with pytest.raises(UserError, match=r"deep/more is missing, or SHA256SUMS in .* is damaged\. Help\."):
        check_folder(old, "Help.")
    (old / "SHA256SUMS").unlink()
    check_folder(old, "Help.")


@pytest.mark.parametrize("error", [OSError("the disk is gone"), KeyboardInterrupt()], ids=["error", "interrupt"])
@pytest.mark.parametrize("number", [1, 2], ids=["first rename", "second rename"])
def test_an_error_at_a_rename_leaves_the_old_one(
    number: int, error: BaseException, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, renamed = 0, Path.rename

    def rename(path: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        if count == number:
            raise error
        return renamed(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(type(error)):
        atomic_folder(old, lambda folder: fill("new", folder))
    assert (old / "weights").read_text() == (old / "deep" / "more").read_text() == "old"
    assert list(old.parent.iterdir()) == [old]


def test_an_interrupt_while_the_old_one_is_deleted_leaves_the_new_one(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path, ignore_errors: bool = False) -> None:
        (path / "weights").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(files.shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        atomic_folder(old, lambda folder: fill("new", folder))
    monkeypatch.undo()
    assert (old / "weights").read_text() == "new"
    remove_unfinished(old.parent)
    assert list(old.parent.iterdir()) == [old] and (old / "weights").read_text() == "new"


def kill_between_the_renames(path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], env=os.environ)
    assert done.returncode == -signal.SIGKILL


def test_a_kill_between_the_renames_loses_nothing(old: Path) -> None:
    kill_between_the_renames(old)
    assert not old.exists(), "the moment that is meant"
    remove_unfinished(old.parent)
    assert (old / "weights").read_text() == (old / "deep" / "more").read_text() == "old"
    assert list(old.parent.iterdir()) == [old]


def test_a_run_that_was_killed_between_the_renames_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with Run.create(out, OmegaConf.create({"logger": "none"}), "sft") as run:
        run.save(2, lambda folder: fill("old", folder), {"moment": 1.0})
    kill_between_the_renames(out / "checkpoints" / "step_2")
    with Run.resume(out) as run:
        assert run.restore() == {"moment": 1.0}
        newest = run.newest_checkpoint()
    assert newest is not None and (newest / "weights").read_text() == "old"
