"""How fast OpenVLA acts: actions a second by batch size, against a loop at batch 1 and against the machine; and beside
OpenVLA-OFT of the same size, which decides eight control steps in one pass.

The bound is the machine's matrix multiplication rate, measured here in float32 with the same number of threads, divided
by the floating-point operations of one action (counted by torch: linear layers, convolutions, attention). Times are the
best of several runs, because other processes can only slow a run down; they are taken in turns, so that a busy spell of
the machine hits the loop, the batches and the bound alike.

    python scripts/bench/policy.py [--models tiny mid oft] [--batches 1 4 16 64] [--threads 2] [--json]
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vla_razor.policies import load
from vla_razor.policies.openvla import OpenVLA, OpenVLAConfig, Processor
from vla_razor.policies.openvla.prismatic import PrismaticVLA
from vla_razor.policies.openvla.tiny import make_tiny, make_tokenizer, preprocessor_settings
from vla_razor.policies.openvla_oft.tiny import make_tiny_oft

INSTRUCTIONS = ("open top drawer", "close middle drawer", "pick coke can")
TURNS = 3
TARGET_BATCH = 16
TARGET_SPEEDUP = 6.0
TARGET_SHARE = 0.6
_SMALL = {"patch_size": 14, "embed_dim": 384, "depth": 12, "num_heads": 6}


@register_model
def vla_razor_bench_dino_small(pretrained: bool = False, **overrides: Any) -> VisionTransformer:
    """DINOv2's small transformer with registers."""
    return _small(init_values=1.0, reg_tokens=4, no_embed_class=True, **overrides)


@register_model
def vla_razor_bench_siglip_small(pretrained: bool = False, **overrides: Any) -> VisionTransformer:
    """A SigLIP of the same size."""
    return _small(class_token=False, global_pool="", **overrides)


def _small(**arguments: Any) -> VisionTransformer:
    hub = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
    return VisionTransformer(**_SMALL, **{k: v for k, v in arguments.items() if k not in hub})


def make_mid() -> PrismaticVLA:
    """A random policy between the embedded one and OpenVLA-7B: hidden 1,024, eight layers, 224 pixels, fused ViTs."""
    tokenizer = make_tokenizer(INSTRUCTIONS)
    raw = {
        "model_type": "openvla",
        "vision_backbone_id": "dinosiglip-vit-so-224px",
        "timm_model_ids": ["vla_razor_bench_dino_small", "vla_razor_bench_siglip_small"],
        "trailing_token_id": None,
        "text_config": {
            "vocab_size": 32064,
            "pad_token_id": 32000,
            "hidden_size": 1024,
            "intermediate_size": 2816,
            "num_hidden_layers": 8,
            "num_attention_heads": 16,
        },
    }
    processor = Processor(preprocessor_settings(224), tokenizer)
    return OpenVLA.from_config(OpenVLAConfig.from_dict(raw), processor, torch.Generator().manual_seed(0))


def embedded() -> PrismaticVLA:
    """The policy that ships with the package; one of its shape where it has not been made yet."""
    if load.TINY.is_dir():
        return load.load_model("tiny")
    return make_tiny(INSTRUCTIONS, torch.Generator().manual_seed(0))


def gemm_rate(seconds: float) -> float:
    """Floating-point operations a second of a 2,048-cubed float32 matrix product: the best of many."""
    size = 2048
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / best(lambda: torch.mm(a, b), seconds)


def best(call: Callable[[], Any], seconds: float) -> float:
    """The shortest time of `call`, in seconds, over as many runs as fit."""
    times: list[float] = []
    while not times or sum(times) < seconds:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def operations(act: Callable[[], Any]) -> float:
    """Floating-point operations of a call. The plain attention kernel is the one whose parts torch can count."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        act()
    return float(counter.get_total_flops())


def measure(model: PrismaticVLA, batches: list[int], seconds: float) -> dict[str, Any]:
    """Actions a second at each batch size and of the loop, and the bound."""
    pixels, prompts = inputs(model, max(*batches, TARGET_BATCH))

    def act(first: int, last: int) -> None:
        model.sample_actions(pixels[first:last], prompts[first:last], 1.0, torch.Generator().manual_seed(0))

    def loop() -> None:
        for i in range(TARGET_BATCH):
            act(i, i + 1)

    flops = operations(lambda: act(0, TARGET_BATCH)) / TARGET_BATCH
    rate, looped, per_batch = 0.0, 0.0, dict.fromkeys(batches, 0.0)
    for _ in range(TURNS):
        rate = max(rate, gemm_rate(seconds / TURNS))
        looped = max(looped, TARGET_BATCH / best(loop, seconds / TURNS))
        for size in batches:
            per_batch[size] = max(per_batch[size], size / best(lambda n=size: act(0, n), seconds / TURNS))
    bound = rate / flops
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "flops_per_action": flops,
        "gemm_flops_per_second": rate,
        "bound": bound,
        "loop": looped,
        "actions_per_second": per_batch,
        "speedup": {size: found / looped for size, found in per_batch.items()},
        "share_of_bound": {size: found / bound for size, found in per_batch.items()},
    }


def beside_oft(batches: list[int], seconds: float) -> dict[str, Any]:
    """Control steps decided a second at each batch size by OpenVLA and by OpenVLA-OFT of the embedded shape, both with
    random weights, in turns.
    """
    models: dict[str, PrismaticVLA] = {
        "OpenVLA": make_tiny(INSTRUCTIONS, torch.Generator().manual_seed(0)),
        "OpenVLA-OFT": make_tiny_oft(INSTRUCTIONS, torch.Generator().manual_seed(0)),
    }
    found = {name: dict.fromkeys(batches, 0.0) for name in models}
    for _ in range(TURNS):
        for size in batches:
            for name, model in models.items():
                seen = inputs(model, size)
                call = partial(model.sample_actions, *seen, 1.0, torch.Generator().manual_seed(0))
                rate = model.chunk * size / best(call, seconds / TURNS)
                found[name][size] = max(found[name][size], rate)
    ratio = {size: found["OpenVLA-OFT"][size] / found["OpenVLA"][size] for size in batches}
    return {"control_steps_per_second": found, "ratio": ratio}


def show_oft(console: Console, result: dict[str, Any]) -> None:
    found = result["control_steps_per_second"]
    table = Table(title="control steps decided a second, of the embedded shape")
    for column in ("batch", *found, "ratio"):
        table.add_column(column, justify="right")
    for size, ratio in result["ratio"].items():
        table.add_row(str(size), *(f"{rates[size]:.4g}" for rates in found.values()), f"{ratio:.1f}")
    console.print(table)


def inputs(model: PrismaticVLA, batch: int) -> tuple[Tensor, list[list[int]]]:
    size = model.config.image_sizes[0]
    images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    return model.processor.pixel_values(images), model.processor.prompt_ids([INSTRUCTIONS[-1]] * batch)


def judge(name: str, result: dict[str, Any]) -> dict[str, Any] | None:
    """The issue's target at batch 16: a share of the bound; for the tiny policy, or a speed-up if that is lower."""
    if TARGET_BATCH not in result["actions_per_second"]:
        return None
    share = TARGET_SHARE * result["bound"]
    needed = min(share, TARGET_SPEEDUP * result["loop"]) if name == "tiny" else share
    found = result["actions_per_second"][TARGET_BATCH]
    return {"needed": needed, "found": found, "met": found >= needed}


def show(console: Console, name: str, result: dict[str, Any]) -> None:
    size, flops = result["parameters"] / 1e6, result["flops_per_action"] / 1e9
    console.print(f"{name}: {size:.1f}M parameters, {flops:.3g} GFLOP an action")
    rate, bound = result["gemm_flops_per_second"] / 1e9, result["bound"]
    console.print(f"float32 matrix product: {rate:.0f} GFLOP/s, hence the bound: {bound:.4g} actions/s")
    table = Table()
    for column in ("batch", "actions/s", "ms an action", "x loop", "of the bound"):
        table.add_column(column, justify="right")
    for batch, found in [("loop of 1", result["loop"]), *result["actions_per_second"].items()]:
        shares = (f"{found / result['loop']:.2f}", f"{found / result['bound']:.0%}")
        table.add_row(str(batch), f"{found:.4g}", f"{1e3 / found:.3g}", *shares)
    console.print(table)
    if verdict := result["target"]:
        word = "met" if verdict["met"] else "missed"
        console.print(f"target at batch {TARGET_BATCH}: {verdict['needed']:.4g} actions/s, {word}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=("tiny", "mid", "oft"), default=["tiny", "mid", "oft"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 16, 64])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=5.0, help="spent on each figure, at least a run a turn")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    console = Console()
    report: dict[str, Any] = {"threads": arguments.threads, "torch": torch.__version__, "machine": platform.machine()}
    console.print(f"{arguments.threads} threads\n")
    for name in arguments.models:
        if name == "oft":
            report[name] = beside_oft(arguments.batches, arguments.seconds)
            show_oft(console, report[name])
            continue
        model = embedded() if name == "tiny" else make_mid()
        report[name] = result = measure(model, arguments.batches, arguments.seconds)
        result["target"] = judge(name, result)
        show(console, name, result)
    if arguments.json:
        print(json.dumps(report))


if __name__ == "__main__":
    main()
