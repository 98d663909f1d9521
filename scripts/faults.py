"""Is anything lost when a run is killed, its disk fills up, its files rot or its workers die? Tries it again and again.

Every verb is played undisturbed once, at a size of seconds. Then faults befall it at random moments; each time it is
gone on with as its message advises, to its end, which must be that of the undisturbed run: weights, rows and tables the
same, but for clocks. Most processes are forked from one that has its packages loaded, every fifth is typed as a user
types it; all are the verbs themselves, on their own files, and SIGKILL is the kernel's.

    .venv/bin/python scripts/faults.py --out build/faults.json [--kills 200] [--short] [--only FAULT[,VERB]] [--seed 0]

The results go to the JSON file after every try, and those that are there are not repeated. Undisturbed runs, and tries
that went wrong, stay in the folder beside it (build/faults). `--table` prints a file's table and does nothing else.
`--short` tries each kind of fault once.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from campaign import given, mishaps
from campaign.damage import DAMAGES, damaged
from campaign.stage import Stage, Told

from vla_razor.files import write_json
from vla_razor.progress import progress

KILLS = ("kill -9", "kill -9 at a write")
TYPED = 5
"""Of so many tries of a fault and a verb, one is begun from the command line proper."""


class Fault(NamedTuple):
    """How often it befalls each verb in the long form, which verbs those are, and the one of the short form."""

    befall: Callable[[Stage, str, Path, np.random.Generator, bool], Told]
    times: int
    verbs: Sequence[str]
    short: str


class Try(NamedTuple):
    """The name of a fault, a verb, and which of its tries it is."""

    fault: str
    verb: str
    number: int

    @property
    def key(self) -> str:
        return f"{self.fault}, {self.verb}, {self.number}"


def faults(verbs: Mapping[str, given.Verb], kills: int) -> dict[str, Fault]:
    """By name; `kills` are to be made in all by the first two."""
    names, worked = list(verbs), [name for name, verb in verbs.items() if verb.workers]
    ranked = [name for name, verb in verbs.items() if verb.ranked]
    each = -(-kills // (2 * len(names)))
    found = {
        KILLS[0]: Fault(mishaps.killed, each, names, "sft"),
        KILLS[1]: Fault(mishaps.killed_at_a_write, each, names, "sft"),
        "a worker killed": Fault(mishaps.worker_killed, 4, [*worked, "mnist"], "collect"),
        "a worker hangs": Fault(mishaps.worker_hangs, 2, worked, "collect"),
        "a rank killed": Fault(mishaps.rank_killed, 3, ranked, "collect"),
        "SIGTERM": Fault(mishaps.terminated, 3, names, "sft"),
        "full disk": Fault(mishaps.disk_full, 4, names, "export"),
        "clock set back": Fault(mishaps.clock_set_back, 2, names, "stats"),
        "two at once": Fault(mishaps.two_at_once, 2, names, "stats"),
        "simulator gives NaN": Fault(mishaps.not_a_number, 2, worked, "collect"),
    }
    for what, files in DAMAGES.items():
        found[what] = Fault(partial(damaged, files=files), 4, list(files), next(iter(files)))
    return found


def planned(found: Mapping[str, Fault], only: str | None, short: bool) -> list[Try]:
    """The tries, in turn: each fault and verb once, then each a second time, so that one who stops early has seen all.

    `only`: FAULT, FAULT,VERB or ,VERB; a fault by any part of its name.
    """
    fault, _, verb = (only or "").partition(",")
    if short:  # the first of them from the command line proper
        kept = {name: one for name, one in found.items() if fault in name and verb in ("", one.short)}
        chosen = [Try(name, one.short, 0) for name, one in kept.items()]
        return [one._replace(number=TYPED - 1) if one.fault == KILLS[0] else one for one in chosen]
    tries = [Try(name, own, number) for name, one in found.items() for own in one.verbs for number in range(one.times)]
    chosen = [one for one in tries if fault in one.fault and verb in ("", one.verb)]
    if not chosen:
        raise SystemExit(f"--only {only}: expected a fault of {', '.join(found)}, and one of its verbs.")
    return sorted(chosen, key=lambda one: one.number)


def played(stage: Stage, found: Mapping[str, Fault], one: Try, seed: int) -> dict[str, Any]:
    """What became of a try, for the JSON file. What went wrong is kept in a folder."""
    draw = np.random.default_rng([seed, zlib.crc32(one.key.encode())])
    folder, begin = stage.fresh(one.key.replace(", ", "-").replace(" ", "_")), time.monotonic()
    try:
        told = found[one.fault].befall(stage, one.verb, folder, draw, one.number % TYPED == TYPED - 1)
    except Exception:  # the campaign's own mistakes must not end it, nor count as success
        told = Told(wrong=[traceback.format_exc()])
    if told.wrong:
        stage.keep(folder)
    else:
        shutil.rmtree(folder)
    return {**one._asdict(), **asdict(told), "seconds": round(time.monotonic() - begin, 1)}


def table(tries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line a fault and verb, and the sums."""
    yield "| fault | verb | tried | ended as an undisturbed run | resumed | lost | silently |"
    yield "|" + " --- |" * 7
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for one in tries:
        groups.setdefault((one["fault"], one["verb"]), []).append(one)
    for (fault, verb), own in sorted(groups.items()):
        yield _line(fault, verb, own)
    yield _line("all", "", tries)


def _line(fault: str, verb: str, tries: Sequence[Mapping[str, Any]]) -> str:
    lost, silent, resumed = (sum(bool(one[key]) for one in tries) for key in ("wrong", "silent", "resumed"))
    cells = (fault, verb, len(tries), len(tries) - lost, resumed, lost, silent)
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file, read first if it is there")
    parser.add_argument("--kills", type=int, default=200, help="how many runs are killed by -9 (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random here (default: 0)")
    parser.add_argument("--only", metavar="FAULT[,VERB]", help="a part of a fault's name, and a verb")
    parser.add_argument("--short", action="store_true", help="each fault once")
    parser.add_argument("--table", action="store_true", help="print the table of the file, and try nothing")
    asked = parser.parse_args()
    known = json.loads(asked.out.read_text()) if asked.out.is_file() else {"seed": asked.seed, "tries": []}
    if known["seed"] != asked.seed:
        parser.error(f"{asked.out} is of --seed {known['seed']}")
    if not asked.table:
        stage = Stage(asked.out.with_suffix(""))
        found = faults(stage.verbs, asked.kills)
        done = {Try(one["fault"], one["verb"], one["number"]) for one in known["tries"]}
        todo = [one for one in planned(found, asked.only, asked.short) if one not in done]
        print(f"seed {asked.seed}, {len(todo)} tries", flush=True)
        with closing(stage), progress("faults", len(todo)) as advance:
            for one in todo:
                known["tries"].append(played(stage, found, one, asked.seed))
                write_json(asked.out, known)
                if wrong := known["tries"][-1]["wrong"]:
                    print(f"{one.key}: {wrong[0]}", flush=True)
                advance()
    print("\n".join(table(known["tries"])))
    print(f"\n{sum(one['kills'] for one in known['tries'])} kills by SIGKILL, seed {known['seed']}")
    return int(any(one["wrong"] for one in known["tries"]))


if __name__ == "__main__":
    sys.exit(main())
