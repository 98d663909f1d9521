"""The command line as processes to be killed: as a user starts it, or forked from one that has its packages loaded.

What is forked is a process of its own, the verb in it the real one, and SIGKILL its end; it only has not spent ten
seconds on imports. Simulation workers are spawned by it as ever.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from campaign import hook

CLI = ("-m", "vla_razor.cli")
MODULES = (
    *("torch", "h5py", "pyarrow.parquet", "transformers", "matplotlib.pyplot", "gymnasium", "imageio"),
    *("vla_razor.cli", "vla_razor.runs", "vla_razor.policies.load", "vla_razor.training.fit"),
    *("vla_razor.rollouts.probe_set", "vla_razor.verbs.learn.collect", "vla_razor.verbs.measure.evaluate"),
    *("vla_razor.verbs.study.sweep", "vla_razor.verbs.study.report", "vla_razor.verbs.study.mnist"),
)
OF_LANGUAGE = ("trl", "vla_razor.verbs.language.train", "vla_razor.llm.training")
OUTPUT, ERRORS = "output.txt", "errors.txt"
HERE = "here"
"""The working directory, below the folder of a try."""


class Started:
    """A process in a session of its own, which works in `here` below its folder and writes to output.txt and errors.txt
    beside it.
    """

    def __init__(self, pid: int, folder: Path) -> None:
        self.pid, self.folder, self.status = pid, folder, None

    def ended(self, seconds: float) -> bool:
        """Waits so long for its end at most; then `status` is set."""
        raise NotImplementedError

    def send(self, number: int) -> None:
        """A signal, if it has not ended yet."""
        if not self.ended(0):
            os.kill(self.pid, number)

    @property
    def written(self) -> str:
        """All that it wrote to standard error."""
        return (self.folder / ERRORS).read_text(errors="replace")

    @property
    def said(self) -> str:
        """Its message, without progress bars and libraries' own words; the last of these where there is none."""
        lines = self.written.replace("\r", "\n").splitlines()
        return "\n".join(line for line in lines if line.startswith("vla-razor: ")) or "\n".join(lines[-3:])

    def left(self) -> dict[int, str]:
        """What still runs of its session, with its command."""
        return {pid: _command(pid)[:200] for pid in session_of(self.pid)}

    def clear(self) -> None:
        """Kills what is left of its session."""
        for pid in session_of(self.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


class Commanded(Started):
    """As a user starts it."""

    def __init__(self, words: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        site = str(Path(__file__).with_name("site"))
        own = {**environment, "PYTHONPATH": f"{site}:{environment['PYTHONPATH']}"}
        with (folder / OUTPUT).open("ab") as output, (folder / ERRORS).open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, *CLI, *words],
                cwd=folder / HERE,
                env=own,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                start_new_session=True,
            )
        super().__init__(self._process.pid, folder)

    def ended(self, seconds: float) -> bool:
        try:
            self.status = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True


class Forked(Started):
    """Forked by a `Server`."""

    def __init__(self, connection: Connection, folder: Path) -> None:
        self._connection = connection
        super().__init__(connection.recv(), folder)

    def ended(self, seconds: float) -> bool:
        if self.status is None and self._connection.poll(seconds):
            self.status = self._connection.recv()
        return self.status is not None


class Server:
    """A process that has loaded the packages, and forks one that carries out a command line after the other."""

    def __init__(self, environment: Mapping[str, str], modules: Sequence[str] = MODULES) -> None:
        self.connection, theirs = Pipe()
        command = [sys.executable, "-m", "campaign.processes", str(theirs.fileno()), json.dumps(modules)]
        self.process = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()], start_new_session=True)
        theirs.close()

    def start(self, words: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Forked:
        self.connection.send((list(words), str(folder), dict(environment)))
        return Forked(self.connection, folder)

    def close(self) -> None:
        self.connection.close()  # at which it ends, unless it waits for a run that was given up
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def session_of(pid: int) -> list[int]:
    """The processes that still run in the session that `pid` leads or led."""
    return [number for number, facts in _processes() if int(facts[3]) == pid and facts[0] != "Z"]


def workers_of(pid: int) -> list[int]:
    """The children of a process that work for it: not multiprocessing's tracker of shared memory."""
    found = [number for number, facts in _processes() if int(facts[1]) == pid and facts[0] != "Z"]
    return [number for number in found if "resource_tracker" not in _command(number)]


def _processes() -> list[tuple[int, list[str]]]:
    """Each with its state, parent, group, session, as /proc/N/stat has them."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            found.append((int(folder.name), (folder / "stat").read_text().rpartition(")")[2].split()))
        except OSError:  # it has ended meanwhile
            continue
    return found


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return "resource_tracker"  # it has ended: no worker any more


def serve(connection: Connection, modules: Sequence[str]) -> None:
    """Until the other side hangs up."""
    for name in modules:
        importlib.import_module(name)
    while True:
        try:
            words, folder, environment = connection.recv()
        except EOFError:
            return
        if (pid := os.fork()) == 0:
            connection.close()
            _become(words, Path(folder), environment)
        connection.send(pid)
        connection.send(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _become(words: Sequence[str], folder: Path, environment: dict[str, Any]) -> None:
    """Carries out a command line, and ends as its process would."""
    os.setsid()
    os.chdir(folder / HERE)
    streams = (os.devnull, os.O_RDONLY), (OUTPUT, os.O_WRONLY | os.O_APPEND), (ERRORS, os.O_WRONLY | os.O_TRUNC)
    for number, (name, flags) in enumerate(streams):
        descriptor = os.open(folder / name, flags | os.O_CREAT, 0o644)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    hook.install()
    sys.path[:0] = [place for place in environment["PYTHONPATH"].split(":") if place not in sys.path]
    sys.argv = ["vla-razor", *words]
    from vla_razor.cli import main

    main()
    sys.exit(0)


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])), json.loads(sys.argv[2]))
