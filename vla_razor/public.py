"""What a user's script needs: `from vla_razor import load_policy, make_env, make_vec, rollout, evaluate, forward_kl,
Demonstrations, read_results`, and `random_starts` and `grid_starts`, which say where episodes begin.

Scenes are called as on the command line (pick_can, drawer, open_top_drawer ...). Images are uint8 arrays or tensors.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from jaxtyping import Float, UInt8
from omegaconf import DictConfig, OmegaConf

from vla_razor import __all__ as __all__
from vla_razor.config import compose, scenes
from vla_razor.errors import UserError, nearest
from vla_razor.policies import Observations, Policy
from vla_razor.policies.opening import open_policy
from vla_razor.policies.trainable import Trainable, base_of
from vla_razor.rollouts import environments, evaluation, probe_set
from vla_razor.rollouts import rollout as rollouts
from vla_razor.rollouts.demonstrations import Demonstrations as Demonstrations
from vla_razor.rollouts.environments import VectorEnv
from vla_razor.rollouts.rollout import Episode
from vla_razor.rollouts.starts import Start, random_starts
from vla_razor.rollouts.starts import grid_starts as _grid_starts
from vla_razor.statistics import success_summary
from vla_razor.study import table
from vla_razor.study.table import Study

SETTINGS = ("dtype", "greedy", "unnorm_key", "temperature", "prompt", "oft", "embeddings")
Images = UInt8[np.ndarray, "N H W 3"] | UInt8[torch.Tensor, "N H W 3"]


def load_policy(spec: str | Path, *, robot: str = "panda", device: str = "auto", **settings: Any) -> Policy:
    """A policy that acts for `robot` (panda, google_robot, simpler_env).

    `spec` is "tiny" (the embedded base), "scripted", a run folder, a checkpoint folder, a Hub id, RT-1's folder,
    `module:factory`, or the name of an entry point of the group `vla_razor.policies`. `settings` are keys of
    `vla-razor eval`: dtype, greedy, unnorm_key, temperature, prompt, oft, embeddings.

    Raises `UserError` for everything that is not such a thing.

    >>> policy = load_policy("tiny", device="cpu")
    >>> policy.name
    'tiny'
    """
    config = compose("eval", [f"robot={robot}", f"device={device}"])
    for name, value in settings.items():
        if name not in SETTINGS:
            raise UserError(f"load_policy has no {name}. {nearest(name, SETTINGS)}")
        config[name] = str(value) if isinstance(value, Path) else value
    return open_policy(str(spec), config)


def make_env(scene: str, *, robot: str = "panda", **make: Any) -> gymnasium.Env[Any, Any]:
    """One environment of a scene, or of a Gymnasium id (which holds a slash); `make` are its keyword arguments.

    Observations are {"image": uint8 [H, W, 3], "proprioception": float32 [P]}; with `cameras`, a list of names, `image`
    is what the first of them sees, and what the others see has their names. Actions are float32 [7]: metres, axis-angle
    radians, gripper closedness. Raises `UserError` for a scene or an id that is not known, or of several environments.

    >>> env = make_env("pick_can", orientation="upright")
    >>> observation, info = env.reset(seed=0)
    >>> observation["image"].shape, info["instruction"]
    ((64, 64, 3), 'pick coke can')
    """
    if "/" in scene:
        environments.env_spec(scene)
        return gymnasium.make(scene, **make)
    found = _scene(scene, robot)
    # An environment that serves several tasks is told the one that the scene has, which its reset options would name.
    (start,) = random_starts(list(found.tasks)[:1], 1, 0)
    own = {str(key): str(value) for key, value in start.options.items()}
    return gymnasium.make(found.id, **{**_plain(found.make), **own, **make})


def make_vec(
    scene: str,
    num_envs: int = 8,
    *,
    num_workers: int = 2,
    robot: str = "panda",
    device: str = "cpu",
    **make: Any,
) -> VectorEnv:
    """`num_envs` environments of a scene, in `num_workers` processes or, with device="cuda", in one simulation on the
    GPU. Close it when done. Raises `UserError` as `make_env` does.

    >>> envs = make_vec("pick_can", 2, num_workers=1)
    >>> envs.num_envs
    2
    >>> envs.close()
    """
    found = _scene(scene, robot)
    found.make = {**_plain(found.make), **make}
    return environments.make_vector_env(found, num_envs, num_workers, device)


def grid_starts(scene: str, grid: str = "10x10", per_point: int = 1, seed: int = 0) -> list[Start]:
    """`per_point` episodes from each point of a grid over the scene's start area, whose ends are metres.

    >>> len(grid_starts("pick_can", "3x2", per_point=4))
    24
    """
    return _grid_starts(_scene(scene, "panda"), grid, per_point, seed)


def rollout(
    envs: VectorEnv, policy: Policy, starts: Sequence[Start], *, hold: int | None = None, seed: int = 0
) -> list[Episode]:
    """An episode from each start, in their order, the policy deciding about all environments at once.

    Episodes end at their horizon or, with `hold`, once success has lasted so many control steps. `seed` is that of the
    policy's own random numbers: a start and the seed give the same episode whatever is played beside it. Raises
    `UserError` where policy and environments do not fit.

    >>> envs, policy = make_vec("pick_can", 2, num_workers=1), load_policy("scripted")
    >>> episode, other = rollout(envs, policy, random_starts(["pick_can"], 2, seed=0), hold=1)
    >>> episode.success_once, episode.images.shape[1:], episode.actions.shape[1:]
    (True, (64, 64, 3), (7,))
    >>> envs.close()
    """
    return rollouts.rollout(envs, policy, starts, hold=hold, seed=seed)[0]


def evaluate(
    policy: Policy,
    scene: str = "pick_can",
    *,
    episodes: int = 100,
    seed: int = 0,
    robot: str = "panda",
    num_envs: int | None = None,
    num_workers: int = 2,
    device: str = "auto",
) -> dict[str, Any]:
    """How often any policy succeeds, from `episodes` uniformly random starts of each of the scene's tasks.

    By task, `success_once` (at any step) and `success_at_end`, each with successes, episodes, starts, rate and its 95%
    interval, low and high. Policies that are evaluated with the same seed meet the same starts. `num_envs` episodes are
    played together: by default 48, or as many as the suite says. Raises `UserError` as `rollout` does.

    >>> found = evaluate(load_policy("scripted"), "pick_can", episodes=2, num_envs=2)
    >>> found["pick_can"]["success_once"]["successes"]
    2
    """
    composed = compose("eval", [f"env={scene}", f"robot={robot}"])
    together = composed.num_envs if num_envs is None else num_envs
    settings = {"episodes": episodes, "seed": seed, "num_envs": together, "num_workers": num_workers, "device": device}
    # A suite may say that fewer environments fit together, as each of LIBERO's takes 0.7 GB.
    played = evaluation.evaluate_policy(policy, scenes(composed.env), **settings)
    return {task: success_summary(found) for task, found in played.items()}


def forward_kl(
    base: Policy | None,
    tuned: Policy,
    images: Images | Mapping[str, Images],
    instructions: Sequence[str],
    *,
    proprioception: Float[np.ndarray, "N P"] | Float[torch.Tensor, "N P"] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Forward KL(base || tuned) on observations of one's own, without a simulator, in nats: `per_action` (a decision's
    sum over its tokens), `per_token`, their parts `sharpening` and `displacement`, and the alternatives of the paper's
    Section 6, as `probe_set.measure` says. The images are those of one camera, or of several by their names.

    The inner KL is summed over the whole support of each token, along tokens that the base draws (`seed`). Both
    policies are checkpoints that `load_policy` opened; base None: that below the tuned one's adapter. Raises
    `UserError` for a policy without such a distribution, or another action vocabulary.

    >>> images = np.zeros((2, 64, 64, 3), np.uint8)
    >>> base, hot = load_policy("tiny"), load_policy("tiny", temperature=2.0)
    >>> found = forward_kl(base, hot, images, ["pick coke can"] * 2)
    >>> found["per_action"] > 0, round(found["temperature"], 1) > 1
    (True, True)
    """
    for one in (tuned, base):
        if one is not None and not isinstance(one, Trainable):
            raise UserError(f"forward KL needs two distributions: {one.name} only acts.")
    assert isinstance(tuned, Trainable)
    assert base is None or isinstance(base, Trainable)
    pictures = images if isinstance(images, Mapping) else {"camera": images}
    felt = None if proprioception is None else _array(proprioception).astype(np.float32)
    seen = Observations({camera: _array(part) for camera, part in pictures.items()}, list(instructions), felt)
    named = tuned.name

    def nowhere() -> Trainable:
        raise UserError(f"base=None is for an adapter, the base being the model below it; {named} is none.")

    with base_of(tuned, base, nowhere) as before:
        probe = probe_set.of_observations(before, seen, seed)
    return probe_set.measure(tuned, probe)


def read_results(*folders: str | Path) -> Study:
    """What the results tables of demos, sweeps or `vla-razor mnist` hold: `results` (a tuned policy each: method, seed,
    learning rate, new and prior success, forgotten, measures), `bases` and `left_out`. Raises `UserError` where a
    folder holds no table.

    >>> read_results("runs/none-here")
    Traceback (most recent call last):
    vla_razor.errors.UserError: runs/none-here: there is no results table; expected a folder that ...
    """
    return table.read([Path(folder) for folder in folders])


def _scene(name: str, robot: str) -> DictConfig:
    several = scenes(compose("eval", [f"env={name}", f"robot={robot}"]).env)
    if len(several) != 1:
        raise UserError(f"{name} is several scenes; expected one, such as pick_can or drawer.")
    return several[0]


def _array(values: Any) -> np.ndarray:
    return values.cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def _plain(make: Any) -> dict[str, Any]:
    found: Any = OmegaConf.to_container(make)
    return found
