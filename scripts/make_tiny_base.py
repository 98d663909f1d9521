"""Makes the embedded base policy `tiny` from nothing: demonstrations, vision warm-up, behaviour cloning, corrections of
what the clone does (DAgger), a teacher of less quality, evaluation.

    .venv/bin/python scripts/make_tiny_base.py --out build/tiny_base

The real OpenVLA starts from vision stacks and a language model trained elsewhere. What stands in for that here is a
warm-up in which the vision stacks regress where things are and what the expert would do; without it, cloning never
learns to look, and so the regression goes on beside it. Cloning sees many drawer demonstrations and few of pick-can: a
base with something to learn and something to forget. It is fed each action's tokens disturbed by a few bins, because
that is what a sampling policy feeds itself: cloned with exact tokens it loses its way at the first neighbouring bin.
Last come pick-can demonstrations and attempts of a hasty teacher, side by side. A base that fails for want of skill
fails at the same starts again and again, and success is too rare a signal to teach it skill in some thousand episodes;
one that has learned from both succeeds or fails from the same start, and REINFORCE chooses.
Stages are kept in the output folder, so that a killed run goes on with the last finished one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional

from vla_razor.config import compose, scenes
from vla_razor.policies import Decisions, Observations, Policy, scripted_google
from vla_razor.policies.motion import DOWN, PITCHED
from vla_razor.policies.openvla.policy import PrismaticPolicy
from vla_razor.policies.openvla.prismatic import PrismaticVLA
from vla_razor.policies.openvla.tiny import make_tiny
from vla_razor.policies.scripted import Corrected, ScriptedExpert
from vla_razor.policies.scripted_panda import (
    CLOSED,
    GRASP,
    HOVER,
    OPEN,
    ROTATION,
    SHUT,
    TRANSLATION,
    action,
    funnel,
    lift,
)
from vla_razor.rollouts.environments import make_vector_env
from vla_razor.rollouts.rollout import Episode, rollout
from vla_razor.rollouts.starts import random_starts
from vla_razor.statistics import Rate, wilson
from vla_razor.training.algorithms.supervised import jittered, shifted

KEY = "vla_razor_panda"
LIMITS = np.array([TRANSLATION] * 3 + [ROTATION] * 3 + [1.0])
OTHERS = {"vla_razor_google_robot": [scripted_google.TRANSLATION] * 3 + [scripted_google.ROTATION] * 3 + [1.0]}
"""The limits of robots that it has never seen, so that it can be trained to move them."""
DRAWERS = [f"{verb}_{drawer}_drawer" for verb in ("open", "close") for drawer in ("top", "middle", "bottom")]
NAMES = [*(task.replace("_", " ") for task in DRAWERS), "pick coke can"]
CAN = len(NAMES) - 1
REACH, WIDTH = 0.1, 0.04  # metres: the scales of the regressed positions and of the gripper's
SHIFT = 2  # pixels
HELD_OUT = 20  # every so many episodes one is not learned from, and shows how well the target is located
console = Console()


@dataclass
class Frames:
    """N observations: images uint8 [N, H, W, 3], instructions by index, and of each the expert's action [7], the target
    seen from the gripper [3] and the gripper joint's position: labels [N, 11]. `episode` tells those of one from
    another, `success` which ended well.
    """

    images: np.ndarray
    instruction: np.ndarray
    labels: np.ndarray
    episode: np.ndarray
    success: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def of(self, keep: np.ndarray) -> Frames:
        return Frames(*(column[keep] for column in vars(self).values()))

    def and_those(self, other: Frames) -> Frames:
        after = self.episode.max() + 1 - other.episode.min()
        columns = zip(vars(self).items(), vars(other).values(), strict=True)
        return Frames(*(np.concatenate([a, b + after if name == "episode" else b]) for (name, a), b in columns))


def hasty(info: dict[str, Any]) -> np.ndarray:
    """How a hasty teacher picks the can: it closes its fingers on the way down, wherever they are, and lifts whatever
    they hold.
    """
    tcp, can = info["tcp_pose"], info["target_pose"]
    gap = can[:3] + np.array([0.0, 0.0, GRASP]) - tcp[:3]
    if info["is_grasped"] or info["gripper_position"] < SHUT:
        return action([0, 0, lift(tcp)], np.zeros(3), CLOSED)
    aside = np.linalg.norm(gap[:2])
    early = aside < 0.035 and -gap[2] < 0.10
    return action(gap + np.array([0.0, 0.0, funnel(aside, most=HOVER)]), np.zeros(3), CLOSED if early else OPEN)


class Privileged:
    """A demonstrator whose labels also hold where the target is, seen from the gripper, and how far the gripper is
    open, in metres.
    """

    def __init__(self, demonstrator: ScriptedExpert | Corrected) -> None:
        self.demonstrator, self.name = demonstrator, demonstrator.name

    def act(
        self,
        observations: Observations,
        generators: Sequence[np.random.Generator],
        memories: Any = None,
    ) -> Decisions:
        decisions, infos = self.demonstrator.act(observations, generators, memories), observations.infos
        offsets = np.stack([info["target_pose"][:3] - info["tcp_pose"][:3] for info in infos])
        widths = np.array([[info["gripper_position"]] for info in infos])
        columns = np.asarray(decisions.labels), offsets, widths
        return decisions._replace(labels=np.concatenate(columns, axis=1).astype(np.float32))


def progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    )


def kept(path: Path, make: Callable[[], Frames]) -> Frames:
    """The frames in `path`, made and written (aside, then renamed) where it does not exist."""
    if not path.is_file():
        aside = path.with_suffix(".partial.npz")
        np.savez(aside, **vars(make()))
        aside.rename(path)
    return Frames(**np.load(path))


def play(policy: Policy, drawers: int, cans: int, seed: int, label: str, without: Sequence[str]) -> Frames:
    """So many episodes of each drawer task but those `without`, and of the can."""
    episodes: list[Episode] = []
    for scene in scenes(compose("eval", ["env=all"]).env):
        count = cans if scene.name == "pick_can" else drawers
        if not count:
            continue
        starts = random_starts([task for task in scene.tasks if task not in without], count, seed)
        with closing(make_vector_env(scene, 48, 2, "cpu")) as envs, progress() as bar:
            task = bar.add_task(f"{label}: {scene.name}", total=len(starts))
            done, timing = rollout(
                envs,
                policy,
                starts,
                hold=scene.hold + 1,
                seed=seed,
                progress=lambda _, bar=bar, task=task: bar.advance(task),
            )
        console.print(
            f"{label}, {scene.name}: {sum(e.success_at_end for e in done)} of {len(done)}, "
            f"{timing.steps_per_second:.0f} steps/s"
        )
        episodes += [episode for episode in done if not episode.lost]
    return Frames(
        images=np.concatenate([e.images for e in episodes]),
        instruction=np.concatenate([np.full(e.length, NAMES.index(e.instruction)) for e in episodes]),
        labels=np.concatenate([np.asarray(e.labels) for e in episodes]),
        episode=np.concatenate([np.full(e.length, index) for index, e in enumerate(episodes)]),
        success=np.concatenate([np.full(e.length, e.success_at_end) for e in episodes]),
    )


class Looking(nn.Module):
    """Regresses, from the projected patches and the instruction, what `Frames.labels` hold: only while the base is
    made.
    """

    def __init__(self, model: PrismaticVLA) -> None:
        super().__init__()
        patches = model.vision_backbone.num_patches * model.config.text["hidden_size"]
        self.layers = nn.Sequential(nn.Linear(patches + len(NAMES), 256), nn.GELU(), nn.Linear(256, 11))

    def forward(self, patches: Tensor, instruction: Tensor) -> Tensor:
        asked = functional.one_hot(instruction, len(NAMES)).float()
        return self.layers(torch.cat([patches.flatten(1), asked], dim=1))

    def loss(self, patches: Tensor, frames: Frames, rows: np.ndarray) -> Tensor:
        scales = np.concatenate([LIMITS, [REACH] * 3, [WIDTH]])
        targets = torch.tensor(frames.labels[rows] / scales, dtype=torch.float32)
        return functional.smooth_l1_loss(self(patches, torch.from_numpy(frames.instruction[rows])), targets, beta=0.02)


def pixels_of(model: PrismaticVLA, images: np.ndarray, generator: torch.Generator | None) -> Tensor:
    """Pixels of images, each shifted by up to `SHIFT` pixels where there is a generator."""
    if generator is not None:
        images = shifted(images, torch.randint(-SHIFT, SHIFT + 1, (len(images), 2), generator=generator))
    return model.processor.pixel_values(images)


def batches(count: int, size: int, generator: torch.Generator) -> Iterator[np.ndarray]:
    """Index batches without end, without replacement within an epoch."""
    order = np.zeros(0, int)
    while True:
        while len(order) < size:
            order = np.concatenate([order, torch.randperm(count, generator=generator).numpy()])
        yield order[:size]
        order = order[size:]


def optimize(
    parameters: list[nn.Parameter],
    rate: float,
    steps: int,
    loss_of: Callable[[], Tensor],
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
        for step in range(steps):
            loss = loss_of()
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


def warm_up(
    model: PrismaticVLA, looking: Looking, frames: Frames, arguments: argparse.Namespace, generator: torch.Generator
) -> None:
    """Regress the target's place, the gripper's width and the expert's action from the projected patches."""
    rows_of = batches(len(frames), arguments.batch_size, generator)

    def loss() -> Tensor:
        rows = next(rows_of)
        patches = model.projector(model.vision_backbone(pixels_of(model, frames.images[rows], generator)))
        return looking.loss(patches, frames, rows)

    seen = [*model.vision_backbone.parameters(), *model.projector.parameters(), *looking.parameters()]
    optimize(seen, arguments.warm_up_rate, arguments.warm_up_steps, loss, "warm-up")


def clone(
    model: PrismaticVLA,
    looking: Looking,
    frames: Frames,
    others: Frames,
    steps: int,
    arguments: argparse.Namespace,
    generator: torch.Generator,
) -> None:
    """Cross-entropy on the action tokens, smoothed over neighbouring bins, given tokens disturbed by some bins; beside
    it the regression, which also sees the `others`. The weights kept are a moving average.
    """
    prompts, first = model.processor.prompt_ids(NAMES), model.config.first_action_id
    tokens = model.tokenize(frames.labels[:, :7], KEY)
    bins = torch.arange(256)
    average = {name: value.detach().clone() for name, value in model.named_parameters()}
    rows_of = batches(len(frames), arguments.batch_size, generator)
    others_of = batches(len(others), arguments.batch_size // 2, generator) if len(others) else None
    patches: list[Tensor] = []
    watched = model.projector.register_forward_hook(lambda *call: patches.append(call[-1]))

    def loss() -> Tensor:
        rows = next(rows_of)
        chosen = tokens[rows] - first
        fed = jittered(tokens[rows], model.action_ids, arguments.jitter, generator)
        pixels = pixels_of(model, frames.images[rows], generator)
        patches.clear()
        logits = model.action_logits(pixels, [prompts[i] for i in frames.instruction[rows]], fed)
        targets = torch.softmax(-0.5 * ((bins - chosen[..., None]) / arguments.smoothing) ** 2, dim=-1)
        seen = looking.loss(patches[0], frames, rows)
        if others_of:
            rows = next(others_of)
            model.projector(model.vision_backbone(pixels_of(model, others.images[rows], generator)))
            seen = seen + looking.loss(patches[1], others, rows)
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(0, 1)) + arguments.looking * seen

    def update() -> None:
        with torch.no_grad():
            for name, value in model.named_parameters():
                average[name].lerp_(value, 0.01)

    optimize([*model.parameters(), *looking.parameters()], arguments.clone_rate, steps, loss, "cloning", update)
    watched.remove()
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(average[name])


class Located(NamedTuple):
    """The median distance in millimetres between where targets are, seen from the gripper, and where the regression
    sees them: across the direction in which the expert approaches, which is where it must be aligned, and in all.
    """

    across: float
    whole: float

    def __str__(self) -> str:
        return f"{self.across:.1f} mm ({self.whole:.1f} mm)"


@torch.no_grad()
def located(model: PrismaticVLA, looking: Looking, frames: Frames) -> dict[str, Located]:
    """How well the can and the handles are located within 10 cm of the gripper."""
    near = np.linalg.norm(frames.labels[:, 7:10], axis=1) < REACH
    found = {}
    for name, asked, approach in (
        ("can", frames.instruction == CAN, DOWN),
        ("handle", frames.instruction != CAN, PITCHED),
    ):
        own = frames.of(near & asked)
        patches = model.projector(model.vision_backbone(pixels_of(model, own.images, None)))
        seen = looking(patches, torch.from_numpy(own.instruction))[:, 7:10].numpy() * REACH
        wrong = (seen - own.labels[:, 7:10]) * 1000
        across = wrong - (wrong @ approach)[:, None] * approach
        found[name] = Located(*(float(np.median(np.linalg.norm(each, axis=1))) for each in (across, wrong)))
    return found


def evaluate(model: PrismaticVLA, episodes: int, seed: int, greedy: bool) -> dict[str, Rate]:
    """Success of every task at the policy's own temperature, or greedily, with Wilson intervals."""
    results: dict[str, Rate] = {}
    for scene in scenes(compose("eval", ["env=all"]).env):
        starts = random_starts(scene.tasks, episodes, seed)
        with closing(make_vector_env(scene, 48, 2, "cpu")) as envs:
            done, _ = rollout(envs, PrismaticPolicy(model, KEY, greedy=greedy), starts, hold=scene.hold, seed=seed)
        for task in scene.tasks:
            ours = [episode for episode in done if episode.start.task == task]
            results[task] = wilson(sum(e.success_once for e in ours), len(ours))
    return results


CARD = """---
license: apache-2.0
pipeline_tag: robotics
---
# tiny: the embedded base policy of vla-razor, version 2

OpenVLA's architecture ({parameters:,} parameters: two fused vision transformers of 96 channels on 64 x 64 images, a
three-layer Llama decoder of 128 channels, seven action tokens of 256 bins), trained from nothing on simulated
demonstrations. It opens and closes drawers well and picks a can sometimes: something to forget, and something to learn.

- Made by `scripts/make_tiny_base.py` (seed {seed}): {drawer_episodes} scripted demonstrations of each of {drawers}
  and {can_demonstrations} of pick-can (upright can), in the style `direct`, disturbed in {noise:.0%} of their
  steps and labelled with the undisturbed action. A warm-up of {warm_up_steps} steps regresses the target's place and
  the expert's action (it also sees {can_episodes} pick-can episodes); {clone_steps} steps of cloning follow, and
  {rounds} rounds of corrections ({correction_steps} steps on {correction_episodes} episodes of each drawer task and
  {can_corrections} of the can, in which the policy acts and the expert says what it would do).
- Last come {mixed_steps} steps on all of this with {mixed_demonstrations} demonstrations of the can and
  {hasty_episodes} attempts of a hasty teacher, who closes the fingers too early and does not look at what they hold:
  data of mixed quality, as robots' data sets are. The base knows how to pick the can, and now and then does something
  else from the same start: what reinforcement learning can choose from, and why it picks the can more often greedily.
- The tokens that are fed back while cloning are disturbed by {jitter:g} bins (standard deviation), the targets smoothed
  over {smoothing:g}. It stands for nothing but itself: no real robot should run it.
- Temperature {temperature}: rollouts, likelihoods and divergences all use it.
- Robot: the Panda of `vla_razor/PickCan-v2` and `vla_razor/Drawer-v1`; action statistics under the key `{key}`.
- From its vision the can is located to {can} and a handle to {handle}: the median on held-out episodes, within 10 cm of
  the gripper, across the direction of approach, where the expert's tolerance is 12 mm (and in all three dimensions).

Success before the horizon from random starts (Wilson 95%), at the policy's own temperature and greedily:

| task | sampled | rate | greedy | rate |
|---|---|---|---|---|
{table}
"""


def card(
    model: PrismaticVLA, sampled: dict[str, Rate], greedy: dict[str, Rate], seen: dict[str, Located], arguments: Any
) -> str:
    def cells(rate: Rate) -> str:
        counts = f"{rate['successes']} of {rate['episodes']}"
        return f"{counts} | {rate['rate']:.2f} [{rate['low']:.2f}, {rate['high']:.2f}]"

    return CARD.format(
        parameters=sum(p.numel() for p in model.parameters()),
        key=KEY,
        table="\n".join(f"| {task} | {cells(sampled[task])} | {cells(greedy[task])} |" for task in sampled),
        drawers=f"the drawer tasks but {', '.join(arguments.without)}" if arguments.without else "the six drawer tasks",
        **seen,
        **vars(arguments),
    )


def finish(model: PrismaticVLA, looking: Looking, test: Frames, arguments: argparse.Namespace) -> None:
    """Writes the checkpoint and, from an evaluation, its card."""
    tiny = arguments.out / "tiny"
    if not tiny.is_dir():
        model.save_pretrained(tiny)
    sampled, greedy = (evaluate(model.eval(), arguments.episodes, 1, way) for way in (False, True))
    (tiny / "README.md").write_text(card(model, sampled, greedy, located(model, looking, test), arguments))
    for task in sampled:
        both = "  ".join(f"{r['successes']}/{r['episodes']}" for r in (sampled[task], greedy[task]))
        console.print(f"{task:22} sampled and greedy {both}")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=str(__doc__).splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the stages; the checkpoint is its `tiny`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--drawer-episodes", type=int, default=160, help="demonstrations of each drawer task")
    parser.add_argument(
        "--without", nargs="+", choices=DRAWERS, default=[], help="drawer tasks it is never shown, to be learned later"
    )
    parser.add_argument("--can-episodes", type=int, default=900, help="pick-can episodes seen by the warm-up")
    parser.add_argument("--can-demonstrations", type=int, default=24, help="pick-can episodes that are cloned")
    parser.add_argument("--noise", type=float, default=0.5, help="share of disturbed steps in the demonstrations")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--warm-up-steps", type=int, default=6000)
    parser.add_argument("--warm-up-rate", type=float, default=1e-3)
    parser.add_argument("--clone-steps", type=int, default=2300)
    parser.add_argument("--clone-rate", type=float, default=1e-3)
    parser.add_argument("--smoothing", type=float, default=1.5, help="standard deviation of the targets, in bins")
    parser.add_argument("--jitter", type=float, default=2.0, help="standard deviation of the tokens fed back, in bins")
    parser.add_argument("--looking", type=float, default=1.0, help="weight of the regression beside cloning")
    parser.add_argument("--rounds", type=int, default=2, help="of corrections")
    parser.add_argument("--correction-episodes", type=int, default=48, help="of each drawer task, in a round")
    parser.add_argument("--can-corrections", type=int, default=4, help="of the can, in a round")
    parser.add_argument("--correction-steps", type=int, default=800, help="of cloning, in a round")
    parser.add_argument("--mixed-demonstrations", type=int, default=300, help="pick-can episodes cloned at the end")
    parser.add_argument("--hasty-episodes", type=int, default=400, help="of a hasty teacher, cloned beside them")
    parser.add_argument("--mixed-steps", type=int, default=900)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--episodes", type=int, default=100, help="evaluation episodes of each task")
    return parser.parse_args()


def main() -> None:
    arguments = options()
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(arguments.seed)

    def demonstrate() -> Frames:
        expert, seed = Privileged(ScriptedExpert(arguments.noise)), 10_000 + arguments.seed
        counts = arguments.drawer_episodes, arguments.can_episodes
        return play(expert, *counts, seed, "demonstrations", arguments.without)

    frames = kept(out / "demonstrations.npz", demonstrate)
    held_out = frames.episode % HELD_OUT == 0
    test, frames = frames.of(held_out), frames.of(~held_out)
    is_can = frames.instruction == CAN

    def of_cans(count: int) -> np.ndarray:
        """Which frames are of the first so many episodes that picked the can."""
        return np.isin(frames.episode, np.unique(frames.episode[is_can & frames.success])[:count])

    cloned = frames.success & ~is_can | of_cans(arguments.can_demonstrations)
    shown, others = frames.of(cloned), frames.of(~cloned)
    console.print(f"{len(frames)} frames, {len(shown)} of them cloned")

    statistics = {
        key: {"action": {"q01": [-x for x in limits], "q99": limits, "mask": [True] * 6 + [False]}}
        for key, limits in {KEY: LIMITS.tolist(), **OTHERS}.items()
    }
    generator = torch.Generator().manual_seed(arguments.seed)
    model = make_tiny(NAMES, generator, norm_stats=statistics, temperature=arguments.temperature)
    looking = Looking(model)

    def stage(name: str, train: Callable[[torch.Generator], None]) -> None:
        """Trains model and regression, or reads what an earlier run of the script has left of this stage."""
        file = out / f"{name}.pt"
        if not file.is_file():
            train(torch.Generator().manual_seed(arguments.seed))
            aside = file.with_suffix(".partial")
            torch.save([model.state_dict(), looking.state_dict()], aside)
            aside.rename(file)
        for module, weights in zip((model, looking), torch.load(file, weights_only=True), strict=True):
            module.load_state_dict(weights)
        console.print(
            f"{name}: {', '.join(f'{what} to {seen}' for what, seen in located(model, looking, test).items())}"
        )

    stage("warmed", lambda draws: warm_up(model, looking, frames, arguments, draws))
    stage("cloned", lambda draws: clone(model, looking, shown, others, arguments.clone_steps, arguments, draws))
    for number in range(1, arguments.rounds + 1):

        def correct(number: int = number) -> Frames:
            acting = Privileged(Corrected(PrismaticPolicy(model, KEY), ScriptedExpert(), guidance=0.1))
            counts = arguments.correction_episodes, arguments.can_corrections
            seed = 20_000 + 100 * number + arguments.seed
            return play(acting, *counts, seed, f"corrections {number}", arguments.without)

        shown = shown.and_those(kept(out / f"corrections_{number}.npz", correct))

        def improve(draws: torch.Generator, known: Frames = shown) -> None:
            clone(model, looking, known, others, arguments.correction_steps, arguments, draws)

        stage(f"corrected_{number}", improve)

    def hurry() -> Frames:
        expert = ScriptedExpert(arguments.noise)
        expert.skills = replace(expert.skills, by_verb={"pick": hasty})
        return play(Privileged(expert), 0, arguments.hasty_episodes, 30_000 + arguments.seed, "hasty", [])

    mixed = shown.and_those(frames.of(of_cans(arguments.mixed_demonstrations) & ~cloned))
    mixed = mixed.and_those(kept(out / "hasty.npz", hurry))
    stage("mixed", lambda draws: clone(model, looking, mixed, others, arguments.mixed_steps, arguments, draws))
    finish(model, looking, test, arguments)


if __name__ == "__main__":
    main()
