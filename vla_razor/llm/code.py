"""Running a program that a language model wrote: in a process of its own, with limits, and only where asked for.

The limits keep an accident small: seconds of processor and clock, bytes of memory and of a file, no core dump, a
folder that is thrown away, an empty environment, Python's isolated mode. They are no jail: the program may read what
the user may read, and reach the network. Run it where that does not matter.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile

MEMORY = 1 << 30
FILE_SIZE = 1 << 20


def passes(program: str, seconds: float = 5.0) -> bool:
    """Whether the program ends by itself, in time and without an error."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-c", program],
                cwd=folder,
                env={},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=seconds,
                start_new_session=True,
                preexec_fn=lambda: _limit(seconds),
            )
        except (subprocess.TimeoutExpired, ValueError, OSError):
            return False
    return done.returncode == 0


def _limit(seconds: float) -> None:
    whole = int(seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (whole, whole))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_SIZE, FILE_SIZE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
