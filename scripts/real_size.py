"""OpenVLA-7B at its real size, with random weights: what it takes to load, to act, to learn and to be compared.

Writes a checkpoint of the exact shape (7,541,237,184 parameters in bfloat16 shards, the vision towers of timm by name,
a tokenizer of the right size; 15 GB in a folder of its own, deleted afterwards unless asked for) and runs the toolkit's
own code on it: load, decide, two decisions in one batch against each alone, one update of SFT and one of REINFORCE with
adapters of rank 32 and activations computed again, save and load the adapter, forward KL of the base and the tuned
policy. Each step tells its seconds and its peak memory; an update's is put beside what `dry_run` says.

The weights are random and scaled to their fan-in, so that what comes out means nothing but is finite.

    python scripts/real_size.py --folder SPACE [--device cuda] [--depth 32] [--keep] [--json real_size.json]

`--depth` takes fewer of the decoder's layers, where memory forbids 32. With `--device cuda` decisions are timed at
batches of 1 to 128, too. Peak memory on a CPU is that of the process, pages of the weights' files among it; on a GPU it
is what torch allocated. Ratios to what weights or a plan take leave out what Python and its libraries take before.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from tokenizers import AddedToken

from vla_razor.config import compose
from vla_razor.files import atomic_write
from vla_razor.policies import Observations
from vla_razor.policies.openvla import OpenVLA, checkpoint
from vla_razor.policies.openvla.config import OpenVLAConfig
from vla_razor.policies.openvla.policy import PrismaticPolicy
from vla_razor.policies.openvla.prismatic import on_meta
from vla_razor.policies.openvla.processor import Processor
from vla_razor.policies.openvla.tiny import make_tokenizer, preprocessor_settings
from vla_razor.public import forward_kl, load_policy
from vla_razor.rollouts.demonstrations import Demonstrations
from vla_razor.rollouts.rollout import Episode, Timing
from vla_razor.rollouts.starts import Start
from vla_razor.training.algorithms import reinforce, supervised
from vla_razor.training.base import opened
from vla_razor.training.penalties import Penalties
from vla_razor.training.trainer import Trainer, generator
from vla_razor.verbs.planning import plan
from vla_razor.verbs.planning.plan import PolicyFootprint

SHARD = 2_000_000_000
"""Bytes of a shard, and so of what is held while the checkpoint is written."""
INSTRUCTION = "pick coke can"
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
RANK = 32


class Meter:
    """Times steps and reads the peak of memory in each; a step is told as soon as it is over."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.rows = device, list[dict[str, Any]]()
        self.console = Console()
        self._forget()
        self.before = self.peak()
        """Bytes that Python and its libraries take before there is any model."""

    @contextmanager
    def step(self, name: str) -> Iterator[dict[str, Any]]:
        """What the step finds out goes into the dictionary."""
        found: dict[str, Any] = {}
        self._forget()
        begin = time.perf_counter()
        yield found
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        row = {"step": name, "seconds": time.perf_counter() - begin, "peak_bytes": self.peak(), **found}
        self.rows.append(row)
        said = "  ".join(f"{key} {_text(value)}" for key, value in found.items())
        line = f"{name:<44} {row['seconds']:9.1f} s {row['peak_bytes'] / 1e9:7.2f} GB  {said}"
        self.console.print(line, highlight=False, soft_wrap=True)

    def _forget(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # resets what Linux remembers as the peak

    def peak(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def described(depth: int) -> tuple[OpenVLAConfig, Processor]:
    """OpenVLA-7B's configuration, with action statistics of the Panda's robot so that it can act there, and a processor
    whose vocabulary is as large as Llama-2's.
    """
    raw = json.loads(json.dumps(plan.KNOWN["openvla/openvla-7b"]))
    raw["text_config"]["num_hidden_layers"] = depth
    limits = {"q01": [-0.05] * 3 + [-0.25] * 3 + [0.0], "q99": [0.05] * 3 + [0.25] * 3 + [1.0]}
    raw["norm_stats"] = {"vla_razor_panda": {"action": {**limits, "mask": [True] * 6 + [False]}}}
    tokenizer = make_tokenizer([INSTRUCTION, "open top drawer"])
    size = 32_000 - tokenizer.get_vocab_size()
    tokenizer.add_tokens([AddedToken(f"<unused{number}>") for number in range(size)])
    return OpenVLAConfig.from_dict(raw), Processor(preprocessor_settings(224), tokenizer)


def write(folder: Path, depth: int) -> int:
    """The checkpoint, a shard at a time. Returns its number of parameters."""
    config, processor = described(depth)
    model = on_meta(OpenVLA, config, processor)
    scale = (2.0 * depth) ** -0.5  # of what is added to the residual stream, so that it does not grow with depth
    draws = torch.Generator().manual_seed(0)
    index, shard, size, number, total = {}, dict[str, torch.Tensor](), 0, 1, 0

    def flush() -> None:
        nonlocal shard, size, number
        name = f"model-{number:05}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        index.update(dict.fromkeys(shard, name))
        shard, size, number = {}, 0, number + 1

    for name, empty in model.stored_tensors().items():
        shape, total = empty.shape, total + empty.numel()
        if name.endswith(".bias"):
            values = torch.zeros(shape, dtype=torch.bfloat16)
        elif empty.ndim < 2:
            values = torch.ones(shape, dtype=torch.bfloat16)  # gains, and LayerScale's
        else:
            std = empty[0].numel() ** -0.5 if "embed" not in name else 0.02
            std *= scale if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
            values = torch.empty(shape, dtype=torch.bfloat16).normal_(0.0, std, generator=draws)
        shard[name] = values
        size += values.nbytes
        if size >= SHARD:
            flush()
    flush()
    (folder / checkpoint.INDEX_FILE).write_text(
        json.dumps({"metadata": {"total_size": 2 * total}, "weight_map": index})
    )
    (folder / checkpoint.CONFIG_FILE).write_text(json.dumps(config.to_dict(), indent=2))
    processor.save(folder)
    return total


def observations(count: int) -> Observations:
    """Pictures, uint8 [count, 224, 224, 3], of nothing."""
    pictures = np.random.default_rng(0).integers(0, 256, (count, 224, 224, 3), dtype=np.uint8)
    return Observations({"camera": pictures}, [INSTRUCTION] * count, np.zeros((count, 1), np.float32))


def decide(policy: PrismaticPolicy, seen: Observations) -> Any:
    """A decision for each picture, each with random numbers of its own."""
    return policy.act(seen, [np.random.default_rng(number) for number in range(len(seen))])


def act(meter: Meter, folder: Path, device: torch.device) -> None:
    """Load in bfloat16, decide once, and compare a batch of two with each alone."""
    with meter.step("load, bfloat16") as found:
        policy = load_policy(folder, device=str(device), dtype="bfloat16")
        assert isinstance(policy, PrismaticPolicy)
        found["parameters"] = sum(parameter.numel() for parameter in policy.module.parameters())
    seen, weights = observations(max(BATCHES)), 2 * found["parameters"]
    with meter.step("decide, batch 1") as found:
        decide(policy, seen[:1])
        found["peak_to_weights"] = (meter.peak() - meter.before) / weights
    with meter.step("logits, two pictures alone"), torch.no_grad():
        alone = [_logits(policy, seen[row : row + 1]) for row in (0, 1)]
    with meter.step("logits, the two in one batch") as found, torch.no_grad():
        together = _logits(policy, seen[:2])
        found["largest_difference"] = float((together - torch.cat(alone)).abs().max())
        found["spread_of_logits"] = float(together.std())
    if device.type == "cuda":
        for batch in BATCHES:
            with meter.step(f"decide, batch {batch}, warm") as found:
                decide(policy, seen[:batch])
                torch.cuda.synchronize()
                begin = time.perf_counter()
                decide(policy, seen[:batch])
                torch.cuda.synchronize()
                found["decisions_per_second"] = batch / (time.perf_counter() - begin)


def _logits(policy: PrismaticPolicy, seen: Observations) -> torch.Tensor:
    tokens = torch.full((len(seen), policy.num_tokens), policy.support.start)
    return policy.model.action_logits(policy.views(seen), policy.prompt_ids(seen.instructions), tokens)


def learn(meter: Meter, folder: Path, space: Path, device: torch.device) -> None:
    """One update of SFT and one of REINFORCE on the same adapter; its file; forward KL on two states."""
    asked = [f"policy={folder}", f"device={device}", "dtype=bfloat16", f"lora_rank={RANK}", "warmup_steps=0"]
    asked += ["gradient_checkpointing=true", "micro_batch_size=1", "eval_episodes=0", "env=pick_can"]
    settings = compose("sft", [*asked, "batch_size=1", "demos=none"])
    with meter.step("load, to train adapters") as found:
        policy = opened(str(folder), settings, learns=False)
        assert isinstance(policy, PrismaticPolicy)
        policy.add_lora(RANK, settings.lora_alpha, generator(0, "lora"))
        policy.recompute_activations()
        found["learns"] = sum(p.numel() for p in policy.module.parameters() if p.requires_grad)
    planned = plan.footprint(plan.model_of(settings), settings)
    seen, tokens = observations(2), torch.full((2, policy.num_tokens), policy.support.start + 128)
    actions = np.zeros((2, policy.num_tokens), np.float32)
    data = Demonstrations(seen, actions, np.arange(2))
    trainer = Trainer(policy, settings, 2)
    with meter.step("SFT, one update on one state") as found:
        told = supervised.learn(policy, trainer, settings, data, tokens, torch.tensor([0]))
        found |= {"loss": told["loss"], "grad_norm": told["grad_norm"], **_planned(meter, planned)}
    settings = compose("rl", [*asked, "grid=1x1", "per_point=2"])
    with meter.step("REINFORCE, one update on two decisions") as found:
        episodes = [_episode(seen[row : row + 1], tokens[row].numpy(), row == 0) for row in (0, 1)]
        told = reinforce.learn(policy, trainer, settings, episodes, Timing(), Penalties([]))
        found |= {"loss": told["loss"], "grad_norm": told["grad_norm"], **_planned(meter, planned)}
    with meter.step("forward KL(base || tuned), two states") as found:
        measured = forward_kl(None, policy, seen.image(), seen.instructions)
        found["nats_per_action"] = measured["per_action"]
    with meter.step("save the adapter") as found:
        policy.save(space / "adapter")
        found["bytes"] = sum(path.stat().st_size for path in (space / "adapter").iterdir())
    with torch.no_grad():
        before = _logits(policy, seen[:1])
    del policy, trainer
    with meter.step("load the adapter"):
        again = opened(str(space / "adapter"), settings, learns=False)
        assert isinstance(again, PrismaticPolicy)
    with meter.step("its logits") as found, torch.no_grad():
        found["largest_difference"] = float((_logits(again, seen[:1]) - before).abs().max())


def _planned(meter: Meter, planned: PolicyFootprint) -> dict[str, float]:
    """What `dry_run` says of an update's memory, and how far the measured peak is from it."""
    said = planned.update_peak(1)
    return {"planned_bytes": said, "peak_to_planned": (meter.peak() - meter.before) / said}


def _episode(seen: Observations, tokens: np.ndarray, success: bool) -> Episode:
    """One decision, and how it ended."""
    return Episode(
        start=Start("pick_can", grid_point=0),
        instruction=INSTRUCTION,
        observations=seen,
        actions=np.zeros((1, 7), np.float32),
        tokens=tokens[None],
        log_probs=np.full((1, len(tokens)), -5.0, np.float32),
        labels=None,
        success=np.array([success]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="an empty place for 16 GB")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--depth", type=int, default=32, help="layers of the decoder")
    parser.add_argument("--keep", action="store_true", help="leave the checkpoint, and take it if it is there")
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cpu" and sys.platform != "linux":
        parser.error("on a CPU, peak memory is read from /proc, which only Linux has")
    options.folder.mkdir(parents=True, exist_ok=True)
    model, meter = options.folder / f"openvla_random_{options.depth}", Meter(device)
    room = 2.2 * sum(empty.numel() for empty in on_meta(OpenVLA, *described(options.depth)).parameters())
    if not model.is_dir() and shutil.disk_usage(options.folder).free < room:
        parser.error(f"{options.folder}: {room / 1e9:.0f} GB must be free there")
    try:
        if not model.is_dir():
            aside = model.with_name(model.name + ".part")
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            with meter.step("write the checkpoint") as found:
                found["parameters"] = write(aside, options.depth)
            aside.replace(model)
        act(meter, model, device)
        learn(meter, model, options.folder, device)
    finally:
        shutil.rmtree(options.folder / "adapter", ignore_errors=True)
        if not options.keep:
            shutil.rmtree(model, ignore_errors=True)
    machine = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    table = Table("step", "seconds", "peak memory", "", title=f"{options.depth} decoder layers on {machine}")
    for row in meter.rows:
        rest = {key: value for key, value in row.items() if key not in ("step", "seconds", "peak_bytes")}
        said = ", ".join(f"{key} {_text(value)}" for key, value in rest.items())
        table.add_row(row["step"], f"{row['seconds']:.1f}", f"{row['peak_bytes'] / 1e9:.2f} GB", said)
    meter.console.print(table)
    if options.json:
        report = {"depth": options.depth, "device": machine, "threads": torch.get_num_threads(), "steps": meter.rows}
        atomic_write(options.json, (json.dumps(report, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
