"""Running a program that a language model wrote: in a process of its own, with limits, and only where asked for.

The limits keep an accident small. They bound CPU time, wall time, memory and file sizes, and forbid core dumps. The
program runs in a temporary folder, with an empty environment, in Python's isolated mode, and every process of its group
is killed at the end. This is no jail: the program can read what the user can read, reach the network, and start a
session of its own, which outlives it.

The exit status does not show that a program reached its end, since any of its lines may set it. A secret does: it is
read and handed back once the last line has run. No way of ending early produces it, but a program that looks for the
secret in its own process will find it.
"""

import os
import resource
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MEMORY = 1 << 30
FILE_SIZE = 1 << 20
LENGTH = 32
"""Bytes of the secret."""
RUNNER = f"""
import os, sys
secret, proof, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
del sys.argv[1:]
exec(compile(open(path, "rb").read(), path, "exec"), {{"__name__": "__main__"}})
os.write(proof, os.read(secret, {LENGTH}))
"""


def passes(program: str, seconds: float = 5.0) -> bool:
    """Whether the program runs to its last line and ends by itself, in time and without an error."""
    secret = secrets.token_bytes(LENGTH)
    with tempfile.TemporaryDirectory() as folder, _pipe() as (given, giving), _pipe() as (proof, proving):
        os.write(giving, secret)
        os.set_blocking(proof, False)  # a program that ended early has written nothing

        def limit() -> None:  # in the new process, before the program
            cpu = int(seconds) + 1
            bounds = {resource.RLIMIT_CPU: cpu, resource.RLIMIT_AS: MEMORY, resource.RLIMIT_FSIZE: FILE_SIZE}
            for what, most in {**bounds, resource.RLIMIT_CORE: 0}.items():
                resource.setrlimit(what, (most, most))

        path = Path(folder, "program.py")
        path.write_bytes(program.encode(errors="replace"))
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", RUNNER, str(given), str(proving), str(path)],
            cwd=folder,
            env={},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(given, proving),
            start_new_session=True,
            preexec_fn=limit,
        )
        try:
            ended = process.wait(seconds) == 0
        except subprocess.TimeoutExpired:
            ended = False
        finally:
            with suppress(ProcessLookupError):  # whatever the program started goes with it
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        with suppress(BlockingIOError):  # it is empty where the program ended early
            return ended and os.read(proof, LENGTH) == secret
        return False


@contextmanager
def _pipe() -> Iterator[tuple[int, int]]:
    """A pipe's two ends: to read from, and to write to."""
    ends = os.pipe()
    try:
        yield ends
    finally:
        for end in ends:
            os.close(end)
