"""New episodes in the original SimplerEnv and in the port at once: the same starts, the same actions.

The scripted expert, disturbed in a tenth of its steps, acts on what it sees in the original; the port gets the same
actions. An episode ends four steps after its first success. VLA_RAZOR_SIMPLER_PYTHON names the original's interpreter
(docs/simplerenv.md).

    python scripts/beside_original.py [--families pick_can drawer] [--episodes 30] [--seed 0] [--json]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from typing import Any

import gymnasium
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

import vla_razor_envs  # noqa: F401  (registers the tasks)
from vla_razor.policies import Observations
from vla_razor.policies.scripted import ScriptedExpert
from vla_razor.statistics import wilson
from vla_razor_envs.setups import DRAWER_TASKS

TASKS = {"pick_can": "PickCan-v1", "drawer": "Drawer-v1"}
PLACE = {"pick_can": "object_pose", "drawer": "drawer_qpos"}
LONGEST, AFTERWARDS = 75, 4  # steps
Infos = list[dict[str, Any]]


@dataclass(frozen=True)
class Episode:
    """Distances in metres between the port and the original: of the TCP at its worst, of the can or the drawers at the
    end; how many of the steps have another `success`, and what it is at the end of either.
    """

    seed: int
    steps: int
    differing: int
    original: bool
    port: bool
    tcp: float
    thing: float


def episodes(family: str, seeds: range) -> Iterator[Episode]:
    """One episode a seed."""
    sized: dict[str, Any] = dict(image_size=(8, 10), overlay=False)
    with ExitStack() as stack:
        name = f"vla_razor/Simpler{TASKS[family]}"
        original = stack.enter_context(
            closing(gymnasium.make_vec(name, 1, "vector_entry_point", num_workers=1, **sized))
        )
        port = stack.enter_context(closing(gymnasium.make(f"vla_razor/{TASKS[family]}", robot="google_robot", **sized)))
        for seed in track(seeds, family):
            theirs, ours = both(original, port, seed, start_of(family, seed))
            yield compared(family, seed, theirs, ours)


def start_of(family: str, seed: int) -> dict[str, Any]:
    """Reset options: drawer tasks in turn, at stations drawn from the seed; cans are drawn by the tasks."""
    return {"task": DRAWER_TASKS[seed % len(DRAWER_TASKS)]} if family == "drawer" else {}


def both(original: Any, port: gymnasium.Env, seed: int, start: dict[str, Any]) -> tuple[Infos, Infos]:
    """The infos of an episode in both."""
    expert, generator = ScriptedExpert(noise=0.1, robot="google_robot"), np.random.default_rng(seed)
    theirs, ours = [first(original.reset(seed=seed, options=start)[1])], [port.reset(seed=seed, options=start)[1]]
    until = LONGEST
    while len(theirs) <= until:
        now = theirs[-1]
        action = expert.act(Observations({}, [now["instruction"]], infos=[now]), [generator]).actions[:, 0]
        theirs.append(first(original.step(action)[-1]))
        ours.append(port.step(action[0])[-1])
        if theirs[-1]["success"]:
            until = min(until, len(theirs) + AFTERWARDS - 1)
    return theirs, ours


def first(infos: dict[str, Any]) -> dict[str, Any]:
    """The infos of a vector environment's only slot."""
    return {name: values[0] for name, values in infos.items() if not name.startswith("_")}


def compared(family: str, seed: int, theirs: Infos, ours: Infos) -> Episode:
    """What differs."""
    success = np.array([[bool(info["success"]) for info in infos] for infos in (theirs, ours)])
    tcp, thing = (
        np.linalg.norm([(one[key] - other[key])[:3] for one, other in zip(theirs, ours, strict=True)], axis=1)
        for key in ("tcp_pose", PLACE[family])
    )
    differing = int((success[0] != success[1]).sum())
    original, port = success[:, -1].tolist()
    return Episode(seed, len(theirs) - 1, differing, original, port, float(tcp.max()), float(thing[-1]))


def summary(family: str, found: list[Episode]) -> dict[str, Any]:
    """How many agree, and how far things are apart: medians and worst in millimetres."""
    apart = {name: [1e3 * getattr(one, name) for one in found] for name in ("tcp", "thing")}
    return {
        "family": family,
        "successes": sum(one.original for one in found),
        "same_at_the_end": wilson(sum(one.original == one.port for one in found), len(found)),
        "steps": sum(one.steps for one in found),
        "steps_differ": sum(one.differing for one in found),
        **{f"{name}_mm": [float(np.median(distances)), max(distances)] for name, distances in apart.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--episodes", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help="of the first episode")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args()
    seeds = range(options.seed, options.seed + options.episodes)
    found = {family: list(episodes(family, seeds)) for family in options.families}
    rows = [summary(family, ones) for family, ones in found.items()]
    columns = (
        "original succeeds",
        "same at the end",
        "steps differ",
        "TCP, mm: median, worst",
        "can or drawer at the end, mm",
    )
    table = Table("", *columns)
    for row in rows:
        same = row["same_at_the_end"]
        agreed = f"{same['successes']} of {same['episodes']} ({same['low']:.0%} to {same['high']:.0%})"
        apart = ("{:.1f}, at worst {:.1f}".format(*row[key]) for key in ("tcp_mm", "thing_mm"))
        table.add_row(row["family"], str(row["successes"]), agreed, f"{row['steps_differ']} of {row['steps']}", *apart)
    Console().print(table)
    if options.json:
        every = {family: [asdict(one) for one in ones] for family, ones in found.items()}
        print(json.dumps({"rows": rows, "episodes": every}))


if __name__ == "__main__":
    main()
