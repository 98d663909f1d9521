"""Where verbs are played: undisturbed ones, with which all others are compared, and how a disturbed one goes on."""

import json
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from campaign import ends, given
from campaign.given import RUN
from campaign.processes import HERE, MODULES, OF_LANGUAGE, Commanded, Server, Started
from vla_razor.files import write_json
from vla_razor_envs.vulkan import software_folder

LIMIT = 600.0
"""Seconds after which a process that has not ended counts as hanging."""
GRACE = 30.0
"""Seconds in which what a killed process had started must have ended."""


@dataclass
class Told:
    """What became of a try.

    `resumed`: whether the run was gone on with by `vla-razor resume`, and not begun again for want of anything there.
    `said` are the messages; `wrong` is all that should not have been: without it the run has ended as an undisturbed
    one. `silent`: it ended otherwise, and without a word.
    """

    kills: int = 0
    resumed: bool = False
    silent: bool = False
    said: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


@dataclass
class Undisturbed:
    """What an undisturbed run of a verb held, after how many seconds since its folder was there, of how many file
    operations and of what size in bytes.
    """

    held: Mapping[str, Any]
    seconds: float
    operations: int
    size: int


class Stage:
    """`folder` keeps what is given, the undisturbed runs, and those tries that went wrong."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.given, self.apart = self.folder / "given", self.folder / "undisturbed"
        given.make(self.given)
        self.verbs = given.verbs(self.given, self.apart)
        self._servers: dict[tuple[bool, int], Server] = {}
        self._undisturbed: dict[tuple[str, int], Undisturbed] = {}

    def close(self) -> None:
        for server in self._servers.values():
            server.close()

    def fresh(self, name: str) -> Path:
        """An empty folder for a try."""
        folder = self.folder / "tries" / name
        shutil.rmtree(folder, ignore_errors=True)
        (folder / HERE / "cache").mkdir(parents=True)
        if software_folder().is_dir():
            (folder / HERE / "cache" / "vulkan").symlink_to(software_folder())
        return folder

    def keep(self, folder: Path) -> None:
        """A try that went wrong, to be looked at."""
        (self.folder / "wrong").mkdir(exist_ok=True)
        shutil.rmtree(self.folder / "wrong" / folder.name, ignore_errors=True)
        shutil.move(folder, self.folder / "wrong")

    def start(
        self, verb: str, folder: Path, words: Sequence[str], *, rank: int = 0, typed: bool = False, **own: str
    ) -> Started:
        """Begins a process with these words; `typed`: by the command line proper, else forked. `own` are added to its
        environment; `rank`: of several that are to run side by side.
        """
        logs, environment = folder / f"rank {rank}" if rank else folder, given.environment(folder / HERE / "cache")
        if rank and not logs.is_dir():
            logs.mkdir()
            (logs / HERE).symlink_to(folder / HERE)
        environment |= {"FAULT_WATCHED": str(folder / HERE), **own}
        if typed:
            return Commanded(words, logs, environment)
        kind = self.verbs[verb].language, rank
        if kind not in self._servers:
            modules = (*MODULES, *OF_LANGUAGE) if kind[0] else MODULES
            self._servers[kind] = Server(given.environment(self.folder / "cache"), modules)
        return self._servers[kind].start(words, logs, environment)

    def words(self, verb: str, folder: Path) -> list[str]:
        """What is to be typed next in the folder of a try: the verb, `resume`, or nothing more."""
        run = folder / HERE / RUN
        if (run / "summary.json").is_file():
            return []
        return ["resume", RUN] if (run / "config.yaml").is_file() else [*self.verbs[verb].words, f"out={RUN}"]

    def go_on(self, verb: str, folder: Path, told: Told, ranks: int = 1, **own: Any) -> list[Started]:
        """Begins the verb, or resumes it, on so many ranks; nothing where it has finished."""
        if not (words := self.words(verb, folder)):
            return []
        told.resumed |= words[0] == "resume"
        if ranks == 1:
            return [self.start(verb, folder, words, **own)]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(ranks)}
        return [self.start(verb, folder, words, rank=rank, **place, RANK=str(rank), **own) for rank in range(ranks)]

    def ended(self, process: Started, told: Told, expected: Sequence[int]) -> None:
        """Waits for the end of a process, which must have one of these statuses and say no more than one message."""
        if not process.ended(LIMIT):
            process.clear()
            process.ended(GRACE)
            told.wrong.append(f"has not ended within {LIMIT:.0f} s")
            return
        if process.status not in expected:
            told.wrong.append(f"exit status {process.status}: {process.said}")
        elif process.status and process.status > 0:
            told.said.append(process.said)
            if not process.said.startswith("vla-razor: ") or "\n" in process.said:
                told.wrong.append(f"not one message: {process.said}")
        if process.status is not None and process.status >= 0 and "Traceback (most" in process.written:
            told.wrong.append(f"a traceback: {process.written[-2000:]}")

    def to_the_end(
        self, verb: str, folder: Path, told: Told, *, ranks: int = 1, more: str = "", places: Any = None
    ) -> Told:
        """Goes on until the run has finished, and compares it with the undisturbed one; see `ends.differences`."""
        for process in self.go_on(verb, folder, told, ranks) if not told.wrong else ():
            self.ended(process, told, [0])
        if told.wrong:
            return told
        held = ends.held_by(folder / HERE / RUN, {**(places or {}), str(folder / HERE): HERE})
        if different := ends.differences(self.undisturbed(verb, ranks).held, held, more):
            told.wrong.append(f"not as in an undisturbed run: {', '.join(different)}")
            told.silent = True
        return told

    def swept(self, process: Started, told: Told) -> None:
        """What a process has started ends with it."""
        end = time.monotonic() + GRACE
        while (left := process.left()) and time.monotonic() < end:
            time.sleep(0.1)
        if left:
            told.wrong.append(f"{len(left)} processes went on running after it: {', '.join(left.values())}")
            process.clear()

    def undisturbed(self, verb: str, ranks: int = 1) -> Undisturbed:
        """The run that others are compared with; made when it is first asked for, and kept."""
        if (verb, ranks) in self._undisturbed:
            return self._undisturbed[verb, ranks]
        names = list(self.verbs)
        for needed in names[: names.index(verb)]:
            if str(self.apart / needed / RUN) in " ".join(self.verbs[verb].words):
                self.undisturbed(needed)
        folder = self.apart / (verb if ranks == 1 else f"{verb}, {ranks} ranks")
        name = f"undisturbed {folder.name}"
        if not (folder / "facts.json").is_file():
            played, told = self.fresh(name), Told()
            started = self.go_on(verb, played, told, ranks, FAULT_COUNT=str(played / "count"))
            begun(started[0], played)
            begin = time.monotonic()
            for process in started:
                self.ended(process, told, [0])
            seconds = time.monotonic() - begin
            if told.wrong:
                raise RuntimeError(f"{verb} fails undisturbed, see {played}: {told.wrong[0]}")
            size = sum(path.stat().st_size for path in (played / HERE).rglob("*") if path.is_file())
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(played / HERE, folder, symlinks=True)
            facts = {"seconds": seconds, "operations": int((played / "count").read_text()), "size": size}
            write_json(folder / "facts.json", facts)
            shutil.rmtree(played)
        known = json.loads((folder / "facts.json").read_text())
        held = ends.held_by(folder / RUN, {str(self.folder / "tries" / name / HERE): HERE})
        self._undisturbed[verb, ranks] = Undisturbed(held, **known)
        return self._undisturbed[verb, ranks]


def begun(process: Started, folder: Path) -> None:
    """Waits until there is a run, or the process has ended."""
    while not (folder / HERE / RUN).exists() and not process.ended(0.05):
        pass
