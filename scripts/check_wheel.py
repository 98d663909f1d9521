"""Builds the source archive and from it the wheel, and uses the wheel in an environment that holds almost nothing else.

The wheel must hold the three packages, with their data, and nothing else at the top level. In an environment without
torch, ManiSkill and transformers they must import, the command line print its help, and Gymnasium find the tasks.
"""

import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "scripts" / "setup" / "constraints.txt"
LIGHT = ["annotated-types", "gymnasium", "hydra-core", "pydantic", "rich", "typer"]
PACKAGES = {"vla_razor", "vla_razor_envs", "vla_razor_libero"}
DATA = [
    "vla_razor/py.typed",
    "vla_razor_envs/py.typed",
    "vla_razor_envs/assets/can.glb",
    "vla_razor_envs/assets/real2sim.json",
    "vla_razor/configs/env/pick_can.yaml",
    "vla_razor/assets/tiny/config.json",
]
IMPORTS = """
import sys, gymnasium, vla_razor, vla_razor_envs, vla_razor_libero
assert not {"torch", "mani_skill", "transformers"} & set(sys.modules)
tasks = {"vla_razor/PickCan-v2", "vla_razor/Drawer-v1", "vla_razor/LIBERO-v0"}
assert tasks <= set(gymnasium.registry), sorted(gymnasium.registry)
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", scratch, ROOT)
        (wheel,) = scratch.glob("*.whl")
        check_contents(wheel)
        use(wheel, scratch)
    print("the wheel builds, installs and imports")


def run(*command: str | Path, folder: Path = ROOT) -> None:
    """Runs a command; shows what it printed only if it fails."""
    result = subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if result.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{result.stdout}")


def check_contents(wheel: Path) -> None:
    files = zipfile.ZipFile(wheel).namelist()
    top = {file.split("/")[0] for file in files if ".dist-info/" not in file}
    if top != PACKAGES:
        sys.exit(f"the wheel should hold {sorted(PACKAGES)} at its top level, and holds {sorted(top)}")
    if missing := [file for file in DATA if file not in files]:
        sys.exit(f"the wheel lacks {', '.join(missing)}")


def use(wheel: Path, scratch: Path) -> None:
    """Installs the wheel with what its command line needs, and uses it from a folder that is not the repository."""
    venv.create(scratch / "venv", with_pip=True)
    commands = scratch / "venv" / "bin"
    pip = [commands / "pip", "install", "--quiet", "--disable-pip-version-check"]
    run(*pip, "--no-deps", wheel)
    run(*pip, "-c", CONSTRAINTS, *LIGHT)
    run(commands / "python", "-W", "error", "-c", IMPORTS, folder=scratch)
    for verb in ("", "collect", "sft", "rl", "eval", "kl", "demo", "doctor", "resume", "assets fetch"):
        run(commands / "vla-razor", *verb.split(), "--help", folder=scratch)


if __name__ == "__main__":
    main()
