"""The run folder, the contract between verbs and with a user's own scripts.

    config.yaml             the resolved settings, with the verb
    metrics.jsonl           one object per line: step, wall_seconds, scalars
    checkpoints/step_N/     the policy, in its own format
    trainer_state/step_N.pt what is needed to resume from there; only the newest is kept
    summary.json            the final numbers; its presence means that the run has finished

Whole files are written aside and renamed, so that a kill leaves the old or the new one and never half of one. A lock,
which ends with its process, lets one process write at a time.
"""

import json
import math
import shutil
import time
import zipfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from filelock import BaseFileLock, FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from vla_razor import ranks
from vla_razor.config import earlier
from vla_razor.errors import UserError
from vla_razor.files import (
    ASIDE,
    SUMS,
    atomic_folder,
    atomic_write,
    check_folder,
    full_disk_reported,
    remove_unfinished,
    write_json,
)
from vla_razor.provenance import git_commit, versions
from vla_razor.trackers import Tracker, check, make_tracker

SCHEMA = 2


class Run:
    """A run folder open for writing. Use it as a context manager, which releases the lock at the end.

    Attributes:
        path: the folder.
        config: the resolved settings, `verb` among them.
        step: the step from which the run is resumed, 0 until `restore` has found a state.
    """

    def __init__(self, path: Path, config: DictConfig, lock: BaseFileLock) -> None:
        self.path, self.config, self.step = path, config, 0
        self._lock, self._began, self._earlier_seconds = lock, time.monotonic(), 0.0
        self._tracker: Tracker | None = None

    @classmethod
    def create(cls, out: str | Path, config: DictConfig, verb: str) -> Self:
        """Start a run in a folder that does not exist yet, or is empty.

        Raises UserError where the folder holds a run already, or anything else, or is being written, or where the
        experiment tracker cannot be used here.
        """
        path = Path(out)
        settings = OmegaConf.merge({"verb": verb}, config, {"verb": verb})
        OmegaConf.resolve(settings)  # a resumed run must not depend on what its settings once referred to
        closed = _settings(settings)
        check(closed)
        # Before the lock, which is a file: a folder of something else is left exactly as it was.
        names = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
        if any(not name.startswith(ASIDE) for name in names - {".lock"}) and "config.yaml" not in names:
            raise UserError(f"{path} is not empty and holds no run: choose another out=.")
        lock = _locked(path)
        try:
            if (path / "summary.json").exists():
                raise UserError(f"{path} holds a finished run: choose another out=.")
            if (path / "config.yaml").exists():
                raise UserError(f"{path} holds an unfinished run: go on with: vla-razor resume {path}")
            remove_unfinished(path)  # of a process that was killed before there was a run
            with full_disk_reported(path / "config.yaml"):
                atomic_write(path / "config.yaml", OmegaConf.to_yaml(settings).encode())
        except BaseException:
            lock.release()
            raise
        return cls(path, closed, lock)

    @classmethod
    def resume(cls, out: str | Path) -> Self:
        """Open an unfinished run; `restore` then says where it stood.

        Raises UserError where there is no run, it has finished, is being written, or its settings cannot be read.
        """
        path = Path(out)
        if not (path / "config.yaml").is_file():
            raise UserError(f"{path} holds no run: expected a folder with config.yaml.")
        lock = _locked(path)
        try:
            if (path / "summary.json").exists():
                raise UserError(f"the run in {path} has finished, there is nothing to resume: choose another out=.")
            config = read_config(path / "config.yaml")
            check(config)
            remove_unfinished(path)
        except BaseException:
            lock.release()
            raise
        return cls(path, config, lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tracker is not None:
            self._tracker.close()
        self._lock.release()

    @property
    def seconds(self) -> float:
        """Wall seconds spent on what the folder holds, over all the times that it was resumed."""
        return self._earlier_seconds + time.monotonic() - self._began

    def log(self, step: int, **scalars: Any) -> None:
        """Add a row to metrics.jsonl and to the experiment tracker. Log a step before saving it.

        Scalars are numbers or one-element tensors. One that is not finite is written as null.
        """
        numbers = {name: _number(value) for name, value in scalars.items()}
        row = {"step": step, "wall_seconds": round(self.seconds, 3)} | numbers
        with self._disk_guard("metrics.jsonl"), (self.path / "metrics.jsonl").open("ab") as file:
            file.write(json.dumps(row).encode() + b"\n")
        if self._tracker is None:
            self._tracker = make_tracker(self.path, self.config, self.step)
        self._tracker.log(step, {name: number for name, number in numbers.items() if number is not None})

    def save(self, step: int, model_saver: Callable[[Path], object], state: Mapping[str, Any]) -> None:
        """Keep the policy (`model_saver` fills the folder it is given) and the trainer's state after `step`.

        `state` holds tensors, numbers, texts and containers of them, since it is read back with weights_only=True. It
        is written after the checkpoint, so that a state always has its checkpoint. Older states are deleted, older
        checkpoints kept.

        Raises RunFailed where the disk is full; the earlier checkpoint and state are then as they were.
        """
        import torch

        content = {"step": step, "wall_seconds": self.seconds, "state": dict(state)}
        with self._disk_guard(f"checkpoints/step_{step}"):
            atomic_folder(self.path / "checkpoints" / f"step_{step}", model_saver)
            newest = self.path / "trainer_state" / f"step_{step}.pt"
            atomic_write(newest, lambda file: torch.save(content, file))
        for _, path in _numbered(self.path / "trainer_state", ".pt"):  # after the new one is whole
            if path != newest:
                path.unlink()

    def restore(self) -> dict[str, Any] | None:
        """The newest trainer state, or None where none was saved; sets `step`.

        What came after it is deleted: metrics rows, and a checkpoint whose state was not written in time. Raises
        UserError where a file of the run cannot be read.
        """
        content = self._newest_state()
        self._earlier_seconds = content["wall_seconds"] if content else 0.0
        self._began = time.monotonic()
        if content:
            checkpoint = self.path / "checkpoints" / f"step_{self.step}"
            if not checkpoint.is_dir():
                raise UserError(f"{checkpoint} is missing. {self.afresh()}")
            check_folder(checkpoint, f"Restore it from a copy, if there is one. {self.afresh()}")
        for number, path in _numbered(self.path / "checkpoints"):
            if not content or number > self.step:
                shutil.rmtree(path)
        rows, last = self.path / "metrics.jsonl", self.step if content else -1
        lines = rows.read_bytes().splitlines(keepends=True) if rows.exists() else []
        kept = []
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):  # a kill has cut the last one
                continue
            try:
                if int(json.loads(line)["step"]) <= last:
                    kept.append(line)
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{rows}, line {number}: not a metrics row. Remove the line to go on.") from error
        if kept != lines:
            atomic_write(rows, b"".join(kept))
        ranks.meet()  # the others look at what is left
        return content["state"] if content else None

    def _newest_state(self) -> dict[str, Any] | None:
        """The content of the newest file in trainer_state/, whose step becomes this run's; None where there is none."""
        states = _numbered(self.path / "trainer_state", ".pt")
        content = _read_state(states[-1][1]) if states else None
        self.step = content["step"] if content else 0
        return content

    def afresh(self) -> str:
        """What to do where what the run would go on from is damaged."""
        return _afresh(self.path / "trainer_state" / f"step_{self.step}.pt")

    def newest_checkpoint(self) -> Path | None:
        """The folder of the last policy saved; after `restore`, the one that belongs to the restored state."""
        checkpoints = _numbered(self.path / "checkpoints")
        return checkpoints[-1][1] if checkpoints else None

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json, which marks the run as finished: the run's own facts, then the verb's `summary`."""
        facts = {
            "schema": SCHEMA,
            "verb": self.config.verb,
            "seed": self.config.get("seed"),
            "wall_seconds": round(self.seconds, 3),
            "versions": versions(self.config.get("robot")),
            "git_commit": git_commit(),
        }
        with self._disk_guard("summary.json"):
            write_json(self.path / "summary.json", facts | dict(summary))

    def _disk_guard(self, name: str) -> AbstractContextManager[None]:
        newest = self.newest_checkpoint()
        kept = f"{newest} is intact" if newest else "no checkpoint had been saved yet"
        advice = f"{kept}. Free some space, then go on with: vla-razor resume {resumed_as(self.path, self.config)}"
        return full_disk_reported(self.path / name, advice)


class FollowedRun(Run):
    """The run of all but the first process of a distributed training: the first one writes, these do not."""

    def __init__(self, path: Path, config: DictConfig) -> None:
        super().__init__(path, _settings(config), FileLock(path / ".lock"))  # which is never taken

    def log(self, step: int, **scalars: Any) -> None:
        """Nothing: the first process does it."""

    def save(self, step: int, model_saver: Callable[[Path], object], state: Mapping[str, Any]) -> None:
        """Nothing: the first process does it."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Nothing: the first process does it."""

    def restore(self) -> dict[str, Any] | None:
        """As `Run.restore`, once the first process has deleted what came after the state."""
        ranks.meet()
        content = self._newest_state()
        return content["state"] if content else None


def checkpoint_folder(path: Path) -> Path | None:
    """The folder that holds the weights: `path`, or the newest checkpoint of the run at `path`; None if no folder."""
    if not path.is_dir():
        return None
    if not (path / "checkpoints").is_dir():
        return path
    checkpoints = _numbered(path / "checkpoints")
    if not checkpoints:
        if others := sorted(path.glob("checkpoints/share_*")):
            raise UserError(f"{path} holds policies between two others: name one of them, such as {others[0]}.")
        goes_on = resumed_as(path, read_config(path / "config.yaml")) if (path / "config.yaml").is_file() else path
        raise UserError(f"{path}: this run has no checkpoint yet. Go on with: vla-razor resume {goes_on}")
    return checkpoints[-1][1]


def whole_checkpoint(path: Path) -> Path | None:
    """As `checkpoint_folder`. Raises UserError too where a file in it is not what was written: the weights would be
    others.
    """
    folder = checkpoint_folder(path)
    if folder:
        check_folder(folder, f"Copy or make it again; where it was changed on purpose, remove {SUMS}.")
    return folder


def resumed_as(path: Path, config: DictConfig) -> Path:
    """What `vla-razor resume` takes, to go on with the run in a folder: this, or the folder of the study around it, of
    which alone a policy between two others (`interpolated`) is a part.
    """
    return path.parent if "share" in config else path


def origin_of(spec: str | Path, key: str) -> str:
    """What the run that trained `spec`, its folder or a checkpoint in it, started from; `key` is "policy" or "model".
    For a policy interpolated between a base and a tuned one, or saved to be given away, it is that base. Raises
    UserError where there is no such run.
    """
    folder = run_of(spec)
    if folder is None:
        raise UserError(f"{key}={spec} does not say what it was fine-tuned from: give base=.")
    config = read_config(folder / "config.yaml")
    if config.verb in ("interpolate", "save", "push"):
        return config.base or origin_of(config[key], key)
    if key not in config:
        raise UserError(f"{folder} is a run of {config.verb}, which trains no {key}.")
    return config[key]


def run_of(policy: str | Path) -> Path | None:
    """The folder of the run that made a policy, given by that folder or a checkpoint in it, or None."""
    path = Path(policy)
    folder = path.parent.parent if path.parent.name == "checkpoints" else path
    return folder if (folder / "config.yaml").is_file() else None


def read_config(path: Path) -> DictConfig:
    """The settings of a run, from its config.yaml; what a run begun earlier lacks is filled in. Raises UserError where
    the file cannot be read or holds no verb.
    """
    try:
        config = OmegaConf.load(path)
    except Exception as error:  # the decoder, PyYAML and OmegaConf each raise their own
        raise UserError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(config, DictConfig) or "verb" not in config:
        raise UserError(f"{path} is not a run's configuration: expected settings with a verb.")
    return _settings(OmegaConf.merge(earlier(config.verb), config))


def _locked(path: Path) -> BaseFileLock:
    """The folder, made if need be, with its lock taken."""
    lock = FileLock(path / ".lock")
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        remedy = "wait for it, stop it, or choose another out="
        raise UserError(f"another process is writing to {path}: {remedy}.") from None
    except OSError as error:
        raise UserError(f"cannot write to the run folder {path}: {error.strerror}. Choose another out=.") from error
    return lock


def _settings(config: Any) -> DictConfig:
    """Closed: reading a key that is not there is an error, not None."""
    settings = cast(DictConfig, OmegaConf.create(config))
    OmegaConf.set_struct(settings, False)
    if settings.pop("mixed_precision", False):  # as earlier runs of language models say it; now dtype does
        settings.dtype = "bfloat16"
    OmegaConf.set_struct(settings, True)
    return settings


def _read_state(path: Path) -> dict[str, Any]:
    import torch

    remedy = _afresh(path)
    try:
        with zipfile.ZipFile(path) as file:  # torch does not look at the checksums that it has written
            damaged = file.testzip()
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a cut zip file, a foreign pickle: torch raises many kinds
        raise UserError(f"{path} cannot be read ({type(error).__name__}). {remedy}") from error
    if damaged:
        raise UserError(f"{path} is damaged: the checksum of {damaged} in it is another. {remedy}")
    if not isinstance(content, dict) or not {"step", "wall_seconds", "state"} <= content.keys():
        raise UserError(f"{path} is not a trainer state. {remedy}")
    return content


def _afresh(state: Path) -> str:
    return f"Delete {state} to start this run afresh from its settings."


def _numbered(folder: Path, suffix: str = "") -> list[tuple[int, Path]]:
    """(N, path) of every step_N in a folder, in order."""
    found = [(path.name.removeprefix("step_").removesuffix(suffix), path) for path in folder.glob(f"step_*{suffix}")]
    return sorted((int(number), path) for number, path in found if number.isdecimal())


def _number(value: Any) -> int | float | None:
    if isinstance(value, int):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else None
