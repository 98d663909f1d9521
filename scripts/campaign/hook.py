"""What a process under test does to itself, when its environment says so.

    FAULT_WATCHED   folders, with a colon between them: what changes files below them is numbered, from 1
    FAULT_COUNT     a file; how many such operations there were is written to it at the end
    FAULT_KILL      N: SIGKILL before the Nth
    FAULT_FULL      N: from the Nth on there is no space left
    FAULT_CLOCK     N SECONDS: before the Nth the clock is set back so far
    FAULT_PATIENCE  SECONDS after which a simulation worker that does not answer counts as hanging, instead of 60

Operations are those that Python's audit events tell of: files opened to be written, renames, links, removals, folders
made. The variables are taken out of the environment, so that the process's own children do nothing of the kind.
"""

import atexit
import datetime
import errno
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

CHANGES = {"os.rename": 1, "os.link": 1, "os.remove": 0, "os.rmdir": 0, "os.mkdir": 0, "os.truncate": 0}
"""By event: which of its arguments is the path that changes."""
TAKES_SPACE = ("open", "os.mkdir", "os.link")


def install() -> None:
    """Begins to count, if there is anything to be done."""
    told = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("FAULT_")}
    if not told:
        return
    if patience := told.get("FAULT_PATIENCE"):
        from vla_razor_envs.pool import PoolVectorEnv

        PoolVectorEnv.__init__.__kwdefaults__ |= {"timeout": float(patience)}  # pyright: ignore[reportOperatorIssue]
    watched = tuple(told["FAULT_WATCHED"].split(":"))
    kill, full = (int(told.get(name, 0)) for name in ("FAULT_KILL", "FAULT_FULL"))
    at, back = map(int, told.get("FAULT_CLOCK", "0 0").split())
    process, count = os.getpid(), 0

    def noted(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if os.getpid() != process or not _changes(event, arguments, watched):
            return
        count += 1
        if count == kill:
            os.kill(process, signal.SIGKILL)
        if count == at:
            set_back(back)
        if full and count >= full and event in TAKES_SPACE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    sys.addaudithook(noted)
    if "FAULT_COUNT" in told:
        atexit.register(lambda: os.getpid() == process and Path(told["FAULT_COUNT"]).write_text(str(count)))


def _changes(event: str, arguments: tuple[Any, ...], watched: tuple[str, ...]) -> bool:
    if event == "open":
        path, writes = arguments[0], arguments[2] & (os.O_WRONLY | os.O_RDWR)
    elif event in CHANGES:
        path, writes = arguments[CHANGES[event]], True
    else:
        return False
    if not writes or isinstance(path, int) or path is None:
        return False
    return os.path.abspath(os.fsdecode(path)).startswith(watched)  # noqa: PTH100  (of a path that may be bytes)


def set_back(seconds: int) -> None:
    """From now on this process's wall clock is so much behind; the monotonic one goes on, as it does in Linux."""
    now, now_ns, moment = time.time, time.time_ns, datetime.datetime

    class Earlier(moment):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Any:
            return moment.now(tz) - datetime.timedelta(seconds=seconds)

    time.time = lambda: now() - seconds
    time.time_ns = lambda: now_ns() - seconds * 10**9
    datetime.datetime = Earlier
