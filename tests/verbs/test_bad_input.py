"""Bad input: every mistake ends with status 2, one message that names it, no traceback, and no half-made run folder."""

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from typer.testing import CliRunner

from tests.verbs.support import CommandLine, metrics, random_demonstration, write_store
from vla_razor import cli
from vla_razor.policies.openvla import OpenVLA

QUIET = ("logger=none", "device=cpu", "probe_every=0", "eval_episodes=0")


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory, policy: Path, demos: Path) -> dict[str, Path]:
    """What the table below speaks of, good and bad."""
    root = tmp_path_factory.mktemp("things")
    made = {"policy": policy, "demos": demos}
    for name in ("llama", "shardless", "damaged", "empty", "truncated"):
        made[name] = root / name
    for name in ("llama", "shardless", "damaged"):
        # Without checksums, as checkpoints from elsewhere are.
        shutil.copytree(policy, made[name], ignore=shutil.ignore_patterns("SHA256SUMS"))
    settings = json.loads((policy / "config.json").read_text())
    (made["llama"] / "config.json").write_text(json.dumps(settings | {"model_type": "llama"}))
    (made["shardless"] / "model.safetensors").unlink()
    index = {"weight_map": {"projector.fc1.weight": "model-00001-of-00002.safetensors"}}
    (made["shardless"] / "model.safetensors.index.json").write_text(json.dumps(index))
    weights = (policy / "model.safetensors").read_bytes()
    (made["damaged"] / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    made["empty"].mkdir()
    shutil.copytree(demos, made["truncated"])
    (store,) = made["truncated"].rglob("*.h5")
    store.write_bytes(store.read_bytes()[:5000])
    adapter = OpenVLA.from_pretrained(policy).add_lora(2, 4, generator=torch.Generator().manual_seed(0))
    made["adapter"] = root / "adapter"
    adapter.save_pretrained(made["adapter"])
    made["drawers"] = write_store(root / "drawers", [random_demonstration(0, task="open_top_drawer")])
    return made


SFT = "sft policy={policy} demos={demos}"
CASES = {
    "unknown environment": ("rl env=pick_cam", "unknown env 'pick_cam'. Did you mean pick_can?"),
    "unknown key": (f"{SFT} lerning_rate=1", "unknown key 'lerning_rate' for sft. Did you mean learning_rate"),
    "bad grid": ("rl grid=5by5", "bad value grid=5by5: expected columns x rows"),
    "bad number": ("rl learning_rate=fast", "bad value learning_rate=fast: expected a number above 0"),
    "unknown policy": ("rl policy=/nowhere/at-all", "/nowhere/at-all: no such checkpoint folder"),
    "no policy that learns": ("sft policy=scripted demos={demos}", "policy=scripted: it acts, but has no distribution"),
    "empty checkpoint": ("rl policy={empty}", "no config.json here"),
    "neither OpenVLA nor RT-1": (
        "eval robot=google_robot policy={empty}",
        "RT-1's SavedModel would hold saved_model.pb",
    ),
    "another architecture": ("rl policy={llama}", "model_type is 'llama', not 'openvla'"),
    "missing shard": ("rl policy={shardless}", "model-00001-of-00002.safetensors"),
    "damaged weights": ("rl policy={damaged}", "damaged or cut short"),
    "wrong norm key": ("rl policy={policy} unnorm_key=bridge", "no action statistics 'bridge'"),
    "an adapter on an adapter": ("rl policy={adapter} lora_rank=2", "is an adapter already"),
    "no demonstrations named": ("sft policy={policy}", "sft needs demonstrations: demos=DIR"),
    "no demonstrations there": ("sft policy={policy} demos={empty}", "holds no demonstrations"),
    "truncated demonstrations": ("sft policy={policy} demos={truncated}", "not a whole HDF5 file"),
    "demonstrations of another task": ("sft policy={policy} demos={drawers}", "expected task pick_can, found open_top"),
    "demonstrations of another camera": (f"{SFT} env.cameras=[wrist]", "expected camera wrist, found workspace_camera"),
    "demonstrations of another size": (f"{SFT} env.make.image_size=[32,32]", "expected image size (32, 32)"),
    "a task that there is not": (
        "rl env.tasks=[foo]",
        "env.tasks=[foo]: expected some of what vla_razor/PickCan-v2 has",
    ),
    "a task of another scene": ("eval env=drawer env.tasks=[open_top_drawer,pick_can]", "each once: open_top_drawer,"),
    "a task of another scene in the original": (
        "collect robot=simpler_env env.tasks=[open_top_drawer]",
        "expected some of what vla_razor/SimplerPickCan-v1 has, each once: pick_can.",
    ),
    "a task twice": ("eval env.tasks=[pick_can,pick_can]", "env.tasks=[pick_can,pick_can]: expected"),
    "no task": ("eval env.tasks=[]", "env.tasks=[]: expected"),
    "several scenes to learn": ("rl env=all", "rl takes one scene"),
    "the same policy twice": ("eval policy={policy} against={policy}", "give different policies"),
    "an area of no numbers": ("collect env.grid.x=[a,b]", "env.grid.x=['a', 'b']: expected two numbers"),
    "an area of three ends": ("collect env.grid.x=[0.3,-0.3,1]", "env.grid.x=[0.3, -0.3, 1]: expected two numbers"),
    "an area beside the table": (
        "collect grid=1x1 num_envs=1 env.grid.x=[5,6]",
        "a start is refused, see env.grid: reset option object_xy is (5.5, 0.0); expected a place on the table",
    ),
    "a list of variants": ("collect robot=google_robot env.make.variant=[x]", "variant is ['x']; expected one of"),
    "one side of pictures": ("collect env.make.image_size=[512]", "image_size is [512]; expected height and width"),
    "no word for a photograph": (
        "collect robot=google_robot env.make.overlay=maybe",
        "overlay is 'maybe'; expected True, False or None",
    ),
    "an unknown setting of a demo's run": ("demo sft.epoch=1,2", "unknown key 'sft.epoch' for sft and sft_far and rl"),
    "a demo's seeds as before": (
        "demo seeds=[0,1]",
        "unknown key 'seeds' for demo, which earlier versions had. Say seed=0",
    ),
    "a demo's runs as before": ("demo sft_runs=[{{epochs:1}}]", "Say sft.learning_rate=1e-4,3e-4 or any other"),
    "checkpoints without a measure": (
        "demo rl.save_every=3 rl.probe_every=2",
        "probe_every=2 must divide save_every=3",
    ),
}


@pytest.mark.parametrize(("line", "message"), CASES.values(), ids=CASES)
def test_bad_input(things: dict[str, Path], tmp_path: Path, line: str, message: str) -> None:
    verb, *arguments = (word.format(**things) for word in line.split())
    out = tmp_path / "run"
    quiet = QUIET if verb in ("sft", "rl") else QUIET[:2]
    result = CliRunner().invoke(cli.app, [verb, *quiet, *arguments, f"out={out}"])
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stderr.startswith("vla-razor: ")
    assert result.stderr.count("vla-razor: ") == 1
    assert "Traceback" not in result.output
    assert not out.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_missing_device(policy: Path, tmp_path: Path) -> None:
    arguments = ["rl", f"policy={policy}", "device=cuda", f"out={tmp_path / 'run'}"]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 2
    assert result.stderr == "vla-razor: device=cuda: there is no CUDA device here; use device=cpu.\n"


@pytest.mark.parametrize("verb", ["eval", "collect"])
@pytest.mark.parametrize(("device", "message"), [("h100", "is for dry_run=true"), ("cuda", "no CUDA device here")])
def test_a_missing_device_is_refused_to_the_expert_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, device: str, message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments = [verb, "policy=scripted", f"device={device}", f"out={tmp_path / 'run'}"]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith(f"vla-razor: device={device}")
    assert message in result.stderr
    assert not (tmp_path / "run").exists()


def sft(out: Path, policy: Path, demos: Path, *more: str) -> list[str]:
    return ["sft", *QUIET, f"policy={policy}", f"demos={demos}", "batch_size=24", f"out={out}", *more]


def test_a_run_folder_is_never_overwritten(policy: Path, demos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    invoke = CliRunner().invoke
    assert invoke(cli.app, sft(out, policy, demos)).exit_code == 0
    written = (out / "summary.json").read_bytes()
    again, resumed = invoke(cli.app, sft(out, policy, demos)), invoke(cli.app, ["resume", str(out)])
    assert (again.exit_code, resumed.exit_code) == (2, 2)
    assert again.stderr == f"vla-razor: {out} holds a finished run: choose another out=.\n"
    assert "has finished" in resumed.stderr
    (out / "summary.json").unlink()
    unfinished = invoke(cli.app, sft(out, policy, demos))
    assert unfinished.exit_code == 2
    assert f"go on with: vla-razor resume {out}" in unfinished.stderr
    assert invoke(cli.app, ["resume", str(out)]).exit_code == 0
    assert json.loads(written)["policies"] == json.loads((out / "summary.json").read_text())["policies"]


@pytest.mark.parametrize("verb", ["sft", "resume"])
def test_a_second_process_on_a_run_folder_is_refused(policy: Path, demos: Path, tmp_path: Path, verb: str) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "config.yaml").write_text("verb: sft\n")
    with FileLock(out / ".lock"):
        arguments = sft(out, policy, demos) if verb == "sft" else ["resume", str(out)]
        result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 2
    assert f"another process is writing to {out}" in result.stderr


def test_a_folder_of_something_else_is_left_alone(policy: Path, demos: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear reader")
    result = CliRunner().invoke(cli.app, sft(tmp_path, policy, demos))
    assert result.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_full_disk_leaves_the_earlier_checkpoint(
    policy: Path, demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, save = tmp_path / "run", OpenVLA.save_pretrained

    def full(model: OpenVLA, folder: Path) -> None:
        save(model, folder)
        if (out / "checkpoints").is_dir() and list((out / "checkpoints").glob("step_*")):
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(OpenVLA, "save_pretrained", full)
        result = CliRunner().invoke(cli.app, sft(out, policy, demos, "save_every=1"))
    assert result.exit_code == 1
    assert "out of disk" in result.stderr
    assert f"vla-razor resume {out}" in result.stderr
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step_1"]
    assert CliRunner().invoke(cli.app, ["resume", str(out)]).exit_code == 0
    assert [row["step"] for row in metrics(out)] == [1, 2]


@pytest.mark.slow
def test_no_vulkan(policy: Path, tmp_path: Path, vla_razor: CommandLine) -> None:
    out = tmp_path / "run"
    arguments = ["rl", *QUIET, f"policy={policy}", "num_envs=2", "num_workers=1", f"out={out}"]
    refused = vla_razor.run(*arguments, status=2, VK_DRIVER_FILES="/nowhere.json")
    assert "Vulkan" in refused.stderr
    assert refused.stderr.count("vla-razor: ") == 1
    assert "Traceback" not in refused.stderr
    assert not out.exists()
