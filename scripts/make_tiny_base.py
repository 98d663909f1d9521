"""Makes the embedded base policy `tiny` from nothing: demonstrations, vision warm-up, behaviour cloning, evaluation.

    .venv/bin/python scripts/make_tiny_base.py --out build/tiny_base

The real OpenVLA starts from vision stacks and a language model trained elsewhere. What stands in for that here is a
warm-up in which the whole network regresses, from the position that will predict the first action token, where things
are and what the expert would do; without it, cloning never learns to look. Cloning then sees many drawer
demonstrations and few of pick-can: a base with something to learn and something to forget. Stages are kept in the
output folder, so that a killed run goes on with the last finished one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional

from vla_razor.config import compose, scenes
from vla_razor.policies import Decisions
from vla_razor.policies.openvla.model import OpenVLA
from vla_razor.policies.openvla.policy import OpenVLAPolicy
from vla_razor.policies.openvla.tiny import make_tiny
from vla_razor.policies.scripted import ScriptedExpert
from vla_razor.policies.scripted_panda import ROTATION, TRANSLATION
from vla_razor.rollouts.rollout import make_vector_env, rollout
from vla_razor.rollouts.starts import random_starts
from vla_razor.statistics import Rate, wilson

KEY = "vla_razor_panda"
LIMITS = np.array([TRANSLATION] * 3 + [ROTATION] * 3 + [1.0])
DRAWERS = [f"{verb}_{drawer}_drawer" for verb in ("open", "close") for drawer in ("top", "middle", "bottom")]
REACH = 0.1  # metres: the scale of the warm-up's position targets
console = Console()


@dataclass
class Frames:
    """N observations: images uint8 [N, H, W, 3], instructions by index, the expert's actions [N, 7] and the target
    seen from the gripper [N, 3].
    """

    images: np.ndarray
    instruction: np.ndarray
    actions: np.ndarray
    offsets: np.ndarray
    names: list[str]

    def __len__(self) -> int:
        return len(self.images)

    def of(self, keep: np.ndarray) -> Frames:
        return Frames(self.images[keep], self.instruction[keep], self.actions[keep], self.offsets[keep], self.names)


class PrivilegedExpert(ScriptedExpert):
    """The expert, whose labels also hold where the target is, seen from the gripper, in metres."""

    def act(
        self,
        images: Any,
        instructions: list[str],
        infos: list[dict[str, Any]],
        generators: Sequence[np.random.Generator],
        memories: Any = None,
    ) -> Decisions:
        decisions = super().act(images, instructions, infos, generators)
        offsets = np.stack([info["target_pose"][:3] - info["tcp_pose"][:3] for info in infos])
        return decisions._replace(labels=np.concatenate([self.clean_actions, offsets], axis=1))


def progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    )


def kept(path: Path, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays in `path`, made and written (aside, then renamed) where it does not exist."""
    if not path.is_file():
        arrays = make()
        aside = path.with_suffix(".partial.npz")
        np.savez(aside, **arrays)  # pyright: ignore[reportArgumentType]
        aside.rename(path)
    return dict(np.load(path))


def demonstrate(arguments: argparse.Namespace) -> dict[str, np.ndarray]:
    """Demonstrations of every task; `episode` tells frames of one from another, `success` which ended well."""
    noisy = PrivilegedExpert(arguments.noise)
    columns: dict[str, list[Any]] = {name: [] for name in ("images", "instruction", "labels", "episode", "success")}
    names = [*(task.replace("_", " ") for task in DRAWERS), "pick coke can"]
    for scene in scenes(compose("eval", ["env=all"]).env):
        count = arguments.can_frames if scene.name == "pick_can" else arguments.drawer_frames
        shown = [task for task in scene.tasks if task not in arguments.without]
        starts = random_starts(shown, count, arguments.seed + 10_000)
        with closing(make_vector_env(scene, 24, 2, "cpu")) as envs, progress() as bar:
            task = bar.add_task(f"demonstrations of {scene.name}", total=len(starts))
            episodes, timing = rollout(
                envs,
                noisy,
                starts,
                hold=1,
                seed=arguments.seed,
                progress=lambda _, bar=bar, task=task: bar.advance(task),
            )
        console.print(
            f"{scene.name}: {sum(e.success_once for e in episodes)} of {len(episodes)}, "
            f"{timing.steps_per_second:.0f} steps/s"
        )
        for index, episode in enumerate(episodes):
            rows = episode.length
            columns["images"].append(episode.images)
            columns["labels"].append(episode.labels)
            columns["instruction"].append(np.full(rows, names.index(episode.instruction)))
            columns["episode"].append(np.full(rows, index))
            columns["success"].append(np.full(rows, episode.success_once))
    return {name: np.concatenate(parts) for name, parts in columns.items()} | {"names": np.array(names)}


def pixels_of(model: OpenVLA, images: np.ndarray, generator: torch.Generator) -> Tensor:
    """Pixels of images that have the policy's own size, each shifted by up to two pixels."""
    size = images.shape[1]
    whole = torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255)
    padded = functional.pad(whole, (2, 2, 2, 2), mode="replicate")
    shifts = torch.randint(5, (len(images), 2), generator=generator).tolist()
    moved = torch.stack(
        [image[:, dy : dy + size, dx : dx + size] for image, (dy, dx) in zip(padded, shifts, strict=True)]
    )
    return torch.cat([transform.normalize(moved) for transform in model.processor.transforms], dim=1)


def batches(frames: Frames, size: int, steps: int, generator: torch.Generator) -> Iterator[np.ndarray]:
    """Index batches, without replacement within an epoch."""
    order = np.zeros(0, int)
    for _ in range(steps):
        if len(order) < size:
            order = np.concatenate([order, torch.randperm(len(frames), generator=generator).numpy()])
        yield order[:size]
        order = order[size:]


def optimize(
    parameters: list[nn.Parameter],
    rate: float,
    steps: int,
    losses: Iterator[Tensor],
    label: str,
    after: Callable[[], None] | None = None,
) -> None:
    """AdamW under a cosine schedule with a short warm-up, gradients clipped to norm 1."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * step / steps)))
    )
    begin, recent = time.time(), []
    with progress() as bar:
        task = bar.add_task(label, total=steps)
        for step, loss in enumerate(losses):
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            if after:
                after()
            recent.append(loss.item())
            bar.advance(task)
            if (step + 1) % 100 == 0:
                console.print(
                    f"{label} {step + 1}/{steps}: loss {np.mean(recent[-100:]):.4f}, {time.time() - begin:.0f} s"
                )


def warm_up(model: OpenVLA, frames: Frames, arguments: argparse.Namespace, generator: torch.Generator) -> None:
    """Regress the target's place and the expert's action from the projected patches."""
    width = model.config.text["hidden_size"]
    head = nn.Sequential(
        nn.Flatten(), nn.Linear(model.vision_backbone.num_patches * width, 256), nn.GELU(), nn.Linear(256, 10)
    )
    targets = torch.tensor(
        np.concatenate([frames.actions / LIMITS, frames.offsets / REACH], axis=1), dtype=torch.float32
    )

    def losses() -> Iterator[Tensor]:
        for rows in batches(frames, arguments.batch_size, arguments.warm_up_steps, generator):
            patches = model.projector(model.vision_backbone(pixels_of(model, frames.images[rows], generator)))
            yield functional.smooth_l1_loss(head(patches), targets[rows], beta=0.1)

    seen = [*model.vision_backbone.parameters(), *model.projector.parameters(), *head.parameters()]
    optimize(seen, arguments.warm_up_rate, arguments.warm_up_steps, losses(), "warm-up")


def clone(
    model: OpenVLA, frames: Frames, steps: int, arguments: argparse.Namespace, generator: torch.Generator
) -> None:
    """Cross-entropy on the action tokens, smoothed over neighbouring bins; the weights kept are a moving average."""
    prompts = model.processor.prompt_ids(frames.names)
    tokens = model.tokenize(frames.actions, KEY)
    bins = torch.arange(256)
    average = {name: value.detach().clone() for name, value in model.named_parameters()}

    def losses() -> Iterator[Tensor]:
        for rows in batches(frames, arguments.batch_size, steps, generator):
            pixels = pixels_of(model, frames.images[rows], generator)
            logits = model.action_logits(pixels, [prompts[i] for i in frames.instruction[rows]], tokens[rows])
            near = (bins - (tokens[rows] - model.config.first_action_id)[..., None]).float()
            targets = torch.softmax(-0.5 * (near / arguments.smoothing) ** 2, dim=-1)
            yield functional.cross_entropy(logits.flatten(0, 1), targets.flatten(0, 1))

    def update() -> None:
        with torch.no_grad():
            for name, value in model.named_parameters():
                average[name].lerp_(value, 0.01)

    optimize(list(model.parameters()), arguments.clone_rate, steps, losses(), "cloning", update)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(average[name])


def evaluate(model: OpenVLA, episodes: int, seed: int) -> dict[str, Rate]:
    """Success of every task at the policy's own temperature, with Wilson intervals."""
    results: dict[str, Rate] = {}
    for scene in scenes(compose("eval", ["env=all"]).env):
        starts = random_starts(scene.tasks, episodes, seed)
        with closing(make_vector_env(scene, 24, 2, "cpu")) as envs:
            done, timing = rollout(envs, OpenVLAPolicy(model, KEY), starts, hold=1, seed=seed)
        console.print(
            f"{scene.name}: {timing.steps_per_second:.0f} steps/s, "
            f"policy {timing.policy:.1f} s of {timing.seconds:.1f} s"
        )
        for task in scene.tasks:
            ours = [episode for episode in done if episode.start.task == task]
            results[task] = wilson(sum(e.success_once for e in ours), len(ours))
    return results


CARD = """---
license: apache-2.0
pipeline_tag: robotics
---
# tiny: the embedded base policy of vla-razor

OpenVLA's architecture ({parameters:,} parameters: two fused vision transformers of 96 channels on 64 x 64 images, a
three-layer Llama decoder of 128
channels, seven action tokens of 256 bins), trained from nothing on simulated demonstrations. It opens and closes
drawers well and picks a can sometimes: something to forget, and something to learn.

- Made by `scripts/make_tiny_base.py` (seed {seed}): {drawer_frames} scripted demonstrations of each of {drawers}
  and {can_demonstrations} of pick-can (upright can), disturbed in {noise:.0%} of their steps and labelled with
  the undisturbed action. A warm-up of {warm_up_steps} steps regresses the target's place and the expert's action (it
  also sees {can_frames} pick-can episodes); {steps} steps of cloning follow. It stands for nothing but itself:
  no real robot should run it.
- Temperature {temperature}: rollouts, likelihoods and divergences all use it.
- Robot: the Panda of `vla_razor/PickCan-v1` and `vla_razor/Drawer-v1`; action statistics under the key `{key}`.

Success before the horizon, at the policy's own temperature, from random starts (Wilson 95%):

| task | successes | rate |
|---|---|---|
{table}
"""


def card(model: OpenVLA, results: dict[str, Rate], arguments: argparse.Namespace) -> str:
    rows = [
        f"| {task} | {r['successes']} of {r['episodes']} | {r['rate']:.2f} [{r['low']:.2f}, {r['high']:.2f}] |"
        for task, r in results.items()
    ]
    return CARD.format(
        parameters=sum(p.numel() for p in model.parameters()),
        key=KEY,
        steps=sum(arguments.clone_steps),
        drawers=f"the drawer tasks but {', '.join(arguments.without)}" if arguments.without else "the six drawer tasks",
        table="\n".join(rows),
        **vars(arguments),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=str(__doc__).splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the stages; the checkpoint is its `tiny`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--drawer-frames", type=int, default=220, help="demonstrations of each drawer task")
    parser.add_argument(
        "--without", nargs="+", choices=DRAWERS, default=[], help="drawer tasks it is never shown, to be learned later"
    )
    parser.add_argument("--can-frames", type=int, default=700, help="pick-can episodes seen by the warm-up")
    parser.add_argument("--can-demonstrations", type=int, default=250, help="pick-can episodes that are cloned")
    parser.add_argument("--noise", type=float, default=0.5, help="share of disturbed steps in the demonstrations")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--warm-up-steps", type=int, default=1500)
    parser.add_argument("--warm-up-rate", type=float, default=2e-3)
    parser.add_argument("--clone-steps", type=int, nargs="+", default=[1500, 2500], help="steps of each cosine cycle")
    parser.add_argument("--clone-rate", type=float, default=1e-3)
    parser.add_argument(
        "--smoothing", type=float, default=2.0, help="standard deviation of the cloned targets, in bins"
    )
    parser.add_argument("--temperature", type=float, default=0.4)
    parser.add_argument("--episodes", type=int, default=60, help="evaluation episodes of each task")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(arguments.seed)
    generator = torch.Generator().manual_seed(arguments.seed)

    data = kept(arguments.out / "demonstrations.npz", lambda: demonstrate(arguments))
    names = data["names"].tolist()
    frames = Frames(data["images"], data["instruction"], data["labels"][:, :7], data["labels"][:, 7:], names)
    console.print(f"{len(frames)} frames")

    limits = LIMITS.tolist()
    statistics = {"action": {"q01": [-x for x in limits], "q99": limits, "mask": [True] * 6 + [False]}}
    model = make_tiny(names, generator, norm_stats={KEY: statistics}, temperature=arguments.temperature)
    console.print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    warmed = arguments.out / "warmed"
    if warmed.is_dir():
        model = OpenVLA.from_pretrained(warmed)
    else:
        warm_up(model, frames, arguments, generator)
        model.save_pretrained(warmed)
    cloned = arguments.out / "tiny"
    if cloned.is_dir():
        model = OpenVLA.from_pretrained(cloned)
    else:
        can = frames.instruction == names.index("pick coke can")
        shown = data["success"] & (~can | (data["episode"] < arguments.can_demonstrations))
        for cycle in arguments.clone_steps:
            clone(model, frames.of(shown), cycle, arguments, generator)
        model.config.temperature = arguments.temperature
        model.save_pretrained(cloned)
    results = evaluate(model, arguments.episodes, seed=1)
    (cloned / "README.md").write_text(card(model, results, arguments))
    for task, rate in results.items():
        console.print(
            f"{task:22} {rate['successes']}/{rate['episodes']}  "
            f"{rate['rate']:.2f} [{rate['low']:.2f}, {rate['high']:.2f}]"
        )


if __name__ == "__main__":
    main()
