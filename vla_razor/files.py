"""Writing files and folders so that a kill or a full disk leaves the old or the new one, never half of one."""

import errno
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from vla_razor.errors import RunFailed, UserError

ASIDE = ".aside-"
"""Prefix of a file or folder that is not complete yet."""
EARLIER = "-earlier"
"""Suffix of a folder that is being replaced; the rest of its name is that of the folder which takes its place."""
SUMS = "SHA256SUMS"
"""What every file of a folder was when the folder was written, as `sha256sum -c` reads it."""


def cache_root() -> Path:
    """The folder for what is made or downloaded once: `$VLA_RAZOR_CACHE`, by default `~/.cache/vla_razor`."""
    return Path(os.environ.get("VLA_RAZOR_CACHE") or Path.home() / ".cache" / "vla_razor")


def atomic_write(path: Path, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Write a file aside, flush it to the disk and rename it. Folders are made as needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f"{ASIDE}{path.name}-")
    aside = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            _ = file.write(content) if isinstance(content, bytes) else content(file)
            file.flush()
            os.fsync(file.fileno())
        aside.chmod(0o644)  # mkstemp's files are for their owner alone
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def atomic_folder(path: Path, fill: Callable[[Path], object]) -> None:
    """Like `atomic_write`, for a folder: `fill` gets it empty, and an earlier folder of that name is replaced. Its
    checksums are written with it, for `check_folder`.

    Replacing takes two renames. After an error between them the earlier folder is put back. After a kill between them
    both are aside, complete, and `remove_unfinished` puts the earlier one back.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f"{ASIDE}{path.name}-"))
    earlier = path.with_name(f"{aside.name}{EARLIER}")
    try:
        fill(aside)
        if not (aside / SUMS).exists():  # or `fill` has had this done already
            write_sums(aside)
        aside.chmod(0o755)
        # On the disk before the rename: else a power cut leaves a whole name and empty files.
        for file in aside.rglob("*"):
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        if path.exists():
            path.rename(earlier)
        aside.rename(path)
    except BaseException:
        if earlier.exists() and not path.exists():
            earlier.rename(path)
        shutil.rmtree(aside, ignore_errors=True)
        raise
    shutil.rmtree(earlier, ignore_errors=True)  # there is none where nothing was replaced


def write_sums(folder: Path) -> None:
    """The checksums of all files below a folder, kept in it."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    (folder / SUMS).write_text("".join(f"{_sum(folder / name)}  {name}\n" for name in names))


def check_folder(folder: Path, remedy: str) -> None:
    """Raises UserError, which ends with the remedy, where a file is not what it was when the folder was written: what
    reads it may notice nothing. A folder without checksums, as others write them, is taken as it is.
    """
    if not (folder / SUMS).is_file():
        return
    for line in (folder / SUMS).read_text(errors="replace").splitlines():
        known, _, name = line.partition("  ")
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing, or {SUMS} in {folder}, which names it, is damaged. {remedy}")
        if _sum(path) != known:
            raise UserError(f"{path} is damaged: its checksum is not the one in {SUMS} beside it. {remedy}")


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file with one JSON object a line."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_json(path: Path, value: Any) -> None:
    """`atomic_write` of a JSON document. Numbers that are not finite become null, since JSON has no word for them."""
    atomic_write(path, json.dumps(finite(value), indent=2).encode() + b"\n")


def finite(value: Any) -> Any:
    """The same mappings, lists and numbers with null in place of what is not finite."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def remove_unfinished(folder: Path) -> None:
    """Delete what interrupted writes left aside, anywhere below `folder`. A folder that was set aside, and whose
    replacement never took its place, is put back.
    """
    for leftover in list(folder.rglob(f"*{ASIDE}*")):
        # The name of what is replaced stands between the mark and eight random letters.
        place = leftover.parent / leftover.name.removeprefix(ASIDE).removesuffix(EARLIER).rpartition("-")[0]
        if leftover.name.endswith(EARLIER) and not place.exists():
            leftover.rename(place)
        elif leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)


@contextmanager
def full_disk_reported(path: Path, advice: str = "free some space.") -> Iterator[None]:
    """Turn a full disk while writing to `path` into one clear `RunFailed`, whatever error the library raises for it."""
    try:
        yield
    except RunFailed:
        raise
    except Exception as error:
        # safetensors, h5py and pyarrow wrap the system's error in one of their own, or keep its text alone.
        cause: BaseException | None = error
        while cause is not None:
            if getattr(cause, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(cause):
                raise RunFailed(f"out of disk while writing {path}: {advice}") from error
            cause = cause.__cause__ or cause.__context__
        raise
