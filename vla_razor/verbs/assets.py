"""`vla-razor assets fetch`: the files of the original simulation, from upstream or a local folder, each checked by its
hash.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from urllib.parse import quote

import httpx2
from omegaconf import DictConfig
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from vla_razor.config import environments
from vla_razor.errors import RunFailed, UserError
from vla_razor.files import atomic_write, full_disk_reported
from vla_razor.progress import progress
from vla_razor_envs.assets import COMMIT, GROUPS, REPOSITORY, AssetsUnusable, asset_root, cache_folder, is_right

URL = f"https://raw.githubusercontent.com/{REPOSITORY}/{COMMIT}/"
NOTICE = (
    f"Robot, objects, scenes and photographs of github.com/{REPOSITORY}, published there under the Apache licence 2.0 "
    "(the file LICENSE beside them). It states no separate rights for meshes, textures, brands and photographs."
)
ATTEMPTS, TIMEOUT, PARALLEL = 3, 60.0, 4  # TIMEOUT: seconds without a byte
PAUSE = 1.0  # seconds, before the second attempt; doubled before the third

ADVICE = "Without a connection: vla-razor assets fetch --from DIR, a copy of the repository at that commit."

SIMULATE = ("collect", "demo", "distill", "eval", "plasticity", "rl", "sweep")
"""Verbs that always play episodes; sft plays some where it evaluates."""
Reader = Callable[[str], bytes]


class _Refused(Exception):
    """A file that could not be fetched, with the reason."""


def fetch(source: Path | None = None) -> None:
    """Download every asset into the cache folder and print what is there. Files that are there already are left alone.

    Args:
        source: a folder laid out as upstream, to copy from instead of downloading.

    Raises:
        UserError: the source is no folder, or lacks files that the tasks need.
        RunFailed: a file that the tasks need could not be downloaded. Running it again goes on.
    """
    if source is not None and not source.is_dir():
        raise UserError(f"{source} is no folder; expected one laid out as github.com/{REPOSITORY}.")
    print(NOTICE)
    with httpx2.Client(timeout=TIMEOUT, follow_redirects=True) as client:
        read = partial(_download, client) if source is None else partial(_copy, source)
        failures = _bring(read, cache_folder())
    _report(failures, source)


def check(config: DictConfig) -> None:
    """Check, before anything slow begins, that the files of the scenes the verb plays in are complete.

    Raises UserError where files of the Google robot are missing, cut short or changed.
    """
    plays = config.verb in SIMULATE or (config.verb == "sft" and config.eval_episodes > 0)
    own = [scene for scene in environments(config) if scene.make.get("robot") == "google_robot"] if plays else []
    for scene in own[:1]:
        try:
            asset_root()
        except AssetsUnusable as error:
            raise UserError(f"{scene.id} with robot=google_robot: {error}") from error


def _bring(read: Reader, folder: Path) -> dict[str, str]:
    """Fetch what is missing. Returns, by path, why a file could not be fetched."""
    files = {path: checksum for group in GROUPS.values() for path, checksum in group.items()}
    failures: dict[str, str] = {}
    with (
        full_disk_reported(folder, "free some space, or set VLA_RAZOR_CACHE to a folder on another disk."),
        progress("assets", len(files)) as advance,
        ThreadPoolExecutor(PARALLEL) as pool,
    ):
        for path, failure in pool.map(lambda item: (item[0], _one(read, folder, *item)), files.items()):
            if failure:
                failures[path] = failure
            advance()
    return failures


def _one(read: Reader, folder: Path, path: str, checksum: str) -> str:
    """Fetch one file. Returns why that failed, or an empty string."""
    target = folder / path
    if target.is_file() and is_right(target.read_bytes(), checksum):
        return ""
    try:
        content = read(path)
    except _Refused as reason:
        return str(reason)
    if not is_right(content, checksum):
        return f"not the file that is expected: its {len(content)} bytes do not have the checksum"
    atomic_write(target, content)
    return ""


def _copy(source: Path, path: str) -> bytes:
    try:
        return (source / path).read_bytes()
    except OSError as error:
        raise _Refused(error.strerror or str(error)) from None


def _download(client: httpx2.Client, path: str) -> bytes:
    def get() -> bytes:
        return client.get(URL + quote(path)).raise_for_status().content

    stop, wait = stop_after_attempt(ATTEMPTS), wait_exponential(PAUSE)
    try:
        return Retrying(retry=retry_if_exception(_passes), stop=stop, wait=wait, reraise=True)(get)
    except httpx2.HTTPStatusError as error:
        raise _Refused(f"HTTP {error.response.status_code} {error.response.reason_phrase}") from None
    except httpx2.ConnectError as error:  # no other file would fare better
        raise RunFailed(f"{URL} cannot be reached: {error}. {ADVICE}") from None
    except httpx2.HTTPError as error:
        raise _Refused(str(error) or type(error).__name__) from None


def _passes(error: BaseException) -> bool:
    if isinstance(error, httpx2.HTTPStatusError):
        return error.response.status_code >= 500 or error.response.status_code == 429
    return isinstance(error, httpx2.HTTPError)


def _report(failures: dict[str, str], source: Path | None) -> None:
    folder = cache_folder()
    for group, files in GROUPS.items():
        absent = [path for path in files if path in failures]
        print(f"  {group}: {len(files) - len(absent)} of {len(files)} files")
    print(f"in {folder}")
    needed = {path: reason for path, reason in failures.items() if path in GROUPS["tasks"]}
    optional = len(failures) - len(needed)
    if optional:
        path, reason = next((path, reason) for path, reason in failures.items() if path not in needed)
        print(f"{optional} optional files are not there, the first being {path}: {reason}")
    if needed:
        shown = "\n".join(f"  {path}: {reason}" for path, reason in list(needed.items())[:5])
        message = f"{len(needed)} files that the Google robot's tasks need could not be had:\n{shown}\n"
        if source is None:
            raise RunFailed(f"{message}The others are kept: run `vla-razor assets fetch` again to go on.")
        raise UserError(f"{message}Expected {source} to be laid out as github.com/{REPOSITORY} at {COMMIT[:7]}.")
