"""Finding the private software driver, and fetching it, on machines that differ in what they have."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.setup import software_vulkan
from vla_razor_envs import vulkan


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without Vulkan variables and drivers, whose cache is an empty folder."""
    monkeypatch.setenv("VLA_RAZOR_CACHE", str(tmp_path))
    for name in vulkan.DRIVER_VARIABLES:
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(vulkan, "_DRIVER_FOLDERS", (str(tmp_path / "system"),))
    return tmp_path


def add_private_driver(machine: Path) -> Path:
    folder = machine / "vulkan"
    folder.mkdir()
    (folder / "preload.txt").write_text("")
    driver = folder / "lvp_icd.json"
    driver.write_text("{}")
    return driver


def test_without_a_private_driver_nothing_is_set(machine: Path):
    vulkan.use_software_vulkan()
    assert os.environ["VK_DRIVER_FILES"] == ""


def test_the_private_driver_comes_after_those_of_the_system(machine: Path):
    driver = add_private_driver(machine)
    (machine / "system").mkdir()
    own = machine / "system" / "nvidia_icd.json"
    own.write_text("{}")
    vulkan.use_software_vulkan()
    assert os.environ["VK_DRIVER_FILES"] == f"{own}:{driver}"


def test_the_users_choice_of_driver_stands(machine: Path, monkeypatch: pytest.MonkeyPatch):
    add_private_driver(machine)
    monkeypatch.setenv("VK_ICD_FILENAMES", "/mine.json")
    vulkan.use_software_vulkan()
    assert os.environ["VK_DRIVER_FILES"] == ""


def commands(folder: Path, **scripts: str) -> None:
    """Puts stand-ins for commands into `folder`."""
    for name, script in scripts.items():
        path = folder / name.replace("_", "-")
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)


def test_sources_are_those_of_the_machines_own_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    targets = "m://a/ bookworm main\nm://a/ bookworm-updates main\nm://s/ bookworm-security main\nm://x/ other extra\n"
    commands(tmp_path, apt_get=f"printf '{targets * 2}'")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    lines = software_vulkan.source_lines("bookworm", "no-such-distribution")
    assert lines == [
        "deb m://a/ bookworm main",
        "deb m://a/ bookworm-updates main",
        "deb m://s/ bookworm-security main",
    ]
    lines = software_vulkan.source_lines("bookworm", "no-such-distribution", backports=True)
    assert lines == ["deb m://a/ bookworm-backports main"]


def test_missing_libraries_are_found_dependencies_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    needs = {"driver.so": ["libllvm.so.1", "libgone.so"], "libllvm.so.1": ["libz3.so.4"], "libz3.so.4": []}
    for name in needs:
        (tmp_path / name).touch()
    cases = ""
    for name, needed in needs.items():
        lines = "\\n".join(f"{need} => not found" for need in needed)
        cases += f"*/{name}) printf '\\tlibc.so.6 => /lib/libc.so.6\\n{lines}\\n' ;;\n"
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    commands(bin_folder, ldd=f"case $1 in\n{cases}esac")
    monkeypatch.setenv("PATH", f"{bin_folder}:{os.environ['PATH']}")
    found: dict[str, Path] = {}
    software_vulkan.add_missing(tmp_path / "driver.so", tmp_path, found)
    assert list(found) == ["libz3.so.4", "libllvm.so.1"]


def test_installed_folder_is_complete_and_replaces_an_older_one(machine: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(software_vulkan, "wheel_libraries", lambda: iter(()))
    unpacked = machine / "unpacked"
    unpacked.mkdir()
    (unpacked / software_vulkan.DRIVER).write_bytes(b"driver")
    add_private_driver(machine)
    software_vulkan.install(unpacked, vulkan.software_folder())
    driver = Path(json.loads((machine / "vulkan" / "lvp_icd.json").read_text())["ICD"]["library_path"])
    assert driver.is_absolute()
    assert driver.read_bytes() == b"driver"
    assert sorted(path.name for path in machine.iterdir()) == ["unpacked", "vulkan"]


@pytest.mark.slow
def test_a_frame_renders_in_a_new_process():
    command = [sys.executable, "-m", "vla_razor_envs.vulkan"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert set(json.loads(result.stdout)) == {"device", "driver"}
