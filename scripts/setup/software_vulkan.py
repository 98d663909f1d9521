"""Gives a machine without a GPU a Vulkan device that SAPIEN can render with, and changes nothing of the system.

Where a frame already renders, nothing is done. Otherwise Mesa's software driver (24.3 or newer: Debian 12's own is too
old, its backports are not) is fetched by apt into a temporary folder, together with those shared libraries that the
driver, sapien and OpenCV ask for and the system lacks, and unpacked into the folder that
`vla_razor_envs.vulkan.use_software_vulkan` looks into. Needs no rights: apt keeps its lists and archives in the
temporary folder. Run it with the Python of the virtual environment, after its packages are installed.
"""

import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vla_razor_envs.vulkan import software_folder

OLDEST_MESA = (24, 3)
PACKAGES = ["mesa-vulkan-drivers", "libx11-6", "libgl1", "libglib2.0-0"]
DRIVER = "libvulkan_lvp.so"
BY_HAND = (
    "Install Mesa's Vulkan drivers, version 24.3 or newer, with your system's package manager, and run this again."
)


def main() -> None:
    if frame := rendered_frame():
        print(f"Vulkan works: {frame['device']}, {frame['driver']}")
        return
    if not shutil.which("apt-get"):
        sys.exit(f"No usable Vulkan device, and no apt-get to fetch a software driver with. {BY_HAND}")
    with tempfile.TemporaryDirectory(prefix="vla-razor-vulkan-") as scratch:
        unpacked = fetch(Path(scratch))
        install(unpacked, software_folder())
    frame = rendered_frame()
    if not frame:
        sys.exit(f"The software driver in {software_folder()} renders no frame. {BY_HAND}")
    print(f"Vulkan works now: {frame['device']}, {frame['driver']}, unpacked into {software_folder()}")


def rendered_frame() -> dict[str, str] | None:
    """What renders a frame in a process of its own; None where none is rendered."""
    command = [sys.executable, "-W", "ignore", "-m", "vla_razor_envs.vulkan"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    return json.loads(result.stdout.splitlines()[-1]) if result.returncode == 0 else None


class Apt:
    """apt with the system's keys, proxies and list of what is installed, but sources, lists and archives of its own."""

    def __init__(self, folder: Path) -> None:
        self.archives = folder / "archives"
        self.sources = folder / "sources.list"
        for path in (self.archives, folder / "lists"):
            (path / "partial").mkdir(parents=True)
        settings = {
            "Dir::Etc::sourcelist": self.sources,
            "Dir::Etc::sourceparts": "-",
            "Dir::State::lists": folder / "lists",
            "Dir::Cache": folder,
            "Dir::Cache::archives": self.archives,
            "Debug::NoLocking": "true",
            "APT::Sandbox::User": "",
        }
        self.options = [f"-o{name}={value}" for name, value in settings.items()]

    def run(self, *command: str) -> str:
        result = subprocess.run(
            [command[0], *self.options, *command[1:]],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"LC_ALL": "C"},
        )
        if result.returncode != 0:
            sys.exit(f"{' '.join(command)} failed:\n{result.stderr.strip()}\n{BY_HAND}")
        return result.stdout

    def newest_mesa(self) -> tuple[int, ...]:
        versions = re.findall(
            r"^Version: (\d+)\.(\d+)", self.run("apt-cache", "show", "mesa-vulkan-drivers"), re.MULTILINE
        )
        return max(tuple(map(int, version)) for version in versions)


def fetch(folder: Path) -> Path:
    """Downloads and unpacks the packages and what they depend on that is not installed; returns the unpacked tree."""
    apt = Apt(folder)
    release = platform.freedesktop_os_release()
    codename = release.get("VERSION_CODENAME", "")
    apt.sources.write_text("".join(f"{line}\n" for line in source_lines(codename, release["ID"])))
    apt.run("apt-get", "update")
    target = codename
    if apt.newest_mesa() < OLDEST_MESA:
        target = f"{codename}-backports"
        with apt.sources.open("a") as file:
            file.writelines(f"{line}\n" for line in source_lines(codename, release["ID"], backports=True))
        apt.run("apt-get", "update")
    if apt.newest_mesa() < OLDEST_MESA:
        sys.exit(f"The package sources of {release['PRETTY_NAME']} offer no Mesa of version 24.3 or newer. {BY_HAND}")
    print(f"fetching Mesa's software driver from {target} ...", flush=True)
    apt.run("apt-get", "install", "-y", "--no-install-recommends", "--download-only", f"-t{target}", *PACKAGES)
    unpacked = folder / "unpacked"
    for archive in sorted(apt.archives.glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", archive, unpacked], check=True)
    return unpacked


def source_lines(codename: str, distribution: str, *, backports: bool = False) -> list[str]:
    """The machine's own sources of this release, a line each; with `backports`, its backports instead."""
    template = "$(REPO_URI) $(RELEASE) $(COMPONENT)"
    command = ["apt-get", "indextargets", "--no-release-info", "--format", template, "Created-By: Packages"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    own = {codename, f"{codename}-updates", f"{codename}-security"}
    found = sorted({tuple(line.split()) for line in output.splitlines()})
    keyrings = sorted(Path("/usr/share/keyrings").glob(f"{distribution}-archive-keyring.*"))
    options = f"[signed-by={keyrings[0]}] " if keyrings else ""
    if backports:
        return [f"deb {options}{uri} {codename}-backports {part}" for uri, name, part in found if name == codename]
    return [f"deb {options}{uri} {name} {part}" for uri, name, part in found if name in own]


def install(unpacked: Path, folder: Path) -> None:
    """Copies the driver and the libraries that are missing here into `folder`, at once or not at all."""
    driver = next(unpacked.rglob(DRIVER), None)
    if driver is None:
        sys.exit(f"The packages hold no {DRIVER}. {BY_HAND}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".vulkan-") as scratch:
        staged = Path(scratch) / "vulkan"
        (staged / "lib").mkdir(parents=True)
        preload: dict[str, Path] = {}
        for library in [driver, *wheel_libraries()]:
            add_missing(library, unpacked, preload)
        for name, path in {**preload, DRIVER: driver}.items():
            shutil.copy(path, staged / "lib" / name)
        (staged / "preload.txt").write_text("".join(f"{name}\n" for name in preload))
        description = {"library_path": str(folder / "lib" / DRIVER), "api_version": "1.3.0"}
        (staged / "lvp_icd.json").write_text(json.dumps({"file_format_version": "1.0.0", "ICD": description}, indent=2))
        shutil.rmtree(folder, ignore_errors=True)
        staged.rename(folder)


def wheel_libraries() -> Iterator[Path]:
    """The compiled parts of the packages that expect libraries of the system."""
    for package, pattern in {"sapien": "pysapien.*.so", "cv2": "cv2*.so"}.items():
        spec = importlib.util.find_spec(package)
        if spec and spec.origin:
            yield from Path(spec.origin).parent.glob(pattern)


def add_missing(library: Path, unpacked: Path, found: dict[str, Path]) -> None:
    """Adds to `found`, dependencies first, what `library` needs, the system lacks and `unpacked` holds."""
    output = subprocess.run(["ldd", library], capture_output=True, text=True, check=False).stdout
    for name in re.findall(r"^\s*(\S+) => not found", output, re.MULTILINE):
        path = next(unpacked.rglob(name), None)
        if path and name not in found:
            add_missing(path, unpacked, found)
            found[name] = path


if __name__ == "__main__":
    main()
