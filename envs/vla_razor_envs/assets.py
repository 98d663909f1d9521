"""The Google robot, its can, cabinets, stages and photographs, as files of the original simulation.

They come from github.com/simpler-env/ManiSkill2_real2sim at one pinned commit; `assets/real2sim.json`, made by
scripts/make_asset_list.py, names every file with its checksum, in groups of what is of use only together. The group
"tasks" is needed by every task of the Google robot; the others are optional. `vla-razor assets fetch` downloads them;
the environment variable VLA_RAZOR_ASSETS names a folder to use instead.
"""

import hashlib
import json
import os
from functools import cache
from pathlib import Path

from .cache import cache_root

VARIABLE = "VLA_RAZOR_ASSETS"
_LIST = json.loads(Path(__file__).with_name("assets").joinpath("real2sim.json").read_text())
REPOSITORY, COMMIT = _LIST["repository"], _LIST["commit"]
GROUPS: dict[str, dict[str, str]] = _LIST["groups"]
"""Path -> checksum ("sha256:..." or, where the list's maker had no copy, "git:...", git's object id), by group."""


class AssetsUnusable(ValueError):
    """Files of the original simulation are missing, or are not the ones that the list names."""


def cache_folder() -> Path:
    """Where `vla-razor assets fetch` puts them: below `$VLA_RAZOR_CACHE`, by default `~/.cache/vla_razor`."""
    return cache_root() / f"real2sim-{COMMIT[:7]}"


def asset_folder() -> Path:
    """The folder in use: `$VLA_RAZOR_ASSETS`, or else the cache folder. Not looked at yet."""
    return Path(os.environ.get(VARIABLE) or cache_folder()).absolute()


def remedy() -> str:
    """What to do where files of the folder in use are missing or wrong."""
    if named := os.environ.get(VARIABLE):
        return f"{VARIABLE} names {named}: mend that folder, or unset the variable and run: vla-razor assets fetch."
    return f"Run: vla-razor assets fetch (or name a folder that has them: {VARIABLE}=DIR)."


def asset_root(group: str = "tasks") -> Path:
    """The folder in use, after every file of the group was found to be the one that the list names.

    Raises:
        AssetsUnusable: a file is missing, cut short or changed; the message names it and what mends it.
    """
    folder = asset_folder()
    _check(folder, group)
    return folder


def has(group: str) -> bool:
    """Whether the group is complete. AssetsUnusable where some of its files are there and others missing or changed."""
    folder = asset_folder()
    if any((folder / path).exists() for path in GROUPS[group]):
        _check(folder, group)
        return True
    return False


def version() -> str | None:
    """The commit of the files in use, and what the can stands on with them; None where there are none. For the record:
    the files are not read.
    """
    folder = asset_folder()
    there = [group for group, files in GROUPS.items() if all((folder / path).is_file() for path in files)]
    if "tasks" not in there:
        return None
    return f"{COMMIT[:7]}, {'with its stage' if 'can_stage' in there else 'a table standing in for the stage'}"


def is_right(content: bytes, checksum: str) -> bool:
    """Whether a file's bytes are the ones that the checksum names."""
    kind, _, digest = checksum.partition(":")
    if kind == "git":
        content = b"blob %d\0" % len(content) + content
    return hashlib.new({"git": "sha1"}.get(kind, kind), content).hexdigest() == digest


@cache  # for as long as this process lives: a folder once found good is trusted, a bad one is looked at again
def _check(folder: Path, group: str) -> None:
    files = GROUPS[group]
    missing = [path for path in files if not (folder / path).is_file()]
    if missing:
        raise AssetsUnusable(
            f"{len(missing)} of {len(files)} asset files missing in {folder}: {_some(missing)}. {remedy()}"
        )
    changed = [path for path, checksum in files.items() if not is_right((folder / path).read_bytes(), checksum)]
    if changed:
        origin = f"{REPOSITORY}@{COMMIT[:7]}"
        raise AssetsUnusable(f"Asset files in {folder} that are not those of {origin}: {_some(changed)}. {remedy()}")


def _some(paths: list[str]) -> str:
    return ", ".join(paths[:3]) + (", ..." if len(paths) > 3 else "")
