"""The probe set: what a base policy sees and does on the new task, kept so that any policy's drift is one forward pass.

Forward KL is E_{x ~ task} E_{y ~ base} sum_t KL(base(. | x, y_<t) || tuned(. | x, y_<t)). The states x are those the
base visits on the new task's grid of start positions, up to its first success; y are the base's own action tokens;
the inner KL is summed exactly over the 256 action ids, renormalised, which is what both policies sample from. Nothing
of it needs the simulator again.

The same images under the instructions of other tasks, with what the base does there, tell how far a policy moved where
it was not asked to: its spillover (docs/study.md). Of these tasks nothing but their instructions is needed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from jaxtyping import Float, Float32, Int64, UInt8
from rich import get_console
from safetensors.torch import load_file, save
from torch import Tensor

from vla_razor import ranks
from vla_razor.core import divergence, similarity
from vla_razor.errors import RunFailed, UserError
from vla_razor.files import atomic_folder, cache_root, check_folder, full_disk_reported, write_json
from vla_razor.policies import Observations
from vla_razor.policies.trainable import Trainable
from vla_razor.rollouts.environments import (
    VectorEnv,
    cameras_for,
    described,
    hold_of,
    make_vector_env,
)
from vla_razor.rollouts.rollout import Episode, rollout
from vla_razor.rollouts.starts import episode_seed, grid_starts

SCHEMA = 3
GRID = "10x10"
"""Start positions of the base's episodes, one each (the grid of the paper's Appendix B.2)."""
REMEDY = "set VLA_RAZOR_CACHE to a folder that can be written"


Bar = Callable[[str, int], AbstractContextManager[Callable[..., None]]]
"""`vla_razor.progress.progress`: a title and a total give a bar, and the callable that advances it."""


@dataclass(frozen=True)
class Origin:
    """What a probe set was made from, all that `collect` reads: two with the same origin are the same."""

    base: str
    """Fingerprint of the base policy: its weights, its temperature, how it is prompted, its action statistics."""
    task: str
    environment: str
    """Gymnasium id, tasks, keyword arguments, grid, hold, cameras, where it is simulated, and a hash of its sources, as
    JSON."""
    unnorm_key: str | None
    """Whose action statistics the base used."""
    temperature: float
    seed: int
    states: int
    """How many states were asked for; fewer are kept where the base visited fewer."""

    @property
    def key(self) -> str:
        """Names the cache folder."""
        return hashlib.sha256(json.dumps([SCHEMA, GRID, asdict(self)]).encode()).hexdigest()[:20]


@dataclass
class ProbeSet:
    """`N` states with the base's `A` tokens and log-probabilities over the ids they could have been (nats) at each: for
    OpenVLA the 256 action ids.

    `observations` are without their instructions, in whose place `input_ids` are the prompts. `time` counts control
    steps from an episode's start. `base_hidden` are the base's activations where it predicts each token; None where it
    does not tell them.
    """

    observations: Observations
    input_ids: list[list[int]]
    tokens: Int64[Tensor, "N A"]
    base_log_probs: Float32[Tensor, "N A 256"]
    time: Int64[Tensor, " N"]
    origin: Origin
    base_hidden: Float[Tensor, "N A H"] | None = None
    elsewhere: ProbeSet | None = None
    """The same images under other tasks' instructions; not kept in the cache, but made anew from the base."""

    def __len__(self) -> int:
        return len(self.observations)

    @property
    def images(self) -> UInt8[np.ndarray, "N H W 3"]:
        """The first camera's."""
        return self.observations.image()


def obtain(
    base: Trainable,
    env_config: Mapping[str, Any],
    *,
    states: int,
    seed: int = 0,
    other_instructions: Sequence[str] = (),
    num_envs: int = 48,
    num_workers: int = 2,
    envs: VectorEnv | None = None,
    progress: Bar | None = None,
) -> ProbeSet:
    """The probe set of `base` on `env_config`'s task: from the cache, or collected and kept there.

    With `other_instructions`, those of other tasks that the base knows, it is probed `elsewhere` too. Environments are
    made only where something must be collected and none are given as `envs`; `progress` makes the bar to show then. Of
    several runs that need the same set one collects it, and the others wait. The ranks of one run collect it together;
    rank 0 keeps it, and reads it for all.
    """
    origin = origin_of(base, env_config, states=states, seed=seed)
    folder = cache_folder() / origin.key
    kept = folder / "probe.json"
    with ExitStack() as stack:
        if ranks.first() and not kept.is_file():
            stack.enter_context(_alone(folder))
        probe = ranks.from_first(lambda: load_from(folder) if kept.is_file() else None)
        if probe is None:
            if envs is None:
                shown = num_envs, num_workers, base.device, cameras_for(env_config, base)
                envs = stack.enter_context(closing(make_vector_env(env_config, *shown)))
            probe = collect(base, envs, env_config, origin, progress=progress)
            if ranks.first():
                save_to(folder, probe)
    if other_instructions:
        probe.elsewhere = under(base, probe, other_instructions)
    return probe


def origin_of(base: Trainable, env_config: Mapping[str, Any], *, states: int, seed: int) -> Origin:
    """What a probe set of these would be made from."""
    return Origin(
        base=base.fingerprint(),
        task=str(env_config["name"]),
        environment=json.dumps(described(env_config, base), sort_keys=True),
        unnorm_key=base.unnorm_key,
        temperature=base.temperature,
        seed=seed,
        states=states,
    )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds the lock of a probe set, which is to be kept in `folder`; it dies with the process. Says so where another
    process has it.

    Raises UserError where the cache cannot be written.
    """
    lock = FileLock(folder.with_suffix(".lock"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        get_console().print("another process collects this probe set: waiting for it", highlight=False)
        lock.acquire()
    except OSError as error:
        raise UserError(f"cannot keep the probe set in {folder}: {error.strerror}; {REMEDY}.") from error
    try:
        yield
    finally:
        lock.release()


def collect(
    base: Trainable,
    envs: VectorEnv,
    env_config: Mapping[str, Any],
    origin: Origin,
    *,
    progress: Bar | None = None,
) -> ProbeSet:
    """Run the base from every point of the grid and keep `origin.states` of the states it visits, drawn without return.

    Raises RunFailed where the simulation died in every episode.
    """
    generator = torch.Generator().manual_seed(episode_seed("probe states", origin.seed))
    noise = episode_seed("probe episodes", origin.seed)
    starts = grid_starts(env_config, GRID, 1, origin.seed)
    own = ranks.share(starts)
    with progress("probe set", len(own)) if progress else nullcontext(_silent) as advance:
        ended, _ = rollout(envs, base, own, hold=hold_of(env_config), seed=noise, progress=lambda _: advance())
    episodes = ranks.gathered(ended, Episode.told)
    played = [episode for episode in episodes if not episode.lost]
    visited = [(episode, index) for episode in played for index in range(len(episode.decision_steps))]
    if not visited:
        raise RunFailed("the simulation died in every episode of the base policy: there are no states to probe.")
    chosen = torch.randperm(len(visited), generator=generator)[: origin.states].sort().values.tolist()
    kept = [visited[index] for index in chosen]
    here = {row: e.decided_on[index : index + 1] for row, (e, index) in enumerate(kept) if not e.elsewhere}
    found = {row: one for told in ranks.everyones(here) for row, one in told.items()}
    observations = replace(Observations.joined([found[row] for row in range(len(kept))]), instructions=[])
    tokens = torch.stack([torch.as_tensor(_tokens(episode)[index]) for episode, index in kept]).long()
    input_ids = base.prompt_ids([episode.instruction for episode, _ in kept])
    time = torch.tensor([int(episode.decision_steps[index]) for episode, index in kept])
    log_probs, hidden = action_outputs(base, observations, input_ids, tokens)
    return ProbeSet(observations, input_ids, tokens, log_probs, time, origin, hidden)


@torch.no_grad()
def of_observations(base: Trainable, observations: Observations, seed: int = 0) -> ProbeSet:
    """The probe set of a base on observations of one's own: without a simulator, and not kept."""
    images = {camera: base.seen(pictures) for camera, pictures in observations.images.items()}
    input_ids = base.prompt_ids(observations.instructions)
    seen, count = replace(observations, images=images, instructions=[]), len(observations)
    tokens = _drawn(base, seen, input_ids, torch.Generator().manual_seed(episode_seed("probe observations", seed)))
    log_probs, hidden = action_outputs(base, seen, input_ids, tokens)
    origin = Origin(base.fingerprint(), "observations", "", base.unnorm_key, base.temperature, seed, count)
    return ProbeSet(seen, input_ids, tokens, log_probs, torch.zeros(count, dtype=torch.long), origin, hidden)


@torch.no_grad()
def _drawn(
    base: Trainable,
    observations: Observations,
    input_ids: Sequence[list[int]],
    generator: torch.Generator,
    batch_size: int = 64,
) -> Int64[Tensor, "N A"]:
    """The base's own action tokens, drawn one after the other by one rank for all."""
    rows = [slice(start, start + batch_size) for start in range(0, len(observations), batch_size)]

    def draw() -> Tensor:
        parts = [base.sample(base.views(observations[r]), input_ids[r], generator) for r in rows]
        return torch.cat(parts).long().cpu()

    return ranks.from_first(draw)


@torch.no_grad()
def under(base: Trainable, probe: ProbeSet, instructions: Sequence[str], batch_size: int = 64) -> ProbeSet:
    """The probe set's images under other instructions, one after the other in turn, with the base's own actions there.

    Its own instructions are left out. Raises UserError where no other remains.
    """
    others = [prompt for prompt in base.prompt_ids(list(instructions)) if prompt not in probe.input_ids]
    if not others:
        raise UserError(f"other_instructions={list(instructions)}: none is of another task than {probe.origin.task}.")
    input_ids = [others[index % len(others)] for index in range(len(probe))]
    generator = torch.Generator().manual_seed(episode_seed("probe elsewhere", probe.origin.seed))
    tokens = _drawn(base, probe.observations, input_ids, generator, batch_size)
    log_probs, _ = action_outputs(base, probe.observations, input_ids, tokens)
    return ProbeSet(probe.observations, input_ids, tokens, log_probs, probe.time, probe.origin)


@torch.no_grad()
def action_outputs(
    policy: Trainable,
    observations: Observations,
    input_ids: Sequence[Sequence[int]],
    tokens: Int64[Tensor, "N A"],
    batch_size: int = 64,
) -> tuple[Float32[Tensor, "N A V"], Float[Tensor, "N A H"] | None]:
    """The policy's log-probabilities at each token, teacher-forced, and its activations there, if it tells them; on the
    CPU. Several ranks share the states.
    """
    log_probs: list[Tensor] = []
    activations: list[Tensor] = []
    span = ranks.span(len(observations))
    for start in range(span.start, span.stop, batch_size):
        rows = slice(start, min(start + batch_size, span.stop))
        said = policy.distribution(policy.views(observations[rows]), input_ids[rows], tokens[rows])
        log_probs.append(said.log_probs.cpu())
        if said.hidden is not None:
            activations.append(said.hidden.cpu())
    told = ranks.everyones((log_probs, activations))
    log_probs, activations = ([part for parts in column for part in parts] for column in zip(*told, strict=True))
    return torch.cat(log_probs), torch.cat(activations) if activations else None


def measure(policy: Trainable, probe: ProbeSet, *, batch_size: int = 64) -> dict[str, Any]:
    """How far a policy is from the probe set's base, on the base's states and tokens; nats.

    Returned:

    - `per_token`, `per_action`, `sharpening`, `displacement`, `states`: forward KL, the K of summary.json. An action is
      the sum over its tokens; sharpening + displacement = per_action, and displacement may be negative.
    - `temperature`: the t* that defines sharpening; below 1 the policy is sharper than its base.
    - `reverse_kl`, `total_variation`, `l2_distance`: means over tokens, at the same states.
    - `spillover`: reverse KL under the instructions of other tasks minus `reverse_kl`, a token, where the probe set has
      been put `elsewhere`. Below 0 the policy has changed most where it was taught.
    - `entropy`: of the policy's distributions, a mean over tokens; low where it has committed itself to one action.
    - `activation_l1`, `activation_l2`: how far its activations are from the base's, where the probe set has these.
    - `k1`, `k3`: sampled cross-checks of `per_action`, from the base's tokens, each with its standard error.
    - `by_position`: forward KL at each of the A tokens; `by_time`: forward KL a token at each control step.

    Raises UserError where the ids of the policy's tokens are not those of the probe set.
    """
    first = policy.support.start
    chosen = probe.tokens - first
    if chosen.min() < 0 or chosen.max() >= probe.base_log_probs.shape[-1]:
        raise UserError(f"the policy's action ids begin at {first}, those of the probe set's base elsewhere: no KL.")
    base = probe.base_log_probs
    tuned, hidden = action_outputs(policy, probe.observations, probe.input_ids, probe.tokens, batch_size)
    apart = divergence.divergences(base, tuned)
    forward = apart.forward_kl.double()
    length = forward.shape[1]
    split = divergence.sharpening(base, tuned)
    per_action = float(forward.sum(1).mean())
    return {
        "per_token": per_action / length,
        "per_action": per_action,
        "sharpening": split.sharpening * length,
        "displacement": per_action - split.sharpening * length,
        "states": len(probe),
        "temperature": split.temperature,
        "reverse_kl": float(apart.reverse_kl.mean()),
        "total_variation": float(apart.total_variation.mean()),
        "l2_distance": float(apart.l2_distance.mean()),
        "entropy": float(-torch.xlogy(tuned.exp(), tuned.exp()).sum(-1).double().mean()),
        **_activation_changes(probe.base_hidden, hidden),
        **_spillover(apart.reverse_kl, policy, probe.elsewhere, batch_size),
        "k1": _estimate(divergence.k1, base, tuned, chosen),
        "k3": _estimate(divergence.k3, base, tuned, chosen),
        "by_position": forward.mean(0).tolist(),
        "by_time": _by_time(forward.mean(1), probe.time),
    }


def cache_folder() -> Path:
    """Where probe sets are kept."""
    return cache_root() / "probe_sets"


def save_to(folder: Path, probe: ProbeSet) -> None:
    """Write probe.safetensors and probe.json, both or neither.

    Raises UserError where the folder cannot be written, RunFailed where the disk is full.
    """
    cameras, felt = list(probe.observations.images), probe.observations.proprioception
    pictures = zip(_named(cameras), probe.observations.images.values(), strict=True)
    content = save(
        {name: torch.from_numpy(images).contiguous() for name, images in pictures}
        | {
            "input_ids": torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in probe.input_ids], True, -1),
            "tokens": probe.tokens.contiguous(),
            "base_log_probs": probe.base_log_probs.contiguous(),
            "time": probe.time.contiguous(),
        }
        | ({} if felt is None else {"proprioception": torch.from_numpy(felt).contiguous()})
        | ({} if probe.base_hidden is None else {"base_hidden": probe.base_hidden.contiguous()})
    )

    def fill(aside: Path) -> None:
        (aside / "probe.safetensors").write_bytes(content)
        checksum = hashlib.sha256(content).hexdigest()
        facts = {"schema": SCHEMA, "checksum": checksum, "cameras": cameras}
        write_json(aside / "probe.json", {**facts, **asdict(probe.origin)})

    try:
        with full_disk_reported(folder):
            atomic_folder(folder, fill)
    except OSError as error:
        raise UserError(f"cannot keep the probe set in {folder}: {error.strerror}; {REMEDY}.") from error


def load_from(folder: Path) -> ProbeSet:
    """Read what `save_to` wrote. Raises UserError, naming the remedy, where it is damaged or of another version."""
    remedy = f"Delete {folder} to have the probe set collected again."
    check_folder(folder, remedy)
    try:
        facts = json.loads((folder / "probe.json").read_text())
        content = (folder / "probe.safetensors").read_bytes()
        if facts.pop("schema") != SCHEMA or hashlib.sha256(content).hexdigest() != facts.pop("checksum"):
            raise ValueError("another schema, or changed since it was written")
        cameras = facts.pop("cameras", ["camera"])
        tensors, origin = load_file(folder / "probe.safetensors"), Origin(**facts)
        input_ids = [[i for i in ids if i >= 0] for ids in tensors["input_ids"].tolist()]
        images = {camera: tensors[name].numpy() for camera, name in zip(cameras, _named(cameras), strict=True)}
        felt, log_probs = tensors.get("proprioception"), tensors["base_log_probs"]
        observations = Observations(images, proprioception=None if felt is None else felt.numpy())
        hidden = tensors.get("base_hidden")
        return ProbeSet(observations, input_ids, tensors["tokens"], log_probs, tensors["time"], origin, hidden)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"the probe set in {folder} cannot be read: {error}. {remedy}") from error


def _named(cameras: Sequence[str]) -> list[str]:
    """What the images of each camera are called in a file: `images` are the first one's, as in demonstrations."""
    return ["images", *(f"images_{camera}" for camera in cameras[1:])]


def _silent() -> None:
    """Advances no bar."""


def _tokens(episode: Episode) -> np.ndarray:
    if episode.tokens is None:
        raise UserError("a probe set needs a policy that samples action tokens.")
    return episode.tokens


def _activation_changes(base: Tensor | None, tuned: Tensor | None) -> dict[str, float]:
    if base is None or tuned is None:
        return {}
    before, after = base.flatten(0, 1), tuned.flatten(0, 1)
    changes = {"l1": similarity.activation_l1, "l2": similarity.activation_l2}
    return {f"activation_{name}": float(change(before, after)) for name, change in changes.items()}


def _spillover(
    here: Float[Tensor, "N A"], policy: Trainable, elsewhere: ProbeSet | None, batch_size: int
) -> dict[str, float]:
    if elsewhere is None:
        return {}
    tuned, _ = action_outputs(policy, elsewhere.observations, elsewhere.input_ids, elsewhere.tokens, batch_size)
    return {"spillover": float(divergence.reverse_kl(elsewhere.base_log_probs, tuned).mean() - here.mean())}


def _estimate(
    estimator: Callable[[Tensor, Tensor], Tensor],
    base: Float32[Tensor, "N A 256"],
    tuned: Float32[Tensor, "N A 256"],
    chosen: Int64[Tensor, "N A"],
) -> dict[str, float]:
    """The sampled estimate of forward KL an action, and its standard error over the states."""
    log_p, log_q = (x.gather(-1, chosen[..., None])[..., 0] for x in (base, tuned))
    samples = estimator(log_p, log_q).double().sum(1)
    error = float(samples.std() / len(samples) ** 0.5) if len(samples) > 1 else float("nan")
    return {"per_action": float(samples.mean()), "standard_error": error}


def _by_time(per_token: Float[Tensor, " N"], time: Int64[Tensor, " N"]) -> list[dict[str, Any]]:
    steps = time.unique().tolist()
    groups = [(step, per_token[time == step]) for step in steps]
    return [{"time": step, "states": len(values), "per_token": float(values.mean())} for step, values in groups]
