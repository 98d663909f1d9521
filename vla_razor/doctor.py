"""`vla-razor doctor`: checks one by one what the main job needs of this machine, with a remedy for each failure."""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from rich.console import Console
from rich.markup import escape
from rich.table import Table

BASE_FOLDER = Path(__file__).parent / "assets" / "tiny"
FREE_GIB = 2
RENDER_SECONDS = 120
BASE_REMEDY = "Install vla-razor again. In the repository: python scripts/make_tiny_base.py makes it from nothing."
SIMULATION_REMEDY = (
    "In the repository: python scripts/check_gpu.py compares it with a CPU's, and remembers if it is as that."
)
VULKAN_REMEDY = (
    "Without a GPU: .venv/bin/python scripts/setup/software_vulkan.py in the repository, or install Mesa's Vulkan "
    "drivers, 24.3 or newer. With a GPU: install the Vulkan part of its driver."
)


@dataclass(frozen=True)
class Check:
    """A finding. `ok` is None where something optional is absent; `remedy` is empty where nothing is wrong."""

    ok: bool | None
    found: str
    remedy: str = ""


def main(as_json: bool = False) -> int:
    """Prints a table, or one JSON object, and returns the exit status: 1 if the main job could not run here."""
    checks = {name: check() for name, check in CHECKS.items()}
    ready = all(check.ok is not False for check in checks.values())  # None, of something optional, is no failure
    if as_json:
        print(json.dumps({"ready": ready, "checks": {name: asdict(check) for name, check in checks.items()}}, indent=2))
        return 0 if ready else 1
    table = Table("", "check", "found, and what to do", show_lines=True)
    marks = {True: "[green]ok[/green]", False: "[red]fails[/red]", None: "optional"}
    for name, check in checks.items():
        remedy = f"\n[bold]{escape(check.remedy)}[/bold]" if check.remedy else ""
        table.add_row(marks[check.ok], name, escape(check.found) + remedy)
    console = Console()
    console.print(table)
    console.print("The main job can run here: vla-razor demo" if ready else "The main job cannot run here.")
    return 0 if ready else 1


def check_python() -> Check:
    """The interpreter's version against the package's requirement."""
    supported = importlib.metadata.metadata("vla-razor")["Requires-Python"]
    version = platform.python_version()
    ok = version in SpecifierSet(supported)
    return Check(ok, version, "" if ok else f"Make the environment with a Python {supported}.")


def check_packages() -> Check:
    """Installed versions against the package's requirements."""
    requirements = [Requirement(line) for line in importlib.metadata.requires("vla-razor") or [] if "extra" not in line]
    faults: list[str] = []
    for requirement in requirements:
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            faults.append(f"{requirement.name} is missing")
        else:
            if not requirement.specifier.contains(version, prereleases=True):
                faults.append(f"{requirement.name} is {version}, not {requirement.specifier}")
    if faults:
        return Check(False, "; ".join(faults), f"{sys.executable} -m pip install --upgrade vla-razor, or make setup.")
    shown = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "mani-skill", "transformers")]
    return Check(True, f"{', '.join(shown)}; all {len(requirements)} as required")


def check_compute() -> Check:
    """Cores, memory and GPUs. Never a failure: the main job runs on a CPU."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    machine = f"{len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB of memory"
    try:
        import torch

        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    except (ImportError, OSError) as error:
        return Check(False, f"{machine}; torch does not load: {error}", "Install the packages again: make setup.")
    return Check(True, f"{machine}; {', '.join(names) or 'no GPU, so everything runs on the CPU'}")


def check_simulation() -> Check:
    """Where tasks are simulated by default. On a GPU only those that were checked there are. Optional."""
    import torch

    from vla_razor.devices import checked_tasks, simulator_of

    if not torch.cuda.is_available():
        return Check(True, "in CPU processes: there is no GPU")
    device = torch.device("cuda", 0)
    machine = ", ".join(f"{key} {value}" for key, value in simulator_of(device).items())
    if tasks := checked_tasks(device):
        return Check(True, f"on the GPU, as checked there: {', '.join(tasks)}; all else in CPU processes ({machine})")
    return Check(None, f"in CPU processes: simulation on this GPU has not been checked ({machine})", SIMULATION_REMEDY)


def check_vulkan() -> Check:
    """Renders one frame, in a process of its own, since a driver may crash or hang."""
    command = [sys.executable, "-W", "ignore", "-m", "vla_razor_envs.vulkan"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=RENDER_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return Check(False, f"no frame within {RENDER_SECONDS} seconds", VULKAN_REMEDY)
    if result.returncode < 0:
        return Check(False, f"the driver crashed (signal {-result.returncode})", VULKAN_REMEDY)
    if result.returncode > 0:
        return Check(False, (result.stderr.strip() or "no message").splitlines()[-1], VULKAN_REMEDY)
    frame = json.loads(result.stdout.splitlines()[-1])
    return Check(True, f"one frame rendered by {frame['device']}, {frame['driver']}")


def check_assets() -> Check:
    """The Google robot of SimplerEnv. Optional: the main job uses the Panda, which ManiSkill ships."""
    from vla_razor_envs.assets import GROUPS, AssetsUnusable, asset_folder, has, remedy

    try:
        there = [group for group in GROUPS if has(group)]
    except AssetsUnusable as error:
        return Check(None, str(error).removesuffix(remedy()).strip(), remedy())
    if "tasks" not in there:
        return Check(None, "Panda (ships with ManiSkill); no Google robot, which is optional", remedy())
    absent = [group for group in GROUPS if group not in there]
    without = f"; without {', '.join(absent)}, which are optional" if absent else ""
    return Check(True, f"Panda (ships with ManiSkill), Google robot ({asset_folder()}){without}")


def check_libero() -> Check:
    """LIBERO, and whether this mujoco draws its scenes as policies know them. Optional."""
    from vla_razor_libero import LiberoUnusable, versions

    try:
        return Check(True, versions())
    except LiberoUnusable as error:
        return Check(None, f"{error.found}: optional, for the suites libero_*", error.remedy)


def check_base() -> Check:
    """The embedded base policy: its files are complete and readable."""
    if not BASE_FOLDER.is_dir():
        return Check(False, f"no folder {BASE_FOLDER}", BASE_REMEDY)
    try:
        config = json.loads((BASE_FOLDER / "config.json").read_text())
        from safetensors import safe_open

        with safe_open(BASE_FOLDER / "model.safetensors", framework="numpy") as weights:
            tensors = len(weights.keys())
    except Exception as error:  # safetensors has an exception class of its own, and may itself be missing
        return Check(False, f"{BASE_FOLDER}: {error}", BASE_REMEDY)
    size = sum(path.stat().st_size for path in BASE_FOLDER.iterdir()) / 1e6
    return Check(True, f"tiny: {config.get('model_type')}, {tensors} tensors, {size:.1f} MB")


def check_disk() -> Check:
    """Free space where runs are written by default: the working directory."""
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    found = f"{free:.0f} GiB free in {Path.cwd()}"
    if free < FREE_GIB:
        return Check(False, found, f"Free at least {FREE_GIB} GiB, or name another disk: out=DIR.")
    return Check(True, found)


CHECKS: dict[str, Callable[[], Check]] = {
    "Python": check_python,
    "packages": check_packages,
    "CPU and GPU": check_compute,
    "simulation": check_simulation,
    "Vulkan": check_vulkan,
    "assets": check_assets,
    "LIBERO": check_libero,
    "base checkpoint": check_base,
    "disk": check_disk,
}
