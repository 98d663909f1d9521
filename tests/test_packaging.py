"""The package as it is installed: entry points, versions, and what an import costs."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import vla_razor
from vla_razor.errors import nearest

CONSTRAINTS = Path(__file__).parents[1] / "scripts" / "setup" / "constraints.txt"
HEAVY = {"torch", "transformers", "mani_skill", "sapien", "timm", "peft", "matplotlib", "scipy", "h5py", "libero"}


def test_version_is_the_installed_one():
    assert importlib.metadata.version("vla-razor") == vla_razor.__version__


def test_the_command_is_an_entry_point():
    points = importlib.metadata.distribution("vla-razor").entry_points
    (point,) = points.select(group="console_scripts")
    assert (point.name, point.value) == ("vla-razor", "vla_razor.cli:main")
    assert [point.name for point in points.select(group="vla_razor.policies")] == ["scripted"]
    suites = {point.name for point in points.select(group="vla_razor.suites")}
    assert suites == {"libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90"}


@pytest.mark.parametrize("package", ["vla_razor", "vla_razor_envs"])
def test_either_package_registers_the_tasks(package: str):
    script = f"import gymnasium, {package}; print(*gymnasium.registry)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert {"vla_razor/PickCan-v2", "vla_razor/Drawer-v1"} <= set(result.stdout.split())


@pytest.mark.parametrize(
    "statement", ["import vla_razor", "import vla_razor_envs", "import vla_razor_libero", "import vla_razor.cli"]
)
def test_light_imports_stay_light(statement: str):
    script = f"import sys; {statement}; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not HEAVY & set(result.stdout.split())


def test_every_dependency_is_pinned_within_its_range():
    lines = [line for line in CONSTRAINTS.read_text().splitlines() if not line.startswith("#")]
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    unused_here = {"wandb", "trackio", "rt1", "libero"}  # extras that neither the tests nor the main job install
    for requirement in map(Requirement, importlib.metadata.requires("vla-razor") or []):
        if not any(f'extra == "{extra}"' in str(requirement.marker) for extra in unused_here):
            assert pins[canonicalize_name(requirement.name)] in requirement.specifier, requirement


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("pick_cam", ["drawer", "pick_can"], "Did you mean pick_can?"),
        ("zzz", ["drawer", "all"], "Known: all, drawer."),
        ("zzz", [], "None is known."),
    ],
)
def test_an_unknown_name_gets_a_hint(name: str, known: list[str], hint: str):
    assert nearest(name, known) == hint
