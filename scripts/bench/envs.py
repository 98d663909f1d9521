"""How many control steps a second the Google robot's environments make, against physics alone and the original.

In turns, so that a busy spell of the machine hits all alike: ours; a bare loop that only steps the physics of the same
scene (and renders it, and fetches the two textures that a picture is made of), with the joints driven along the same
paths, by a new target every ninth physics step; and the original, where VLA_RAZOR_SIMPLER_PYTHON names its interpreter
(else the figures that were recorded of it stand in). Shares and ratios are medians over the rounds. The gate: at least
90% of the bare loop. The goals: twice the original without rendering and at 512 x 640, and with two processes four
times the original's one. The split shows what forbids a goal.

    python scripts/bench/envs.py [--families pick_can drawer] [--images none 224x224 512x640] [--processes 1 2] [--json]
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from vla_razor_envs import simpler_env
from vla_razor_envs.setups import SETUPS
from vla_razor_envs.single import SingleEnv

GATE = 0.9
# Times the original's rate in one process, by image and number of processes.
GOALS = {("none", 1): 2.0, ("none", 2): 4.0, ("512x640", 1): 2.0}
# The original's control steps a second in one process, as recorded on two busy cores; the camera's colours alone.
RECORDED = {
    "pick_can": {"none": 32.0, "224x224": 21.6, "512x640": 11.2},
    "drawer": {"none": 34.0, "224x224": 25.2, "512x640": 14.8},
}
ORIGINAL = Path(__file__).with_name("original_envs.py")
TOLD_EVERY = 9  # of the 171 physics steps of a control step
PHASES: tuple[str, ...] = ("physics", "rendering", "controller")


def random_actions(count: int) -> np.ndarray:
    """Small random motions [count, 7]; the gripper keeps its direction for four steps."""
    rng = np.random.default_rng(0)
    gripper = rng.integers(-1, 2, -(-count // 4)).repeat(4)[:count]
    return np.column_stack([rng.uniform(-0.05, 0.05, (count, 3)), rng.uniform(-0.1, 0.1, (count, 3)), gripper]).astype(
        np.float32
    )


# ---------------------------------------------------------------------- in a worker


class Bench:
    """One environment in a worker process, and the ways of stepping it."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.rendered = plan["image"] != "none"
        size = [int(side) for side in plan["image"].split("x")] if self.rendered else [64, 64]
        self.env = SingleEnv(plan["family"], ("google_robot",), image_size=(size[0], size[1]))
        self.task: Any = self.env.task
        self.actions = random_actions(plan["steps"])
        self.parts = self.task.agent.controller.controllers.values()
        self.joints = [joint._objs[0] for part in self.parts for joint in part.joints]
        self.env.reset(seed=0)
        self.driven = [self._driven(action) for action in self.actions]  # a warm-up as well

    def _driven(self, action: np.ndarray) -> list[list[float]]:
        """Every ninth target of the control step's paths: bare physics is to make the same motion."""
        self._step(action)
        return np.hstack([part.waypoints[::TOLD_EVERY, 0] for part in self.parts]).tolist()

    def _step(self, action: np.ndarray) -> None:
        if self.rendered:
            self.env.step(action)
        else:
            self.task.advance(torch.from_numpy(action)[None])

    def ours(self) -> None:
        for action in self.actions:
            self._step(action)

    def bare(self) -> None:
        scene, physics = self.task.scene.sub_scenes[0], self.task.scene.px
        camera = next(iter(self.task.scene.sensors.values())).camera._render_cameras[0]
        for path in self.driven:
            for targets in path:
                for joint, target in zip(self.joints, targets, strict=True):
                    joint.set_drive_target(target)
                for _ in range(TOLD_EVERY):
                    physics.step()
            if self.rendered:
                scene.update_render()
                camera.take_picture()
                for texture in ("Color", "PositionSegmentation"):  # both go into a picture of visual matching
                    camera.get_picture(texture)

    def run(self, way: str) -> dict[str, float]:
        """Seconds of one round from the same start; of "split", those of each phase too."""
        self.env.reset(seed=0)
        spent: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        with ExitStack() as stack:
            if way == "split":
                agent, task = self.task.agent, self.task
                stack.enter_context(timed(task.scene, "step", spent, "physics"))
                stack.enter_context(timed(task, "_look", spent, "rendering"))
                stack.enter_context(timed(next(iter(task.scene.sensors.values())), "get_obs", spent, "rendering"))
                stack.enter_context(timed(agent, "set_action", spent, "controller"))
                stack.enter_context(timed(agent, "before_simulation_step", spent, "controller"))
            begin = time.perf_counter()
            (self.bare if way == "bare" else self.ours)()
            seconds = time.perf_counter() - begin
        return {"seconds": seconds, **spent}


@contextmanager
def timed(owner: Any, name: str, spent: dict[str, float], phase: str) -> Iterator[None]:
    """Adds up the seconds in a method of an object."""
    method = getattr(owner, name)

    def metered(*arguments: Any, **keywords: Any) -> Any:
        begin = time.perf_counter()
        result = method(*arguments, **keywords)
        spent[phase] += time.perf_counter() - begin
        return result

    setattr(owner, name, metered)
    try:
        yield
    finally:
        delattr(owner, name)


def work(plan: dict[str, Any]) -> None:
    """Measures, in this process, each way that standard input names."""
    bench = Bench(plan)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(bench.run(line.strip())), flush=True)


# ---------------------------------------------------------------------- in the main process


class Worker:
    """A process that builds an environment and then measures what it is asked for."""

    def __init__(self, command: list[str], plan: dict[str, Any]) -> None:
        threads = {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [*command, json.dumps(plan)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | threads,
        )

    def ask(self, way: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(way + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, float]:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"a worker ended with status {self.process.wait()}: its message is above")

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def original_plan(family: str, image: str, steps: int) -> dict[str, Any]:
    """What original_envs.py is told: the same scene in the original."""
    setup, build = (
        SETUPS[family, "google_robot"],
        {"pick_can": simpler_env._can_scene, "drawer": simpler_env._drawer_scene}[family],
    )
    scene = build(setup, 0, {})
    size = [int(side) for side in image.split("x")] if image != "none" else None
    return {**scene, "image": size, "actions": random_actions(steps).tolist()}


def measure(family: str, image: str, processes: int, options: argparse.Namespace) -> dict[str, Any]:
    """Medians over the rounds of one case."""
    plan = {"family": family, "image": image, "steps": options.steps}
    python = os.environ.get(simpler_env.VARIABLE)
    ours = [Worker([sys.executable, __file__, "--worker"], plan) for _ in range(processes)]
    theirs = [
        Worker([python, str(ORIGINAL)], original_plan(family, image, options.steps)) for _ in range(processes) if python
    ]
    for worker in [*ours, *theirs]:
        worker.answer()

    def rate(workers: list[Worker], way: str) -> float:
        for worker in workers:
            worker.ask(way)
        return sum(options.steps / worker.answer()["seconds"] for worker in workers)

    rounds = [
        {"ours": rate(ours, "ours"), "bare": rate(ours, "bare")}
        | ({"original": rate(theirs, "ours")} if theirs else {})
        for _ in range(options.rounds)
    ]
    ours[0].ask("split")
    split = ours[0].answer()
    for worker in [*ours, *theirs]:
        worker.close()
    return {"family": family, "image": image, "processes": processes, **summarize(rounds, split)}


def summarize(rounds: list[dict[str, float]], split: dict[str, float]) -> dict[str, Any]:
    """Median rates, ours as a share of the bare loop and, where it ran, of the original; shares of a step by phase."""
    phases = {phase: split[phase] / split["seconds"] for phase in PHASES}
    result: dict[str, Any] = {way: median(each[way] for each in rounds) for way in rounds[0]}
    result["share"] = median(each["ours"] / each["bare"] for each in rounds)
    if "original" in result:
        result["ratio"] = median(each["ours"] / each["original"] for each in rounds)
    return {**result, "split": {**phases, "rest": 1 - sum(phases.values())}}


def judge(results: list[dict[str, Any]]) -> None:
    """Says of each case whether the gate and its goal are met; goals are in times of the original's one process."""
    single = {(r["family"], r["image"]): r["original"] for r in results if r["processes"] == 1 and "original" in r}
    for result in results:
        result["gate"] = result["share"] >= GATE
        case = result["family"], result["image"]
        result["against"] = "measured" if case in single else "recorded"
        result["of_one"] = result["ours"] / single.get(case, RECORDED[case[0]][case[1]])
        goal = GOALS.get((result["image"], result["processes"]))
        result["goal"] = None if goal is None else {"times": goal, "met": result["of_one"] >= goal}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=list(RECORDED), choices=list(RECORDED))
    parser.add_argument("--images", nargs="+", default=list(RECORDED["drawer"]), choices=list(RECORDED["drawer"]))
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--steps", type=int, default=40, help="control steps a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker)
        return
    cases = [(family, image, n) for family in options.families for image in options.images for n in options.processes]
    results = [measure(*case, options) for case in cases]
    judge(results)
    report(results, Console().print)
    if options.json:
        print(json.dumps({"cores": os.cpu_count(), "results": results}))


def report(results: list[dict[str, Any]], show: Callable[[Any], None]) -> None:
    columns = ["", "ours", "alone", "share", "original", "ratio", "of its one", *PHASES, "rest"]
    table = Table(
        *columns, title="control steps/s; alone: physics and rendering of the same scene; then a step's split"
    )
    for r in results:
        name = f"{r['family']} {r['image']} x{r['processes']}"
        row = [name, f"{r['ours']:.1f}", f"{r['bare']:.1f}", f"{r['share']:.0%}"]
        row += [f"{r['original']:.1f}", f"{r['ratio']:.2f}"] if "original" in r else ["", ""]
        goal = f", goal {r['goal']['times']:.0f}" if r["goal"] else ""
        table.add_row(*row, f"{r['of_one']:.2f}{goal}", *(f"{share:.0%}" for share in r["split"].values()))
    show(table)


if __name__ == "__main__":
    main()
