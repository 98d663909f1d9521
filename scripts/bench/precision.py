"""Whether a policy learns in mixed precision as it does in float32: SFT of the embedded policy at three learning rates.

In one run, on the same batches in the same order: the loss on the demonstrations before, and after so many updates of
the trainer with `dtype=float32` and with `dtype=bfloat16` (what learns and its moments in float32, products in
bfloat16), both evaluated in float32. Held in bfloat16 itself, no weight could follow the paper's smallest rates.

As in the paper's single epoch, no state is met twice where there are enough: what is learnt by heart in many epochs
depends on every last digit, in float32 too.

    python scripts/bench/precision.py [--demos DIR] [--updates 200] [--rates 1e-6 1e-5 1e-4] [--lora] [--json]

Without demonstrations it collects 700 with the scripted expert, in the simulator, some minutes. With `--lora`
adapters of rank 32 learn instead of all weights.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from vla_razor.config import compose
from vla_razor.policies.load import load_model
from vla_razor.policies.openvla.policy import PrismaticPolicy
from vla_razor.policies.openvla.prismatic import PrismaticVLA
from vla_razor.rollouts import demonstrations
from vla_razor.rollouts.demonstrations import Demonstrations
from vla_razor.runs import Run
from vla_razor.training.algorithms import sft, supervised
from vla_razor.training.base import open_policies
from vla_razor.training.trainer import Trainer
from vla_razor.verbs.learn import collect

DTYPES = ("float32", "bfloat16")
EVALUATED = 1000
TARGET = 0.02
"""By how much the two losses may differ, as a share of float32's."""


def collected(folder: Path) -> Path:
    """Demonstrations of the can, seven from each of 100 positions: some 6,700 states, and 200 updates take 6,400."""
    words = ["policy=scripted", "grid=10x10", "per_point=7", "device=cpu", "logger=none"]
    settings = compose("collect", [*words, f"out={folder}"])
    with Run.create(folder, settings, "collect") as run:
        collect.run(run.config, run)
    return folder


def settings_of(arguments: argparse.Namespace, dtype: str, rate: float) -> DictConfig:
    """Those of the paper's experiment, but for the policy and the device: one rate for all parameters, vision too."""
    words = [f"policy={arguments.policy}", "device=cpu", "logger=none", "train_vision=true", "gain_learning_rate=null"]
    words += ["betas=[0.9,0.999]", "eps=1e-8", f"lora_rank={32 if arguments.lora else 0}"]
    words += [f"dtype={dtype}", f"learning_rate={rate}", f"batch_size={arguments.batch_size}", "probe_every=0"]
    return compose("sft", words)


def trained(config: DictConfig, data: Demonstrations, updates: int, folder: Path) -> PrismaticVLA:
    """The policy after so many updates, as `vla-razor sft` makes them, in float32."""
    with Run.create(folder / "run", config, "sft") as run:
        policy, _ = open_policies(config, run)
    tokens = policy.tokenize(data.actions, data.episode)
    trainer = Trainer(policy, config, updates)
    while not trainer.done:
        rows = sft.batch(config, trainer.step, len(tokens), len(tokens))
        supervised.learn(policy, trainer, config, data, tokens, rows)
    policy.save(folder / "policy")
    return load_model(folder / "policy")


@torch.no_grad()
def loss_of(model: PrismaticVLA, data: Demonstrations, batch_size: int = 64) -> float:
    """Cross-entropy on a thousand states of the demonstrations (or all), in nats a token, at the policy's own
    temperature.
    """
    policy = PrismaticPolicy(model)
    tokens = policy.tokenize(data.actions, data.episode)
    chosen, total = torch.arange(0, len(tokens), max(1, len(tokens) // EVALUATED)), 0.0
    for rows in chosen.split(batch_size):
        seen = data.observations[rows.numpy()]
        said = policy.distribution(policy.views(seen), policy.prompt_ids(seen.instructions), tokens[rows])
        total += float(said.cross_entropy(tokens[rows])) * len(rows)
    return total / len(chosen)


def measure(arguments: argparse.Namespace, data: Demonstrations) -> list[dict[str, Any]]:
    """Loss before and after, in both precisions, and the ratio of the latter, at each rate."""
    before = loss_of(load_model(arguments.policy), data)
    results = []
    for rate in arguments.rates:
        row: dict[str, Any] = {"learning_rate": rate, "before": before}
        for dtype in DTYPES:
            begin = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                config = settings_of(arguments, dtype, rate)
                row[dtype] = loss_of(trained(config, data, arguments.updates, Path(folder)), data)
            row[f"seconds_{dtype}"] = time.perf_counter() - begin
        row["ratio"] = row["bfloat16"] / row["float32"]
        row["met"] = abs(row["ratio"] - 1) <= TARGET
        results.append(row)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demos", type=Path, help="folder that vla-razor collect wrote")
    parser.add_argument("--policy", default="tiny")
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-6, 1e-5, 1e-4])
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        demos = arguments.demos or collected(Path(folder) / "demos")
        data = demonstrations.load(demos, compose("sft").env)
    results = measure(arguments, data)
    what = "adapters of rank 32" if arguments.lora else "all weights"
    table = Table(title=f"Loss after {arguments.updates} updates of {what} (before: {results[0]['before']:.4f})")
    for column in ("learning rate", "float32", "bfloat16", "ratio", f"within {TARGET:.0%}"):
        table.add_column(column, justify="right")
    for row in results:
        cells = (f"{row['float32']:.4f}", f"{row['bfloat16']:.4f}", f"{row['ratio']:.4f}", str(row["met"]))
        table.add_row(f"{row['learning_rate']:g}", *cells)
    Console().print(table)
    if arguments.json:
        facts = {"updates": arguments.updates, "lora": arguments.lora, "states": len(data.actions)}
        print(json.dumps({**facts, "target": TARGET, "results": results}))


if __name__ == "__main__":
    main()
